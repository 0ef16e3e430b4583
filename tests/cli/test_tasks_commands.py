"""`attempt tasks …` through the real command line: the whole output, the exit codes, and the time it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.cli.main import main

ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["attempt", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A task of one's own with a training file of three rows, the last two of them bad."""
    (tmp_path / "train.csv").write_text("text,mood\nlovely,1\n,0\ngrim,7\n")
    path = tmp_path / "moods.yaml"
    path.write_text(
        "name: moods\nfiles: {train: train.csv}\ninput: 'text: {text} mood:'\nlabel: mood\n"
        "labels: {0: bad, 1: good}\nmetrics: [accuracy]\n"
    )
    return path


def test_list_as_table(attempt: Callable[..., Result]) -> None:
    result = attempt("tasks", "list")
    lines = result.out.splitlines()
    assert result.code == 0
    assert result.err == ""
    assert lines[0].split() == ["name", "kind", "rows", "metrics"]
    assert len(lines) == 27
    table = {line.split()[0]: line for line in lines[1:]}
    assert table["cola"].split("  ")[-1] == "matthews, accuracy"
    assert "mrqa-workshop/mrqa plain_text NewsQA" in table["newsqa"]
    assert "with the package" in table["shop-reviews"]


def test_list_for_programs(attempt: Callable[..., Result]) -> None:
    result = attempt("--format", "json", "tasks", "list")
    assert result.json["version"] == 1
    by_name = {task["name"]: task for task in result.json["tasks"]}
    assert by_name["cb"] == {
        "name": "cb",
        "version": 1,
        "kind": "classification",
        "rows": "aps/super_glue cb",
        "metrics": ["accuracy", "f1_macro"],
        "label_words": ["yes", "no", "maybe"],
        "split_rule": "halved",
        "max_length": 256,
        "description": by_name["cb"]["description"],
    }
    names = attempt("--format", "quiet", "tasks", "list").out.split()
    assert names == sorted(by_name)


def test_show_with_rows_of_the_package(attempt: Callable[..., Result]) -> None:
    result = attempt("tasks", "show", "message-topics", "--rows", "1")
    assert result.code == 0
    assert result.err == ""
    fields = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line[0] != " ")
    assert fields["name"] == "message-topics"
    assert fields["label_words"] == "billing, delivery, technical"
    assert fields["row"].startswith("1        message: ")
    assert result.out.rstrip().split("topic: ")[-1] in ("billing", "delivery", "technical")


def test_show_with_rows_of_a_data_folder(attempt: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "nyu-mll" / "glue" / "rte"
    folder.mkdir(parents=True)
    rows = {"sentence1": ["It rains."], "sentence2": ["It is wet."], "label": [0], "idx": [0]}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "validation.parquet")
    result = attempt("tasks", "show", "rte", "--data-dir", tmp_path)
    example = """row 1        premise: It rains.
             hypothesis: It is wet.
             entailment: yes
"""
    assert result.out.endswith(f"examples     from {folder / 'validation.parquet'}\n{example}")
    shown = attempt("--format", "json", "--data-dir", tmp_path, "tasks", "show", "rte").json["task"]
    assert shown["labels"] == {"0": "yes", "1": "no"}
    assert shown["hub"] == {"path": "nyu-mll/glue", "config": "rte"}
    assert shown["examples"] == [
        {
            "row": 0,
            "input": "premise: It rains.\nhypothesis: It is wet.\nentailment:",
            "target": "yes",
            "label": 0,
            "references": [],
            "group": None,
        }
    ]
    reference = attempt("tasks", "show", "rte", "--data-dir", tmp_path, "--text-format", "reference").out
    assert reference.endswith("rte sentence1: It rains. sentence2: It is wet. 0\n")


def test_show_without_rows_says_how_to_see_some(attempt: Callable[..., Result]) -> None:
    result = attempt("tasks", "show", "rte")
    assert result.code == 0
    assert "examples" not in result.out
    assert result.err == "No rows of this task are on this machine. --data-dir FOLDER shows some.\n"
    assert attempt("--format", "json", "tasks", "show", "rte").json["task"]["examples"] == []


