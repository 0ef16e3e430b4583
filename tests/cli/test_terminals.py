"""What reaches a terminal, a console that is not UTF-8, and a pipe whose reader leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.cli.output import Output, printable
from tests.cli.test_start_up import QUICK, on_a_terminal
from tests.training.commands import Attempt
from tests.training.toy import toy_rows, write_csv

RED = "\x1b[31mred\x1b[0m"
TURNED = "safe\u202egpj.exe"
# what starts an escape sequence, or turns text around
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def attempt_here(tmp_path: Path, llama: Path) -> Attempt:
    for seed, (name, count) in enumerate((("train", 16), ("test", 12))):
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
    return Attempt(tmp_path, llama)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, r"\x1b[31mred\x1b[0m"),
        (TURNED, r"safe\u202egpj.exe"),
        ("a\rb\x07\x7f\x9b", r"a\rb\x07\x7f\x9b"),
        ("\ufefftext", r"\ufefftext"),
        ("half \ud800", r"half \ud800"),
        ("√ ünï 你好 👩‍👧\ttab\nline", "√ ünï 你好 👩‍👧\ttab\nline"),
    ],
)
def test_what_steers_a_terminal_is_written_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("form", ["table", "quiet"])
def test_tables_records_and_notes_escape_what_strangers_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    sink = Output(form)
    sink.rows("prompts", [{"name": RED, TURNED: [TURNED], "note": f"a note {RED}"}], ["name", TURNED, "note"])
    sink.record("prompt", {"name": RED, RED: {TURNED: RED}})
    sink.note(f"note: {RED}")
    written = capsys.readouterr()
    assert not STEERING.search(written.out + written.err)
    assert r"\x1b[31mred" in written.out


def test_json_stays_as_it_is_and_holds_halves_of_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").record("prompt", {"name": RED, "text": "√ \ud800 👩"})
    written = capsys.readouterr().out
    assert json.loads(written)["prompt"] == {"name": RED, "text": "√ \ud800 👩"}
    assert "\\u001b[31m" in written


def test_errors_and_usage_escape_what_strangers_wrote(attempt_here: Attempt) -> None:
    (attempt_here.folder / "odd.csv").write_text(f"text,{RED}\nit was good,{TURNED}\nit was bad,no\n")
    for command in (
        f"registry show '{RED}'",
        f"registry tag '{RED}' --add x",
        f"'{RED}'",
        f"train-source aim --steps '{RED}'",
        "train-source aim --train-file odd.csv --input '{text}' --label mood",
        f"--debug registry show '{RED}'",
    ):
        result = attempt_here(command)
        assert result.code in (1, 2), command
        assert not STEERING.search(result.err), command
        assert "x1b[31mred" in result.err, command


def test_a_progress_bar_escapes_names(attempt_here: Attempt) -> None:
    command = "train-source --train-file train.csv --input '{text} mood:' --label mood --name fine"
    result = attempt_here.succeed(f"{command} --steps 1 --eval-every 0 --dtype float32 --note '{RED}'")
    assert not STEERING.search(result.out + result.err)
    assert not STEERING.search(attempt_here.succeed("registry show fine").out)


# --- narrow terminals


def table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, rows: Any
) -> tuple[str, str]:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # rich takes a dumb terminal's width for 80
    monkeypatch.setenv("COLUMNS", str(columns))
    Output().rows("prompts", rows, list(rows[0]))
    written = capsys.readouterr()
    return re.sub(r"\x1b\[\d*m", "", written.out), written.err


def test_on_a_narrow_terminal_names_are_whole_and_the_last_columns_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a-rather-long-name-of-a-prompt-of-somebody@12"
    rows = [{"ref": name, "task": "rte", "note": "many words " * 12, "sha256": "0" * 24}]
    wide, narrow, tiny = (table(capsys, monkeypatch, width, rows) for width in (250, 80, 20))
    for out, _ in (wide, narrow, tiny):
        assert name in out
    assert "many words many words many words many words" in wide[0]
    assert wide[1] == ""
    assert "rte" in narrow[0]
    assert all(len(line) <= 80 for line in narrow[0].splitlines())
    assert "Not shown: sha256." in narrow[1]
    assert "Not shown: task, note, sha256." in tiny[1]


# --- streams


def run(command: str, folder: Path, *, input: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in a process of its own, whose encodings are those of its environment."""
    settings = {"ATTEMPT_REGISTRY": str(folder / "none"), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "attempt_cli", *command.split()],
        input=input,
        env=os.environ | settings | environment,
        capture_output=True,
        timeout=120,
    )


