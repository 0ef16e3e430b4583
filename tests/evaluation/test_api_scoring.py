"""The public functions on trained prompts: they do what the commands do, and print nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.api.scoring import Changes, compare, compose, evaluate, inspect, load, predict, rank_sources
from attempt_cli.errors import ArgumentsError, AttemptError, StoppedError
from attempt_cli.listener import Listener
from attempt_cli.session import Session
from attempt_registry import Registry
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = "--dtype float32 --steps 3 --batch-size 8 --learning-rate 0.1 --eval-every 0"
FLOAT = "--device cpu --dtype float32"
TASK = """name: aim
input: '{text} label:'
label: mood
labels: {'no': 'no', 'yes': 'yes'}
metrics: [accuracy, f1]
"""


class Remarks(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def rows(self, done: int, total: int) -> None:
        self.done.append((done, total))


class Stopping(Listener):
    """Stops when the first rows are done."""

    def rows(self, done: int, total: int) -> None:
        self.stopped = True


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """The sources one and two, and for the task aim a composition and a prompt by SPoT."""
    folder = tmp_path_factory.mktemp("trained")
    files = []
    for seed, (name, count) in enumerate((("train", 40), ("validation", 16), ("test", 24))):
        files.append(f"{name}: {write_csv(folder / f'{name}.csv', toy_rows(count, seed))}")
    (folder / "aim.yaml").write_text(f"{TASK}files: {{{', '.join(files)}}}\n")
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source {name} --train-file train.csv {READ} {QUICK} --prompt-length 4 --seed {seed}")
    attempt.succeed(f"train-target aim.yaml {QUICK} --sources one,two --attention-rank 4")
    attempt.succeed(f"train-target aim.yaml {QUICK} --method spot --init-from two")
    return attempt


@pytest.fixture
def session(trained: Attempt, llama: Path) -> Session:
    """A session that remembers what its listener was told."""
    folder = trained.folder / trained.registry
    return Session(folder, backbone=str(llama), device="cpu", dtype="float32", listener=Remarks(), command="a test")


@pytest.fixture(autouse=True)
def silent(trained: Attempt, capfd: pytest.CaptureFixture[str]) -> Any:
    """Nothing is printed by any of these calls."""
    capfd.readouterr()
    yield
    assert capfd.readouterr() == ("", "")


def remarks(session: Session) -> Remarks:
    assert isinstance(session.listener, Remarks)
    return session.listener


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from call to call, and with weights of two digits (batches round differently)."""
    kept = {name: value for name, value in record.items() if name not in ("run", "rows_per_second")}
    if "attention" in kept:
        kept["attention"] = {name: round(weight, 2) for name, weight in kept["attention"].items()}
    return kept


def test_scoring_ends_where_its_listener_stops(trained: Attempt) -> None:
    stopping = Session(
        registry=trained.folder / trained.registry,
        backbone=str(trained.backbone),
        device="cpu",
        dtype="float32",
        listener=Stopping(),
    )
    runs = len(stopping.store.runs())
    aim = trained.folder / "aim.yaml"
    for score in (
        lambda: predict("aim-spot", ["it was good"] * 40, max_tokens=64, session=stopping),
        lambda: evaluate("aim-spot", aim, max_tokens=64, session=stopping),
        lambda: rank_sources(aim, max_tokens=64, session=stopping),
    ):
        stopping.listener.stopped = False
        with pytest.raises(StoppedError, match=r"stopped after \d+ of \d+ rows") as caught:
            score()
        assert caught.value.exit_code == 130
    assert len(stopping.store.runs()) == runs
    stopping.listener.stopped = False  # what ends with its last rows is whole
    assert len(predict("aim-spot", ["it was good"], session=stopping)["aim-spot"]) == 1


def test_a_model_predicts_what_the_command_predicts(trained: Attempt, session: Session) -> None:
    texts = [row["text"] for row in toy_rows(5, 7)]
    model = load("aim-attempt", session=session)
    assert (model.name, model.sources) == ("aim-attempt@1", ("one@1", "two@1"))
    found = model.predict(texts)
    lines = trained.succeed(f"predict aim-attempt {FLOAT}", input="\n".join(texts)).lines
    assert [prediction.text for prediction in found] == [line["word"] for line in lines]
    for prediction, line in zip(found, lines, strict=True):
        assert prediction.record()["probabilities"] == pytest.approx(line["probabilities"], abs=2e-5)
        assert prediction.record()["attention"] == pytest.approx(line["attention"], abs=2e-5)
        assert prediction.label == line["label"]
    assert model.predict([{"text": text} for text in texts]) == found
    both = predict(["aim-attempt", "aim-spot"], texts, session=session)
    assert list(both) == ["aim-attempt", "aim-spot"]
    assert [prediction.text for prediction in both["aim-attempt"]] == [prediction.text for prediction in found]


