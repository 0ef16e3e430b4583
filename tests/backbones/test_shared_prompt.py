"""A prompt that all rows share has one pass of its own: with the numbers and gradients of one pass per row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import MAX_NEW_TOKENS, predict
from attempt_cli.method import DecomposedPrompt, PromptMixture, constant_weights
from attempt_cli.prompted import PromptedModel
from attempt_cli.training import memory
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import Positions, gradient_step
from attempt_cli.training.memory import activation_bytes
from attempt_cli.training.processes import Processes
from tests.backbones.plain import plain_log_likelihood
from tests.backbones.test_scores import close, rows_of
from tests.models import save_llama, save_mistral

LABELS = ("yes", "no", "nothing", "entailment", "entailed")
SCALE = 0.7


def drawn(backbone: FrozenBackbone, count: int, length: int = 4) -> Tensor:
    return torch.randn(count, length, backbone.width, generator=torch.Generator().manual_seed(count))


def prompted(backbone: FrozenBackbone, *, tasks: int = 1, length: int = 4) -> PromptedModel:
    return PromptedModel(backbone, PromptMixture(drawn(backbone, tasks, length)), SCALE, "before")


def gradients(model: PromptedModel, scores: Tensor) -> list[Tensor]:
    model.trained.zero_grad()
    scores.sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.trained.parameters() if p.grad is not None]


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Returns a list that gets rows and positions of every later pass."""
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


@pytest.mark.parametrize("length", [4, 40])  # shorter than the rows, and longer
@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_prompt_has_one_pass_and_every_row_its_own(
    backbone: FrozenBackbone, kernel: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attempt_cli.backbones.decoder_only.choose_kernel", lambda _: kernel)
    model, rows = prompted(backbone, length=length), rows_of(backbone, end=True)
    alone = torch.cat([model.log_likelihood([row]) for row in rows])
    wanted = gradients(model, alone)
    seen = widths(monkeypatch)
    together = model.log_likelihood(rows)
    longest = max(len(row.input_ids) for row in rows) + max(len(row.target_ids) for row in rows) - 1
    assert seen == [(1, length), (len(rows), longest)]
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
    close(model.score_labels([replace(row, task=0) for row in rows[1::2]], [[5]])[0], model.score_labels(
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


def test_layers_computed_twice_give_the_same_gradient(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    model, rows = prompted(backbone), rows_of(backbone, end=True)
    once = gradients(model, model.log_likelihood(rows))
    backbone.checkpoint_gradients(True)
    seen = widths(monkeypatch)
    twice = gradients(model, model.log_likelihood(rows))
    assert [count for count, _ in seen] == [1, len(rows)]
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


@pytest.mark.parametrize("kind", ["mistral", "longrope"])
def test_where_long_rows_are_computed_otherwise_each_has_its_own_prompt(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "mistral":
        folder = save_mistral(tmp_path / kind, sliding_window=24)
    else:
        factors = {"short_factor": [1.0] * 3, "long_factor": [4.0] * 3}
        rotary = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24, **factors}
        folder = save_llama(tmp_path / kind, rope_parameters=rotary)
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = prompted(backbone)
    ids, target = backbone.encode(["it is"], None, 64)[0].input_ids[:3], backbone.target_tokens("yes", end=True)
    prompt = model.trained.target_prompts[0].detach() * SCALE  # type: ignore[union-attr,index]
    for repeats, first in ((1, 1), (9, 2)):
        rows = [EncodedRow(ids * repeats, target), EncodedRow(ids * repeats, target[:1])]
        assert model.overhead(len(ids) * repeats + len(target)) == (0 if first == 1 else 4)
        with monkeypatch.context() as patch:
            seen = widths(patch)
            scores = model.log_likelihood(rows).detach()
        assert seen[0][0] == first
        theirs = [plain_log_likelihood(folder, row.input_ids, row.target_ids, prompt) for row in rows]
        close(scores, torch.stack(theirs))
    after = PromptedModel(backbone, model.mixture, SCALE, "after")
    with pytest.raises(AttemptError, match="can read in two parts"):
        after.log_likelihood(rows)


def test_the_prompt_is_no_row_s_in_the_budget_of_scores_and_every_row_s_in_that_of_generation(
    backbones: dict[str, FrozenBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbones["llama"]
    model = prompted(backbone, length=20)
    labels = {"0": "no", "1": "yes"}
    files = {"test": Path("test.csv")}
    words = Task(name="words", input="{text}", files=files, metrics=("accuracy",), labels=labels)
    free = Task(name="free", input="{text}", files=files, metrics=("squad_em",), target="{text}")
    sizes: list[int] = []
    for name in ("score_labels", "generate"):
        own = getattr(PromptedModel, name)

        def noted(self: PromptedModel, rows: Any, *arguments: Any, own: Any = own) -> Any:
            sizes.append(len(rows))
            return own(self, rows, *arguments)

        monkeypatch.setattr(PromptedModel, name, noted)
    examples = [Example("it was good", "yes", 1) for _ in range(12)]
    longest = len(backbone.encode(["it was good"], None, 64)[0].input_ids)
    for task, behind, overhead in ((words, 2, 0), (free, MAX_NEW_TOKENS, 20)):
        sizes.clear()
        predict(model, task, examples, max_tokens=4 * (longest + behind + overhead))
        assert sizes == [4, 4, 4]


@pytest.mark.parametrize("kind", ["llama"])
def test_positions_are_counted_as_they_are_computed(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(None, prompt_length=4, batch_size=8)
    for rows, tasks in (
        (rows_of(backbone, end=True), 1),
        (rows_of(backbone, end=True)[:1], 1),
        ([EncodedRow(r.input_ids, r.target_ids, task=i % 2) for i, r in enumerate(rows_of(backbone))], 2),
    ):
        with monkeypatch.context() as patch:
            seen, positions = widths(patch), Positions()
            gradient_step(prompted(backbone, tasks=tasks), rows, config, Processes(), positions)
        assert positions.computed == sum(count * width for count, width in seen)
        real = sum(len(row.input_ids) + len(row.target_ids) - 1 for row in rows)
        assert positions.real == real + (4 if tasks == 1 else 4 * len(rows))


@pytest.mark.parametrize("kind", ["llama"])
def test_the_largest_batch_is_reckoned_with_one_prompt(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = prompted(backbone, length=64), rows_of(backbone)[:1] * 64
    free = 2 * activation_bytes(model, rows[:32]) / memory.SHARE * 1.05
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    assert memory.largest_batch(model, rows) == 32
