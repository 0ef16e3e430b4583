"""Names, filters, lineage, search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempt_registry import Backbone, Composition, Prompt, Registry, RegistryError
from attempt_registry.references import KINDS, Reference, parse

Add = Callable[..., Prompt]
FINGERPRINT = "f" * 64


@pytest.fixture
def family(registry: Registry, add: Add, add_attention: Callable) -> Composition:
    """sst2@1, sst2@2 → rte@1 → mrpc@1, an attention over sst2@2 and rte@1, a composition of them, two runs."""
    add("sst2"), add("sst2")
    add("rte", kind="target", method="attempt", parents=["sst2@2"])
    add("mrpc", kind="target", method="spot", parents=["rte@1"])
    add_attention(parents=["sst2@2", "rte@1"])
    common = {"settings": {}, "rows": {}, "seed": 0, "budget": {}, "numbers": {}, "versions": {}, "duration": 1.0}
    registry.add_run(
        command="attempt train-target rte", inputs=["sst2@2"], artefacts=["rte", "attention:glue"], **common
    )
    made = registry.add_composition(
        name="reviews",
        backbone="tiny",
        fingerprint=FINGERPRINT,
        sources=["sst2@2"],
        attention="glue",
        targets=["rte", "mrpc"],
        note="for the demo",
    )
    registry.add_run(command="attempt eval", inputs=["composition:reviews@1", "rte@1"], **common)
    return made


def failure(call: Callable, *arguments: object, **named: object) -> tuple[str, str | None]:
    with pytest.raises(RegistryError) as error:
        call(*arguments, **named)
    return error.value.message, error.value.hint


def test_a_name_means_the_newest_version(registry: Registry, family: Composition) -> None:
    assert registry.prompt("sst2").version == 2
    assert registry.prompt("sst2@1").version == 1
    assert registry.prompt("prompt:sst2@1").version == 1
    assert registry.versions("sst2") == [1, 2]
    assert registry.names() == ["mrpc", "rte", "sst2"]
    assert registry.kinds_of("sst2") == ["prompt"]
    assert registry.kinds_of("sst2@3") == registry.kinds_of("attention:sst2") == []


def test_unknown_names_name_the_nearest(registry: Registry, family: Composition) -> None:
    assert failure(registry.prompt, "RTEE") == (
        "no prompt named 'RTEE'",
        "Did you mean rte? `attempt registry list` shows all names.",
    )
    assert failure(registry.prompt, "zzz") == ("no prompt named 'zzz'", "`attempt registry list` shows all names.")
    assert failure(registry.prompt, "sst2@7") == ("prompt 'sst2' has no version 7", "There is sst2@1, sst2@2.")
    assert failure(registry.prompt, "sst2@") == ("'sst2@' has no version after the @", "Write a number, as in sst2@2.")
    assert failure(registry.prompt, "sst2@-1")[0] == "'sst2@-1' has no version after the @"
    assert failure(registry.prompt, "sst2@0")[0] == "'sst2@0' has no version after the @"
    assert failure(registry.prompt, "sst2@" + "9" * 30)[0].endswith("has no version after the @")
    assert failure(registry.attention, "glu") == (
        "no attention named 'glu'",
        "Did you mean glue? `attempt registry list --what attentions` shows all names.",
    )
    assert failure(registry.composition, "review")[1] == (
        "Did you mean reviews? `attempt registry list --what compositions` shows all names."
    )
    assert failure(registry.prompt, "attention:glue")[0] == "'attention:glue' is not of the kind prompt"
    assert failure(registry.run, 99) == ("no run 99", "`attempt registry list --what runs` shows all runs.")
    assert failure(registry.remove, "x", kind="run")[0] == "'run' is not a kind of record"


@given(
    st.sampled_from([None, *KINDS]),
    st.from_regex(r"\A[a-z][a-z0-9._+-]{0,9}\Z"),
    st.one_of(st.none(), st.integers(1, 10**9)),
)
def test_a_reference_is_read_as_it_is_written(kind: str | None, name: str, version: int | None) -> None:
    wanted = Reference(kind, name, version)
    assert parse(f"{kind}:{wanted.ref}" if kind else wanted.ref) == wanted


def refs(records: list) -> list[str]:
    return [record.ref for record in records]


def test_filters(registry: Registry, family: Composition, backbone: Backbone, add: Add) -> None:
    registry.remember_backbone(backbone)
    registry.remember_backbone(Backbone("alias", FINGERPRINT, "decoder-only", 3, 0.1, 1000, "elsewhere"))
    add("other", backbone="big", fingerprint="e" * 64, tags=["paper", "100%"])
    registry.tag("rte", add=["paper"])
    assert refs(registry.prompts()) == ["mrpc@1", "other@1", "rte@1", "sst2@1", "sst2@2"]
    assert refs(registry.prompts(kind="target")) == ["mrpc@1", "rte@1"]
    assert refs(registry.prompts(task="sst2")) == ["sst2@1", "sst2@2"]
    assert refs(registry.prompts(method="attempt")) == ["rte@1"]
    assert refs(registry.prompts(tag="paper")) == ["other@1", "rte@1"]
    assert refs(registry.prompts(tag="100%")) == ["other@1"]
    assert refs(registry.prompts(tag="pape")) == []
    assert refs(registry.prompts(kind="source", tag="paper", backbone="big")) == ["other@1"]
    everything_but = ["mrpc@1", "rte@1", "sst2@1", "sst2@2"]
    # by name, by fingerprint, by another name of the same weights
    assert [refs(registry.prompts(backbone=b)) for b in ("tiny", FINGERPRINT, "alias")] == [everything_but] * 3
    assert refs(registry.prompts(task="' OR 1=1 --")) == []
    assert refs(registry.attentions(backbone="tiny")) == ["glue@1"]
    assert refs(registry.attentions(backbone="big")) == []
    assert refs(registry.compositions(task="mrpc")) == ["reviews@1"]
    assert refs(registry.compositions(task="sst2")) == []  # a source there, not a target
    assert refs(registry.compositions(backbone="big")) == []
    assert (
        refs(registry.compositions(uses="rte@1"))
        == refs(registry.compositions(uses="attention:glue@1"))
        == ["reviews@1"]
    )
    assert refs(registry.compositions(uses="sst2@1")) == refs(registry.compositions(uses="glue@1")) == []


def test_orders(registry: Registry, add: Add) -> None:
    import numpy as np

    add("b", np.ones((1, 3)), task="z"), add("a", np.ones((5, 3)), task="y"), add("c", np.ones((3, 3)), task="x")
    assert refs(registry.prompts(sort="name")) == ["a@1", "b@1", "c@1"]
    assert refs(registry.prompts(sort="length")) == ["b@1", "c@1", "a@1"]
    assert refs(registry.prompts(sort="task", reverse=True)) == ["b@1", "a@1", "c@1"]
    assert refs(registry.prompts(sort="length", limit=1)) == ["b@1"]
    assert refs(registry.prompts(sort="created")) == ["b@1", "a@1", "c@1"]
    assert refs(registry.prompts(sort="created", reverse=True)) == ["c@1", "a@1", "b@1"]
    assert failure(registry.prompts, sort="size; DROP TABLE prompts") == (
        "no order named 'size; DROP TABLE prompts'",
        "There are name, created, task, kind, method, backbone, length, width, seed.",
    )


def test_lineage_of_a_prompt(registry: Registry, family: Composition) -> None:
    lineage = registry.lineage("rte")
    assert lineage.ref == "rte@1"
    assert lineage.parents == ("sst2@2",)
    assert lineage.children == ("mrpc@1", "attention:glue@1")
    assert [run.command for run in lineage.made_by] == ["attempt train-target rte"]
    assert [run.command for run in lineage.used_by] == ["attempt eval"]
    assert lineage.compositions == (family,)
    assert registry.lineage("mrpc").parents == ("rte@1", "sst2@2")
    assert registry.lineage("sst2@1").children == ()


def test_lineage_of_an_attention_and_a_composition(registry: Registry, family: Composition) -> None:
    lineage = registry.lineage("glue", kind="attention")
    assert lineage.parents == ("sst2@2", "rte@1")
    assert [run.id for run in lineage.made_by] == [1]
    assert lineage.compositions == (family,)
    lineage = registry.lineage("reviews", kind="composition")
    assert lineage.parents == ("sst2@2", "attention:glue@1", "rte@1", "mrpc@1")
    assert [run.id for run in lineage.used_by] == [2]
    assert lineage.compositions == ()


def test_a_removed_ancestor_is_told(registry: Registry, family: Composition) -> None:
    registry.remove("reviews", kind="composition")
    registry.remove("rte")
    lineage = registry.lineage("mrpc")
    assert (lineage.parents, lineage.removed) == (("rte@1",), ("rte@1",))


def test_runs_that_made_or_used(registry: Registry, family: Composition) -> None:
    def ids(uses: str) -> list[int]:
        return [run.id for run in registry.runs(uses=uses)]

    assert ids("rte@1") == ids("prompt:rte@1") == ids("rte") == [1, 2]
    assert ids("sst2@1") == []
    assert ids("sst2") == [1]
    assert ids("attention:glue") == ids("glue@1") == [1]
    assert ids("composition:reviews") == [2]
    assert ids("composition:rte") == ids("rt") == []
    assert [run.id for run in registry.runs(reverse=True, limit=1)] == [2]


def test_search(registry: Registry, family: Composition, add: Add) -> None:
    add("über", task="Grüße", note="movie REVIEWS, 50% done", tags=["paper-2"], method="imported")
    assert refs(registry.search("GRÜSSE")) == ["über@1"]
    assert refs(registry.search("grüße")) == ["über@1"]
    assert refs(registry.search("ÜBER")) == ["über@1"]
    assert refs(registry.search("reviews")) == ["über@1", "reviews@1"]
    assert refs(registry.search("movie paper")) == ["über@1"]
    assert refs(registry.search("movie demo")) == []
    assert refs(registry.search("50%")) == ["über@1"]
    assert refs(registry.search("%")) == ["über@1"]
    assert refs(registry.search("tiny sst2")) == ["sst2@1", "sst2@2", "reviews@1"]
    assert refs(registry.search("attempt")) == ["rte@1"]
    assert registry.search("  ") == []


def test_search_follows_every_change(registry: Registry, family: Composition, add: Add) -> None:
    registry.tag("rte", add=["paper"])
    assert refs(registry.search("PAPER")) == ["rte@1"]
    registry.tag("rte", remove=["paper"])
    assert registry.search("paper") == []
    registry.remove("mrpc", force=True)
    assert refs(registry.search("mrpc")) == ["reviews@1"]
    add("mrpc", note='ﬁne "quotes" AND (brackets) * Straße Ὀδυσσεύς 情感分析')
    for text in ('"quotes"', "AND", "(brackets)", "*", "FINE", "STRASSE", "ὀδυσσεύς", "情感", "情感分析", "e 情"):
        assert "mrpc@2" in refs(registry.search(text)), text
    assert registry.search('fine" OR "rte') == registry.search("zzz OR fine") == []


def test_counting_is_listing(registry: Registry, family: Composition) -> None:
    from attempt_registry import Attention, Run

    for record, filters in (
        (Prompt, {"kind": "target"}),
        (Prompt, {"tag": "x"}),
        (Prompt, {}),
        (Attention, {"backbone": "tiny"}),
        (Composition, {"task": "rte"}),
        (Run, {"uses": "rte"}),
    ):
        assert registry.count(record, filters) == len(list(registry.each(record, filters)))
    assert registry.values("prompts", "task") == ["mrpc", "rte", "sst2"]
    registry.tag("rte", add=["b", "a"])
    assert registry.values("prompts", "tags") == ["a", "b"]