def test_show_yaml_starts_a_task_of_ones_own(attempt: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(attempt("tasks", "show", "wsc.fixed", "--yaml").out)
    result = attempt("--format", "json", "tasks", "show", tmp_path / "copy.yaml")
    assert result.json == attempt("--format", "json", "tasks", "show", "wsc.fixed").json


def test_an_unknown_name(attempt: Callable[..., Result]) -> None:
    for command in ("show", "check"):
        result = attempt("tasks", command, "rtee")
        assert (result.code, result.out) == (1, "")
        assert result.err == "Error: no task named 'rtee'\nDid you mean rte? `attempt tasks list` shows all names.\n"


def test_check_of_a_task_in_order(attempt: Callable[..., Result]) -> None:
    result = attempt("tasks", "check", "shop-reviews")
    assert result.code == 0
    assert result.err == "Task 'shop-reviews' is in order.\n"
    header, train, test = result.out.splitlines()
    assert header.split() == ["split", "rows", "bad", "targets", "file"]
    assert train.split()[:7] == ["train", "150", "0", "negative", "75,", "positive", "75"]
    assert test.split()[:3] == ["test", "60", "0"]


def test_check_names_the_bad_rows(attempt: Callable[..., Result], task_file: Path) -> None:
    result = attempt("tasks", "check", task_file)
    train = task_file.parent / "train.csv"
    assert result.code == 1
    assert result.out.splitlines()[1].split()[:3] == ["train", "3", "2"]
    assert result.err.splitlines() == [
        f"{train}, line 3, row 2: nothing in column 'text'",
        f"{train}, line 4, row 3: unknown label '7' in column 'mood'",
    ]
    (split,) = attempt("--format", "json", "tasks", "check", task_file).json["splits"]
    assert split["problems"] == result.err.splitlines()
    assert split["targets"] == {"bad": 0, "good": 1}
    assert split["file"] == str(train)


def test_check_shows_the_first_of_many_bad_rows(attempt: Callable[..., Result], task_file: Path) -> None:
    (task_file.parent / "train.csv").write_text("text,mood\n" + "a,7\n" * 30)
    result = attempt("tasks", "check", task_file)
    assert result.code == 1
    assert len(result.err.splitlines()) == 21
    assert result.err.splitlines()[-1] == "… and 10 more rows."


def test_check_of_fields_that_do_not_fit(attempt: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\ninput: 'x {text}'\nmetrics: [accuracy]\nlables: {0: a}\n")
    result = attempt("tasks", "check", tmp_path / "bad.yaml")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"Error: {tmp_path / 'bad.yaml'} does not describe a task:\n  lables: no such field")
    assert "did you mean labels " in result.err


def test_check_of_a_missing_column_and_file(attempt: Callable[..., Result], task_file: Path) -> None:
    (task_file.parent / "train.csv").write_text("txt,mood\na,0\n")
    result = attempt("tasks", "check", task_file)
    assert result.code == 1
    assert "no column 'text', which task 'moods' needs" in result.err
    assert "Did you mean txt? The columns there are: txt, mood." in result.err
    (task_file.parent / "train.csv").unlink()
    assert f"no file '{task_file.parent / 'train.csv'}'" in attempt("tasks", "check", task_file).err


def test_check_without_rows_on_this_machine(attempt: Callable[..., Result]) -> None:
    result = attempt("tasks", "check", "wic")
    assert (result.code, result.out) == (0, "")
    assert result.err == "The fields of task 'wic' are in order; no rows of it are on this machine.\n"


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["check"]])
def test_every_help_has_examples(attempt: Callable[..., Result], command: list[str]) -> None:
    result = attempt("tasks", *command, "--help")
    assert result.code == 0
    assert "attempt tasks" in result.out.split("Options:")[0].split("\n", 2)[2]


def test_the_list_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['attempt', 'tasks', 'list']\n"
        "from attempt_cli.cli.main import main; main()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'pydantic', 'sklearn', 'scipy', 'numpy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    after = os.times()
    assert done.stdout.splitlines()[-1] == "[]"
    # processor time, not the clock: other work on the machine does not count
    assert after.children_user - before.children_user < 0.4


@pytest.mark.rows
def test_check_of_real_rows(attempt: Callable[..., Result], real_rows: Path) -> None:
    result = attempt("--data-dir", real_rows, "tasks", "check", "mrpc")
    assert result.code == 0
    assert "no 1194, yes 2474" in result.out
