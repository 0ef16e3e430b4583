"""Rows to be predicted, from a pipe or a file of any name: what they are recognised as."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.task import Task
from attempt_cli.data.unlabelled import UnlabelledRows, read_unlabelled
from attempt_cli.errors import AttemptError

TASK = Task(
    name="moods",
    files={"train": Path("rows.csv")},
    input="{text}",
    label="mood",
    labels={"0": "bad", "1": "good"},
    metrics=("accuracy",),
)
PAIRS = TASK.model_copy(update={"input": "{a} {b}"})


def piped(monkeypatch: pytest.MonkeyPatch, data: str | bytes, task: Task = TASK) -> UnlabelledRows:
    content = data.encode() if isinstance(data, str) else data
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return read_unlabelled("-", task)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("[sic] what\nb\n", ["[sic] what", "b"]),
        ("[1] a\n[2] b", ["[1] a", "[2] b"]),
        ("one|two\n", ["one|two"]),
        ("a single line, with a comma", ["a single line, with a comma"]),
        ("  \na\r\n\r\n", [None, "  a".strip()]),
        ("\ufefflovely\n", ["lovely"]),
        ('{"text": "a", "tags": ["x"]}', ["a"]),
        ('\ufeff{"text": "a"}\n\n{"text": "b"}\n', ["a", "b"]),
        ('{\n "text": "a"\n}\n', ["a"]),
        ('[\n {"text": "a"},\n {"text": "b"}\n]', ["a", "b"]),
        ("\ufefftext;x\na, b;1\n", ["a, b"]),
        ('text\tx\n"a\t1\nb\t2\n', ['"a', "b"]),
        ('x,text\n1,"a\nb"\n', ["a\nb"]),
        ("text\r\na\r\n", ["a"]),
        ("\n\ntext,x\na,1\n", ["a"]),
    ],
)
def test_what_a_pipe_holds(monkeypatch: pytest.MonkeyPatch, text: str, texts: list[str | None]) -> None:
    found = piped(monkeypatch, text).rows
    assert [row if row is None else row["text"] for row in found] == texts


def test_a_pipe_and_a_file_of_another_ending_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), target)
    for data in (b"text,x\na,1\nb,2\n", b'{"text": "a"}\n{"text": "b"}\n', b"a\nb\n", target.getvalue()):
        (tmp_path / "rows.txt").write_bytes(data)
        named = read_unlabelled(str(tmp_path / "rows.txt"), TASK).rows
        assert [row and row["text"] for row in piped(monkeypatch, data).rows] == ["a", "b"]
        assert [row and row["text"] for row in named] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "no rows in standard input", "one row per line"),
        ("[]", "no rows in standard input", "at least one"),
        ("text\n", "no rows in standard input", "at least one"),
        ('["a", "b"]', "row 1: not an object but", "object"),
        ("Text\na\nb\n", "looks like a table without a column 'text'", "did you mean text?"),
        ("txt,mood\na,1\nb,2\n", "looks like a table without a column 'text'", "Did you mean txt?"),
        ("txt,mood\na, or b,1\nb\n", "looks like a table without a column 'text'", "Did you mean txt?"),
        ("a\t1\nb\t2\n", "looks like a table without a column 'text'", "JSONL"),
        ("text,x\na,1\nb\n", "standard input, line 3: 1 cells where the header has 2", "quotation marks"),
        ("text,text\na,1\n", "two columns are named 'text'", "Rename"),
        ('{"txt": "a"}', "no column 'text', which task 'moods' reads", "Did you mean txt?"),
    ],
)
def test_what_is_damaged_or_misspelt_is_told(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str, hint: str
) -> None:
    with pytest.raises(AttemptError) as failure:
        piped(monkeypatch, text)
    assert message in failure.value.message
    assert hint in str(failure.value.hint)


def test_several_columns_need_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert piped(monkeypatch, "b;a\n2;1\n", PAIRS).rows == [{"a": "1", "b": "2"}]
    with pytest.raises(AttemptError, match="reads the columns a, b, plain lines have only one"):
        piped(monkeypatch, "x y\n", PAIRS)


def test_lines_that_may_be_a_table_get_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = piped(monkeypatch, "hello, world\ngood, bye\n").notes
    assert "every line of standard input has 2 cells between commas" in note
    assert piped(monkeypatch, "hello, world\ngood bye\n").notes == ()


def test_a_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(AttemptError, match="standard input is closed"):
        read_unlabelled("-", TASK)
