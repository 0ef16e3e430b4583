"""What a training writes where there is no terminal."""

from __future__ import annotations

import itertools

import pytest

from attempt_cli.cli.progress import LINES_OF_STEPS, TrainingProgress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("seconds_per_step", [0.001, 1, 60])
def test_a_log_stays_short_however_long_a_training_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds_per_step: float
) -> None:
    clock = itertools.count(1000, seconds_per_step)
    monkeypatch.setattr("attempt_cli.cli.progress.time.monotonic", lambda: next(clock))
    with TrainingProgress("rte") as progress:
        progress.start(0, 5000)
        for step in range(1, 5001):
            progress.step(step, 1.0, 20.0)
            if step % 1000 == 0:
                progress.evaluation(step, {"accuracy": 0.5, "f1": 0.4}, best=step == 1000)
    written = lines(capsys)
    steps = [line for line in written if "loss" in line]
    assert steps[0] == "rte: step 1/5000  loss 1.000  20.0 rows/s"
    assert steps[-1] == "rte: step 5000/5000  loss 1.000  accuracy 50.0  20.0 rows/s"
    assert len(steps) == 2 if seconds_per_step < 1 else 2 < len(steps) <= LINES_OF_STEPS + 2
    assert len(written) == len(steps) + 5
    assert "rte: step 1000/5000  validation accuracy 50.0  (best)" in written


def test_the_last_step_of_a_training_that_stops_early_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress("rte") as progress:
        progress.start(2, 9)
        progress.step(3, 1.0, 20.0)
        progress.step(4, 1.0, 20.0)
    assert lines(capsys) == [
        "continuing from step 2 of 9",
        "rte: step 3/9  loss 1.000  20.0 rows/s",
        "rte: step 4/9  loss 1.000  20.0 rows/s",
    ]


def test_a_silent_training_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress("rte", silent=True) as progress:
        progress.start(1, 3)
        progress.note("a remark")
        progress.step(2, 1.0, 20.0)
        progress.evaluation(2, {"accuracy": 0.5}, best=True)
    assert lines(capsys) == []
