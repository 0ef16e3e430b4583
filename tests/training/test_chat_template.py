"""`--chat-template` from a training to what predicts: recorded, used again without being said, and never mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from attempt_cli.api.experiments import fewshot
from attempt_cli.api.scoring import Changes, compose, evaluate, inspect, load, predict, rank_sources
from attempt_cli.api.training import train_source, train_target
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.evaluation.prediction import encode_examples
from attempt_cli.listener import Listener
from attempt_cli.placement import PLACEMENTS
from attempt_cli.session import Session
from attempt_cli.training.loop import TrainingStoppedError
from attempt_registry import RegistryError
from tests.models import save_chat
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 8, "learning_rate": 0.1, "prompt_length": 4, "eval_every": 0}
TEMPLATE = "<s>system\nbe good<end>\n<s>user\n{input}<end>\n<s>assistant\n"
CATALOGUED, FILM = "sst2", "a fine film\n"
ASK = ["it was good", "the text is bad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Session:
    return Session(tmp_path_factory.mktemp("kept"), backbone=str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    rows = tmp_path_factory.mktemp("rows")
    files = {
        split: write_csv(rows / f"{split}.csv", toy_rows(24, seed)) for seed, split in enumerate(("train", "test"))
    }
    return task_from_files(**files, input="{text} label:", label="mood", name="mood")


@pytest.fixture(scope="module")
def session(shared: Session, task: Task) -> Session:
    """Two sources and a target inside the template, and a source outside of it."""
    for seed, name in enumerate(("one", "two")):
        train_source(task, name=name, chat_template=True, seed=seed, session=shared, **QUICK)
    train_source(task, name="plain", session=shared, **QUICK)
    train_target(task, sources="one,two", name="aim", session=shared, **QUICK)
    return shared


def test_it_is_recorded_and_comes_back_unasked(session: Session, folder: Path, task: Task) -> None:
    store = session.store
    assert store.prompt("one").chat_template == TEMPLATE
    assert store.prompt("plain").chat_template is None
    records = (store.prompt("aim"), store.attention("aim"), store.composition("aim"))
    assert [record.chat_template for record in records] == [TEMPLATE] * 3  # the sources' own, without being said
    assert store.prompt("aim").settings["training"]["chat_template"] is True
    assert "chat_template" not in store.prompt("plain").settings["training"]
    fresh = Session(session.store.folder, device="cpu", dtype="float32")  # another process
    model = load("aim", session=fresh)
    frame = model.load().model.frame
    assert frame is not None
    assert frame.text == TEMPLATE
    assert load("plain", session=fresh).load().model.frame is None


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_trained_model_and_its_record_predict_the_same(session: Session, task: Task, placement: str) -> None:
    name = f"same-{placement}"
    outcome = train_source(task, name=name, chat_template=True, placement=placement, session=session, **QUICK)
    assert outcome is not None
    loaded = load(name, session=session)
    examples = [task.render_input({"text": text}, 0, place="rows") for text in ASK]
    trained, again = (encode_examples(model, task, examples) for model in (outcome.model, loaded.load().model))
    assert [row.input_ids for row in trained] == [row.input_ids for row in again]
    (own,) = evaluate(loaded, task, session=session)
    (alone,) = predict(loaded, ASK, session=session).values()
    together = predict(["plain", loaded], ASK, session=session)[loaded.name]  # unlike rows
    for one, other in zip(alone, together, strict=True):
        assert one.probabilities is not None
        assert other.probabilities is not None
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert own.n == 24


def test_what_was_trained_inside_and_outside_is_never_mixed(session: Session, task: Task) -> None:
    with pytest.raises(RegistryError, match="one@1 inside, plain@1 outside"):
        train_target(task, sources="one,plain", name="mixed", session=session, **QUICK)
    with pytest.raises(RegistryError, match="inside and outside of a chat template"):
        compose("mixed", sources="one,plain", targets="aim", attention="aim", session=session)
    with pytest.raises(AttemptError, match=r"plain@1.* does not fit .*aim@1.* in a chat template"):
        load("aim", changes=Changes(add="plain"), session=session)
    for asked, source in ((False, "one"), (True, "plain")):
        with pytest.raises(AttemptError, match=f"'{source}@1' was trained .*-chat-template asks for the other"):
            train_target(
                task, method="spot", init_from=source, chat_template=asked, name="mixed", session=session, **QUICK
            )
    composed = compose("both", sources="one,two", targets="aim", attention="aim", session=session)
    assert session.store.composition(composed.ref).chat_template == TEMPLATE


def test_another_template_of_the_tokenizer_is_refused(session: Session, folder: Path, tmp_path: Path) -> None:
    other = save_chat(tmp_path / "tiny", "{% for m in messages %}<s>{{ m['content'] }}<end>{% endfor %}")
    elsewhere = Session(session.store, backbone=str(other), device="cpu", dtype="float32")
    with pytest.raises(AttemptError, match=r"'one@1' was trained in another chat template than that of tiny"):
        load("one", session=elsewhere)
    tokenizer = AutoTokenizer.from_pretrained(str(other))
    tokenizer.chat_template = None
    (other / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(other)
    without = Session(session.store, backbone=str(other), device="cpu", dtype="float32")
    with pytest.raises(AttemptError, match="has no chat template"):
        load("one", session=without)
    load("plain", session=without)  # outside of a template nothing changes


def test_the_bare_model_reads_inside_it_too(session: Session, task: Task) -> None:
    inside, outside = load("none", chat_template=True, session=session), load("none", session=session)
    found = evaluate([inside, outside, "one"], task, session=session)
    assert [result.model for result in found] == ["no prompt, in the chat template", "no prompt", "one@1"]
    first, second = (model.predict(ASK[:1], task="support-chats")[0].probabilities for model in (inside, outside))
    assert first != second
    assert session.store.run(int(found[0].run or 0)).settings["chat_template"] is True
    with pytest.raises(ArgumentsError, match="used as it was trained"):
        load("one", chat_template=True, session=session)


def test_predict_asks_the_bare_model_inside_it(session: Session, folder: Path) -> None:
    attempt = Attempt(session.store.folder.parent, folder, session.store.folder.name)
    asked = f"predict none - --task {CATALOGUED} --dtype float32"
    inside, outside = (attempt(f"{asked}{option}", input=FILM) for option in (" --chat-template", ""))
    assert inside.code == outside.code == 0, inside.err + outside.err
    model = load("none", chat_template=True, session=session)
    expected = model.predict([FILM.strip()], task=CATALOGUED)[0].probabilities
    assert inside.lines[0]["probabilities"] == pytest.approx(expected, abs=1e-4)
    assert inside.lines != outside.lines
    refused = attempt("predict one - --chat-template", input=FILM)
    assert refused.code == 2
    assert "'one' is used as it was trained" in refused.err


def test_rankings_and_inspections_read_as_the_prompts_were_trained(session: Session, task: Task) -> None:
    (attention,) = inspect("aim", split="test", session=session).tasks or ()
    (evaluated,) = evaluate("aim", task, session=session)
    assert evaluated.attention == pytest.approx(dict(attention.attention), abs=1e-5)
    ranked = rank_sources(task, sources="one,two,plain", split="train", session=session).sources
    alone = {name: evaluate(name, task, split="train", session=session)[0].score for name in ("one", "two", "plain")}
    assert {source.source.partition("@")[0]: source.score for source in ranked} == alone


@pytest.mark.parametrize("method", ["dept", "lora", "mpt"])
def test_other_methods_stand_inside_it(session: Session, task: Task, method: str) -> None:
    sources = "one,two" if method == "mpt" else None
    asked = None if sources else True
    outcome = train_target(
        task, method=method, sources=sources, chat_template=asked, max_length=16, name=method, session=session, **QUICK
    )
    assert outcome is not None
    assert outcome.model.frame is not None
    assert outcome.request.config.chat_template is True
    assert method in ("mpt", "dept") or (outcome.test is not None and outcome.test["n"] == 24)


class Stops(Listener):
    """Stops a training after its second step, and notes where trainings begin."""

    def __init__(self) -> None:
        self.began: list[int] = []

    def start(self, step: int, total: int) -> None:
        self.began.append(step)
        self.stopped = False

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self.stopped = len(self.began) == 1 and step == 2


def test_an_interrupted_training_ends_in_the_same_bits(session: Session, task: Task) -> None:
    settings = {**QUICK, "steps": 4, "chat_template": True}
    told = Stops()
    session = session.with_listener(told)
    with pytest.raises(TrainingStoppedError):
        train_source(task, name="cut", session=session, **settings)
    # without the template it is another training: it finds no checkpoint
    train_source(task, name="cut", resume=True, session=session, **{**settings, "chat_template": None})
    train_source(task, name="cut", resume=True, session=session, **settings)
    train_source(task, name="whole", session=session, **settings)
    store = session.store
    assert told.began == [0, 0, 2, 0]
    assert store.prompt("cut").sha256 == store.prompt("whole").sha256 != store.prompt("cut@1").sha256


def test_a_comparison_has_all_methods_inside_it(session: Session, task: Task) -> None:
    quick = {name: value for name, value in QUICK.items() if name not in ("steps", "eval_every")}
    other, methods = task.model_copy(update={"name": "other"}), "none,source,prompt-tuning,attempt"
    quick |= {"k": 8, "seeds": 1, "steps": 2, "limit": None}
    result = fewshot(other, methods=methods, sources="one,two", session=session, **quick)
    names, store = {cell.method: cell.prompt for cell in result.cells}, session.store
    assert names["none"] == "no prompt, in the chat template"  # as the sources were trained, without being said
    assert store.prompt(names["prompt-tuning"]).chat_template == TEMPLATE
    assert store.composition(names["attempt"]).chat_template == TEMPLATE
    bare = evaluate(load("none", chat_template=True, session=session), task, session=session)[0]
    assert {row.method: row.mean for row in result.methods}["none"] == pytest.approx(bare.score)


def test_backbones_without_a_template_are_refused_before_they_load(shared: Session, task: Task, llama: Path) -> None:
    session = replace(shared, backbone=str(llama), registry=shared.store)
    with pytest.raises(AttemptError, match="has no chat template"):
        train_source(task, chat_template=True, session=session, **QUICK)
    assert not session._loaded


def test_the_commands_say_it_once(folder: Path, llama: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", toy_rows(24))
    write_csv(tmp_path / "test.csv", toy_rows(16, 1))
    attempt, quick = Attempt(tmp_path, folder), "--steps 2 --batch-size 8 --prompt-length 4 --eval-every 0"
    train = f"train-source --train-file train.csv {READ} {quick} --dtype float32"
    attempt.succeed(f"{train} --chat-template --name one")
    attempt.succeed(f"train-target --train-file train.csv {READ} {quick} --dtype float32 --sources one --name aim")
    shown = attempt.succeed("--format json registry show one").json
    assert shown["prompt"]["settings"]["chat_template"] == TEMPLATE
    rows = "--test-file test.csv --dtype float32"
    found = attempt.succeed(f"--format json eval --prompt one --prompt none --chat-template {rows}").json["evaluations"]
    assert [one["model"] for one in found] == ["one@1", "no prompt, in the chat template"]
    said = attempt.succeed("predict aim --dtype float32", input="it was good\n").json
    assert set(said["probabilities"]) == {"no", "yes"}
    refused = attempt(f"eval --prompt one --chat-template {rows}")
    assert (refused.code, "used as it was trained" in refused.err) == (2, True)
    refused = attempt(f"{train} --chat-template --name no --backbone {llama}")
    assert refused.code == 1
    assert "has no chat template" in refused.err
    assert "Leave --chat-template out" in refused.err
