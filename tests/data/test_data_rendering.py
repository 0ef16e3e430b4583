"""How a row becomes a text pair: templates, label words, free text, and what is said of a row that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from attempt_cli.data.catalogue import load_task
from attempt_cli.data.example import RowError
from attempt_cli.data.prepare import record_passage, stsb_score, wsc_marks
from attempt_cli.data.task import Task
from attempt_cli.data.template import fill, template_columns, template_problems
from attempt_cli.errors import AttemptError

REVIEWS = Task(
    name="reviews",
    files={"train": Path("train.csv")},
    input="review: {text}\nsentiment:",
    metrics=("accuracy",),
    labels={"0": "negative", "1": "positive"},
)


def test_only_named_columns_are_replaced() -> None:
    row = {"a": "one", "b": 2, "c": 1.0, "d": True, "e": ["x", "y"], "f": {"g": "deep"}}
    assert fill("{a}|{b}|{c}|{d}|{e}|{f.g}|{{a}}", row) == "one|2|1|true|x, y|deep|{a}"
    assert template_columns("{a} {b} {a}") == ("a", "b")


@pytest.mark.parametrize("text", ["{label}", "{0}", "{", "}}", "{{x}}", "{text!r:>10}", "\\1 $a %s"])
def test_braces_in_a_row_stay_text(text: str) -> None:
    example = REVIEWS.render({"text": text, "label": 1})
    assert example.input == f"review: {text}\nsentiment:"


@pytest.mark.parametrize(
    ("template", "problem"),
    [("{text", "no partner"), ("text}", "no partner"), ("{}", "names no column"), ("{a{b}}", "no partner")],
)
def test_a_template_with_bad_braces_is_refused(template: str, problem: str) -> None:
    assert problem in " ".join(template_problems(template))


def test_a_dot_in_a_column_name_is_not_a_path() -> None:
    assert fill("{a.b}", {"a.b": "whole", "a": {"b": "part"}}) == "whole"


@pytest.mark.parametrize("raw", [1, "1", 1.0, " 1 "])
def test_labels_of_any_type_find_their_word(raw: object) -> None:
    example = REVIEWS.render({"text": "good", "label": raw}, 4)
    assert (example.target, example.label, example.row, example.references) == ("positive", 1, 4, ())


def test_the_reference_format_has_digits_for_targets() -> None:
    task = load_task("sst2").with_format("reference")
    example = task.render({"sentence": "a joy ", "label": 1, "idx": 0})
    assert (example.input, example.target) == ("sst2 sentence: a joy", "1")
    assert task.label_words == ("0", "1")
    assert task.with_format("words") == load_task("sst2")


def test_a_task_without_reference_says_so() -> None:
    with pytest.raises(AttemptError, match="no text format 'reference'"):
        load_task("squad").model_copy(update={"reference": None}).with_format("reference")
    with pytest.raises(AttemptError, match="no text format named 'refrence'") as failure:
        load_task("sst2").with_format("refrence")
    assert "reference" in str(failure.value.hint)


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ({"txt": "good", "label": 1}, "task 'reviews', row 3: no column 'text'", "txt, label"),
        ({"text": "good"}, "row 3: no column 'label'", "text"),
        ({"text": None, "label": 1}, "row 3: nothing in column 'text'", "Fill it in"),
        ({"text": float("nan"), "label": 1}, "nothing in column 'text'", ""),
        ({"text": "good", "label": None}, "nothing in column 'label'", ""),
        ({"text": "good", "label": ""}, "nothing in column 'label'", ""),
        ({"text": "good", "label": 7}, "row 3: unknown label '7' in column 'label'", "knows '0', '1'"),
    ],
)
def test_a_bad_row_is_named_as_people_count(row: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RowError) as failure:
        REVIEWS.render(row, 2)
    assert message in failure.value.message
    assert hint in str(failure.value.hint)
    assert failure.value.row == 2


def test_free_text_has_all_accepted_answers_once() -> None:
    row = {
        "context": "a\n\n b",
        "question": "who?",
        "answers": {"text": ["Ann", "Ann", "Ann B."], "answer_start": [0, 0, 0]},
    }
    example = load_task("squad").render(row)
    assert example.input == "context: a b\nquestion: who?\nanswer:"
    assert (example.target, example.references, example.label) == ("Ann", ("Ann", "Ann B."), None)
    with pytest.raises(RowError, match=r"nothing in column 'answers\.text'"):
        load_task("squad").render({**row, "answers": {"text": [], "answer_start": []}})


@pytest.mark.parametrize(
    ("label", "text"),
    # halves of a fifth round to even, in single precision: what T5's preprocessor does
    [(0.0, "0.0"), (5.0, "5.0"), (3.8, "3.8"), (4.75, "4.8"), (2.5, "2.4"), (0.5, "0.4"), (1.5, "1.6"), (0.7, "0.8")],
)
def test_similarity_is_text_rounded_to_a_fifth(label: float, text: str) -> None:
    assert stsb_score({"label": label}) == {"score": text}
    row = {"sentence1": "a", "sentence2": "b", "label": label, "idx": 0}
    assert load_task("stsb").render(row).target == text


def test_wsc_marks_noun_and_pronoun() -> None:
    row = {"text": "The trophy does not fit, it is big.", "span1_index": 1, "span1_text": "trophy"}
    row |= {"span2_index": 5, "span2_text": "it"}
    assert wsc_marks(row) == {"marked": "The * trophy * does not fit, # it # is big."}
    swapped = {"text": "it [b] is (b)+", "span1_index": 3, "span1_text": "(b)+", "span2_index": 0, "span2_text": "it"}
    assert wsc_marks(swapped) == {"marked": "# it # [b] is * (b)+ *"}


def test_winogrande_shows_both_options() -> None:
    row = {"sentence": "Ann thanked Bea because _ helped.", "option1": "Ann", "option2": "Bea", "answer": "2"}
    example = load_task("winogrande").render(row)
    assert "option A: Ann" in example.input
    assert "option B: Bea" in example.input
    assert (example.target, example.label) == ("B", 1)
    reference = load_task("winogrande").with_format("reference").render(row)
    assert reference.input == "winogrande sentence: Ann thanked Bea because _ helped. option0: Ann option1: Bea"
    assert reference.target == "1"


def test_record_highlights_become_sentences() -> None:
    passage = 'He won.\n@highlight\nIt rained\n@highlight\n"So what?"\n@highlight\nThe end'
    assert record_passage({"passage": passage}) == {"passage": 'He won. It rained. "So what?" The end'}


def test_record_lists_entities_and_takes_any_answer() -> None:
    row = {"passage": "p", "query": "@placeholder won.", "entities": ["Ann", "Bea"], "answers": ["Bea", "Ann"]}
    example = load_task("record").render(row)
    assert "entities: Ann, Bea" in example.input
    assert (example.target, example.references) == ("Bea", ("Bea", "Ann"))


def test_multirc_rows_know_their_question() -> None:
    row = {"paragraph": "<b>One</b><br>two", "question": "q", "answer": "", "label": 1}
    row |= {"idx": {"paragraph": 3, "question": 7, "answer": 1}}
    example = load_task("multirc").render(row)
    assert example.group == "3-7"
    assert example.input.startswith("paragraph: One two\n")


def test_a_task_is_frozen() -> None:
    with pytest.raises(ValidationError):
        REVIEWS.name = "other"  # type: ignore[misc]
