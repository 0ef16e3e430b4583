"""Bundles: whole into another registry, equal there; damaged, hostile or clashing ones refused, and nothing added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

import attempt_cli
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.session import Session
from attempt_registry import Attention, Composition, Prompt, Registry
from tests.exchange.conftest import add_prompt
from tests.exchange.test_flatten import mixture

ROWS = [{"text": text} for text in ("the text is good", "it was bad, one two", "three")]


def bundled(session: Session, path: Path, names: str | list[str] = "mix") -> Path:
    attempt_cli.export(names, path, to="bundle", session=session)
    return path


def content_key(record: Prompt | Attention | Composition) -> tuple[Any, ...]:
    """All of a record that decides what it predicts."""
    fields = ("fingerprint", "kind", "task", "task_version", "placement", "embedding_scale", "sha256", "rank", "level")
    fields += ("temperature", "width", "length", "method", "seed", "numbers", "note", "tags")
    return tuple(getattr(record, field, None) for field in fields)


def records(registry: Registry) -> list[Prompt | Attention | Composition]:
    return [*registry.prompts(), *registry.attentions(), *registry.compositions()]


def answers(session: Session, name: str) -> list[Any]:
    """What a model says, without its sources' names."""
    predictions = attempt_cli.load(name, session=session).predict(ROWS)
    return [(one.text, one.probabilities, list((one.attention or {}).values())) for one in predictions]


