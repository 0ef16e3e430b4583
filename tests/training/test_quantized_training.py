"""Prompts that are trained on quantised weights: what their records say, and what is told where they are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import attempt_cli as attempt
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_cli.session import Session
from tests.training.toy import toy_rows, write_csv

pytest.importorskip("bitsandbytes")


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if not text.startswith(("loading", "no validation")):
            self.notes.append(text)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    files = {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(24, seed)) for seed, name in enumerate(("train", "test"))
    }
    return task_from_files(**files, input="{text} label:", label="mood", name="toy")  # type: ignore[arg-type]


@pytest.fixture
def session(tmp_path: Path, llama: Path) -> Session:
    return Session(tmp_path / "kept", backbone=str(llama), device="cpu", dtype="float32", listener=Notes())


def told(session: Session) -> list[str]:
    assert isinstance(session.listener, Notes)
    notes, session.listener.notes = session.listener.notes, []
    return notes


def test_a_prompt_says_what_it_was_trained_on_and_a_difference_is_told(session: Session, task: Task) -> None:
    small = replace(session, quantize="nf4")
    settings = {"steps": 3, "eval_every": 0, "prompt_length": 4}
    outcomes = [
        attempt.train_source(task, name=name, session=one, **settings) for name, one in (("a", small), ("b", session))
    ]
    prompts = [session.store.prompt(name) for name in "ab"]
    assert [prompt.settings.get("quantize") for prompt in prompts] == ["nf4", None]
    assert prompts[0].fingerprint == prompts[1].fingerprint  # one backbone, and each fits the other
    assert prompts[0].settings["tokenizer"] == prompts[1].settings["tokenizer"]
    assert outcomes[0] is not None
    told(session)
    own = attempt.evaluate("a", task, session=small)
    assert told(session) == []
    other = attempt.evaluate("a", task, session=session)
    (note,) = told(session)
    assert note.startswith("a@1: trained on")
    assert "quantised as nf4, which is loaded in full: scores may differ (--quantize nf4)" in note
    attempt.evaluate("b", task, session=small)
    (note,) = told(session)
    assert "in full, which is loaded quantised as nf4: scores may differ (without --quantize)" in note
    dtypes = [session.store.run(one[0].run).settings["dtype"] for one in (own, other)]
    assert dtypes == ["nf4 torch.float32", "torch.float32"]


def test_another_tokenizer_is_told_once(session: Session, task: Task) -> None:
    for name in "ab":
        attempt.train_source(task, name=name, session=session, steps=2, eval_every=0, prompt_length=4)
    told(session)
    backbone = session.load_backbone([session.store.prompt("a")])
    assert told(session) == []
    vars(backbone)["tokenizer_digest"] = "0123456789abcdef"
    session.load_backbone([session.store.prompt("a")])
    (note,) = told(session)
    assert note.startswith("a@1: trained with another tokenizer")
    assert "0123456789abcdef" in note
    both = [session.store.prompt(name) for name in "ab"]
    session.load_backbone(both)
    (note,) = told(session)
    assert note.startswith("b@1: trained with another tokenizer")
    session.with_listener(session.listener).load_backbone(both)
    assert told(session) == []


def test_quantised_weights_are_not_trained(session: Session, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(session, quantize="int8")
    monkeypatch.setattr(Session, "load_backbone", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(AttemptError, match=r"fine-tuning trains weights, not those that --quantize int8 keeps"):
        attempt.train_target(task, method="fine-tuning", session=small, steps=2, eval_every=0)
    methods = ["prompt-tuning", "lora", "bitfit"]
    for compared in (
        lambda: attempt.fewshot(task, k=4, methods=methods, session=small),
        lambda: attempt.sweep(task, methods=methods, session=small),
        lambda: attempt.reproduce("table1", methods=methods, session=small),
    ):
        with pytest.raises(AttemptError, match=r"trained by lora, bitfit, and not those that --quantize int8 keeps"):
            compared()


def test_cells_without_training_are_other_cells_where_weights_are_quantised(session: Session, task: Task) -> None:
    task, methods = task.model_copy(update={"instruction": "Say it."}), ["none", "instruction"]
    keys = [
        [cell.key for cell in attempt.fewshot(task, k=4, methods=methods, seeds=1, steps=1, session=one).cells]
        for one in (session, replace(session, quantize="nf4"), session)
    ]
    assert keys[0] == keys[2]
    assert len({*keys[0], *keys[1]}) == 4
