"""A training that was called from Python is stopped, and continues to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

import attempt_cli as attempt
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {"steps": 12, "batch_size": 4, "prompt_length": 4, "eval_every": 4, "learning_rate": 0.1}


class After(attempt.Listener):
    """Does something after a step, and notes the steps."""

    def __init__(self, step: int = 0, action: Any = None) -> None:
        self.at, self.action = step, action
        self.steps: list[int] = []

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self.steps.append(step)
        if step == self.at:
            self.action(self)


@pytest.fixture
def session(tmp_path: Path, llama: Path) -> attempt.Session:
    return attempt.Session(registry=tmp_path / "kept", backbone=str(llama), device="cpu", dtype="float32")


@pytest.fixture
def task(tmp_path: Path) -> attempt.Task:
    return attempt.task_from_files(
        train=write_csv(tmp_path / "train.csv", toy_rows(40)), input="{text} label:", label="mood", name="toy"
    )


def trained(session: attempt.Session, task: attempt.Task, folder: Path) -> tuple[np.ndarray[Any, Any], Any]:
    """The prompt and the validation scores of a training that nothing stopped, in a registry of its own."""
    whole = attempt.Session(registry=folder, backbone=session.backbone, device="cpu", dtype="float32")
    outcome = attempt.train_source(task, session=whole, **SETTINGS)
    assert outcome is not None
    return whole.store.prompt_tensor(whole.store.prompt("toy")), outcome.trained.state.history


def continued(session: attempt.Session, task: attempt.Task, folder: Path, step: int) -> None:
    """Continues the session's training, and compares it with one that nothing stopped."""
    rest = After()
    outcome = attempt.train_source(task, resume=True, session=session.with_listener(rest), **SETTINGS)
    assert outcome is not None
    assert rest.steps == list(range(step + 1, 13))
    tensor, history = trained(session, task, folder)
    assert np.array_equal(session.store.prompt_tensor(session.store.prompt("toy")), tensor)
    assert outcome.trained.state.history == history
    assert not list((session.store.folder / "checkpoints").iterdir())


def test_a_training_in_a_thread_is_stopped_by_its_listener(
    session: attempt.Session, task: attempt.Task, tmp_path: Path
) -> None:
    assert session.store.prompts() == []  # the registry is open in this thread, too
    stopped: list[attempt.TrainingStoppedError] = []

    def work() -> None:
        try:
            attempt.train_source(task, session=session.with_listener(listener), **SETTINGS)
        except attempt.TrainingStoppedError as error:
            stopped.append(error)

    listener = After(5, lambda listener: setattr(listener, "stopped", True))
    thread = Thread(target=work)
    thread.start()
    thread.join(60)
    (error,) = stopped
    assert error.message == "stopped at step 5 of 12; nothing is lost"
    assert session.store.prompts() == []
    continued(session, task, tmp_path / "whole", 5)


def test_ctrl_c_stops_a_training_and_leaves_the_handlers_as_they_were(
    session: attempt.Session, task: attempt.Task, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    listener = After(7, lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(attempt.TrainingStoppedError, match="stopped at step 7 of 12"):
        attempt.train_source(task, session=session.with_listener(listener), **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before
    continued(session, task, tmp_path / "whole", 7)


def test_a_second_ctrl_c_ends_it_at_once(session: attempt.Session, task: attempt.Task) -> None:
    def twice(_: attempt.Listener) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us without one
    try:
        with pytest.raises(KeyboardInterrupt):
            attempt.train_source(task, session=session.with_listener(After(3, twice)), **SETTINGS)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
