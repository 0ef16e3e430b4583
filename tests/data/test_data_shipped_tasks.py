"""The tasks that come with the package: complete, of one form, and each renders real rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from attempt_cli.data.catalogue import load_task, task_names, task_summaries
from attempt_cli.data.check import check_rows
from attempt_cli.data.fields import task_fields, task_from_fields
from attempt_cli.data.metrics import METRICS
from attempt_cli.errors import AttemptError

SOURCES = {"mnli", "qnli", "qqp", "sst2", "squad", "record"}
GLUE = {"cola", "mrpc", "stsb", "rte", "mnli", "qnli", "qqp", "sst2"}
SUPERGLUE = {"boolq", "cb", "multirc", "wic", "wsc.fixed"}
MRQA = {"naturalquestions", "hotpotqa", "searchqa", "newsqa"}
OTHERS = {"scitail", "yelp_polarity", "winogrande", "paws"}
EXAMPLES = {"shop-reviews", "message-topics", "support-chats"}
# the rule that the literature has for each (Karimi Mahabadi et al., 2021)
HALVED = {"cola", "rte", "mrpc", "stsb", "cb", "multirc", "wic", "wsc.fixed", "boolq", "scitail"}
OWN = {"mnli", "paws"}


def test_every_task_of_the_paper_is_there() -> None:
    assert set(task_names()) == SOURCES | GLUE | SUPERGLUE | MRQA | OTHERS | EXAMPLES


@pytest.mark.parametrize("name", sorted(SOURCES | GLUE | SUPERGLUE | MRQA | OTHERS | EXAMPLES))
def test_a_task_is_in_order(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.description.endswith(")")
    assert task.input.endswith(":"), "a template ends in a cue"
    assert set(task.metrics) <= set(METRICS)
    assert task.split_rule == ("halved" if name in HALVED else "own" if name in OWN else "held-out")
    assert task.max_length == (348 if name == "multirc" else 512 if name in MRQA | {"squad", "record"} else 256)
    if task.is_classification:
        reference = task.with_format("reference")
        assert reference.label_words == tuple(str(number) for number in range(len(task.label_words)))
        assert all(len(word.split()) == 1 for word in task.label_words)
    assert (task.hub is None) == (name in EXAMPLES)


@pytest.mark.parametrize("name", sorted(SOURCES | GLUE | SUPERGLUE | MRQA | OTHERS | EXAMPLES))
def test_a_task_survives_being_written_down(name: str) -> None:
    task = load_task(name)
    assert task_from_fields(task_fields(task), "a record", Path("/nowhere")) == task


def test_label_words_stand_in_the_order_of_the_data_set() -> None:
    words = {name: load_task(name).label_words for name in task_names()}
    assert words["mnli"] == ("yes", "maybe", "no")
    assert words["cb"] == ("yes", "no", "maybe")
    assert words["rte"] == words["qnli"] == words["scitail"] == ("yes", "no")
    assert words["sst2"] == words["yelp_polarity"] == ("negative", "positive")
    assert words["winogrande"] == ("A", "B")
    for name in ("cola", "mrpc", "qqp", "paws", "boolq", "multirc", "wic", "wsc.fixed"):
        assert words[name] == ("no", "yes")


def test_the_list_agrees_with_the_tasks() -> None:
    for summary in task_summaries():
        task = load_task(summary["name"])
        assert summary["kind"] == ("classification" if task.is_classification else "free text")
        assert tuple(summary["label_words"]) == task.label_words
        assert tuple(summary["metrics"]) == task.metrics
        assert summary["max_length"] == task.max_length


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(AttemptError, match="no task named 'sst-2'") as failure:
        load_task("sst-2")
    assert "sst2" in str(failure.value.hint)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_rows_are_balanced(name: str) -> None:
    task = load_task(name)
    for found in check_rows(task, None):
        assert found.problems == []
        assert found.rows == (150 if found.split == "train" else 60)
        assert len(set(found.targets.values())) == 1


@pytest.mark.rows
@pytest.mark.parametrize("name", sorted(SOURCES | GLUE | SUPERGLUE | MRQA | OTHERS))
def test_every_real_row_renders(name: str, real_rows: Path) -> None:
    found = check_rows(load_task(name), real_rows)
    if not found:
        pytest.skip(f"no rows of {name} in {real_rows}")
    for split in found:
        assert split.rows > 0
        assert split.problems == []
        assert all(count > 0 for count in split.targets.values()), "every label occurs"


@pytest.mark.rows
def test_labels_of_real_rows_mean_what_they_say(real_rows: Path) -> None:
    """Rows picked by hand, read by a person: the label word is the right answer."""
    from attempt_cli.data.rows import load_examples

    def target(name: str, split: str, row: int) -> tuple[str, str]:
        examples = {
            example.row: example for example in load_examples(load_task(name), split, data_dir=real_rows).examples
        }
        return examples[row].input, examples[row].target

    assert target("sst2", "test", 0) == (
        "review: it 's a charming and often affecting journey .\nsentiment:",
        "positive",
    )
    text, word = target("rte", "train", 1)
    assert "hypothesis: Pope Benedict XVI is the new leader of the Roman Catholic Church." in text
    assert word == "yes"
    text, word = target("winogrande", "test", 0)
    assert "option A: Sarah\noption B: Maria" in text
    assert word == "B"  # "Sarah was a much better surgeon than Maria so _ always got the easier cases."
    text, word = target("mnli", "test", 1)
    assert "are not able to be searched" in text
    assert word == "no"
    text, word = target("wsc.fixed", "train", 0)
    assert text.startswith("text: * Mark * told Pete many lies about himself, which Pete included in his book. # He #")
    assert word == "no"
