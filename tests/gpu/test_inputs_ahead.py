"""Kept inputs in the host's memory go to the GPU a step ahead: the CPU's numbers, no wait, and no race of streams."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.inputs_ahead import InputsAhead
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training import graphs
from attempt_cli.training.bank import PromptBank
from attempt_cli.training.loop import NotFiniteError, TrainingLoop
from tests.gpu.test_steps import model_on
from tests.pretend_cuda import PretendGpu
from tests.training import tiny
from tests.training.test_bank import member, same

Load = Callable[[str, str], FrozenBackbone]
ROWS, AT_ONCE, EPOCHS = 16, 8, 3


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attempt_cli.backbones.input_cache.GROUP_ROWS", 2)


def keeping(backbone: FrozenBackbone, loops_rows: list[Any], on_device: int = 80, budget: int = 1 << 26) -> None:
    """Keeps inputs: `on_device` tokens on a GPU, for some groups of two rows, and the rest in the host's memory."""
    per_token = backbone.cache_bytes_per_token
    backbone.input_cache = InputCache(budget, on_host=backbone.on_gpu, on_device=on_device * per_token)
    backbone.input_cache.plan(loops_rows, per_token)


class Seen:
    """Notes what happens in each step, from its rows to its gradient.

    Attributes:
        waits: of each step's gradient and of what it sends ahead.
        late: rows that a step had to gather from the host's memory itself.
    """

    def __init__(self, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[int] = []
        self.late: list[int] = []
        self._late = 0
        gathered, update, batch = DecoderOnlyBackbone._gathered, TrainingLoop.update, TrainingLoop.batch

        def noted(backbone: Any, kept: Any, shape: Any) -> Tensor:
            if backbone.on_gpu:
                self._late += sum(one.device.type == "cpu" for one in kept.values())
            return gathered(backbone, kept, shape)

        def begin(loop: TrainingLoop, step: int) -> Any:
            if loop.model.backbone.on_gpu and step == loop.state.step:
                gpu.waits.clear()
                self._late = 0
            return batch(loop, step)

        def end(loop: TrainingLoop, loss: Tensor) -> None:
            if loop.model.backbone.on_gpu:
                self.waits.append(gpu.waits.total())
                self.late.append(self._late)
                gpu.waits.clear()
            update(loop, loss)

        monkeypatch.setattr(DecoderOnlyBackbone, "_gathered", noted)
        monkeypatch.setattr(TrainingLoop, "batch", begin)
        monkeypatch.setattr(TrainingLoop, "update", end)


def trained(backbone: FrozenBackbone, file: Path, sources: int = 0, on_device: int = 80, **settings: Any) -> Tensor:
    """Trains for some epochs; returns losses and what was trained."""
    model, rows = model_on(backbone, "after", sources), tiny.encoded(backbone, ROWS)
    keeping(backbone, [rows], on_device)
    steps = EPOCHS * ROWS // AT_ONCE
    given = {"steps": steps, "batch_size": AT_ONCE, "eval_every": 0, "learning_rate": 0.03, **settings}
    ended = tiny.run(model, rows, file, **given)
    weights = [one.detach().flatten().cpu() for one in model.trained.parameters()]
    return torch.cat([torch.tensor(ended.state.losses), *weights])


@pytest.mark.parametrize(
    ("kind", "way"),
    [*(("llama", way) for way in ("single kernels", "graphs", "micro-batches", "evaluations")), ("gpt2", "G")],
)
def test_a_training_has_the_numbers_of_the_cpu_and_its_steps_wait_for_nothing(
    gpu: PretendGpu, load: Load, kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"sources": 2 * (way == "G")}
    if way == "graphs":
        monkeypatch.setattr(graphs, "LEAST_STEPS", 1)
    elif way == "micro-batches":
        settings |= {"batch_size": 4, "accumulate": 2}
    elif way == "evaluations":

        def evaluate(model: PromptedModel) -> tuple[dict[str, float], float]:
            found = float(model.log_likelihood(tiny.encoded(model.backbone, 6, seed=3)).detach().sum())
            return {"likelihood": found}, found

        settings |= {"eval_every": 2, "evaluate": evaluate}
    seen = Seen(gpu, monkeypatch)
    found = [trained(load(kind, device), tmp_path / f"{device}.pt", **settings) for device in ("cpu", "cuda")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    steps = EPOCHS * ROWS // AT_ONCE
    first = ROWS // AT_ONCE  # the first epoch reads them, and takes them to the host
    assert len(seen.waits) == steps
    assert (gpu.kernels["graph"] > 0) == (way == "graphs")
    # graphs are compared with single kernels when they are captured
    assert not any(seen.waits[-1 if way == "graphs" else first :])
    assert not any(seen.late[first:])
    assert gpu.kernels["a copy beside"] >= steps - first


@pytest.mark.parametrize("rows", ["own", "same"])
def test_a_bank_has_the_numbers_of_the_cpu_and_its_steps_wait_for_nothing(
    gpu: PretendGpu, load: Load, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = [], Seen(gpu, monkeypatch)
    for device in ("cpu", "cuda"):
        backbone = load("llama", device)
        given = {"rows": ROWS, "batch_size": AT_ONCE, "eval_every": 0, "learning_rate": 0.03}
        loops = []
        for number in (0, 1):  # the second ends earlier; the other's rows are foreseen all the same
            own = {"seed": number, "rows_seed": number * (rows == "own"), "steps": 6 - 2 * number}
            loops.append(member(backbone, tmp_path / device, "after", **own, **given))
        for loop in loops:
            loop.module.to(backbone.device)
            loop.__post_init__()  # of tensors that are on the device now
        keeping(backbone, [loop.rows for loop in loops])
        assert not any(isinstance(ended, Exception) for ended in PromptBank(loops, Listener()).train())
        found.append(loops)
    for alone, there in zip(*found, strict=True):
        there.module.to("cpu")
        same(there, alone)
    assert not any(seen.waits[4:])  # of two members in each step
    assert not any(seen.late[4:])
    assert gpu.kernels["a copy beside"] >= 4


def test_nothing_is_sent_on_a_cpu_or_where_all_lies_on_the_gpu(
    gpu: PretendGpu, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    batch = TrainingLoop.batch
    monkeypatch.setattr(TrainingLoop, "batch", lambda loop, step: asked.append(step) or batch(loop, step))
    for device, on_device in (("cpu", 0), ("cuda", 1 << 20)):
        backbone = load("llama", device)
        trained(backbone, tmp_path / f"{device}.pt", on_device=on_device, steps=3)
        assert isinstance(backbone, DecoderOnlyBackbone)
        assert backbone._ahead is None
        if device == "cpu":
            assert asked == [0, 0, 1, 2]  # at the beginning and in each step
    assert not gpu.kernels["a copy beside"]


# --- planted mistakes


def test_rows_that_are_read_before_they_are_there_are_found(
    gpu: PretendGpu, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InputsAhead, "get", lambda ahead, key, kept: ahead._rows.get(key, kept))
    with pytest.raises(NotFiniteError):
        trained(load("llama", "cuda"), tmp_path / "a.pt")


@pytest.mark.parametrize("blocks", [1, 2])
def test_pinned_blocks_that_are_used_in_turn_are_found(
    gpu: PretendGpu, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    empty = torch.empty
    turns = itertools.cycle([empty(1 << 20, pin_memory=True) for _ in range(blocks)])

    def in_turn(size: Any, **given: Any) -> Tensor:
        return next(turns)[:size] if given.get("pin_memory") else empty(size, **given)

    monkeypatch.setattr("attempt_cli.backbones.inputs_ahead.torch.empty", in_turn)
    with pytest.raises(RuntimeError, match=r"while a copy may still read it at .*inputs_ahead"):
        trained(load("llama", "cuda"), tmp_path / "a.pt")


def test_memory_that_is_taken_again_too_early_is_found(
    gpu: PretendGpu, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InputsAhead, "was_read", lambda ahead: None)
    trained(load("llama", "cuda"), tmp_path / "a.pt")
    assert all("inputs_ahead.py" in race for race in gpu.streams.races)
    assert gpu.streams.races
    gpu.streams.races.clear()
