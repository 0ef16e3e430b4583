"""What was wrong on GPUs, found on the pretend one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attempt_cli.backbones import kernels
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.check import check_scores
from attempt_cli.backbones.device import choose_device
from attempt_cli.backbones.kernels import Shape, choose_kernel
from attempt_cli.errors import AttemptError
from attempt_cli.experiments import process_worker, worker_pool
from attempt_cli.experiments.worker_pool import WorkerPool
from attempt_cli.session import Session
from attempt_cli.training.processes import PARTS, Processes
from tests.models import SAVERS
from tests.pretend_cuda import CUDA, PretendGpu, pretend_cuda
from tests.training import tiny

Load = Callable[[str, str], FrozenBackbone]


# --- the trial of kernels


@pytest.fixture
def shape() -> Shape:
    kernels._kept_kernel.cache_clear()
    return Shape(torch.device("cpu"), torch.float32, 4, 2, 8, 128, True)


def test_the_trial_of_kernels_keeps_to_its_memory(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SCORE_BYTES", 2 * 4 * 128**2 * 4)
    tried: list[int] = []
    monkeypatch.setattr(kernels, "_timed_kernel", lambda shape, rows: tried.append(rows) or "plain")
    assert choose_kernel(shape) == "plain"
    assert tried == [2]


@pytest.mark.parametrize("told", [True, False])
def test_scores_that_do_not_fit_are_not_tried(shape: Shape, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(kernels, "_timed_kernel", full)
    if told:
        monkeypatch.setattr(kernels, "SCORE_BYTES", 4 * 128**2 * 4 - 1)
    assert choose_kernel(shape) == "sdpa"


def test_no_kernel_is_tried_on_a_gpu(gpu: PretendGpu, shape: Shape) -> None:
    for keys in (2, 128, 1 << 20):
        assert choose_kernel(replace(shape, device=CUDA, keys=keys)) == "sdpa"
    assert not gpu.kernels


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


# --- several processes


@pytest.mark.parametrize("device", [None, "cuda"])
def test_every_process_has_a_gpu_of_its_own(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda(count=2):
        for rank, index in ((0, 0), (1, 1), (2, 0)):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            assert choose_device(device) == torch.device("cuda", index)


def test_workers_take_turns_at_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Pipe:
        def recv(self) -> None:
            seen.append(choose_device(None).index)

    monkeypatch.setattr(process_worker, "_die_with_parent", lambda: None)
    monkeypatch.setattr(process_worker, "Runner", lambda plan: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(process_worker.signal, "signal", lambda *_: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pretend_cuda(count=2):
        for number in range(3):
            process_worker._serve(None, Pipe(), 1, number)  # type: ignore[arg-type]
    assert seen == [0, 1, 0]
    made: list[int] = []
    monkeypatch.setattr(worker_pool, "ProcessWorker", lambda plan, threads, number: made.append(number))
    monkeypatch.setattr(worker_pool, "fill", lambda specs, worker, *_, **__: [worker() for _ in specs])
    monkeypatch.setattr(worker_pool, "banks", lambda specs, most: [[one] for one in specs])
    WorkerPool(3).fill(SimpleNamespace(bank=1, device=None), [None] * 3, None, None)  # type: ignore[arg-type, list-item]
    assert made == [0, 1, 2]


def test_processes_of_one_training_share_the_memory_for_inputs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []
    for count in ("1", "4"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        cache = Session(backbone=str(folders["llama"]), device="cpu").load_backbone().input_cache
        assert cache is not None
        budgets.append(cache.budget)
    assert budgets[0] // 4 == budgets[1]


@pytest.mark.parametrize(("name", "what"), PARTS.items())
def test_settings_that_split_the_model_are_refused(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(AttemptError, match=what):
        Processes.here()
    monkeypatch.setenv(name, "false")
    assert Processes.here() == Processes()


# --- memory


def test_a_model_that_does_not_fit_is_told_as_that(gpu: PretendGpu, load: Load) -> None:
    gpu.largest, gpu.free = 1000, 5 << 20
    with pytest.raises(AttemptError, match=r"does not fit in the memory of cuda:0, where 5.*MiB are free") as caught:
        load("llama", "cuda")
    assert "--dtype bfloat16" in str(caught.value.hint)


# --- quantised weights


class Packed(torch.nn.Module):
    """A product as GPTQ and AWQ keep it: whole numbers and scales as buffers, and a kernel of their own."""

    def __init__(self, linear: torch.nn.Linear, backward: str) -> None:
        super().__init__()
        self.in_features, self.backward = linear.in_features, backward
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.qweight.to(x.dtype) * self.scales
        if self.backward == "none":
            return (x.detach() @ weight.T).requires_grad_(torch.is_grad_enabled())
        return x @ weight.T if self.backward == "right" else x.detach() @ weight.T + 0 * x.sum()


def packed(backbone: FrozenBackbone, backward: str) -> FrozenBackbone:
    for layer in backbone.model.base_model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj, backward)
    return backbone


@pytest.mark.parametrize("backward", ["none", "zero"])
def test_quantised_weights_without_a_gradient_are_refused(load: Load, backward: str) -> None:
    backbone = packed(load("llama", "cpu"), backward)
    with pytest.raises(AttemptError, match=r"quantised .Packed., and no gradient passes"):
        check_scores(backbone)


def test_quantised_weights_with_a_gradient_are_taken(load: Load) -> None:
    backbone = packed(load("llama", "cpu"), "right")
    backbone.use_own_attention(False)
    check_scores(backbone)


def test_packed_weights_are_part_of_the_identity(load: Load) -> None:
    def fingerprint(change: int) -> str:
        backbone = packed(load("llama", "cpu"), "right")
        backbone.__dict__.pop("fingerprint", None)
        backbone.model.base_model.layers[1].mlp.down_proj.qweight[0, 0] += change
        return backbone.fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_the_tokenizer_has_a_digest_of_its_own(load: Load) -> None:
    backbone, other = load("llama", "cpu"), load("llama", "cpu")
    other.end_id += 1
    assert backbone.fingerprint == other.fingerprint
    assert backbone.tokenizer_digest != other.tokenizer_digest


def test_what_is_tied_counts_once_on_a_gpu_too(gpu: PretendGpu, load: Load) -> None:
    assert {kind: load(kind, "cuda").fingerprint for kind in SAVERS} == {
        kind: load(kind, "cpu").fingerprint for kind in SAVERS
    }
