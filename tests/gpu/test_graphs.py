"""Gradients launched as graphs: the numbers of those launched kernel by kernel, and a handful of launches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.rows import BatchShape, EncodedRow
from attempt_cli.prompted import PromptedModel
from attempt_cli.training import graphs
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import Positions, gradient_step
from attempt_cli.training.graphs import StepGraphs
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from tests.gpu.test_steps import model_on
from tests.pretend_cuda import PretendGpu, captured
from tests.training import tiny

Load = Callable[[str, str], FrozenBackbone]
CASES = [
    (kind, placement, sources, kept)
    for kind in ("llama", "gpt2", "t5")
    for placement in (("before",) if kind == "t5" else ("before", "after"))
    for sources in (0, 2)
    for kept in ((False,) if placement == "before" else (False, True))
]


# --- the pretend graph


def test_a_graph_computes_again_on_what_its_tensors_hold_then(gpu: PretendGpu) -> None:
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.full((3,), 2.0, device="cuda").mul_(x) + 1
        total.add_(y)
    assert total.tolist() == [0, 0, 0]  # only noted
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
    assert y.tolist() == [11, 11, 11]
    assert total.tolist() == [14, 14, 14]
    assert gpu.kernels["graph"] == 2


@pytest.mark.parametrize("forbidden", [lambda x: float(x.sum()), lambda x: torch.ones(2).pin_memory()])
def test_a_graph_holds_nothing_of_the_host(gpu: PretendGpu, forbidden: Callable[[Any], object]) -> None:
    x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="stream is capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        forbidden(x)
    with captured(torch.cuda.CUDAGraph()):  # type: ignore[arg-type]
        x + x


# --- steps


def steps(model: PromptedModel, rows: list[EncodedRow], count: int, **options: Any) -> torch.Tensor:
    """Takes steps on ragged batches; returns losses, norms of gradients, and what is trained at the end."""
    config = make_config(None, prompt_length=tiny.LENGTH, attention_rank=tiny.RANK, batch_size=8)
    optimizer = make_optimizer(model.trained, config)
    draw, numbers = random.Random(0), []
    for step in range(count):
        some = draw.sample(rows, 8 if step % 3 else 7)
        loss = gradient_step(model, some, config, Processes(), **options)
        numbers += [loss, torch.nn.utils.clip_grad_norm_(model.trained.parameters(), 1.0)]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack([*numbers, *(one.detach().norm() for one in model.trained.parameters())]).cpu()


@pytest.mark.parametrize(("kind", "placement", "sources", "kept"), CASES)
def test_graphs_have_the_numbers_of_single_kernels(
    gpu: PretendGpu, load: Load, kind: str, placement: str, sources: int, kept: bool
) -> None:
    found, notes = [], []
    for launched in (False, True):
        backbone = load(kind, "cuda")
        model, rows = model_on(backbone, placement, sources), tiny.encoded(backbone, 24)
        if kept:
            backbone.input_cache = InputCache(1 << 26)
            backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        own = StepGraphs(model, notes.append) if launched else None
        found.append(steps(model, rows, 12, graphs=own))
        if own is None:
            continue
        assert own.count > 0
        gpu.clear()
        steps(model, rows[:8], 1, graphs=own)
        steps(model, rows[:8], 1, graphs=own)
        gpu.clear()
        gradient_step(model, rows[:7], make_config(None, batch_size=8), Processes(), graphs=own)
        assert not gpu.waits
        assert gpu.kernels["graph"] == 1
        assert kept or placement == "after" or gpu.kernels.total() < 8
    assert not notes
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_chat_template_s_part_is_in_the_graph(gpu: PretendGpu, load: Load) -> None:
    backbone = load("llama", "cuda")
    frame = type("Frame", (), {"head": (5, 6), "tail": (7,), "end_id": 1})()
    notes: list[str] = []
    found = []
    for launched in (False, True):
        model = replace(model_on(backbone, "before", 0), frame=frame)
        own = StepGraphs(model, notes.append) if launched else None
        found.append(steps(model, tiny.encoded(backbone, 8), 4, graphs=own))
    assert not notes
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mistake", ["a number of the host", "a wait"])
def test_what_a_graph_cannot_hold_is_launched_kernel_by_kernel(
    gpu: PretendGpu, load: Load, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    backbone, notes = load("llama", "cuda"), []
    rows = tiny.encoded(backbone, 24)
    plain = steps(model_on(backbone, "before", 0), rows, 6)
    likelihood = PromptedModel.likelihood_of

    def planted(self: PromptedModel, *arguments: Any) -> torch.Tensor:
        found = likelihood(self, *arguments)
        if mistake == "a wait":
            return found * float(found.sum() < 1e9)
        return found * (1.0 if gpu.capturing is None else 1.5)  # another number while a graph is captured

    monkeypatch.setattr(PromptedModel, "likelihood_of", planted)
    model = model_on(backbone, "before", 0)
    own = StepGraphs(model, notes.append)
    found = steps(model, rows, 6, graphs=own)
    assert own.count == 0
    (note,) = notes
    assert ("differs" if mistake == "a number of the host" else "capturing") in note
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


# --- trainings


@pytest.mark.parametrize(
    ("settings", "least", "large", "some"),
    [({}, 10, 1 << 40, True), ({}, 11, 1 << 40, False), ({}, 10, 1, False), ({"compile": False}, 10, 1 << 40, False)],
)
def test_a_training_says_that_it_used_graphs(
    gpu: PretendGpu,
    load: Load,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    least: int,
    large: int,
    some: bool,
) -> None:
    monkeypatch.setattr(graphs, "LEAST_STEPS", least)
    monkeypatch.setattr("attempt_cli.backbones.base.LARGE_ON_GPU", large)
    backbone = load("llama", "cuda")
    model = model_on(backbone, "before", 0)
    listener = tiny.Recorder()
    settings = {"steps": 10, "batch_size": 8, "eval_every": 0, "listener": listener, **settings}
    trained = tiny.run(model, tiny.encoded(backbone, 16), tmp_path / "a.pt", **settings)
    assert (trained.numbers.get("graphs", 0) > 0) == some
    assert not listener.notes
    assert len(trained.state.losses) == 10


# --- shapes


def row(inputs: int, targets: int) -> EncodedRow:
    return EncodedRow([3] * inputs, [4] * targets)


def test_a_rounded_shape_holds_the_batch_and_is_one_of_few() -> None:
    draw, shapes = random.Random(0), set()
    for _ in range(300):
        rows = [row(draw.randrange(1, 200), draw.randrange(1, 4)) for _ in range(16)]
        exact = BatchShape.of(rows)
        shape = exact.rounded(None)
        for name in ("rows", "inputs", "targets", "predicted", "read"):
            assert getattr(shape, name) >= getattr(exact, name)
        assert shape.inputs <= max(8, 1.25 * exact.inputs)
        shapes.add(shape)
    assert len(shapes) <= 4


def test_a_shape_does_not_grow_beyond_the_model_s_positions() -> None:
    exact = BatchShape.of([row(33, 1)])
    assert exact.rounded(40).inputs == 33
    assert exact.rounded(41).inputs == 40


def test_many_target_tokens_are_not_all_filled() -> None:
    rows = [row(5, 1 + 60 * (number == 0)) for number in range(16)]
    shape = BatchShape.of(rows).rounded(None)
    assert shape.predicted == 256 < shape.rows * shape.targets


def test_a_wider_shape_changes_no_score_and_counts_its_positions(gpu: PretendGpu, load: Load) -> None:
    backbone = load("llama", "cuda")
    model, rows = model_on(backbone, "before", 0), tiny.encoded(backbone, 7)
    shape = BatchShape(9, 64, 9, 80, 75, filled=True)
    exact = model.log_likelihood(rows)
    batch = backbone.unpacked(backbone.on_device(backbone.packed(rows, shape)), shape)
    wide = model.likelihood_of(batch, None, True)
    torch.testing.assert_close(wide[:7].cpu(), exact.detach().cpu(), rtol=1e-5, atol=1e-5)
    assert wide[7:].tolist() == [0, 0]
    own, positions = StepGraphs(model, print), Positions()
    gradient_step(model, rows, make_config(None, batch_size=8), Processes(), positions, own)
    used = own.shape_of(rows)
    assert positions.computed == used.rows * (used.inputs + used.targets - 1 + model.prompt_length)
