"""A whole training: it learns, keeps its best, stops early, and says when nothing was learned or numbers break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.loop import Evaluate, Trained
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def prompt_of(model: PromptedModel) -> Tensor:
    assert model.mixture is not None
    return model.mixture.target_prompts.detach().clone()


def scripted(*scores: float, seen: list[Tensor] | None = None) -> Evaluate:
    """An evaluation that gives these scores, one after the other, and notes the prompts that it saw."""
    following: Iterator[float] = iter(scores)

    def evaluate(model: PromptedModel) -> tuple[dict[str, float], float]:
        if seen is not None:
            seen.append(prompt_of(model))
        return {"accuracy": next(following)}, 0.0

    return evaluate


@pytest.mark.parametrize("sources", [0, 2])
def test_the_loss_falls(backbone: FrozenBackbone, tmp_path: Path, sources: int) -> None:
    model = tiny.model(backbone, sources=sources)
    trained = tiny.run(
        model, tiny.encoded(backbone, 24), tmp_path / "state", steps=40, batch_size=8, learning_rate=0.2, eval_every=0
    )
    losses = trained.state.losses
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert trained.warnings == []
    assert trained.numbers["steps"] == 40
    assert trained.numbers["last_loss"] < trained.numbers["first_loss"]
    assert "validation" not in trained.numbers


def test_accumulated_batches_are_one_batch(backbone: FrozenBackbone, tmp_path: Path) -> None:
    """Eleven rows in batches of eight: the second of an epoch is ragged."""
    prompts = []
    for batch_size, accumulate, max_tokens in ((8, 1, 8192), (4, 2, 8192), (1, 8, 8192), (8, 1, 30)):
        model = tiny.model(backbone, sources=2)
        settings = {"batch_size": batch_size, "accumulate": accumulate, "max_tokens": max_tokens}
        tiny.run(
            model, tiny.encoded(backbone, 11), tmp_path / "state", steps=5, eval_every=0, warmup_steps=0, **settings
        )
        prompts.append(prompt_of(model))
    for prompt in prompts[1:]:
        torch.testing.assert_close(prompt, prompts[0], rtol=1e-4, atol=2e-4)  # Adam turns tiny gradients into steps


def test_the_seed_chooses_the_order(backbone: FrozenBackbone, tmp_path: Path) -> None:
    def trained(seed: int) -> Tensor:
        model = tiny.model(backbone)
        tiny.run(model, tiny.encoded(backbone, 12), tmp_path / "state", steps=3, batch_size=2, eval_every=0, seed=seed)
        return prompt_of(model)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_best_evaluated_step_is_kept(backbone: FrozenBackbone, tmp_path: Path) -> None:
    model, seen, recorder = tiny.model(backbone), list[Tensor](), tiny.Recorder()
    trained = tiny.run(
        model,
        tiny.encoded(backbone, 12),
        tmp_path / "state",
        evaluate=scripted(0.2, 0.5, 0.9, 0.7, 0.9, seen=seen),
        listener=recorder,
        steps=7,
        batch_size=4,
        eval_every=2,
    )
    assert recorder.evaluations == [(0, True), (2, True), (4, True), (6, False), (7, False)]  # the last step counts too
    assert torch.equal(prompt_of(model), seen[2])
    assert not torch.equal(seen[2], seen[4])
    assert (trained.numbers["best_step"], trained.numbers["validation"]) == (4, {"accuracy": 0.9})
    assert trained.numbers["steps"] == 7


def test_equal_metrics_are_told_apart_by_the_likelihood(backbone: FrozenBackbone, tmp_path: Path) -> None:
    likelihoods = iter([-3.0, -1.0, -2.0])
    trained = tiny.run(
        tiny.model(backbone),
        tiny.encoded(backbone, 8),
        tmp_path / "state",
        evaluate=lambda _: ({"accuracy": 0.5}, next(likelihoods)),
        steps=2,
        eval_every=1,
    )
    assert trained.state.best_step == 1


def test_a_score_that_is_no_number_never_counts_as_best(backbone: FrozenBackbone, tmp_path: Path) -> None:
    model, seen = tiny.model(backbone), list[Tensor]()
    trained = tiny.run(
        model,
        tiny.encoded(backbone, 8),
        tmp_path / "state",
        evaluate=scripted(float("nan"), 0.4, float("nan"), seen=seen),
        steps=2,
        eval_every=1,
    )
    assert trained.state.best_step == 1
    assert torch.equal(prompt_of(model), seen[1])


def test_ten_evaluations_when_nothing_is_said(backbone: FrozenBackbone, tmp_path: Path) -> None:
    recorder = tiny.Recorder()
    rows = tiny.encoded(backbone, 4)
    tiny.run(
        tiny.model(backbone), rows, tmp_path / "state", evaluate=scripted(*[0.1] * 99), listener=recorder, steps=20
    )
    assert [step for step, _ in recorder.evaluations] == list(range(0, 21, 2))
    assert recorder.began == (0, 20)
    assert recorder.steps == list(range(1, 21))


def test_early_stopping(backbone: FrozenBackbone, tmp_path: Path) -> None:
    model, seen = tiny.model(backbone), list[Tensor]()
    settings = {"steps": 50, "batch_size": 4, "eval_every": 1, "patience": 3}
    trained = tiny.run(
        model,
        tiny.encoded(backbone, 12),
        tmp_path / "state",
        evaluate=scripted(0.1, 0.6, 0.5, 0.6, 0.4, seen=seen),
        **settings,
    )
    assert trained.state.step == 4  # three evaluations after step 1 without a better one
    assert trained.total == 50
    assert torch.equal(prompt_of(model), seen[1])
    assert "validation" in trained.numbers


def warned(trained: Trained) -> str:
    return "\n".join(trained.warnings)


def test_a_prompt_that_does_not_move_is_told(backbone: FrozenBackbone, tmp_path: Path) -> None:
    trained = tiny.run(
        tiny.model(backbone),
        tiny.encoded(backbone, 8),
        tmp_path / "state",
        evaluate=scripted(*[0.5] * 99),
        steps=25,
        learning_rate=1e-9,
    )
    assert "the prompt hardly moved" in warned(trained)
    assert "raise --learning-rate (now 1e-09)" in warned(trained)
    assert "the loss did not fall" in warned(trained)
    assert "the validation metric never changed" in warned(trained)
    assert "the initial prompt is kept" in warned(trained)


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, *, only_the_gradient: bool = False) -> None:
    """From the step `at` (counted from 1) on, the loss is not a number; or it is one, and its gradient is not."""
    plain = PromptedModel.log_likelihood
    calls = iter(range(1, 1000))

    def log_likelihood(self: PromptedModel, *arguments: object) -> Tensor:
        found = plain(self, *arguments)  # type: ignore[arg-type]
        if next(calls) < at:
            return found
        assert self.mixture is not None
        zero = 0 * self.mixture.target_prompts.sum()
        return found + (zero.sqrt() if only_the_gradient else zero.log() + torch.inf)

    monkeypatch.setattr(PromptedModel, "log_likelihood", log_likelihood)


@pytest.mark.parametrize("only_the_gradient", [False, True], ids=["loss", "gradient"])
def test_numbers_that_break_stop_the_training_and_leave_the_last_checkpoint(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_the_gradient: bool
) -> None:
    poisoned(monkeypatch, 4, only_the_gradient=only_the_gradient)
    checkpoint = tmp_path / "state.safetensors"
    settings = {"steps": 9, "eval_every": 1, "batch_size": 4, "learning_rate": 0.25}
    with pytest.raises(AttemptError, match=r"at step 4\b.*kept at .*state\.safetensors") as failure:
        tiny.run(
            tiny.model(backbone),
            tiny.encoded(backbone, 12),
            checkpoint,
            evaluate=scripted(*[0.5] * 99),
            **settings,
        )
    assert "lower --learning-rate than 0.25" in str(failure.value.hint)
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 3
        assert all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys())  # noqa: SIM118


def test_numbers_that_break_before_any_checkpoint(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 1)
    with pytest.raises(AttemptError) as failure:
        tiny.run(tiny.model(backbone), tiny.encoded(backbone, 8), tmp_path / "state", steps=3, eval_every=0)
    assert failure.value.message == "the loss is not a number at step 1"


def test_a_bare_model_has_nothing_to_train(backbone: FrozenBackbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        tiny.run(PromptedModel(backbone), tiny.encoded(backbone, 4), tmp_path / "state", steps=1)
