"""A prompt is what enters the model, in whatever units it is stored; and it belongs to one backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attempt_cli.artefacts import bare, load_composition, load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import RowPrediction, predict
from attempt_cli.method import PromptAttention, rms_temperature
from attempt_registry import Registry, RegistryError
from tests.evaluation.test_prediction import examples, task
from tests.models import save_llama
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "kept")


def entering(backbone: FrozenBackbone, seed: int) -> np.ndarray[Any, Any]:
    """A prompt as it enters the model."""
    model = tiny.model(backbone, seed=seed)
    assert model.mixture is not None
    return model.mixture.target_prompts.detach()[0].numpy() * model.scale


def keep(registry: Registry, backbone: FrozenBackbone, name: str, seed: int, scale: float, of: str = "toy") -> None:
    registry.add_prompt(
        entering(backbone, seed) / scale,
        name=name,
        kind="source",
        method="imported",
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        task=of,
        task_version=None,
        embedding_scale=scale,
        settings={},
        numbers={},
        seed=None,
    )


def assert_same(ours: list[RowPrediction], theirs: list[RowPrediction]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.attention == (None if other.attention is None else pytest.approx(other.attention, abs=1e-5))


def test_raw_and_rms_units_say_the_same(registry: Registry, backbone: FrozenBackbone) -> None:
    toy = task()
    rows = examples(toy)
    found = []
    for name, scale in (("raw", 1.0), ("rms", backbone.embedding_rms), ("odd", 0.037)):
        keep(registry, backbone, name, 3, scale)
        loaded = load_prompt(registry, backbone, registry.prompt(name))
        found.append(predict(loaded.model, toy, rows).rows)
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])
    nothing = predict(bare(backbone).model, toy, rows).rows
    assert any(
        a.probabilities != pytest.approx(b.probabilities, abs=1e-3) for a, b in zip(found[0], nothing, strict=True)
    )


def test_a_mixture_of_sources_in_different_units(registry: Registry, backbone: FrozenBackbone) -> None:
    toy = task()
    generator = torch.Generator().manual_seed(0)
    attention = PromptAttention(backbone.width, 3, rms_temperature(backbone.width), generator=generator)
    weights = {name: (50 * tensor).numpy() for name, tensor in attention.state_dict().items()}  # far from flat
    registry.add_attention(
        weights,
        name="mixer",
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        rank=3,
        level="instance",
        temperature=attention.temperature,
        width=backbone.width,
        settings={},
        seed=0,
    )
    found = []
    for units, scales in {"alike": (1.0, 1.0, 1.0), "mixed": (1.0, 0.3, backbone.embedding_rms)}.items():
        for number, (part, scale) in enumerate(zip(("one", "two", "aim"), scales, strict=True)):
            keep(registry, backbone, f"{part}-{units}", number, scale)
        composition = registry.add_composition(
            name=units,
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
            sources=[f"one-{units}", f"two-{units}"],
            attention="mixer",
            targets=[f"aim-{units}"],
            settings={"embedding_scale": backbone.embedding_rms},
        )
        found.append(predict(load_composition(registry, backbone, composition).model, toy, examples(toy)).rows)
    assert_same(found[0], found[1])
    first = found[0][0].attention
    assert first is not None
    assert max(first) > 0.4


def test_a_prompt_of_another_backbone_is_refused_whatever_its_width(
    registry: Registry, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    keep(registry, backbone, "mine", 0, 1.0)
    other = load_backbone(str(save_llama(tmp_path / "stranger", intermediate_size=32)), device="cpu", dtype="float32")
    assert other.width == backbone.width
    with pytest.raises(AttemptError) as failure:
        load_prompt(registry, other, registry.prompt("mine"))
    message = failure.value.message
    assert message.startswith(f"'mine@1' was trained for {backbone.name} ({backbone.fingerprint})")
    assert message.endswith(f"the backbone here is stranger ({other.fingerprint})")
    assert "attempt registry list --backbone stranger" in str(failure.value.hint)
    # the same weights under another name are the same backbone
    again = load_backbone(str(save_llama(tmp_path / "twin")), device="cpu", dtype="float32")
    load_prompt(registry, again, registry.prompt("mine"))


def test_a_composition_that_cannot_predict(registry: Registry, backbone: FrozenBackbone) -> None:
    keep(registry, backbone, "one", 1, 1.0)
    keep(registry, backbone, "aim", 0, 1.0)
    same: dict[str, Any] = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
    sources_only = registry.add_composition(name="sources-only", sources=["one"], **same)
    with pytest.raises(AttemptError, match="no attention to mix them"):
        load_composition(registry, backbone, sources_only)
    no_attention = registry.add_composition(name="no-attention", sources=["one"], targets=["aim"], **same)
    with pytest.raises(AttemptError, match="no attention to mix them"):
        load_composition(registry, backbone, no_attention)
    target_only = registry.add_composition(name="target-only", sources=[], targets=["aim"], **same)
    toy = task()
    alone = predict(load_prompt(registry, backbone, registry.prompt("aim")).model, toy, examples(toy)).rows
    assert_same(predict(load_composition(registry, backbone, target_only).model, toy, examples(toy)).rows, alone)


def test_a_composition_of_several_tasks(registry: Registry, backbone: FrozenBackbone) -> None:
    keep(registry, backbone, "aim", 0, 1.0)
    keep(registry, backbone, "other", 1, 1.0, of="another")
    both = registry.add_composition(
        name="both", sources=[], targets=["aim", "other"], backbone=backbone.name, fingerprint=backbone.fingerprint
    )
    loaded = load_composition(registry, backbone, both)
    assert (loaded.task_index("toy"), loaded.task_index("another")) == (0, 1)
    with pytest.raises(AttemptError, match="has no target prompt for the task 'third'") as failure:
        loaded.task_index("third")
    assert failure.value.hint == "It has: toy, another."
    assert load_prompt(registry, backbone, registry.prompt("aim")).task_index("third") == 0  # as it stands


def test_a_damaged_prompt_is_named(registry: Registry, backbone: FrozenBackbone) -> None:
    keep(registry, backbone, "mine", 0, 1.0)
    path = registry.tensor_path(registry.prompt("mine"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(data)
    with pytest.raises(RegistryError, match="mine@1"):
        load_prompt(registry, backbone, registry.prompt("mine"))
