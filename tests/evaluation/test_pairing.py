"""Two evaluations on the same rows, from what their runs keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.data.example import Example
from attempt_cli.data.fields import task_from_fields
from attempt_cli.data.scoring import score
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.pairing import PerRow, compare, per_row

ANSWERS = ["yes", "no", "yes", "yes", "no", "no"]


def task(*metrics: str, **fields: Any) -> Task:
    own = {"name": "toy", "input": "{text}", "files": {"test": "rows.csv"}, "metrics": list(metrics)}
    labelled = {} if "answers" in fields else {"label": "mood", "labels": {"no": "no", "yes": "yes"}}
    return task_from_fields({**own, **labelled, **fields}, "toy", Path.cwd())


def rows(answers: list[str], groups: str = "") -> list[Example]:
    return [
        Example("it is", answer, label=int(answer == "yes"), group=groups[i] if groups else None, row=i)
        for i, answer in enumerate(answers)
    ]


def through_json(kept: PerRow) -> PerRow:
    """What a run gives back."""
    return PerRow(**json.loads(json.dumps(kept.record())))


def test_right_and_wrong_rows_are_counted() -> None:
    toy, examples = task("accuracy"), rows(ANSWERS)
    first = through_json(per_row(toy, ["yes", "no", "yes", "no", "yes", "no"], examples))
    second = through_json(per_row(toy, ["yes", "yes", "no", "no", "no", "no"], examples))
    result = compare(toy, first, second)
    assert result.counts == {"first": 2, "second": 1, "both": 2, "neither": 1}
    assert result.scores == pytest.approx((4 / 6, 3 / 6))
    assert result.test.difference == pytest.approx(1 / 6)
    assert result.test.name == "McNemar, exact"
    assert first.texts == ()  # a mean over rows needs no texts


def test_a_metric_that_is_no_mean_is_computed_from_texts() -> None:
    toy, examples = task("f1", "accuracy"), rows(ANSWERS * 20)
    texts = [["yes", "yes", "yes", "yes", "no", "no"] * 20, ["no", " yes", "yes", "no", "no", "no"] * 20]
    kept = [through_json(per_row(toy, predictions, examples)) for predictions in texts]
    result = compare(toy, *kept)
    scores = [score(toy, predictions, examples)["f1"] for predictions in texts]
    assert result.metric == "f1"
    assert result.scores == pytest.approx(scores)
    assert result.test.difference == pytest.approx(scores[0] - scores[1])
    assert result.test.interval[0] < result.test.difference < result.test.interval[1]
    assert result.counts == {"different": 40, "equal": 80}
    assert result.test.p < 0.01
    by_accuracy = compare(toy, *kept, "accuracy")
    assert by_accuracy.counts == {"first": 40, "second": 0, "both": 60, "neither": 20}


def test_row_scores_between_nought_and_one_are_bootstrapped() -> None:
    toy = task("squad_f1", "squad_em", answers="answers")
    examples = [Example("it", "two three", references=("two three",), row=i) for i in range(40)]
    kept = [
        through_json(per_row(toy, predictions, examples))
        for predictions in (["two three"] * 20 + ["two"] * 20, ["two"] * 40)
    ]
    result = compare(toy, *kept)
    assert "bootstrap" in result.test.name
    assert result.counts == {"first": 20, "second": 0, "equal": 20}
    assert result.test.difference == pytest.approx(0.5 * (1 - 2 / 3), abs=1e-5)
    assert "McNemar" in compare(toy, *kept, "squad_em").test.name


def test_rows_of_a_group_are_drawn_together() -> None:
    """Two rows that always go together say no more than one: the interval is as wide as that of half as many."""
    answers, predictions = ["yes", "no"] * 30, (["yes", "no"] * 15 + ["no", "no"] * 15)
    alone, paired = rows(answers), rows([a for a in answers for _ in "12"], "".join(2 * chr(40 + i) for i in range(60)))
    toy = task("multirc_f1a", "accuracy", group="{question}")
    other = ["no"] * 60
    one = compare(toy, per_row(toy, predictions, alone), per_row(toy, other, alone))
    twice = [text for text in predictions for _ in "12"]
    two = compare(toy, per_row(toy, twice, paired), per_row(toy, other * 2, paired))
    assert two.n == 2 * one.n
    assert two.test.interval == pytest.approx(one.test.interval)
    accuracy = compare(toy, per_row(toy, twice, paired), per_row(toy, other * 2, paired), "accuracy")
    assert "bootstrap" in accuracy.test.name  # McNemar's rows are independent


def test_a_metric_that_the_task_does_not_have() -> None:
    toy, examples = task("accuracy"), rows(ANSWERS)
    kept = per_row(toy, ANSWERS, examples)
    with pytest.raises(AttemptError, match="no metric of the task 'toy' named 'acuracy'") as error:
        compare(toy, kept, kept, "acuracy")
    assert "Did you mean accuracy?" in (error.value.hint or "")