def test_a_round_trip_gives_equal_records_and_predictions(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    attempt_cli.import_from(bundled(session, tmp_path / "mix.attempt"), session=fresh)
    assert list(map(content_key, records(fresh.store))) == list(map(content_key, records(session.store)))
    ours, theirs = session.store.composition("mix"), fresh.store.composition("mix")
    assert (ours.sources, ours.targets, ours.attention) == (theirs.sources, theirs.targets, theirs.attention)
    assert fresh.store.lineage("mix").parents == session.store.lineage("mix").parents == ("a@1", "b@1")
    (run,) = fresh.store.lineage("mix").made_by
    assert (run.command, run.artefacts) == ("made in a test", ("prompt:mix@1", "attention:mix@1"))
    assert run.rows == {"train": {"origin": "x.csv: all 3 rows", "n": 3}}
    assert fresh.store.verify() == []
    first, second = (attempt_cli.load("mix", session=each).predict(ROWS) for each in (session, fresh))
    assert first == second
    again = bundled(fresh, tmp_path / "again.attempt")
    assert load(again.read_bytes()).keys() == load((tmp_path / "mix.attempt").read_bytes()).keys()


def test_equal_records_give_equal_bytes(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    mixture(session)
    first, second = (bundled(session, tmp_path / f"{n}.attempt").read_bytes() for n in "12")
    assert first == second
    assert b"/home/someone" not in first  # where its rows lay is nobody else's business


def test_what_is_here_already_is_used(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    add_prompt(session, "child", parents=["a"])
    attempt_cli.import_from(bundled(session, tmp_path / "mix.attempt"), session=fresh)
    before = records(fresh.store), fresh.store.runs()
    attempt_cli.import_from(tmp_path / "mix.attempt", session=fresh)
    assert (records(fresh.store), fresh.store.runs()) == before
    attempt_cli.import_from(bundled(session, tmp_path / "child.attempt", "child"), session=fresh)
    assert fresh.store.prompt("child").parents == ("a@1",)
    assert fresh.store.versions("a") == [1]


def test_taken_names_are_refused_unless_they_are_changed(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    add_prompt(fresh, "a", seed=77)
    add_prompt(fresh, "mix", seed=78)
    before = records(fresh.store)
    bundled(session, tmp_path / "mix.attempt")
    with pytest.raises(AttemptError, match="other records have these names here: prompt a, prompt mix") as failure:
        attempt_cli.import_from(tmp_path / "mix.attempt", session=fresh)
    assert "--prefix" in (failure.value.hint or "")
    with pytest.raises(AttemptError, match=r"these names here: prompt a$"):
        attempt_cli.import_from(tmp_path / "mix.attempt", name="other", session=fresh)
    assert records(fresh.store) == before
    added = attempt_cli.import_from(tmp_path / "mix.attempt", prefix="their-", name="other", session=fresh)
    assert added.compositions[0].ref == "their-other@1"
    assert added.compositions[0].sources == ("their-a@1", "their-b@1")
    assert answers(fresh, "their-other") == answers(session, "mix")


def test_forced_weights_follow_new_names(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    weights = attempt_cli.Changes(weights={"a": 0.25, "target": 0.75})
    attempt_cli.compose("forced", base="mix", changes=weights, session=session)
    attempt_cli.import_from(bundled(session, tmp_path / "x.attempt", "forced"), prefix="x-", session=fresh)
    assert fresh.store.composition("x-forced").settings["weights"] == {"x-a@1": 0.25, "x-b@1": 0.0, "target": 0.75}
    assert answers(fresh, "x-forced") == answers(session, "forced")


def test_a_composition_stays_the_parent_of_its_flattened_prompt(
    sessions: Callable[..., Session], tmp_path: Path
) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    add_prompt(session, "plain", method="flattened", parents=["composition:mix"])
    attempt_cli.import_from(bundled(session, tmp_path / "x.attempt", "plain"), session=fresh)
    assert fresh.store.prompt("plain").parents == ("composition:mix@1",)
    assert fresh.store.composition("mix").sources == ("a@1", "b@1")


def test_several_records_and_removed_ancestors(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    add_prompt(session, "old")
    add_prompt(session, "one", parents=["old"])
    add_prompt(session, "two")
    session.store.remove("old")
    bundled(session, tmp_path / "x.attempt", ["one", "two"])
    with pytest.raises(AttemptError, match="holds 2 records"):
        attempt_cli.import_from(tmp_path / "x.attempt", name="other", session=fresh)
    with pytest.raises(ArgumentsError, match="--task says nothing of a bundle"):
        attempt_cli.import_from(tmp_path / "x.attempt", task="moods", session=fresh)
    attempt_cli.import_from(tmp_path / "x.attempt", session=fresh)
    one = fresh.store.prompt("one")
    assert (one.parents, one.settings["imported"]["removed_ancestors"]) == ((), ["old@1"])
    assert fresh.store.verify() == []


def test_another_backbone_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    add_prompt(session)
    bundled(session, tmp_path / "x.attempt", "moods")
    fresh = Session(tmp_path / "fresh")
    with pytest.raises(AttemptError, match="which is not recorded here"):
        attempt_cli.import_from(tmp_path / "x.attempt", session=fresh)
    with pytest.raises(AttemptError, match="equal width does not make them fit"):
        attempt_cli.import_from(tmp_path / "x.attempt", session=sessions("gpt2", registry="fresh"))
    # the same weights in another place are the same backbone
    attempt_cli.import_from(tmp_path / "x.attempt", session=sessions("llama", registry="fresh"))


def changed(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> Path:
    """Rewrites a bundle's manifest, with a right checksum if sealed."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["attempt_bundle"])
    change(document["manifest"])
    if sealed:
        text = json.dumps(document["manifest"], sort_keys=True, ensure_ascii=False)
        document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    other = path.with_name(f"changed-{path.name}")
    other.write_bytes(save(load(data), {"attempt_bundle": json.dumps(document)}))
    return other


def set_(kind: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest[kind][0][field] = value

    return change


BAD = {
    "path": (set_("prompts", "name", "../../x"), "cannot be a name"),
    "absolute": (set_("prompts", "name", "/etc/x"), "cannot be a name"),
    "control": (set_("prompts", "name", "\x1b[31m"), "cannot be a name"),
    "hash": (set_("prompts", "sha256", "0" * 64), "are not those that were written"),
    "hash of a path": (set_("prompts", "sha256", "../x"), "are not those that were written"),
    "placement": (set_("prompts", "placement", "beside"), "is not a placement"),
    "scale": (set_("prompts", "embedding_scale", -1.0), "is not a positive number"),
    "type": (set_("prompts", "settings", []), "look at its 'settings'"),
    "huge": (set_("prompts", "seed", 10**400), "look at its 'seed'"),
    "a later version": (set_("prompts", "somewhere", "new"), "which this version does not know"),
    "task": (set_("prompts", "settings", {"task": {"name": "x"}}), "does not describe a task"),
    "fingerprint": (set_("prompts", "fingerprint", "f" * 16), "is of another backbone"),
    "own parent": (set_("prompts", "parents", ["a@1"]), "their own ancestors"),
    "bad parent": (set_("prompts", "parents", ["a@x"]), "no version after the @"),
    "rank": (set_("attentions", "rank", 5), "do not make a G of rank 5"),
    "level": (set_("attentions", "level", "word"), "is not a level"),
    "temperature": (set_("attentions", "temperature", 0), "has the temperature 0"),
    "part": (set_("compositions", "sources", ["x@1"]), "it lacks 'prompt:x@1'"),
    "weights": (set_("compositions", "settings", {"weights": {"a@1": 1}}), "do not say how it mixes"),
    "version": (lambda manifest: manifest.update(version=2), "is of another version"),
    "list": (lambda manifest: manifest.update(prompts={}), "its 'prompts' is no list"),
    "two": (lambda manifest: manifest["prompts"].append(manifest["prompts"][0]), "two records have one name"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_hostile_bundle_is_refused_and_nothing_is_added(
    what: str, sessions: Callable[..., Session], tmp_path: Path
) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    change, says = BAD[what]
    other = changed(bundled(session, tmp_path / "mix.attempt"), change)
    with pytest.raises(AttemptError, match=says) as failure:
        attempt_cli.import_from(other, session=fresh)
    assert failure.value.hint
    assert records(fresh.store) == []
    assert fresh.store.runs() == []


def test_a_damaged_bundle_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    mixture(session)
    path = bundled(session, tmp_path / "mix.attempt")
    with pytest.raises(AttemptError, match="its checksum is wrong"):
        attempt_cli.import_from(changed(path, set_("prompts", "note", "x"), sealed=False), session=fresh)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AttemptError, match="are not those that were written"):
        attempt_cli.import_from(path, session=fresh)
    path.write_bytes(data[:-100])
    with pytest.raises(AttemptError, match="is not a complete safetensors file"):
        attempt_cli.import_from(path, session=fresh)
    assert records(fresh.store) == []
    with (tmp_path / "x.attempt").open("wb") as file:  # a zip, as other programs' bundles are
        np.savez(file, prompt=np.ones((2, 3)))
    with pytest.raises(AttemptError, match="holds nothing that can be imported"):
        attempt_cli.import_from(tmp_path / "x.attempt", session=fresh)
