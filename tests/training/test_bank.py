"""Prompts that are trained together end as they would alone; who fails, finishes or is killed concerns no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.listener import Listener
from attempt_cli.method import BuildInputs
from attempt_cli.prompted import PromptedModel
from attempt_cli.training import bank as bank_module
from attempt_cli.training.bank import PromptBank
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.loop import NotFiniteError, Trained, TrainingLoop, TrainingStoppedError
from attempt_cli.training.processes import Processes
from tests.models import save_t5
from tests.training.tiny import LENGTH, RANK, encoded

pytestmark = pytest.mark.usefixtures("one_thread")

# methods and settings whose prompts can be trained together
KINDS: dict[str, dict[str, Any]] = {
    "prompt tuning": {},
    "ATTEMPT": {"method": "attempt"},
    "by token": {"method": "attempt", "level": "token"},
    "constant": {"method": "attempt", "constant_attention": True},
    "no target": {"method": "attempt", "with_target": False},
    "learned temperature": {"method": "attempt", "learned_temperature": True},
    "balanced": {"method": "attempt", "balanced_start": True},
    "last states": {"method": "attempt", "attention_input": "last"},
    "mean states": {"method": "attempt", "attention_input": "mean", "attention_top": 2},
    "cosine": {"method": "attempt", "cosine": True},
    "MPT": {"method": "mpt"},
    "ULPT": {"method": "ulpt"},
    "SMoP": {"method": "smop", "method_settings": {"noise": 0.0}},
    "PT-MoE": {"method": "pt-moe", "method_settings": {"noise": 0.0}},
}


def member(
    backbone: FrozenBackbone,
    folder: Path,
    placement: str,
    *,
    seed: int = 0,
    rows: int = 24,
    rows_seed: int = 0,
    evaluate: Any = None,
    listener: Listener | None = None,
    **settings: Any,
) -> TrainingLoop:
    """A training of a prompt, as `training.run` would make it; its name is all of its settings."""
    given = {"steps": 8, "batch_size": 6, "clip_norm": 0.5, **settings}
    config = TrainingConfig(prompt_length=LENGTH, attention_rank=RANK, seed=seed, **given)
    generator, scale = torch.Generator().manual_seed(seed), backbone.embedding_rms
    drawn = [vocabulary_prompt(backbone, LENGTH, generator) / scale for _ in range(3)]
    sources = torch.stack(drawn[1:]) if "sources" in config.row.takes else None
    mixture = config.row.builder()(BuildInputs(config, drawn[0][None], sources, generator, 0))
    model = PromptedModel(backbone, mixture, scale, placement)  # type: ignore[arg-type]
    key = repr((placement, seed, rows, rows_seed, sorted(given.items())))
    return TrainingLoop(
        model,
        encoded(backbone, rows, rows_seed),
        config,
        evaluate,
        folder / f"{abs(hash(key))}.safetensors",
        key,
        listener or Listener(),
        Processes(),
    )


def same(together: TrainingLoop, alone: TrainingLoop, others: float = 1e-4) -> None:
    """Checks that two trainings ended alike: losses, prompts, and with a tolerance of their own all tensors."""
    assert together.state.step == alone.state.step
    assert together.state.losses == pytest.approx(alone.state.losses, rel=1e-5, abs=1e-5)
    assert close(*(loop.module.target_prompts for loop in (together, alone)), 1e-4)  # type: ignore[union-attr]
    expected = alone.module.state_dict()
    for name, tensor in together.module.state_dict().items():
        assert close(tensor, expected[name], others), name
    assert together.state.best_step == alone.state.best_step


def close(tensor: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((tensor.float() - wanted.float()).norm() <= tolerance * wanted.float().norm())


def members(
    backbone: FrozenBackbone, folder: Path, placement: str, settings: dict[str, Any], rows: str
) -> list[TrainingLoop]:
    """Three of other seeds, rates, budgets and rows, or all of the same rows in the same order."""
    if rows == "same":
        rates = [{"learning_rate": rate} for rate in (0.3, 0.03, 0.01)]
        return [member(backbone, folder, placement, **settings, **rate) for rate in rates]
    return [
        member(backbone, folder, placement, **settings),
        member(backbone, folder, placement, seed=1, rows=9, rows_seed=5, learning_rate=0.1, **settings),
        member(backbone, folder, placement, seed=2, rows_seed=0, steps=5, batch_size=4, accumulate=2, **settings),
    ]


@pytest.mark.parametrize("rows", ["own", "same"])
@pytest.mark.parametrize("placement", ["after", "before"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_ends_as_it_would_alone(
    backbone: FrozenBackbone, tmp_path: Path, kind: str, placement: str, rows: str
) -> None:
    together = members(backbone, tmp_path / "together", placement, KINDS[kind], rows)
    alone = members(backbone, tmp_path / "alone", placement, KINDS[kind], rows)
    ended = PromptBank(together, Listener()).train()
    for one, other, trained in zip(together, alone, ended, strict=True):
        expected = other.train()
        same(one, other)
        assert isinstance(trained, Trained)
        assert trained.numbers["bank"] == 3
        assert "bank" not in expected.numbers
        assert one.state.positions[1] == other.state.positions[1] or rows == "own"


@pytest.mark.parametrize("placement", ["after", "before"])
def test_methods_may_differ_from_member_to_member(backbone: FrozenBackbone, tmp_path: Path, placement: str) -> None:
    kinds: list[dict[str, Any]] = [
        KINDS["prompt tuning"],
        KINDS["ATTEMPT"],
        KINDS["MPT"],
        KINDS["ULPT"],
        KINDS["last states"],
    ]
    together = [member(backbone, tmp_path / "a", placement, **kind) for kind in kinds]
    alone = [member(backbone, tmp_path / "b", placement, **kind) for kind in kinds]
    PromptBank(together, Listener()).train()
    for one, other in zip(together, alone, strict=True):
        other.train()
        same(one, other)


@pytest.mark.parametrize("kind", ["prompt tuning", "ATTEMPT", "constant", "MPT", "ULPT"])
def test_encoder_decoders_train_many_prompts_too(tmp_path: Path, kind: str) -> None:
    t5 = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32")
    together, alone = (members(t5, tmp_path / name, "before", KINDS[kind], "own") for name in "ab")
    PromptBank(together, Listener()).train()
    for one, other in zip(together, alone, strict=True):
        other.train()
        same(one, other, 0.05)  # AdamW moves by a gradient's sign, however small it is: of G's 24 biases one is off


@pytest.mark.parametrize("max_tokens", [1, 40, 8192])
@pytest.mark.parametrize("placement", ["after", "before"])
def test_a_small_budget_takes_more_passes_to_the_same_end(
    llama: Path, tmp_path: Path, placement: str, max_tokens: int
) -> None:
    backbone = load_backbone(str(llama), device="cpu", dtype="float32")
    if max_tokens == 40:
        backbone.input_cache = InputCache(1 << 20)
        rows = encoded(backbone, 24)
        backbone.input_cache.plan([rows[:15]], backbone.cache_bytes_per_token)
    together = members(backbone, tmp_path / "a", placement, {"max_tokens": max_tokens}, "own")
    alone = members(backbone, tmp_path / "b", placement, {}, "own")
    PromptBank(together, Listener()).train()
    for one, other in zip(together, alone, strict=True):
        other.train()
        same(one, other)


@pytest.mark.parametrize(
    ("placement", "rows", "most"), [("after", "same", 2), ("after", "own", 3), ("before", "own", 2)]
)
def test_a_step_of_all_takes_the_passes_of_one(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, rows: str, most: int
) -> None:
    """The reason for all of this: passes through the backbone, its inputs' readings included, do not grow with N."""
    passes = []
    hidden = type(backbone)._hidden  # type: ignore[attr-defined]

    def counted(self: FrozenBackbone, sequence: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        passes.append(len(sequence))
        result: torch.Tensor = hidden(self, sequence, *arguments, **named)
        return result

    monkeypatch.setattr(type(backbone), "_hidden", counted)
    seeds = range(6) if rows == "own" else [0] * 6
    bank = PromptBank(
        [
            member(backbone, tmp_path, placement, seed=seed, rows_seed=seed, learning_rate=0.01 + number / 100, steps=1)
            for number, seed in enumerate(seeds)
        ],
        Listener(),
    )
    bank.train()
    assert len(passes) <= most
    if rows == "same":
        assert passes == [6, 36]  # six rows are read once, for six members


def accuracy_of(scores: list[float]) -> Callable[[PromptedModel], tuple[dict[str, float], float]]:
    """Pretends to evaluate: the next of these scores each time."""
    left = iter(scores)
    return lambda model: ({"accuracy": next(left)}, 0.0)


def test_a_member_that_stops_early_leaves_and_the_others_go_on(backbone: FrozenBackbone, tmp_path: Path) -> None:
    def both(folder: Path) -> list[TrainingLoop]:
        early = accuracy_of([0.1, 0.5, 0.4, 0.3, 0.2])
        late = accuracy_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
        return [
            member(backbone, folder, "after", evaluate=early, patience=2, eval_every=1),
            member(backbone, folder, "after", seed=1, evaluate=late, patience=2, eval_every=1),
        ]

    together, alone = both(tmp_path / "a"), both(tmp_path / "b")
    ended = PromptBank(together, Listener()).train()
    assert [one.state.step for one in together] == [3, 8]
    assert [one.state.best_step for one in together] == [1, 8]
    for one, other, trained in zip(together, alone, ended, strict=True):
        assert isinstance(trained, Trained)
        assert trained.state.history == other.train().state.history
        same(one, other)


def test_a_loss_that_is_no_number_is_its_own_member_s(backbone: FrozenBackbone, tmp_path: Path) -> None:
    together = [member(backbone, tmp_path / "a", "after", learning_rate=rate) for rate in (0.03, 0.04)]
    with torch.no_grad():
        next(iter(together[0].module.parameters()))[0, 0, 0] = float("nan")
    failed, trained = PromptBank(together, Listener()).train()
    assert isinstance(failed, NotFiniteError)
    assert isinstance(trained, Trained)
    other = member(backbone, tmp_path / "b", "after", learning_rate=0.04)
    other.train()
    same(together[1], other)


class Stopping(Listener):
    """Stops after a step, as Ctrl-C does or as a listener does."""

    def __init__(self, at: int, by_signal: bool) -> None:
        self.at, self.by_signal = at, by_signal

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        if step == self.at and self.by_signal:
            os.kill(os.getpid(), signal.SIGINT)
        elif step == self.at:
            self.stopped = True


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_stopped_bank_goes_on_together_or_apart(backbone: FrozenBackbone, tmp_path: Path, by_signal: bool) -> None:
    folder = tmp_path / "a"
    with pytest.raises(TrainingStoppedError, match="at step 3"):
        PromptBank(members(backbone, folder, "after", {}, "own"), Stopping(3, by_signal)).train()
    first, *others = members(backbone, folder, "after", {}, "own")
    assert isinstance(first.train(resume=True), Trained)  # a member's checkpoint is any training's
    began = []
    listener = Listener()
    listener.start = lambda step, total: began.append(step)  # type: ignore[method-assign]
    PromptBank(others, listener).train(resume=True)
    assert began == [3]
    for one, other in zip([first, *others], members(backbone, tmp_path / "b", "after", {}, "own"), strict=True):
        other.train()
        same(one, other)


def test_a_killed_bank_goes_on_from_its_last_checkpoints(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    steps = []
    gradient = bank_module.joint_gradient

    def killed_at_fifth(*arguments: Any) -> list[torch.Tensor]:
        steps.append(1)
        if len(steps) == 5:
            raise KilledError
        return gradient(*arguments)

    monkeypatch.setattr("attempt_cli.training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr("attempt_cli.training.loop.CHECKPOINT_SHARE", float("inf"))
    monkeypatch.setattr(bank_module, "joint_gradient", killed_at_fifth)
    with pytest.raises(KilledError):
        PromptBank(members(backbone, tmp_path / "a", "after", {}, "own"), Listener()).train()
    again = members(backbone, tmp_path / "a", "after", {}, "own")
    PromptBank(again, Listener()).train(resume=True)
    assert len(steps) == 5 + 4
    for one, other in zip(again, members(backbone, tmp_path / "b", "after", {}, "own"), strict=True):
        other.train()
        same(one, other)


def test_what_cannot_share_a_pass_is_refused(backbone: FrozenBackbone, tmp_path: Path) -> None:
    unlike = [member(backbone, tmp_path, placement) for placement in ("after", "before")]
    with pytest.raises(ValueError, match="cannot share"):
        PromptBank(unlike, Listener())
    with pytest.raises(ValueError, match="the same"):
        PromptBank([unlike[0], member(backbone, tmp_path, "after")], Listener())
