"""What was wrong on GPUs, found on the pretend one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones import kernels
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.kernels import Shape, choose_kernel
from tests.pretend_cuda import CUDA, PretendGpu
from tests.training import tiny

Load = Callable[[str, str], FrozenBackbone]


# --- the trial of kernels


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> Shape:
    kernels._kept_kernel.cache_clear()
    return Shape(CUDA, torch.float32, 4, 2, 8, 128, True)


def test_the_trial_of_kernels_keeps_to_its_memory(
    gpu: PretendGpu, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = 4 * 128**2 * 4
    monkeypatch.setattr(kernels, "SCORE_BYTES", 2 * row)
    gpu.largest = 2 * row
    assert choose_kernel(shape) in kernels.KERNELS
    assert gpu.kernels  # two rows fitted, and were measured


@pytest.mark.parametrize("told", [True, False])
def test_scores_that_do_not_fit_are_not_tried(
    gpu: PretendGpu, shape: Shape, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told:
        monkeypatch.setattr(kernels, "SCORE_BYTES", 4 * 128**2 * 4 - 1)
    else:  # another program has the memory
        gpu.largest = 1000
    assert choose_kernel(shape) == "sdpa"


# --- progress


class Steps(tiny.Recorder):
    """Notes the speeds that it is told, too."""

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        super().step(step, loss, rows_per_second)
        self.speeds = [*getattr(self, "speeds", []), rows_per_second]


def test_steps_are_shown_where_losses_are_read_late(gpu: PretendGpu, load: Load, tmp_path: Path) -> None:
    backbone = load("llama", "cuda")
    model = tiny.model(backbone)
    assert model.mixture is not None
    model = replace(model, mixture=model.mixture.to(backbone.device))
    rows = tiny.encoded(backbone, 8)

    def evaluate(_: object) -> tuple[dict[str, float], float]:
        time.sleep(0.2)
        return {"accuracy": 0.5}, -1.0

    listener = Steps()
    settings = {"batch_size": 4, "learning_rate": 0.1, "listener": listener}
    began = time.monotonic()
    tiny.run(model, rows, tmp_path / "a.pt", steps=20, eval_every=10, evaluate=evaluate, **settings)
    whole = 20 * 4 / (time.monotonic() - began - 3 * 0.2)
    assert listener.steps == [10, 20]
    assert all(whole * 0.5 < speed < whole * 3 for speed in listener.speeds)  # 16 times as many were told

    listener.steps.clear()
    tiny.run(model, rows, tmp_path / "b.pt", steps=21, eval_every=0, **settings)
    assert listener.steps == [16, 21]
