"""Records that travel: what another registry needs, and what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_registry import Backbone, Registry, RegistryError
from attempt_registry.parcels import adopt, pack, pack_new, unpack

OWN = {"backbone": "tiny", "fingerprint": "f" * 16, "settings": {}, "seed": 0}


def prompt(registry: Registry, name: str, value: float = 0.0, **more: Any) -> str:
    fields = {"kind": "source", "method": "m", "task": "t", "task_version": 1, "embedding_scale": 1.0, "numbers": {}}
    return registry.add_prompt(np.full((2, 3), value), name=name, **{**fields, **OWN, **more}).ref


@pytest.fixture
def home(tmp_path: Path) -> Registry:
    registry = Registry.open(tmp_path / "home")
    registry.remember_backbone(Backbone("tiny", "f" * 16, "decoder-only", 3, 1.0, 10, "here"))
    for value in (1.0, 2.0):
        prompt(registry, "sst2", value)
    prompt(registry, "rte", 3.0)
    return registry


@pytest.fixture
def away(tmp_path: Path, home: Registry) -> Registry:
    registry = Registry.open(tmp_path / "away")
    unpack(registry, pack(home, ["prompt:sst2@2", "sst2@2", "sst2", "prompt:rte@1"]))
    return registry


def test_what_is_needed_arrives_as_it_is(away: Registry, home: Registry) -> None:
    assert [one.ref for one in away.prompts()] == ["rte@1", "sst2@2"]
    there, here = away.prompt("sst2@2"), home.prompt("sst2@2")
    assert (there.sha256, there.created) == (here.sha256, here.created)
    np.testing.assert_array_equal(away.prompt_tensor(there), np.full((2, 3), 2.0))
    assert away.backbones() == home.backbones()
    assert away.verify() == []
    with pytest.raises(RegistryError, match="no prompt"):
        pack(home, ["prompt:none-such@1"])


def test_what_is_made_comes_home_under_its_own_versions(away: Registry, home: Registry) -> None:
    _, seen = pack_new(away, {})
    # prompt, attention and composition of one name, all of them known in texts
    made = prompt(away, "rte", 5.0, parents=["sst2@2"], kind="target")
    weights = {"down": np.zeros((1, 3)), "up": np.zeros((3, 1))}
    common = {"name": "rte", "rank": 1, "level": "instance", "temperature": 1.0, "width": 3}
    mixer = away.add_attention(weights, **common, parents=["sst2@2"], **OWN).ref
    named = {name: OWN[name] for name in ("backbone", "fingerprint")}
    whole = away.add_composition(name="rte", sources=["sst2@2"], attention=mixer, targets=[made], **named).ref
    assert len({made, mixer, whole}) == 3
    run = away.add_run(
        command="c", settings={}, numbers={}, versions={}, seed=0, artefacts=[f"composition:{whole}"], inputs=["sst2@2"]
    )
    numbers = {"prompt": f"{made} of {whole}", "model": f"weights (run {run.id})"}
    away.add_run(command="c", settings={"init_from": made}, numbers=numbers, versions={}, seed=0)
    first, seen = pack_new(away, seen)
    again = prompt(away, "rte", 6.0, kind="target")
    second, seen = pack_new(away, seen)
    home.add_run(command="before", settings={}, numbers={}, versions={}, seed=0)

    here = adopt(home, first)
    assert [here(ref) for ref in (made, mixer, whole)] == ["rte@2", "rte@1", "rte@1"]
    assert here("sst2@2") == "sst2@2"
    assert adopt(home, second)(again) == "rte@3"
    assert home.prompt("rte@2").parents == ("sst2@2",)
    composition = home.composition("rte")
    assert (composition.sources, composition.attention, composition.targets) == (("sst2@2",), "rte@1", ("rte@2",))
    one, other = home.run(2), home.run(3)
    assert (one.artefacts, one.inputs) == (("composition:rte@1",), ("prompt:sst2@2",))
    assert other.numbers == {"prompt": "rte@2 of rte@1", "model": "weights (run 2)"}
    assert other.settings == {"init_from": "rte@2"}
    np.testing.assert_array_equal(home.prompt_tensor(home.prompt("rte@3")), np.full((2, 3), 6.0))
    assert home.verify() == []
    assert [one.ref for one in home.search("rte")]
    assert pack_new(away, seen)[0].rows["prompts"] == []


def test_a_parcel_that_does_not_fit_leaves_nothing(
    away: Registry, home: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt(away, "new")
    parcel, _ = pack_new(away, {})
    parcel.rows["runs"] = [{"id": 1, "no such column": 1}]
    with pytest.raises(RegistryError):
        adopt(home, parcel)
    assert [one.ref for one in home.prompts()] == ["rte@1", "sst2@1", "sst2@2"]
