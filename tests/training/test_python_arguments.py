"""Arguments as people give them to the public functions: one name or several, texts or paths, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attempt_cli as attempt
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"steps": 1, "batch_size": 4, "eval_every": 0}


class Notes(attempt.Listener):
    """Keeps the remarks; the first is that the backbone is loaded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def task_named(name: str, folder: Path) -> attempt.Task:
    train, test = (write_csv(folder / f"{split}.csv", toy_rows(24, 1)) for split in ("train", "test"))
    return attempt.task_from_files(train=str(train), test=str(test), input="{text} label:", label="mood", name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A folder with a registry `kept`: the sources one and two, and the composition aim-attempt."""
    folder = tmp_path_factory.mktemp("arguments")
    made = attempt.Session(registry=folder / "kept", backbone=str(llama), device="cpu", dtype="float32")
    for name in ("one", "two"):
        attempt.train_source(task_named(name, folder), prompt_length=4, session=made, **QUICK)
    attempt.train_target(task_named("aim", folder), sources="one, two", tags="mine", session=made, **QUICK)
    return folder


@pytest.fixture
def session(folder: Path, llama: Path) -> attempt.Session:
    return attempt.Session(
        registry=str(folder / "kept"), backbone=str(llama), device="cpu", dtype="float32", listener=Notes()
    )


def test_one_name_or_several(session: attempt.Session, folder: Path) -> None:
    registry, aim = session.store, task_named("aim", folder)
    assert registry.composition("aim-attempt").sources == ("one@1", "two@1")
    assert registry.prompt("aim-attempt").tags == ("mine",)
    model = attempt.load("aim-attempt", changes=attempt.Changes(drop="one"), session=session)
    assert model.sources == ("two@1",)
    text = "it was good"
    alone = model.predict(text)
    assert alone == model.predict([text]) == model.predict({"text": text})
    assert list(attempt.predict("one,two", text, session=session)) == ["one", "two"]
    assert attempt.predict(model, [text])[model.name] == alone
    outcome = attempt.train_target([aim], sources=["one"], name="single", session=session, **QUICK)
    assert outcome is not None
    assert outcome.prompts == {"aim": "single@1"}
    composed = attempt.compose("composed", targets="single", sources="one", session=session)
    assert composed.sources == ("one@1",)
    result = attempt.fewshot(aim, k=4, methods="source", sources="one", seeds=1, limit=4, session=session)
    assert [row.method for row in result.methods] == ["source"]
    output = folder / "predictions.jsonl"
    attempt.evaluate(model, aim, limit=4, output=str(output))
    assert len(output.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: attempt.train_source("shop-review", session=s), "no task named 'shop-review'"),
        (lambda s, t: attempt.train_source([t], session=s), "is not a task"),
        (lambda s, t: attempt.train_source(t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.train_target(t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.train_attention("one", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.load("one", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.predict("one", "a", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.evaluate("one", t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.compare("one", "two", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.rank_sources(t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.inspect("one", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.compose("x", targets="one", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.fewshot(t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.reproduce("table3", session="text"), "'text' is not a session"),
        (lambda s, t: attempt.fewshot(t, k=[4], session=s), r"k is \[4\]"),
        (lambda s, t: attempt.fewshot(t, k=True, session=s), "k is True"),
        (lambda s, t: attempt.fewshot(t, steps="9", session=s), "steps is '9'"),
        (lambda s, t: attempt.fewshot(t, limit=0, session=s), "limit is 0"),
        (lambda s, t: attempt.fewshot(t, seeds=None, session=s), "seeds is None"),
        (lambda s, t: attempt.reproduce("table3", seeds=[1], session=s), r"seeds is \[1\]"),
        (lambda s, t: attempt.reproduce("table3", first_seed=-1, session=s), "first_seed is -1"),
        (lambda s, t: attempt.reproduce("table3", source_steps="4", session=s), "source_steps is '4'"),
        (lambda s, t: attempt.reproduce("table3", k=[[4]], session=s), r"-k: '\[4\]' is not a number of rows"),
        (lambda s, t: attempt.train_source(t, step=1, session=s), "no setting named 'step'. Did you mean steps"),
        (lambda s, t: attempt.train_source(t, learning_rate="high", session=s), "--learning-rate: .*got high"),
        (lambda s, t: attempt.train_source(t, init_from="three", session=s), "no prompt named 'three'"),
        (lambda s, t: attempt.train_target(t, method="attmpt", session=s), "no method named 'attmpt'"),
        (lambda s, t: attempt.train_target(t, session=s), "needs source prompts"),
        (lambda s, t: attempt.train_target(t, sources=[], session=s), "needs source prompts"),
        (lambda s, t: attempt.train_target(t, sources=[s.store.prompt("one")], session=s), "Prompt is not a name"),
        (lambda s, t: attempt.train_target([], sources="one", session=s), "no task is named"),
        (lambda s, t: attempt.train_target([t, 3], sources="one", session=s), "3 is not a task"),
        (lambda s, t: attempt.train_attention([], session=s), "needs source prompts"),
        (lambda s, t: attempt.load("aim", session=s), "no prompt or composition named 'aim'"),
        (lambda s, t: attempt.predict("one", [3], session=s), "row 1: 3 is not a row"),
        (lambda s, t: attempt.evaluate("one", t, split="tst", session=s), "no split named 'tst'"),
        (lambda s, t: attempt.compare([], "one", session=s), "list is not a recorded evaluation"),
        (lambda s, t: attempt.rank_sources(t, split="test", session=s), "test rows do not choose sources"),
        (lambda s, t: attempt.rank_sources(t, sources=[], session=s), "no source is named"),
        (lambda s, t: attempt.fewshot(t, methods="attemp", session=s), "no method named 'attemp'"),
        (lambda s, t: attempt.fewshot(t, seeds=0, session=s), "seeds is 0"),
        (lambda s, t: attempt.fewshot([], session=s), "no task is named"),
        (lambda s, t: attempt.sweep([t], session=s), "is not a task"),
        (lambda s, t: attempt.sweep(t, methods="none", session=s), "'none' trains nothing"),
        (lambda s, t: attempt.sweep(t, seeds=[3], session=s), r"seeds is \[3\]"),
        (lambda s, t: attempt.sweep(t, learning_rate=[], session=s), "--learning-rate names no value"),
        (lambda s, t: attempt.sweep(t, learning_rate=["a", "b"], session=s), "--learning-rate: .*got a"),
        (lambda s, t: attempt.sweep(t, learning_rate=[[1]], session=s), "--learning-rate"),
        (lambda s, t: attempt.sweep(t, temperature=[1.0], session=s), "--temperature says nothing to prompt-tuning"),
        (lambda s, t: attempt.sweep(t, placement=["after"], session=s), "--placement has one value"),
        (lambda s, t: attempt.sweep(t, step=1, session=s), "no setting named 'step'. Did you mean steps"),
        (lambda s, t: attempt.sweep(t, session="text"), "'text' is not a session"),
        (lambda s, t: attempt.reproduce("table5", session=s), "no experiment named 'table5'"),
        (lambda s, t: attempt.reproduce("table3", tasks="cbb,wic", session=s), "no task named 'cbb'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_backbone_is_loaded(
    session: attempt.Session,
    folder: Path,
    call: Callable[[attempt.Session, attempt.Task], Any],
    message: str,
) -> None:
    with pytest.raises(attempt.AttemptError, match=message):
        call(session, task_named("aim", folder))
    assert isinstance(session.listener, Notes)
    assert session.listener.texts == []


def test_wrong_places_are_refused(folder: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, missing = folder / "train.csv", folder / "missing"
    for call in (
        lambda: attempt.load("one", session=attempt.Session(registry=file)),
        lambda: attempt.train_source("shop-reviews", session=attempt.Session(registry=str(file))),
    ):
        with pytest.raises(attempt.AttemptError, match="is a file, not a folder"):
            call()
    for place in (str(missing), file):
        with pytest.raises(attempt.AttemptError, match="which is not a folder"):
            attempt.train_source("rte", session=attempt.Session(folder / "kept", data_dir=place))
    monkeypatch.setenv("ATTEMPT_DATA", str(folder))
    assert attempt.Session().rows_folder == folder
    with pytest.raises(attempt.AttemptError, match="'much' is not a size"):
        attempt.load("one", session=attempt.Session(folder / "kept", backbone=str(llama), input_cache="much"))


def test_a_prompt_of_another_backbone_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.models import save_llama

    other = str(save_llama(tmp_path / "other", hidden_size=32))
    elsewhere = attempt.Session(folder / "kept", backbone=other, device="cpu", dtype="float32")
    for call in (
        lambda: attempt.load("one", session=elsewhere),
        lambda: attempt.train_target(task_named("aim", folder), sources="one", session=elsewhere, **QUICK),
    ):
        with pytest.raises(attempt.AttemptError, match=r"'one@1' was trained for tiny .*, the backbone here is other"):
            call()
