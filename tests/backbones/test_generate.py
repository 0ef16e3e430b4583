"""Generation: the prompt is in it, it is greedy whatever the model's own settings say, and a row's text is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from tests.backbones.plain import fresh_model, greedy, plain_greedy

INPUTS = [
    "it was good: label",
    "the text: one two three four five, bad was the text it is label",
    "is",
    "",
    "two of 2:",
]
MOST = 7


def generate(
    backbone: FrozenBackbone, rows: Sequence[EncodedRow], prompts: Tensor | None, most: int = MOST
) -> list[str]:
    batch = backbone.collate(rows)
    return backbone.generate(batch, backbone.embed(batch.input_ids), prompts, most)


def rows_of(backbone: FrozenBackbone) -> list[EncodedRow]:
    return backbone.encode(INPUTS, None, 64)


def prompts_of(backbone: FrozenBackbone, rows: int, length: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(rows, length, backbone.width, generator=torch.Generator().manual_seed(3))


def expected(
    folder: Path, backbone: FrozenBackbone, rows: Sequence[EncodedRow], prompts: Tensor | None, most: int = MOST
) -> list[str]:
    written = [
        plain_greedy(folder, row.input_ids, None if prompts is None else prompts[i], backbone.end_id, most)
        for i, row in enumerate(rows)
    ]
    return [backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]


@pytest.mark.parametrize("length", [None, 0, 4])
def test_it_is_the_greedy_continuation(backbone: FrozenBackbone, folder: Path, length: int | None) -> None:
    rows = rows_of(backbone)
    prompts = None if length is None else prompts_of(backbone, len(rows), length)
    texts = generate(backbone, rows, prompts)
    assert texts == expected(folder, backbone, rows, prompts)
    assert len(set(texts)) > 2  # the rows do differ
    assert any(texts)


@pytest.mark.parametrize("length", [None, 4])
def test_a_row_s_text_is_the_same_alone_and_in_a_batch(backbone: FrozenBackbone, length: int | None) -> None:
    rows = rows_of(backbone)
    prompts = None if length is None else prompts_of(backbone, len(rows), length)
    alone = [
        generate(backbone, [row], None if prompts is None else prompts[i : i + 1])[0] for i, row in enumerate(rows)
    ]
    assert alone == generate(backbone, rows, prompts)
    assert alone[::-1] == generate(backbone, rows[::-1], None if prompts is None else prompts.flip(0))


def test_the_prompt_is_not_dropped(backbone: FrozenBackbone) -> None:
    rows = rows_of(backbone)
    bare = generate(backbone, rows, None)
    prompted = generate(backbone, rows, prompts_of(backbone, len(rows), 6, size=3.0))
    other = generate(backbone, rows, -prompts_of(backbone, len(rows), 6, size=3.0))
    assert sum(a != b for a, b in zip(bare, prompted, strict=True)) >= 3
    assert sum(a != b for a, b in zip(other, prompted, strict=True)) >= 3


def test_every_row_has_its_own_prompt(backbone: FrozenBackbone) -> None:
    rows = [rows_of(backbone)[0]] * 4
    prompts = prompts_of(backbone, 4, 6, size=3.0)
    texts = generate(backbone, rows, prompts)
    assert len(set(texts)) > 1
    assert generate(backbone, rows, prompts.flip(0)) == texts[::-1]


def test_it_writes_no_more_than_asked(backbone: FrozenBackbone, folder: Path) -> None:
    rows = rows_of(backbone)
    for most in (1, 3):
        assert generate(backbone, rows, None, most) == expected(folder, backbone, rows, None, most)


def test_it_ends_at_the_end_token(folder: Path) -> None:
    # the end token's row of the output layer is made longer, until rows end at different steps
    backbone, plain = load_backbone(str(folder), device="cpu", dtype="float32"), fresh_model(folder)
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 4)
    for model in (backbone.model, plain):
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(
            head.weight.clone(), requires_grad=False
        )  # its own, where it was the input's too
        head.weight[backbone.end_id] *= 3.0
    expected = [greedy(plain, row.input_ids, prompts[i], backbone.end_id, 20) for i, row in enumerate(rows)]
    texts = generate(backbone, rows, prompts, 20)
    assert texts == [backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert min(map(len, expected)) < max(map(len, expected))


HOSTILE = {
    "do_sample": True,
    "temperature": 5.0,
    "top_p": 0.5,
    "num_beams": 3,
    "repetition_penalty": 4.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 3,
    "length_penalty": 9.0,
    "max_length": 3,
    "forced_eos_token_id": 5,
    "suppress_tokens": [6, 7, 8],
    "bad_words_ids": [[9], [10]],
}


def test_the_model_s_own_generation_settings_do_not_matter(
    folder: Path, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    # Qwen2.5 comes with a repetition penalty, T5 fine-tunes with beams: numbers would depend on who saved the model
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | HOSTILE))
    other = load_backbone(str(copy), device="cpu", dtype="float32")
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 4)
    assert generate(other, rows, prompts) == generate(backbone, rows, prompts)


def test_the_head_gets_no_slices(backbone: FrozenBackbone) -> None:
    """For a slice of several rows torch may copy the head's weights once for each row."""
    head, rows = backbone.model.get_output_embeddings(), rows_of(backbone)
    batch, whole = backbone.collate(rows), list[bool]()
    with head.register_forward_hook(lambda _, given, __: whole.append(given[0].is_contiguous())):
        backbone.generate(batch, backbone.embed(batch.input_ids), None, 2)
    assert len(whole) == 2
    assert all(whole)