NOT_UTF_8 = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "cp437"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}]


@pytest.mark.parametrize("environment", NOT_UTF_8, ids=str)
def test_a_pipe_is_utf_8_whatever_the_locale(tmp_path: Path, environment: dict[str, str]) -> None:
    for command in ("train-target --help", "reproduce --help"):
        done = run(command, tmp_path, **environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert "√" in done.stdout.decode("utf-8")


def console(path: str, encoding: str) -> None:
    """Stdout and stderr become a terminal of an encoding."""
    on_a_terminal(path)
    for name in ("stdout", "stderr"):
        number = {"stdout": 1, "stderr": 2}[name]
        setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115


def typed(attempt: Attempt, command: str, prepare: Callable[[str], None], **options: Any) -> tuple[int, bytes]:
    """Runs a command on a terminal and returns its exit code and what the terminal got."""
    ours, theirs = os.openpty()
    running = attempt.start(command, prepare=partial(prepare, os.ttyname(theirs)), **options)
    os.set_blocking(ours, False)
    seen = b""
    while True:
        alive = running.process.is_alive()
        with suppress(BlockingIOError, OSError):
            seen += os.read(ours, 65536)
        if not alive:
            break
        running.process.join(0.01)
    os.close(theirs)
    os.close(ours)
    return running.result().code, seen


@pytest.mark.parametrize("encoding", ["cp437", "latin-1"])
def test_a_console_shows_escapes_for_what_it_cannot_show(attempt_here: Attempt, encoding: str) -> None:
    prepare = partial(console, encoding=encoding)
    code, seen = typed(attempt_here, "train-target --help", prepare)
    assert code == 0
    assert ("√".encode(encoding) if encoding == "cp437" else rb"\u221a") in seen
    (attempt_here.folder / "words.yaml").write_text(
        "name: words\nversion: 1\nhub: {path: a/b}\ninput: '{text}'\n"
        "label: mood\nlabels: {0: schön 你好, 1: nö}\nmetrics: [accuracy]\n",
        "utf-8",
    )
    code, seen = typed(attempt_here, "--format json tasks show words.yaml --rows 0", prepare)
    assert code == 0, seen
    assert "schön 你好" in json.loads(seen.decode(encoding))["task"]["label_words"]
    code, seen = typed(attempt_here, "tasks show words.yaml", prepare)
    assert code == 0, seen
    assert rb"\u4f60\u597d" in seen


def encoded(encoding: str, errors: str) -> None:
    """Stdin has the encoding that an interpreter would choose."""
    sys.stdin = open(0, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115


def test_rows_from_a_pipe_are_utf_8_whatever_the_locale(attempt_here: Attempt) -> None:
    """One interpreter of its own; what others would choose for stdin is set."""
    attempt_here.succeed(f"train-source one {QUICK} --prompt-length 4")
    command, text = "predict one --dtype float32", "it was schön, 你好\n"
    settings = attempt_here.environment | {"PYTHONIOENCODING": "cp1252"}
    answers = {run(command, attempt_here.folder, input=text.encode(), **settings).stdout.decode()}
    for prepare in (partial(encoded, "ascii", "surrogateescape"), partial(encoded, "utf-8", "surrogateescape")):
        answers.add(attempt_here.succeed(command, input=text, prepare=prepare).out)
        wrong = attempt_here(command, input="it was sch\udcf6n\n", prepare=prepare)  # the byte F6
        assert (wrong.code, wrong.out) == (1, "")
        assert "defect" not in wrong.err
        assert "UTF-8" in wrong.err
    assert len(answers) == 1
    assert json.loads(answers.pop())["label"] in ("yes", "no")


def without_reader(number: int) -> None:
    """A stream becomes a pipe whose reader has left."""
    ours, theirs = os.pipe()
    os.close(ours)
    os.dup2(theirs, number)


def test_predict_ends_well_when_its_reader_leaves(attempt_here: Attempt) -> None:
    """A reader that takes a line, and one that takes none."""
    attempt_here.succeed(f"train-source one {QUICK} --prompt-length 4")
    command = "predict one test.csv --dtype float32"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m attempt_cli {command} | head -1; echo ${{PIPESTATUS[@]}} >&2"],
        cwd=attempt_here.folder,
        env=os.environ | attempt_here.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.sub("loading .*\n", "", done.stderr) == "0 0\n"
    assert len(done.stdout.splitlines()) == 1
    unread = attempt_here.succeed(command, prepare=partial(without_reader, 1))
    assert re.sub("loading .*\n", "", unread.err) == ""


def test_a_training_goes_on_when_the_reader_of_its_progress_leaves(attempt_here: Attempt) -> None:
    result = attempt_here.succeed(f"train-source one {QUICK} --prompt-length 4", prepare=partial(without_reader, 2))
    assert "one@1" in result.out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_empty_one(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m attempt_cli --registry {tmp_path / 'kept'} registry list"
    done = subprocess.run(["bash", "-c", f"{command} {closed}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def keyboard(path: str) -> None:
    """Stdin becomes a terminal."""
    os.dup2(os.open(path, os.O_RDWR), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def test_predict_says_that_it_waits_for_the_keyboard(attempt_here: Attempt) -> None:
    attempt_here.succeed(f"train-source one {QUICK} --prompt-length 4")
    ours, theirs = os.openpty()
    os.write(ours, b"it was good\n\x04")
    result = attempt_here("predict one --dtype float32", prepare=partial(keyboard, os.ttyname(theirs)))
    os.close(theirs)
    os.close(ours)
    assert result.code == 0, result.err
    assert "Waiting for rows from the keyboard" in result.err
    assert len(result.lines) == 1


def test_a_backslash_and_an_n_in_a_template_are_told(attempt_here: Attempt) -> None:
    start = "train-source one --train-file train.csv --label mood --dtype float32 --steps 1 --eval-every 0"
    told = attempt_here.succeed(start + r" --input '{text}\nmood:'")
    assert "--input holds a backslash and a letter" in told.err
    plain = attempt_here.succeed(start + " --input '{text}\nmood:'")
    assert "backslash" not in plain.err


def test_predict_abstains_and_eval_shows_confusion_and_calibration(attempt_here: Attempt) -> None:
    attempt_here.succeed(f"train-source one {QUICK} --prompt-length 4")
    everything = attempt_here.succeed("predict one test.csv --dtype float32").lines
    surest = sorted(max(line["probabilities"].values()) for line in everything)
    result = attempt_here.succeed(f"predict one test.csv --dtype float32 --min-confidence {surest[6] - 1e-6}")
    kept = [line for line in result.lines if line["label"] is not None]
    assert [line["label"] for line in result.lines if line["label"] is None] == [None] * (12 - len(kept))
    assert f"{len(kept)} of 12 rows got a label" in result.err
    assert [line["probabilities"] for line in result.lines] == [line["probabilities"] for line in everything]
    (found,) = attempt_here.json("eval --prompt one --test-file test.csv --dtype float32")["evaluations"]
    assert 0 <= found["calibration"]["ece"] <= 1
    rows = [count for row in found["calibration"]["confusion"].values() for count in row.values()]
    assert (len(rows), sum(rows)) == (4, 12)
    shown = attempt_here.succeed("eval --prompt one --test-file test.csv --dtype float32 --confusion")
    assert re.search(r"^yes +\d+ +\d+$", shown.out, flags=re.M)
    assert "expected calibration error" in shown.err
