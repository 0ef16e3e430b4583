"""A composition with other sources or forced weights: what becomes of its record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from attempt_cli.changes import Changes, changed
from attempt_cli.errors import AttemptError
from attempt_registry import Composition, Registry, RegistryError


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """The sources mnli, qnli and sst2, the target rte, and prompts that do not fit them."""
    with Registry.open(tmp_path / "kept") as opened:
        for name, length, fingerprint, placement in (
            ("mnli", 4, "f", "before"),
            ("qnli", 4, "f", "before"),
            ("sst2", 4, "f", "before"),
            ("rte", 4, "f", "before"),
            ("longer", 5, "f", "before"),
            ("stranger", 4, "other", "before"),
            ("behind", 4, "f", "after"),
        ):
            opened.add_prompt(
                np.ones((length, 3), np.float32),
                name=name,
                kind="source",
                method="imported",
                backbone="tiny",
                fingerprint=fingerprint,
                task=name,
                task_version=None,
                embedding_scale=1.0,
                placement=placement,
                settings={},
                numbers={},
                seed=None,
            )
        opened.add_attention(
            {"down": np.ones((2, 3), np.float32)},
            name="g",
            backbone="tiny",
            fingerprint="f",
            rank=2,
            level="instance",
            temperature=1.0,
            width=3,
            settings={},
            seed=None,
        )
        yield opened


def composed(registry: Registry, *sources: str, attention: str | None = "g") -> Composition:
    return registry.add_composition(
        name="mix",
        backbone="tiny",
        fingerprint="f",
        sources=sources,
        attention=attention,
        targets=["rte"],
        settings={"embedding_scale": 2.0},
    )


@pytest.mark.parametrize(
    ("changes", "sources"),
    [
        (Changes(add=("sst2",)), ("mnli@1", "qnli@1", "sst2@1")),
        (Changes(drop=("mnli@1",)), ("qnli@1",)),
        (Changes(only=("qnli",)), ("qnli@1",)),
        (Changes(only=("qnli", "mnli")), ("mnli@1", "qnli@1")),  # in the composition's own order
        (Changes(add=("sst2",), only=("sst2", "mnli"), drop=("mnli",)), ("sst2@1",)),
    ],
)
def test_sources(registry: Registry, changes: Changes, sources: tuple[str, ...]) -> None:
    whole = composed(registry, "mnli", "qnli")
    after = changed(registry, whole, changes)
    assert after.sources == sources
    assert (after.ref, after.targets, after.attention, after.settings) == (
        "mix@1",
        ("rte@1",),
        "g@1",
        {"embedding_scale": 2.0},
    )
    assert registry.composition("mix") == whole  # only the record in hand is another


def test_forced_weights(registry: Registry) -> None:
    whole = composed(registry, "mnli", "qnli")
    after = changed(registry, whole, Changes(add=("sst2",), weights={"sst2": 0.25, "target": 0.5}))
    assert after.settings["weights"] == {"mnli@1": 0, "qnli@1": 0, "sst2@1": 0.25, "target": 0.5}
    fewer = changed(registry, after, Changes(drop=("mnli",)))  # what was forced stays so
    assert fewer.settings["weights"] == {"qnli@1": 0, "sst2@1": 0.25, "target": 0.5}


def test_forced_weights_need_one_for_what_is_added(registry: Registry) -> None:
    forced = changed(registry, composed(registry, "mnli", "qnli"), Changes(weights={"mnli": 1}))
    with pytest.raises(AttemptError, match="are forced, and sst2 would have none"):
        changed(registry, forced, Changes(add=("sst2",)))


def test_sources_without_a_target_have_no_weight_for_one(registry: Registry) -> None:
    prior = registry.add_composition(name="prior", backbone="tiny", fingerprint="f", sources=["mnli"], attention="g")
    assert changed(registry, prior, Changes(add=("qnli",), weights={"qnli": 1, "target": 0})).settings["weights"] == {
        "mnli@1": 0,
        "qnli@1": 1,
        "target": 0,
    }
    with pytest.raises(AttemptError, match="mixes its sources alone"):
        changed(registry, prior, Changes(weights={"mnli": 1, "target": 1}))


def test_without_an_attention_weights_mix(registry: Registry) -> None:
    whole = composed(registry, "mnli", "qnli", attention=None)
    assert changed(registry, whole, Changes(weights={"mnli": 1})).settings["weights"]["mnli@1"] == 1
    with pytest.raises(AttemptError, match="has no attention to mix its sources"):
        changed(registry, whole, Changes(drop=("mnli",)))


def test_in_words() -> None:
    changes = Changes(add=("a", "b"), drop=("c",), weights={"a": 0.5, "target": 1.0})
    assert str(changes) == "add a,b drop c weights a=0.5,target=1"
    assert changes
    assert not Changes()


WRONG = [
    (Changes(drop=("mnl",)), "no source of 'mix@1' named 'mnl'", "Did you mean mnli or qnli?"),
    (Changes(only=("sst2",)), "no source of 'mix@1' named 'sst2'", "attempt registry show"),
    (Changes(drop=("mnli", "qnli")), "no source of 'mix@1' would be left to mix", "--prompt rte@1"),
    (Changes(add=("mnli",)), "'mnli@1' is already a source of 'mix@1'", "--add"),
    (Changes(add=("longer",)), "'longer@1' does not fit", "--backbone tiny"),
    (Changes(add=("stranger",)), "'stranger@1' does not fit", "--backbone tiny"),
    (Changes(add=("behind",)), "'behind@1' does not fit", "--backbone tiny"),
    (Changes(weights={"mnli": -0.5}), "the weight of 'mnli' is -0.5", "at least 0"),
    (Changes(weights={"mnli": float("nan")}), "the weight of 'mnli' is nan", "at least 0"),
    (Changes(weights={"sst2": 1.0}), "no source of 'mix@1' named 'sst2'", "attempt registry show"),
    (Changes(weights={"mnli": 1.0, "mnli@1": 1.0}), "'mnli@1' has two weights", "once"),
]


@pytest.mark.parametrize(("changes", "message", "next_step"), WRONG, ids=[str(row[0]) for row in WRONG])
def test_what_cannot_be_changed(registry: Registry, changes: Changes, message: str, next_step: str) -> None:
    with pytest.raises(AttemptError) as error:
        changed(registry, composed(registry, "mnli", "qnli"), changes)
    assert message in error.value.message
    assert next_step in (error.value.hint or "")


def test_a_composition_without_sources(registry: Registry) -> None:
    alone = composed(registry, attention=None)
    with pytest.raises(AttemptError, match="has no sources to change"):
        changed(registry, alone, Changes(drop=("mnli",)))
    added = changed(registry, alone, Changes(add=("mnli",), weights={"mnli": 1}))
    assert added.sources == ("mnli@1",)
    with pytest.raises(RegistryError, match="no prompt named 'mnlii'"):
        changed(registry, alone, Changes(add=("mnlii",)))


def test_two_versions_of_a_source_need_the_version(registry: Registry) -> None:
    mnli = registry.prompt("mnli")
    registry.add_prompt(
        registry.prompt_tensor(mnli),
        name="mnli",
        kind="source",
        method="imported",
        backbone="tiny",
        fingerprint="f",
        task="mnli",
        task_version=None,
        embedding_scale=1.0,
        settings={},
        numbers={},
        seed=None,
    )
    both = composed(registry, "mnli@1", "mnli@2")
    with pytest.raises(AttemptError, match="'mnli' is several sources"):
        changed(registry, both, Changes(drop=("mnli",)))
    assert changed(registry, both, Changes(drop=("mnli@1",))).sources == ("mnli@2",)
