"""Compiled layers compute what plain ones do, and are one case for the compiler whatever their number."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from tests.backbones.test_placement import LABELS, prompted, rows_of
from tests.models import save_gpt2, save_llama, save_t5

pytestmark = pytest.mark.slow

SAVE = {"llama": save_llama, "gpt2": save_gpt2, "t5": save_t5}
WAYS = [
    ("llama", "before", 0),  # one prompt for all rows: it has a pass of its own
    ("llama", "before", 2),
    ("llama", "after", 2),
    ("gpt2", "after", 0),
    ("t5", "before", 2),
]


def results(model: PromptedModel) -> list[Tensor]:
    """Returns scores of targets and label words, and the gradient, of ragged rows."""
    rows = rows_of(model.backbone, end=True)
    assert model.mixture is not None
    scores = model.log_likelihood(rows)
    (gradient,) = torch.autograd.grad(scores.sum(), [model.mixture.target_prompts])
    labels, _ = model.score_labels(rows, model.backbone.label_tokens(LABELS))
    return [scores.detach(), gradient, labels]


def compare(backbone: FrozenBackbone, placement: str, sources: int) -> None:
    model = PromptedModel(backbone, prompted(backbone, sources=sources).mixture, 0.7, placement)
    plain = results(model)
    backbone.compile_layers(True)
    for found, wanted in zip(results(model), plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    backbone.compile_layers(False)
    for found, wanted in zip(results(model), plain, strict=True):
        assert torch.equal(found, wanted)


@pytest.fixture
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.usefixtures("fresh_compiler")
def test_real_compiled_layers_give_the_same_numbers(tmp_path: Path) -> None:
    compare(load_backbone(str(save_llama(tmp_path / "llama")), device="cpu", dtype="float32"), "after", 2)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("name", "placement", "sources"), WAYS)
def test_as_many_forms_for_many_layers_as_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, placement: str, sources: int
) -> None:
    forms: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:  # what the compiler would be given runs as it is
        forms[-1] += 1
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    called: set[int] = set()
    layers = {"gpt2": "n_layer", "llama": "num_hidden_layers", "t5": "num_layers"}[name]
    for count in (2, 5):
        torch._dynamo.reset()
        forms.append(0)
        folder = SAVE[name](tmp_path / str(count), **{layers: count})
        backbone = load_backbone(str(folder), device="cpu", dtype="float32")
        compare(backbone, placement, sources)
        called.add(len(backbone._stacks[0]))
    assert called == {2, 5}
    assert forms[0] == forms[1] > 0


def test_without_a_stack_of_layers_there_is_nothing_to_compile(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_llama(tmp_path, num_hidden_layers=1)), device="cpu", dtype="float32")
    assert not backbone.can_compile
    with pytest.raises(AttemptError, match="no stack of layers"):
        backbone.compile_layers(True)
    assert not backbone.compiled
