"""Layers spread over two pretend GPUs by accelerate (`--device auto`): one device's numbers, and no meeting of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.spread import TooLargeError, places
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import predict
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.worker_pool import WorkerPool
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import Positions, gradient_step, joint_gradient
from attempt_cli.training.processes import Processes
from tests.gpu.test_steps import model_on
from tests.models import LLAMA_SIZES
from tests.pretend_cuda import PretendGpu, pretend_cuda
from tests.training import tiny

Load = Callable[[str, str], FrozenBackbone]
CASES = [
    *((kind, "before", False) for kind in ("llama", "gpt2", "t5")),
    *((kind, "after", cache) for kind in ("llama", "gpt2") for cache in (False, True)),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the library's threads know no pretend GPU
    with pretend_cuda(2) as both:
        yield both


def on_auto(load: Load, kind: str) -> FrozenBackbone:
    backbone = load(kind, "auto")
    assert backbone.spread
    assert backbone.device == torch.device("cuda", 0)
    assert set(backbone.devices) == {torch.device("cuda", number) for number in (0, 1)}
    return backbone


@pytest.mark.parametrize("sources", [0, 2])
@pytest.mark.parametrize(("kind", "placement", "cache"), CASES)
def test_steps_have_the_numbers_of_one_device_and_wait_for_nothing(
    gpus: PretendGpu, load: Load, kind: str, placement: str, cache: bool, sources: int
) -> None:
    found = []
    for backbone in (load(kind, "cpu"), on_auto(load, kind)):
        assert placement in backbone.placements
        model, rows = model_on(backbone, placement, sources), tiny.encoded(backbone, 12)
        if cache:
            backbone.input_cache = InputCache(1 << 26, on_host=backbone.on_gpu)
            backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        config = make_config(None, prompt_length=tiny.LENGTH, attention_rank=tiny.RANK, batch_size=12)
        numbers: list[torch.Tensor] = []
        for _ in range(2):
            gpus.clear()  # the first step fills the cache
            model.trained.zero_grad()
            numbers += [gradient_step(model, rows, config, Processes())]
            numbers += [p.grad.norm() for p in model.trained.parameters() if p.grad is not None]
        if backbone.on_gpu:
            assert not gpus.waits
            assert gpus.kernels["a copy between cards"]
        found.append(torch.stack(numbers).cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "placement"), [("llama", "before"), ("llama", "after"), ("t5", "before")])
def test_a_bank_has_the_gradients_of_one_device(gpus: PretendGpu, load: Load, kind: str, placement: str) -> None:
    found = []
    for backbone in (load(kind, "cpu"), on_auto(load, kind)):
        models = [model_on(backbone, placement, sources) for sources in (0, 2)]
        rows = tiny.encoded(backbone, 12)
        losses = joint_gradient(models, [rows[:8], rows[4:]], 8192, [Positions(), Positions()])
        norms = [p.grad.norm() for model in models for p in model.trained.parameters() if p.grad is not None]
        found.append(torch.stack([*losses, *norms]).cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "placement"), [("llama", "before"), ("llama", "after"), ("t5", "before")])
def test_rows_are_scored_and_texts_written_as_on_one_device(
    gpus: PretendGpu, load: Load, kind: str, placement: str, toy_task: Task, examples: list[Example]
) -> None:
    found, written = [], []
    for backbone in (load(kind, "cpu"), on_auto(load, kind)):
        model = model_on(backbone, placement, 2)
        gpus.clear()
        found.append(predict(model, toy_task, examples))
        waits = gpus.waits.total()
        rows = backbone.encode([one.input for one in examples[:3]], None, 64)
        written.append(model.generate(rows, 6)[0])
    assert waits == 1
    assert found[0].texts == found[1].texts
    assert written[0] == written[1]
    for here, there in zip(found[0].rows, found[1].rows, strict=True):
        assert here.log_likelihood == pytest.approx(there.log_likelihood, abs=1e-4)


def test_identity_is_that_of_one_device_and_nothing_is_compiled_or_captured(gpus: PretendGpu, load: Load) -> None:
    for kind in ("llama", "t5"):
        backbone, alone = on_auto(load, kind), load(kind, "cpu")
        assert backbone.fingerprint == alone.fingerprint
        assert backbone.embedding_rms == pytest.approx(alone.embedding_rms)
        assert not backbone.can_compile
        assert not backbone.waits_for_host
        with pytest.raises(AttemptError, match="on several GPUs"):
            backbone.compile_layers(True)


def test_gradient_checkpointing_changes_no_number(
    gpus: PretendGpu, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    # layers are computed again within the backward pass, where no mode makes one kernel of attention
    monkeypatch.setattr("tests.pretend_cuda._in_one_kernel", lambda *_: None)
    for kind in ("llama", "t5"):
        backbone = on_auto(load, kind)
        model, rows, losses = model_on(backbone, "before", 0), tiny.encoded(backbone, 6), []
        config = make_config(None, prompt_length=tiny.LENGTH)
        for on in (False, True):
            backbone.checkpoint_gradients(on)
            model.trained.zero_grad()
            gradient_step(model, rows, config, Processes())
            losses.append([p.grad.norm().item() for p in model.trained.parameters() if p.grad is not None])
        assert losses[0] == pytest.approx(losses[1])


def test_what_does_not_fit_is_refused_before_it_is_loaded(
    gpus: PretendGpu, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    gpus.free = 10_000
    with pytest.raises(TooLargeError, match=r"2 GPUs have 19.5 KiB free"):
        load_backbone(str(folders["llama"]), device="auto", dtype="float32")
    gpus.free = 48_000  # enough together, but not for whole layers
    with pytest.raises(TooLargeError, match="do not fit in the free memory of 2 GPUs"):
        load_backbone(str(folders["llama"]), device="auto", dtype="float32")
    with pytest.raises(TooLargeError) as caught:
        load_backbone(str(folders["llama"]), device="cuda", dtype="float32")
    assert "--device auto (2 GPUs)" in str(caught.value.hint)


def test_quantised_layers_are_placed_by_what_they_take(gpus: PretendGpu) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**LLAMA_SIZES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 16, "vocab_size": 50}
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(LlamaConfig(**sizes))
    gpus.free = int(0.35 * 2 * sum(weight.numel() for weight in skeleton.parameters()))
    with pytest.raises(TooLargeError):
        places("llama", skeleton, torch.bfloat16, None)
    found = places("llama", skeleton, torch.bfloat16, "nf4")
    layers = [gpu.index for part, gpu in found.items() if ".layers." in part]
    assert layers == sorted(layers)
    assert 6 <= layers.count(0) <= 10


def test_one_gpu_is_taken_with_a_remark(load: Load) -> None:
    with pretend_cuda():
        backbone = load("llama", "auto")
        assert backbone.devices == [torch.device("cuda", 0)]
        assert backbone.notes[-1] == "--device auto: there is one GPU, so all layers are on cuda:0."


def test_workers_do_not_share_spread_layers(tmp_path: Path) -> None:
    plan = Plan(registry=tmp_path, tasks={}, device="auto")
    with pytest.raises(AttemptError, match="workers cannot each have them"):
        WorkerPool(2).fill(plan, [], None, None)  # type: ignore[arg-type]
