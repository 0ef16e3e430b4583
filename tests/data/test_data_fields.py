"""A task file of one's own: what is wrong with it is said all at once, in plain words."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields, task_from_fields
from attempt_cli.errors import AttemptError

GOOD = """
name: my-reviews
description: Reviews of my shop.
files: {train: rows/train.csv, test: rows/test.csv}
split_rule: held-out
splits: {test: test}
input: |
  review: {text}
  sentiment:
label: stars
labels: {1: no, 5: yes, off: maybe}
metrics: [accuracy]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(AttemptError) as failure:
        load_task(written(tmp_path, text))
    assert failure.value.hint
    return failure.value.message


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    task = load_task(str(written(tmp_path, GOOD)))
    assert task.name == "my-reviews"
    assert task.version == 1
    assert task.input == "review: {text}\nsentiment:"
    assert task.files["train"] == tmp_path / "rows" / "train.csv"
    # YAML 1.1 reads bare no and yes as truth values; here they are words, and values are matched as text
    assert task.labels == {"1": "no", "5": "yes", "off": "maybe"}
    assert task.columns() == ("text", "stars")


def test_all_problems_of_the_form_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        "name: Is it?\nversion: 0\ninput: 'x {a}'\nmax_lenght: 9\nmetrics: accuracy\n"
        "split_rule: half\nhub: {config: x}\n",
    )
    for part in (
        "name:",
        "version:",
        "max_lenght: no such field (did you mean max_length?)",
        "metrics:",
        "split_rule:",
    ):
        assert part in message
    assert "hub.path: missing" in message


def test_all_problems_of_the_meaning_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        """
name: bad
input: "{text"
target: "{}"
labels: {0: same, 1: same, 2: ""}
metrics: [f1, squad_f1, acuracy, multirc_em]
prepare: magic
""",
    )
    for part in (
        "input: a brace has no partner",
        "target: '{}' names no column",
        "exactly one says what the model should write; there is labels and target",
        "hub, files: exactly one says where the rows are",
        "two values have the word 'same'",
        "a label word is empty",
        "f1 needs exactly two labels, there are 3",
        "squad_f1 is for free text",
        "no metric 'acuracy' (did you mean accuracy?",
        "multirc_em needs group",
        "prepare: no function 'magic'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it holds nothing"),
        ("- a\n- b\n", "it holds a list"),
        ("name: [a\ninput: b\n", "line"),
        ("input: a: b: c\n", "line 1: not valid YAML"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("name: a\ninput: b\nname: c\n", "line 3: not valid YAML ('name' appears twice)"),
        ("labels: {0: a, 0: b}\n", "'0' appears twice"),
    ],
)
def test_a_file_that_is_no_task(tmp_path: Path, text: str, part: str) -> None:
    message = refusal(tmp_path, text)
    assert "task.yaml" in message
    assert part in message


@pytest.mark.parametrize(
    "text",
    [
        "? [a]\n: b\n",
        "version: 2001-99-99\n",
        "version: !!int abc\n",
        "version: !!timestamp foo\n",
        "version: " + "9" * 5000 + "\n",
        "input: !!bool x\n",
        'name: "\\ud800"\n',
        "name: &a [*a]\n",
        "[" * 5000,
        'files: {train: "\\0"}\n',
    ],
)
def test_what_yaml_or_python_cannot_read_is_told_in_short(tmp_path: Path, text: str) -> None:
    assert len(refusal(tmp_path, text)) < 1000


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    bomb = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
        f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    message = refusal(tmp_path, f"{bomb}description: *x8\n")
    assert "holds more than 200,000 values" in message
    assert len(message) < 1000


def test_ten_thousand_labels_are_checked_in_linear_time(tmp_path: Path) -> None:
    labels = "".join(f"  l{n}: w{n}\n" for n in range(10_000))
    fields = "name: a\nfiles: {train: a.csv}\ninput: '{text}'\nmetrics: [accuracy]\nlabels:\n"
    path = written(tmp_path, fields + labels)
    before = time.process_time()
    task = load_task(path)
    numbers = [task.render({"text": "a", "label": f"l{n}"}).label for n in range(0, 10_000, 7)]
    assert time.process_time() - before < 5
    assert numbers == list(range(0, 10_000, 7))
    with pytest.raises(AttemptError) as failure:
        task.render({"text": "a", "label": "none"})
    assert len(str(failure.value.hint)) < 500
    assert len(refusal(tmp_path, fields + "".join(f"  l{n}: w\n" for n in range(10_000)))) < 1000
    assert len(refusal(tmp_path, fields + "".join(f"  l{n}: [w]\n" for n in range(10_000)))) < 10_000


def test_a_version_that_no_record_could_hold_is_refused_at_once(tmp_path: Path) -> None:
    assert "version: input should be less than" in refusal(tmp_path, GOOD + "version: 99999999999999999999999\n")


def test_an_encoding_is_one_that_python_knows(tmp_path: Path) -> None:
    assert load_task(written(tmp_path, GOOD + "encoding: cp1252\n")).encoding == "cp1252"
    for wrong in ("warp", "rot13"):
        assert f"no text encoding '{wrong}'" in refusal(tmp_path, GOOD + f"encoding: {wrong}\n")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AttemptError, match="no file"):
        load_task(tmp_path / "nothing.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(AttemptError, match="is a folder"):
        load_task(tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(AttemptError, match="not UTF-8"):
        load_task(tmp_path / "latin.yaml")


def test_the_text_format_is_no_field_of_a_file(tmp_path: Path) -> None:
    assert "format: no such field" in refusal(tmp_path, GOOD + "format: reference\n")


def test_a_copy_is_checked_like_a_new_task(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, GOOD))
    shorter = task.model_copy(update={"max_length": 99})
    assert (shorter.max_length, shorter.files) == (99, task.files)
    assert shorter.model_copy(update={"max_length": 256}) == task
    for update in ({"max_lenght": 99}, {"max_length": "99"}, {"metrics": ("f1",)}, {"labels": None}):
        with pytest.raises(ValidationError):
            task.model_copy(update=update)


def test_a_task_reaches_another_process_whole() -> None:
    task = load_task("wsc.fixed").with_format("reference")
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_record_of_a_task_keeps_its_shape(tmp_path: Path) -> None:
    """Registries hold this shape: another one would leave their prompts without a task."""
    record = {
        "name": "my-reviews",
        "version": 1,
        "description": "Reviews of my shop.",
        "files": {"train": str(tmp_path / "rows/train.csv"), "test": str(tmp_path / "rows/test.csv")},
        "split_rule": "held-out",
        "splits": {"test": "test"},
        "input": "review: {text}\nsentiment:",
        "label": "stars",
        "labels": {"1": "no", "5": "yes", "off": "maybe"},
        "metrics": ["accuracy"],
        "max_length": 256,
    }
    task = load_task(written(tmp_path, GOOD))
    assert list(task_fields(task).items()) == list(record.items())
    assert task_from_fields(record, "a record", Path("/nowhere")) == task
    hub = task_fields(load_task("rte"))
    assert (hub["hub"], "files" in hub) == ({"path": "nyu-mll/glue", "config": "rte"}, False)
    assert set(hub["reference"]) == {"input"}
    assert "label" not in task_fields(load_task("squad"))
