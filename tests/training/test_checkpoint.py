"""Checkpoints in this process: what a resumed training is made of, and what damaged files get."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.checked_files import _digest
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.checkpoint import save_checkpoint
from attempt_cli.training.loop import Trained, TrainingStoppedError
from attempt_cli.training.signals import caught_signals
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {"steps": 9, "batch_size": 4, "eval_every": 4, "warmup_steps": 2, "learning_rate": 0.2}


def by_the_prompt(model: PromptedModel) -> tuple[dict[str, float], float]:
    """A score that is a function of the prompt, best somewhere on the way."""
    assert model.mixture is not None
    value = float(model.mixture.target_prompts.detach().sum())
    return {"accuracy": round(value, 1)}, value


def trained(backbone: FrozenBackbone, checkpoint: Path, **settings: Any) -> tuple[Trained, dict[str, Tensor]]:
    """How a training of ATTEMPT ended, and its tensors."""
    model = tiny.model(backbone, sources=2)
    rows = tiny.encoded(backbone, 11)
    ended = tiny.run(model, rows, checkpoint, evaluate=by_the_prompt, **(SETTINGS | settings))
    assert model.mixture is not None
    return ended, {name: tensor.clone() for name, tensor in model.mixture.state_dict().items()}


def facts(ended: Trained) -> dict[str, Any]:
    """All of it but the time and the memory that it took; tensors as lists."""
    state = asdict(ended.state)
    del state["seconds"], state["peak_memory"]
    state["compiled"] = bool(state["compiled"])  # a run of a few steps leaves it open, and compiles nothing
    state["best"] = {name: tensor.tolist() for name, tensor in state["best"].items()}
    return state | {"total": ended.total, "warnings": ended.warnings}


@pytest.mark.parametrize("stops", [(1,), (4,), (8,), (2, 3, 7)], ids=str)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    backbone: FrozenBackbone, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    whole, tensors = trained(backbone, tmp_path / "whole")
    checkpoint = tmp_path / "stopped"
    for stop in stops:
        with pytest.raises(TrainingStoppedError) as stopped:
            trained(backbone, checkpoint, resume=True, listener=tiny.Recorder(interrupt_at=stop))
        assert stopped.value.exit_code == 130
        assert stopped.value.message == f"stopped at step {stop} of 9; nothing is lost"
        assert stopped.value.hint == "Continue with the same command and --resume."
    recorder = tiny.Recorder()
    resumed, same = trained(backbone, checkpoint, resume=True, listener=recorder)
    assert recorder.began == (stops[-1], 9)
    assert recorder.evaluations[:1] != [(0, True)]
    assert recorder.steps == list(range(stops[-1] + 1, 10))
    assert facts(resumed) == facts(whole)
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_stopped_during_the_first_evaluation(backbone: FrozenBackbone, tmp_path: Path) -> None:
    whole, _ = trained(backbone, tmp_path / "whole")

    def interrupted(model: PromptedModel) -> tuple[dict[str, float], float]:
        signal.raise_signal(signal.SIGINT)
        return by_the_prompt(model)

    with pytest.raises(TrainingStoppedError, match="stopped at step 0 of 9"):
        tiny.run(
            tiny.model(backbone, sources=2),
            tiny.encoded(backbone, 11),
            tmp_path / "state",
            evaluate=interrupted,
            **SETTINGS,
        )
    recorder = tiny.Recorder()
    resumed, _ = trained(backbone, tmp_path / "state", resume=True, listener=recorder)
    assert [step for step, _ in recorder.evaluations] == [4, 8, 9]  # that of the start was not lost
    assert facts(resumed) == facts(whole)


def test_a_signal_at_the_last_step_changes_nothing(backbone: FrozenBackbone, tmp_path: Path) -> None:
    ended, _ = trained(backbone, tmp_path / "state", listener=tiny.Recorder(interrupt_at=9))
    assert ended.state.step == 9


def test_a_training_killed_after_its_last_step_is_only_finished(backbone: FrozenBackbone, tmp_path: Path) -> None:
    whole, tensors = trained(backbone, tmp_path / "state")
    recorder = tiny.Recorder()
    again, same = trained(backbone, tmp_path / "state", resume=True, listener=recorder)
    assert recorder.steps == []
    assert facts(again) == facts(whole)
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_early_stopping_is_remembered(backbone: FrozenBackbone, tmp_path: Path) -> None:
    """Stopped with one evaluation left until patience ends, it must not begin to count anew."""

    def constant(model: PromptedModel) -> tuple[dict[str, float], float]:
        return {"accuracy": 0.5}, 0.0

    settings: dict[str, Any] = {"steps": 30, "eval_every": 1, "patience": 4, "evaluate": constant}
    rows = tiny.encoded(backbone, 11)
    with pytest.raises(TrainingStoppedError):
        tiny.run(tiny.model(backbone), rows, tmp_path / "state", listener=tiny.Recorder(interrupt_at=3), **settings)
    recorder = tiny.Recorder()
    ended = tiny.run(tiny.model(backbone), rows, tmp_path / "state", resume=True, listener=recorder, **settings)
    assert recorder.steps == [4]
    assert ended.state.step == 4


def test_nothing_to_resume_is_a_start(backbone: FrozenBackbone, tmp_path: Path) -> None:
    whole, tensors = trained(backbone, tmp_path / "one")
    resumed, same = trained(backbone, tmp_path / "two", resume=True)
    assert facts(resumed) == facts(whole)
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_without_resume_an_old_checkpoint_does_not_matter(backbone: FrozenBackbone, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"whatever lies there")
    recorder = tiny.Recorder()
    trained(backbone, tmp_path / "state", listener=recorder)
    assert recorder.began == (0, 9)


def test_a_checkpoint_holds_what_is_trained_and_nothing_of_the_backbone(
    backbone: FrozenBackbone, tmp_path: Path
) -> None:
    trained(backbone, tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        names = set(file.keys())
    parts = {"attention.down.weight", "attention.norm.bias", "attention.norm.weight", "attention.up.weight"}
    parts.add("target_prompts")
    assert {name for name in names if not name.startswith("optimizer.")} == {
        f"{which}.{part}" for which in ("mixture", "best") for part in parts
    }
    # five tensors, each with two moments and a step
    assert len(names) == 2 * 5 + 3 * 5
    assert (tmp_path / "state").stat().st_size < 30_000


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif how == "no safetensors":
        path.write_bytes(b"PK\x03\x04" + data[4:])
    elif how == "a flipped bit":
        path.write_bytes(data[:-40] + bytes([data[-40] ^ 64]) + data[-39:])
    else:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if how == "no state":
            del metadata["state"]
        elif how == "half a state":
            metadata["state"] = json.dumps({"step": 3})[:-3]
        elif how == "a state of another version":
            metadata["state"] = json.dumps({**json.loads(metadata["state"]), "mood": 3})
            metadata["sha256"] = _digest(metadata["state"], tensors)
        elif how == "a tensor is missing":
            del tensors["mixture.target_prompts"]
        save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut off",
        "no safetensors",
        "a flipped bit",
        "no state",
        "half a state",
        "a state of another version",
        "a tensor is missing",
    ],
)
def test_a_damaged_checkpoint_is_told(backbone: FrozenBackbone, tmp_path: Path, how: str) -> None:
    trained(backbone, tmp_path / "state")
    damage(tmp_path / "state", how)
    with pytest.raises(AttemptError, match=r"the checkpoint .*state is damaged") as failure:
        trained(backbone, tmp_path / "state", resume=True)
    assert failure.value.hint == "Run without --resume to start again; it is then replaced."


def test_a_checkpoint_of_another_training_is_refused(backbone: FrozenBackbone, tmp_path: Path) -> None:
    trained(backbone, tmp_path / "state")
    with pytest.raises(AttemptError, match="belongs to another training"):
        trained(backbone, tmp_path / "state", resume=True, key="another")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained(backbone, tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    model = tiny.model(backbone)
    assert model.mixture is not None

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attempt_cli.checked_files.os.fsync", full)
    optimizer = torch.optim.AdamW(model.mixture.parameters())
    with pytest.raises(AttemptError, match=r"state cannot be written: No space left on device; the one before it is"):
        save_checkpoint(tmp_path / "state", "key", whole.state, model.mixture, optimizer)
    assert (tmp_path / "state").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_second_signal_ends_the_process_as_ever() -> None:
    # a shell starts what it puts in the background with SIGINT ignored
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caught_signals() as seen:
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
