"""Layers are compiled where a training is long enough and a measurement says that it pays back, and else left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from attempt_cli.training import compiling
from attempt_cli.training.checkpoint import load_checkpoint
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.loop import TrainingLoop, TrainingStoppedError, make_optimizer
from attempt_cli.training.processes import Processes
from attempt_cli.training.run import layers_for
from tests.models import save_llama
from tests.training.tiny import LENGTH, Recorder, encoded, model, run

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.fixture
def backbone(tmp_path: Path) -> FrozenBackbone:
    return load_backbone(str(save_llama(tmp_path / "llama")), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compiler that leaves layers as they are, nothing measured yet, and every training a long one."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiling, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(compiling, "LONG_STEPS", 1)
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "compiled-layers.json"
    torch._dynamo.reset()


def found_speed(monkeypatch: pytest.MonkeyPatch, speed: float, seconds: float = 0.0) -> list[str]:
    """Makes the measurement find a speed; what is returned grows with every measurement."""
    measured: list[str] = []

    def instead(trained: Any, batches: Any, config: Any) -> tuple[float, float]:
        compiling.compile_now(trained, batches, config)
        measured.append(trained.placement)
        return speed, seconds

    monkeypatch.setattr(compiling, "_measured", instead)
    return measured


@pytest.mark.parametrize(("name", "value"), [("LONG_SECONDS", 1200.0), ("LONG_STEPS", 500)])
def test_a_short_training_is_not_held_up(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path, name: str, value: float
) -> None:
    monkeypatch.setattr(compiling, name, value)
    measured, told = found_speed(monkeypatch, 2.0), Recorder()
    done = run(model(backbone), encoded(backbone, 16), tmp_path / "state", steps=STEPS, listener=told)
    assert (measured, told.notes, done.state.compiled, backbone.compiled) == ([], [], False, False)
    assert "compiled" not in done.numbers
    assert not machine.exists()


def test_what_is_faster_is_kept_and_not_measured_again(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    measured, rows = found_speed(monkeypatch, 1.5), encoded(backbone, 16)
    for number, notes in enumerate((["About 0 minutes are left", "with them"], ["Compiling the layers"])):
        told = Recorder()
        done = run(model(backbone), rows, tmp_path / f"{number}", steps=STEPS, listener=told)
        assert done.numbers["compiled"] is True
        assert backbone.compiled
        assert [wanted in note for wanted, note in zip(notes, told.notes, strict=True)] == [True] * len(notes)
        backbone.compile_layers(False)
    assert measured == ["before"]
    (kept,) = json.loads(machine.read_text("utf-8")).values()
    assert kept == {"speed": 1.5, "seconds": 0.0}
    # prompts of each row's own are another kind of training
    run(model(backbone, sources=2), rows, tmp_path / "attempt", steps=STEPS)
    assert len(measured) == 2


@pytest.mark.parametrize(("speed", "seconds"), [(0.8, 0.0), (1.01, 0.0), (1.5, 1e6)])
def test_what_is_not_faster_or_too_late_stays_off(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, seconds: float
) -> None:
    measured, rows = found_speed(monkeypatch, speed, seconds), encoded(backbone, 16)
    first = run(model(backbone), rows, tmp_path / "first", steps=STEPS)
    # what has been compiled for the measurement costs nothing more; the next training would pay for it
    assert first.state.compiled == (speed > 1.1)
    backbone.compile_layers(False)
    told = Recorder()
    second = run(model(backbone), rows, tmp_path / "second", steps=STEPS, listener=told)
    assert (second.state.compiled, backbone.compiled, told.notes, len(measured)) == (False, False, [], 1)


def test_the_measurement_changes_nothing_that_is_trained(backbone: FrozenBackbone) -> None:
    trained, rows = model(backbone, sources=2), encoded(backbone, 8)
    before = {name: tensor.clone() for name, tensor in trained.trained.state_dict().items()}
    speed, seconds = compiling._measured(trained, [rows[:4], rows[4:]], TrainingConfig(prompt_length=LENGTH))
    assert speed > 0
    assert seconds >= 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.trained.state_dict().items())
    assert all(tensor.grad is None for tensor in trained.trained.parameters())


def test_losses_are_those_of_plain_layers(backbone: FrozenBackbone, tmp_path: Path) -> None:
    rows = encoded(backbone, 16)
    losses = {}
    for on in (False, True):
        done = run(model(backbone, sources=2), rows, tmp_path / f"{on}", steps=STEPS, compile=on)
        losses[on] = done.state.losses
        assert backbone.compiled == on
        backbone.compile_layers(False)
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)


def break_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=broken))  # type: ignore[attr-defined]


def test_where_nothing_can_be_compiled_the_training_goes_on(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    rows = encoded(backbone, 16)
    plain = run(model(backbone), rows, tmp_path / "plain", steps=STEPS, compile=False)
    break_compiler(monkeypatch)
    told = Recorder()
    done = run(model(backbone), rows, tmp_path / "open", steps=STEPS, listener=told)
    assert (done.state.losses, done.state.compiled, backbone.compiled) == (plain.state.losses, False, False)
    assert "cannot be compiled here" in told.notes[-1]
    assert "No working C++ compiler found" in told.notes[-1]
    assert not machine.exists()  # installed later, it is tried
    with pytest.raises(AttemptError, match=r"cannot be compiled here: .*No working C\+\+ compiler found") as caught:
        run(model(backbone), rows, tmp_path / "asked", steps=STEPS, compile=True)
    assert "--no-compile" in str(caught.value.hint)
    assert not backbone.compiled


def test_what_was_found_before_ends_no_training(
    tmp_path: Path, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    found_speed(monkeypatch, 1.5)
    rows = encoded(backbone, 16)
    run(model(backbone), rows, tmp_path / "first", steps=STEPS)
    backbone.compile_layers(False)
    other = load_backbone(str(tmp_path / "llama"), device="cpu", dtype="float32")
    break_compiler(monkeypatch)  # known to pay back, and gone
    told = Recorder()
    done = run(model(other), rows, tmp_path / "second", steps=STEPS, listener=told)
    assert (done.state.step, done.state.compiled, other.compiled) == (STEPS, False, False)
    assert told.notes[-1].endswith("the training continues without.")
    (name,) = json.loads(machine.read_text("utf-8"))
    machine.write_text(json.dumps({name: "damaged"}), "utf-8")
    assert run(model(other), rows, tmp_path / "third", steps=STEPS).state.step == STEPS


def test_what_goes_wrong_while_it_is_measured_ends_no_training(
    tmp_path: Path, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seconds, calls = encoded(backbone, 16), compiling._seconds, [0]
    plain = run(model(backbone), rows, tmp_path / "plain", steps=STEPS, compile=False)

    def failing(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == 4:  # plain, compiled, plain, and then
            raise torch.OutOfMemoryError("no memory is left")
        return seconds(*arguments)

    monkeypatch.setattr(compiling, "_seconds", failing)
    told = Recorder()
    done = run(model(backbone), rows, tmp_path / "state", steps=STEPS, listener=told)
    assert told.notes[-1] == "no memory is left; the training continues without."
    assert (done.state.losses, done.state.compiled, backbone.compiled) == (plain.state.losses, False, False)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"compile": False}])
def test_nothing_is_tried_where_layers_are_changed_or_it_is_turned_off(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    measured = found_speed(monkeypatch, 2.0)
    done = run(model(backbone), encoded(backbone, 16), tmp_path / "state", steps=STEPS, **settings)
    assert (measured, done.state.compiled) == ([], False)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_resumed_training_goes_on_as_it_was_decided(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    measured, rows, state = found_speed(monkeypatch, 2.0), encoded(backbone, 16), tmp_path / "state"

    def begun() -> PromptedModel:
        backbone.compile_layers(False)
        backbone.input_cache = InputCache(1 << 20)
        backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        return replace(model(backbone, sources=2), placement=placement)

    whole = run(begun(), rows, tmp_path / "whole", steps=STEPS)
    with pytest.raises(TrainingStoppedError):
        run(begun(), rows, state, steps=STEPS, listener=Recorder(interrupt_at=6))
    trained = begun()
    module = trained.trained
    kept = load_checkpoint(state, "key", module, make_optimizer(module, TrainingConfig()))
    assert (kept.step, kept.compiled, len(measured)) == (6, True, 1)
    done = run(begun(), rows, state, steps=STEPS, resume=True)
    assert (done.numbers["compiled"], backbone.compiled, len(measured)) == (True, True, 1)
    assert done.state.losses == whole.state.losses
    # another machine without a compiler goes on all the same, unless it is asked for
    with pytest.raises(TrainingStoppedError):
        run(begun(), rows, state, steps=STEPS, listener=Recorder(interrupt_at=6))
    begun()
    del backbone.__dict__["_compiled_calls"]
    break_compiler(monkeypatch)
    told = Recorder()
    done = run(begun(), rows, state, steps=STEPS, resume=True, listener=told)
    assert (done.state.step, done.state.compiled) == (STEPS, False)
    assert told.notes[-1].endswith("the training continues without.")


def test_kept_inputs_are_read_by_the_layers_as_they_were_loaded(backbone: FrozenBackbone) -> None:
    rows = encoded(backbone, 6)
    found = []
    for compiled, checkpointed in ((False, False), (True, False), (False, True)):
        backbone.compile_layers(compiled)
        backbone.checkpoint_gradients(checkpointed)
        backbone.input_cache = InputCache(1 << 20)
        backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        past = backbone.read(rows)
        assert past is not None
        found.append(torch.stack([*past.keys, *past.values]))
        assert (backbone.compiled, backbone.checkpointed) == (compiled, checkpointed)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_backbone_is_given_back_as_it_was(backbone: FrozenBackbone, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"evaluate": None, "checkpoint": tmp_path / "state", "key": "key"}
    config = TrainingConfig(prompt_length=LENGTH, steps=2, compile=True)
    told = Recorder()
    trained = model(backbone)
    with layers_for(trained, config):
        loop = TrainingLoop(trained, encoded(backbone, 8), config, listener=told, processes=Processes(), **arguments)
        done = loop.train()
    assert done.numbers["compiled"] is True
    assert not backbone.compiled
