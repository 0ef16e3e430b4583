"""A prompt that all rows share has one pass of its own: the numbers and gradients of a pass a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import EncodedRow, FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.method import DecomposedPrompt, PromptMixture, constant_weights
from tests.backbones.plain import plain_log_likelihood
from tests.backbones.test_scores import close, rows_of
from tests.models import save_mistral

LABELS = ("yes", "no", "nothing", "entailment", "entailed")
SCALE = 0.7


def drawn(backbone: FrozenBackbone, count: int, length: int = 4) -> Tensor:
    return torch.randn(count, length, backbone.width, generator=torch.Generator().manual_seed(count))


def prompted(backbone: FrozenBackbone, *, tasks: int = 1) -> PromptedModel:
    return PromptedModel(backbone, PromptMixture(drawn(backbone, tasks)), SCALE, "before")


def gradients(model: PromptedModel, scores: Tensor) -> list[Tensor]:
    model.trained.zero_grad()
    scores.sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.trained.parameters() if p.grad is not None]


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and positions of every pass from here on."""
    seen: list[tuple[int, int]] = []
    own = DecoderOnlyBackbone._hidden

    def noted(self: DecoderOnlyBackbone, sequence: Tensor, *arguments: Any, **others: Any) -> Tensor:
        seen.append((sequence.shape[0], sequence.shape[1]))
        return own(self, sequence, *arguments, **others)

    monkeypatch.setattr(DecoderOnlyBackbone, "_hidden", noted)
    return seen


def test_scores_and_gradients_are_those_of_plain_rows(backbone: FrozenBackbone, folder: Path) -> None:
    model, rows = prompted(backbone), rows_of(backbone, end=True)
    ours = model.log_likelihood(rows)
    found = gradients(model, ours)
    prompt = model.trained.target_prompts  # type: ignore[union-attr]
    theirs = torch.stack(
        [plain_log_likelihood(folder, row.input_ids, row.target_ids, prompt[0] * SCALE) for row in rows]  # type: ignore[index]
    )
    close(ours, theirs)
    for own, plain in zip(found, gradients(model, theirs), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-3)


def test_label_words_score_as_targets_do(backbone: FrozenBackbone) -> None:
    model, rows = prompted(backbone), rows_of(backbone)
    labels = backbone.label_tokens(LABELS)
    scores, _ = model.score_labels(rows, labels)
    for j, label in enumerate(labels):
        close(scores[:, j], model.log_likelihood([EncodedRow(row.input_ids, label) for row in rows]).detach())
    one_token, _ = model.score_labels(rows, [[5], [6]])
    for j, token in enumerate((5, 6)):
        alone = [model.log_likelihood([EncodedRow(row.input_ids, [token])]) for row in rows]
        close(one_token[:, j], torch.cat(alone).detach())


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_prompt_has_one_pass_and_every_row_its_own(
    backbone: FrozenBackbone, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attempt_cli.backbones.decoder_only.choose_kernel", lambda _: kernel)
    model, rows = prompted(backbone), rows_of(backbone, end=True)
    alone = torch.cat([model.log_likelihood([row]) for row in rows])
    wanted = gradients(model, alone)
    seen = widths(monkeypatch)
    together = model.log_likelihood(rows)
    longest = max(len(row.input_ids) for row in rows) + max(len(row.target_ids) for row in rows) - 1
    assert seen == [(1, 4), (len(rows), longest)]
    close(together, alone)
    for own, plain in zip(gradients(model, together), wanted, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama"])
def test_rows_of_several_tasks_have_prompts_of_their_own(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prompted(backbone, tasks=2)
    rows = [EncodedRow(row.input_ids, row.target_ids, task=i % 2) for i, row in enumerate(rows_of(backbone))]
    alone = torch.cat([model.log_likelihood([row]) for row in rows]).detach()
    seen = widths(monkeypatch)
    close(model.log_likelihood(rows).detach(), alone)
    close(model.log_likelihood(rows[1::2]).detach(), alone[1::2])  # of the second task alone
    close(model.score_labels(rows[1::2], [[5]], torch.tensor([0, 0]))[0], model.score_labels(
        [EncodedRow(row.input_ids, []) for row in rows[1::2]], [[5]])[0])  # fmt: skip
    assert [rows for rows, _ in seen] == [len(rows), 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_looks_at_no_input_shares_whatever_it_is(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, prompts = rows_of(backbone), drawn(backbone, 3)
    constant = PromptMixture(prompts[:1], prompts[1:], fixed_weights=constant_weights(2), with_target=False)
    decomposed = DecomposedPrompt(prompts[:1], 6, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decomposed.right_factors.normal_(generator=torch.Generator().manual_seed(1))
    for mixture in (constant, decomposed):
        model = PromptedModel(backbone, mixture, SCALE, "before")
        alone = torch.cat([model.log_likelihood([row]) for row in rows]).detach()
        with monkeypatch.context() as patch:
            seen = widths(patch)
            close(model.log_likelihood(rows).detach(), alone)
            scores, weights = model.score_labels(rows, backbone.label_tokens(LABELS))
        assert [count for count, _ in seen] == [1, len(rows)] * 2
        assert scores.shape == (len(rows), len(LABELS))
        assert weights is None or weights.shape == (len(rows), 3)


def test_layers_computed_twice_give_the_same_gradient(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    model, rows = prompted(backbone), rows_of(backbone, end=True)
    once = gradients(model, model.log_likelihood(rows))
    backbone.checkpoint_gradients(True)
    twice = gradients(model, model.log_likelihood(rows))
    for own, again in zip(once, twice, strict=True):
        torch.testing.assert_close(own, again, rtol=1e-4, atol=1e-5)


def test_in_bf16_it_is_as_near_to_the_exact_gradient_as_a_pass_a_row(folders: dict[str, Path]) -> None:
    def found(backbone: FrozenBackbone, *, shared: bool) -> Tensor:
        model, rows = prompted(backbone), rows_of(backbone, end=True)
        groups = [rows] if shared else [[row] for row in rows]
        return gradients(model, torch.cat([model.log_likelihood(group) for group in groups]))[0]

    exact = found(load_backbone(str(folders["llama"]), device="cpu", dtype="float32"), shared=True)
    half = load_backbone(str(folders["llama"]), device="cpu", dtype="bfloat16")
    shared, alone = found(half, shared=True), found(half, shared=False)
    assert not torch.equal(shared, alone)
    assert float((shared - exact).norm()) < 1.5 * float((alone - exact).norm())


def test_layers_with_a_window_get_a_prompt_a_row_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_mistral(tmp_path / "mistral", sliding_window=24)
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = prompted(backbone)
    ids, target = backbone.encode(["it is"], None, 64)[0].input_ids[:3], backbone.target_tokens("yes", end=False)
    prompt = model.trained.target_prompts[0].detach() * SCALE  # type: ignore[union-attr,index]
    for repeats, first in ((1, 1), (9, 2)):
        rows = [EncodedRow(ids * repeats, target), EncodedRow(ids * repeats, target[:1])]
        with monkeypatch.context() as patch:
            seen = widths(patch)
            scores = model.log_likelihood(rows).detach()
        assert seen[0][0] == first
        theirs = [plain_log_likelihood(folder, row.input_ids, row.target_ids, prompt) for row in rows]
        close(scores, torch.stack(theirs))