def test_evaluations_are_those_of_the_command(trained: Attempt, session: Session, tmp_path: Path) -> None:
    command = (
        f"eval --tasks aim.yaml --prompt none --composition aim-attempt --drop one --output predictions.jsonl {FLOAT}"
    )
    expected = trained.json(command)["evaluations"]
    task, output = trained.folder / "aim.yaml", tmp_path / "predictions.jsonl"
    found = evaluate(["none", "aim-attempt"], task, changes=Changes(drop=["one"]), output=output, session=session)
    assert [comparable(one.record()) for one in found] == [comparable(one) for one in expected]
    assert found[2].change is not None
    assert (
        len(output.read_text().splitlines())
        == len((trained.folder / "predictions.jsonl").read_text().splitlines())
        == 72
    )
    with Registry.open(trained.folder / trained.registry) as registry:
        ours, theirs = (registry.run(number) for number in (found[2].run or 0, expected[2]["run"]))
    assert (ours.command, ours.inputs, ours.rows) == ("a test", theirs.inputs, theirs.rows)
    assert list(ours.settings) == list(theirs.settings)
    assert list(ours.numbers) == list(theirs.numbers)
    assert remarks(session).done[-1] == (24, 24)
    (alone,) = evaluate("aim-spot", session=session)  # its own task
    assert (alone.task, alone.model, alone.n) == ("aim", "aim-spot@1", 24)


def test_comparisons_are_those_of_the_command(trained: Attempt, session: Session) -> None:
    first, second = evaluate(["aim-attempt", "aim-spot"], session=session)
    found = compare(first, second, metric="f1", session=session)
    assert found.record() == trained.json(f"compare {first.run} {second.run} --metric f1")["comparison"]
    assert compare("aim-attempt", "aim-spot", metric="f1", session=session) == found
    assert found.test.difference == pytest.approx(first.metrics["f1"] - second.metrics["f1"])


def test_rankings_and_inspections_are_those_of_the_commands(trained: Attempt, session: Session) -> None:
    task = trained.folder / "aim.yaml"
    ranking = rank_sources(task, composition="aim-attempt", session=session)
    expected = trained.json(f"rank-sources aim.yaml --composition aim-attempt {FLOAT}")["ranking"]
    assert ranking.record() == expected
    look = inspect("aim-attempt", tokens=1, rows=2, session=session).record()
    document = trained.json(f"inspect aim-attempt --tokens 1 --rows 2 {FLOAT}")["inspection"]
    assert look["tokens"] == document["tokens"]
    (ours,), (theirs,) = look["tasks"], document["tasks"]
    assert ours["attention"] == pytest.approx(theirs["attention"], abs=2e-5)
    assert [row["row"] for row in ours["per_row"]] == [row["row"] for row in theirs["per_row"]]


def test_a_composition_is_made_and_served(trained: Attempt, session: Session) -> None:
    made = compose("half", base="aim-attempt", changes=Changes(only=["two"]), session=session)
    assert made == session.store.composition("half")
    text = ["it was good"]
    changed = load("aim-attempt", changes=Changes(only=["two"]), session=session)
    assert load("half", session=session).predict(text) == changed.predict(text)
    again = trained.json("compose half-again --from aim-attempt --only two")["composition"]
    assert (again["sources"], again["settings"]) == (list(made.sources), made.settings)


def test_a_session_loads_the_backbone_once(trained: Attempt, session: Session) -> None:
    model = load("aim-attempt", session=session)
    model.predict(["it was good"])
    evaluate(model, limit=4)  # in the model's own session
    inspect(model, limit=4)
    rank_sources(trained.folder / "aim.yaml", sources=["one"], limit=4, session=session)
    assert [note for note in remarks(session).notes if note.startswith("loading")] == [f"loading {session.backbone} …"]


def test_the_backbone_is_the_prompts_own(session: Session) -> None:
    assert load("one", session=replace(session, backbone=None)).load().model.backbone.name == "tiny"


def test_calls_are_refused_before_the_backbone_is_loaded(trained: Attempt, session: Session) -> None:
    for call, kind, message in (
        (lambda: evaluate(session=session), ArgumentsError, "name a task"),
        (lambda: evaluate("one", trained.folder / "no.yaml", session=session), AttemptError, "no.yaml"),
        (lambda: evaluate("one", changes=Changes(drop=["two"]), session=session), ArgumentsError, "--composition"),
        (lambda: predict(["one"], [{"words": "it"}], session=session), AttemptError, "row 1: no column 'text'"),
        (lambda: inspect("one", task="aim", session=session), AttemptError, "has no sources"),
        (lambda: compose("x", session=session), ArgumentsError, "--target"),
    ):
        with pytest.raises(kind, match=message):
            call()
    assert remarks(session).notes == []
