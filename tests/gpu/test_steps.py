"""Training steps and evaluation on the pretend GPU: the CPU's numbers, and no wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import predict
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.loop import TrainingLoop, make_optimizer
from attempt_cli.training.methods import METHODS
from attempt_cli.training.processes import Processes
from attempt_cli.training.run import train
from attempt_registry import Registry
from tests.pretend_cuda import PretendGpu
from tests.training import tiny
from tests.training.requests import request_for

Load = Callable[[str, str], FrozenBackbone]
CASES = [
    (kind, placement, sources, cache)
    for kind in ("llama", "gpt2", "t5")
    for placement in (("before",) if kind == "t5" else ("before", "after"))
    for sources in (0, 2)
    for cache in (("none",) if placement == "before" else ("none", "host", "file", "device", "both"))
]


def model_on(backbone: FrozenBackbone, placement: str, sources: int) -> PromptedModel:
    model = tiny.model(backbone, sources=sources)
    assert model.mixture is not None
    return replace(model, placement=placement, mixture=model.mixture.to(backbone.device))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "placement", "sources", "cache"), CASES)
def test_a_step_waits_for_nothing_and_has_the_numbers_of_the_cpu(
    gpu: PretendGpu,
    load: Load,
    kind: str,
    placement: str,
    sources: int,
    cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    if cache == "both":
        monkeypatch.setattr("attempt_cli.backbones.input_cache.GROUP_ROWS", 2)
    for device in ("cpu", "cuda"):
        backbone = load(kind, device)
        model, rows = model_on(backbone, placement, sources), tiny.encoded(backbone, 16)
        if cache != "none":
            folder = tmp_path / device if cache == "file" else None
            on_host = backbone.on_gpu and cache in ("host", "both")
            some = 80 * backbone.cache_bytes_per_token if cache == "both" else 0  # for some groups of two rows
            backbone.input_cache = InputCache(1 << 26, folder=folder, on_host=on_host, on_device=some)
            backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        config = make_config(None, prompt_length=tiny.LENGTH, attention_rank=tiny.RANK, batch_size=16)
        optimizer = make_optimizer(model.trained, config)
        numbers: list[torch.Tensor] = []
        for _ in range(2):
            gpu.clear()  # the first step fills the cache
            loss = gradient_step(model, rows, config, Processes())
            numbers += [loss, torch.nn.utils.clip_grad_norm_(model.trained.parameters(), 1.0)]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            assert not gpu.waits
            if cache == "both" and backbone.input_cache is not None:
                assert {kept.device.type for kept in backbone.input_cache._kept.values()} == {"cpu", "cuda"}
        found.append(torch.stack([*numbers, *(p.detach().norm() for p in model.trained.parameters())]).cpu())
    torch.testing.assert_close(*(numbers[:4] for numbers in found), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)  # AdamW makes whole steps of the smallest gradients


class Watch(Listener):
    """Forgets what the pretend GPU has counted when the steps begin."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu = gpu

    def start(self, step: int, total: int) -> None:
        self.gpu.clear()


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits_in_its_steps(
    gpu: PretendGpu,
    load: Load,
    kind: str,
    method: str,
    toy_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone, registry = load(kind, "cuda"), Registry.open(tmp_path / "registry")
    settings = {"prompt_length": 24, "steps": 3, "batch_size": 8, "eval_every": 0}

    def run(method: str, name: str, **more: object) -> None:
        config = make_config(None, method=method, **settings)
        tasks = [toy_task, toy_task.model_copy(update={"name": "other"})][: METHODS[method].least_tasks]
        train(registry, backbone, request_for(*tasks, config=config, name=name, **more), listener=Watch(gpu))

    run("prompt-tuning", "source")
    source = (registry.prompt("source"),)
    given = {}
    if "sources" in METHODS[method].needs:
        given = {"sources": source}
    elif METHODS[method].needs:
        given = {"init_from": source}
    seen: list[dict[str, int]] = []
    save = TrainingLoop.save
    monkeypatch.setattr(TrainingLoop, "save", lambda loop: (seen.append(dict(gpu.waits)), save(loop)))
    run(method, "own", **given)
    assert seen[0] == {}


@pytest.mark.parametrize(("kind", "placement"), [("llama", "before"), ("llama", "after"), ("t5", "before")])
@pytest.mark.parametrize("sources", [0, 2])
def test_a_batch_is_scored_with_one_wait(
    gpu: PretendGpu, load: Load, kind: str, placement: str, sources: int, toy_task: Task, examples: list[Example]
) -> None:
    texts = []
    for device in ("cpu", "cuda"):
        model = model_on(load(kind, device), placement, sources)
        gpu.clear()
        texts.append(predict(model, toy_task, examples))
    assert gpu.waits.total() == 1
    assert texts[0].texts == texts[1].texts
    for here, there in zip(texts[0].rows, texts[1].rows, strict=True):
        assert here.probabilities == pytest.approx(there.probabilities, abs=1e-5)
        assert here.log_likelihood == pytest.approx(there.log_likelihood, abs=1e-4)
