"""The metrics, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from attempt_cli.data.answers import best_exact_match, best_f1, normalize_answer, word_f1
from attempt_cli.data.example import Example
from attempt_cli.data.metrics import METRICS, read_number
from attempt_cli.data.scoring import row_scores, score
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError

FILES = {"test": Path("test.csv")}


def labelled(*metrics: str, words: tuple[str, ...] = ("no", "yes")) -> Task:
    labels = {str(number): word for number, word in enumerate(words)}
    return Task(name="toy", input="{text}", metrics=metrics, labels=labels, group="{g}", files=FILES)


FREE = Task(name="toy", input="{text}", metrics=("squad_f1", "squad_em"), files=FILES, answers="answers")


def targets(*words: str, groups: str = "") -> list[Example]:
    return [Example("", word, None, (), groups[row] if groups else None, row) for row, word in enumerate(words)]


def answers(*references: tuple[str, ...]) -> list[Example]:
    return [Example("", accepted[0], None, accepted, None, row) for row, accepted in enumerate(references)]


def test_accuracy() -> None:
    task = labelled("accuracy")
    assert score(task, ["yes ", "no", "maybe", "Yes"], targets("yes", "yes", "no", "yes")) == {"accuracy": 0.25}
    assert row_scores(task, ["yes", "no"], targets("yes", "yes")) == [1.0, 0.0]


def test_f1_of_label_one() -> None:
    # said yes 3 times, rightly twice; yes is true 4 times: precision 2/3, recall 1/2, F1 = 4/7
    said, true = ["yes", "yes", "yes", "no", "no", "no"], ["yes", "yes", "no", "yes", "yes", "no"]
    assert score(labelled("f1"), said, targets(*true))["f1"] == pytest.approx(4 / 7)
    assert score(labelled("f1"), ["no", "no"], targets("no", "yes"))["f1"] == 0.0
    assert score(labelled("f1"), ["no", "no"], targets("no", "no"))["f1"] == 0.0
    # a word that is no label is wrong both ways: a miss for "yes", a false alarm for "no"
    assert score(labelled("f1"), ["yes", "?", "?"], targets("yes", "yes", "no"))["f1"] == pytest.approx(1 / 2)


def test_f1_macro() -> None:
    # F1 of a: 2/3 (precision 1, recall 1/2), of b: 2/3 (precision 1/2, recall 1), of c: 0
    task = labelled("f1_macro", words=("a", "b", "c"))
    assert score(task, ["a", "b", "b"], targets("a", "a", "b"))["f1_macro"] == pytest.approx(4 / 9)
    assert score(task, ["a", "?"], targets("a", "b"))["f1_macro"] == pytest.approx(1 / 3)


def test_matthews() -> None:
    # TP 2, FP 1, FN 1, TN 2: (2*2 - 1*1) / sqrt(3*3*3*3) = 1/3
    said, true = ["yes", "yes", "yes", "no", "no", "no"], ["yes", "yes", "no", "yes", "no", "no"]
    assert score(labelled("matthews"), said, targets(*true))["matthews"] == pytest.approx(1 / 3)
    assert score(labelled("matthews"), ["no", "yes"], targets("yes", "no"))["matthews"] == -1.0
    assert score(labelled("matthews"), ["yes"] * 3, targets("yes", "no", "yes"))["matthews"] == 0.0
    assert score(labelled("matthews"), ["yes"] * 2, targets("yes", "yes"))["matthews"] == 0.0


def similarity(said: list[str], true: list[str]) -> dict[str, float]:
    task = Task(name="toy", input="{text}", metrics=("pearson", "spearman"), files=FILES, target="{s}")
    return score(task, said, targets(*true))


def test_correlations() -> None:
    assert similarity(["1.0", "2.0", "3.0"], ["2.0", "4.0", "5.0"]) == pytest.approx(
        {"pearson": 3 / math.sqrt(2 * 14 / 3), "spearman": 1.0}
    )
    assert similarity(["3.0", "1.0"], ["0.2", "4.8"]) == pytest.approx({"pearson": -1.0, "spearman": -1.0})


@pytest.mark.parametrize(
    ("said", "true"),
    [(["2.0", "2.0"], ["1.0", "3.0"]), (["1.0", "3.0"], ["2.0", "2.0"]), (["1.0"], ["1.0"]), (["x", "y"], ["1", "2"])],
)
def test_a_constant_side_correlates_with_nothing(said: list[str], true: list[str]) -> None:
    assert similarity(said, true) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("text", "number"), [(" 3.8\n", 3.8), ("4", 4.0), ("similar", -1.0), ("nan", -1.0), ("inf", -1.0)]
)
def test_text_that_is_no_number_counts_below_all(text: str, number: float) -> None:
    assert read_number(text) == number


def test_official_normalisation_of_answers() -> None:
    assert normalize_answer("  The  Beatles! ") == "beatles"
    assert normalize_answer("an A-list 'the' Theatre") == "alist theatre"
    assert word_f1("the red red car", "a red car") == pytest.approx(0.8)  # 2 shared of 3 and 2
    assert word_f1("blue", "red") == 0.0
    assert word_f1("", "red") == 0.0
    assert best_f1("red car", ("blue", "car")) == pytest.approx(2 / 3)
    assert best_exact_match("The Car.", ("blue", "car")) == 1.0
    assert best_f1("car", ()) == best_exact_match("car", ()) == 0.0


def test_squad_takes_the_best_reference_of_each_row() -> None:
    examples = answers(("Ann", "Ann Bell"), ("in 1999",), ("x",))
    result = score(FREE, ["ann bell", "1999", "y"], examples)
    assert result == pytest.approx({"squad_f1": (1 + 2 / 3 + 0) / 3, "squad_em": 1 / 3})
    assert row_scores(FREE, ["ann bell", "1999", "y"], examples) == pytest.approx([1, 2 / 3, 0])
    record = Task(name="toy", input="{text}", metrics=("record_f1", "record_em"), files=FILES, answers="answers")
    assert list(score(record, ["ann bell", "1999", "y"], examples).values()) == list(result.values())


def test_multirc_counts_questions_and_answers() -> None:
    task = labelled("multirc_f1a", "multirc_em")
    # question a wholly right, b half: EM 1/2; over all answers TP 2, FP 1, FN 0: F1 = 4/5
    examples = targets("yes", "no", "yes", "no", groups="aabb")
    assert score(task, ["yes", "no", "yes", "yes"], examples) == pytest.approx({"multirc_f1a": 0.8, "multirc_em": 0.5})
    assert row_scores(task, ["yes"] * 4, examples) is None


def test_nothing_to_score() -> None:
    with pytest.raises(AttemptError, match="no rows to score task 'toy'"):
        score(FREE, [], [])
    with pytest.raises(AttemptError, match="2 predictions for 1 rows"):
        score(FREE, ["a", "b"], answers(("a",)))


def test_all_metrics_of_the_design_are_there() -> None:
    assert set(METRICS) == {
        *("accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman"),
        *("squad_f1", "squad_em", "record_f1", "record_em", "multirc_f1a", "multirc_em"),
    }
