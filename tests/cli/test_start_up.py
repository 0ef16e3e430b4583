"""How fast `attempt` starts, what its help says, and that its output suits programs."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from attempt_cli.cli.main import COMMANDS, GLOBAL_OPTIONS, attempt
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

HEAVY = {"torch", "transformers", "datasets", "sqlite_utils", "rich", "pydantic", "numpy", "pandas", "accelerate"}

Path_ = tuple[str, ...]


def walk(command: click.Command, path: Path_ = ("attempt",)) -> Iterator[tuple[Path_, click.Command]]:
    """Every command with its full name, groups included."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*path, name))


ALL = dict(walk(attempt))


@pytest.fixture
def attempt_here(tmp_path: Path, llama: Path) -> Attempt:
    """Runs commands on the tiny Llama (`attempt` is the command itself here)."""
    for seed, (name, count) in enumerate((("train", 24), ("test", 12))):
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
    return Attempt(tmp_path, llama)


def python(code: str, *arguments: str) -> dict[str, Any]:
    """Runs code in a fresh interpreter; it prints one JSON line last."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


START = """
import json, sys, time
from attempt_cli.cli.main import main
for line in json.loads(sys.argv[1]):
    sys.argv = line
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, line
print(json.dumps({"modules": sorted(sys.modules), "seconds": time.process_time()}))
"""


def test_help_imports_nothing_heavy_and_is_there_at_once() -> None:
    found = python(START, json.dumps([["attempt", "--help"]]))
    assert not HEAVY & set(found["modules"])
    assert found["seconds"] < 0.3  # of the processor's time: the machine may be busy with other things


WITHOUT_UNIX = """
import importlib, json, pkgutil, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty"):
    sys.modules[name] = None
import os, signal
for holder, names in ((os, ("fork", "getuid", "geteuid", "sched_getaffinity", "setsid", "killpg", "mkfifo")),
                      (signal, ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "alarm", "setitimer"))):
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)
import attempt_cli, attempt_registry
found = []
for package in (attempt_cli, attempt_registry):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            found.append(module.name)
print(json.dumps({"modules": found}))
"""


def test_no_module_needs_what_only_unix_has() -> None:
    assert len(python(WITHOUT_UNIX)["modules"]) > 100


def test_the_help_of_all_commands_together_takes_less_than_a_second() -> None:
    found = python(START, json.dumps([[*path, "--help"] for path in ALL]))
    assert not HEAVY & set(found["modules"])
    assert found["seconds"] < 1


def help_of(path: Path_) -> str:
    """What `attempt … --help` prints."""
    command = ALL[path]
    parent = None
    for end in range(1, len(path)):
        parent = click.Context(ALL[path[:end]], info_name=path[end - 1], parent=parent)
    settings = attempt.context_settings
    return click.Context(command, info_name=path[-1], parent=parent, **settings).get_help()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_a_sentence_and_an_example_of_itself(path: Path_) -> None:
    lines = help_of(path).splitlines()
    assert lines[0].startswith(f"Usage: {' '.join(path)}")
    assert re.match(r"  [A-Z]\S* ", lines[2]), "the help begins with a sentence"
    examples = [line for line in lines if line.startswith("    attempt ") or " | attempt " in line]
    assert any(" ".join(path[1:]) in example for example in examples)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_is_explained(path: Path_) -> None:
    options = [option for option in ALL[path].params if isinstance(option, click.Option)]
    assert [option.opts for option in options if not option.help] == []
    text = help_of(path)
    for option in options:
        assert option.opts[-1] in text


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_use_commands_and_options_that_exist(path: Path_) -> None:
    for line in help_of(path).splitlines():
        for words in re.findall(r"(?:^  +|\| )attempt ([^|>]*)", line):
            typed = words.split()
            while typed and typed[0].startswith("--"):  # a global option and its value
                typed = typed[2:]
            name = max(("attempt", *typed[:1]), ("attempt", *typed[:2]), key=lambda path: (path in ALL, len(path)))
            assert name in ALL, line
            known = {option for param in ALL[name].params for option in param.opts} | set(GLOBAL_OPTIONS)
            for option in re.findall(r"(?<= )--?[a-z][a-z-]*", words):
                assert option in known, line


def test_the_list_of_commands_is_complete() -> None:
    modules = {path.stem for path in (Path(sys.modules["attempt_cli.cli.main"].__file__ or "").parent).glob("*.py")}
    assert set(COMMANDS.values()) <= modules
    listed = help_of(("attempt",))
    assert all(re.search(rf"^  {name} +\S", listed, flags=re.MULTILINE) for name in COMMANDS)


# --- pipes


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `command` in bash with `attempt` on its path; prints the exit codes of its pipe last."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ATTEMPT_REGISTRY": str(folder)}
    return subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[@]}} >&2"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("command", ["tasks list", "--format json tasks list", "--help", "train-target --help"])
def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path, command: str, reader: str) -> None:
    done = shell(f"attempt {command} | {reader}", tmp_path)
    assert done.stderr == "0 0\n"
    assert len(done.stdout.splitlines()) == (reader == "head -1")


def test_no_escape_codes_in_a_pipe_whatever_the_terminal_can_do(tmp_path: Path) -> None:
    for command in ("tasks list", "registry list", "backbone list", "tasks show rte", "trane-source", "--help"):
        done = shell(f"FORCE_COLOR= TERM=xterm-256color attempt {command} | cat", tmp_path)
        assert "\x1b" not in done.stdout + done.stderr, command


def test_the_version(tmp_path: Path) -> None:
    from attempt_cli import __version__

    assert shell("attempt --version | cat", tmp_path).stdout == f"attempt, version {__version__}\n"


# --- JSON

QUICK = f"--train-file train.csv {READ} --dtype float32 --steps 1 --batch-size 4 --eval-every 0"
# every command but `predict`, which writes a JSON line a row in any format, and `serve`, which does not end
# (tests/server/test_process.py reads its document); in an order in which they work
DOCUMENTS = {
    "train-source": f"train-source one {QUICK} --prompt-length 4",
    "train-target": f"train-target aim {QUICK} --sources one",
    "train-attention": "train-attention --sources all --tasks shop-reviews --dtype float32 --steps 1 --eval-every 0",
    "compose": "compose mine --sources one --target aim-attempt",
    "eval": "eval --prompt none --composition mine --test-file test.csv --dtype float32",
    "compare": "compare none mine",
    "inspect": "inspect mine --split train --tokens 1 --dtype float32",
    "rank-sources": "rank-sources shop-reviews --sources one --limit 4 --dtype float32",
    "fewshot": f"fewshot -k 4 --train-file train.csv --test-file test.csv {READ} --seeds 1 --steps 1 --dtype float32",
    "sweep": f"sweep {QUICK.replace(' --eval-every 0', '')} --test-file test.csv --seeds 1 --learning-rate 0.1",
    "export": "export one one-npy --to npy",
    "import": "import one-npy --name again",
    "push": "push one me/one --dry-run",
    "registry list": "registry list",
    "registry show": "registry show one",
    "registry search": "registry search aim",
    "registry tag": "registry tag one --add mine",
    "registry add": "registry add raw.npy --backbone tiny --task other",
    "registry remove": "registry remove other --yes",
    "registry gc": "registry gc --yes",
    "registry verify": "registry verify",
    "registry path": "registry path",
    "tasks list": "tasks list",
    "tasks show": "tasks show rte",
    "tasks check": "tasks check rte",
    "backbone list": "backbone list",
    "backbone show": "backbone show --dtype float32",
    "reproduce": "reproduce fig7 --backbone t5-small --methods attempt",
    "demo": "demo --dtype float32 --backbone tiny-copy",
}


def test_json_of_every_command(attempt_here: Attempt) -> None:
    """One document with a version; notes and progress elsewhere; no escape codes; the same with the option behind."""
    leaves = {" ".join(path[1:]) for path, command in ALL.items() if not isinstance(command, click.Group)}
    assert set(DOCUMENTS) == leaves - {"predict", "pull", "serve"}  # pull needs a hub: tests/hub
    np.save(attempt_here.folder / "raw.npy", np.ones((4, 24), np.float32))
    assert attempt_here.backbone is not None
    (attempt_here.folder / "tiny-copy").symlink_to(attempt_here.backbone)
    for name, command in DOCUMENTS.items():
        result = attempt_here.succeed(f"{command} --format json", prepare=few_steps if name == "demo" else None)
        assert result.json["version"] == 1, name
        assert len(result.json) > 1, name
        assert "\x1b" not in result.out + result.err, name
    assert all(line["label"] in ("yes", "no") for line in attempt_here.succeed("predict mine test.csv").lines)


def few_steps() -> None:
    import attempt_cli.cli.demo

    attempt_cli.cli.demo.SOURCE_STEPS = attempt_cli.cli.demo.TARGET_STEPS = 1


# --- a terminal


def on_a_terminal(name: str) -> None:
    """Stdout and stderr become a terminal."""
    terminal = os.open(name, os.O_RDWR)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120"}


def test_on_a_terminal_there_is_a_bar_and_a_table(attempt_here: Attempt) -> None:
    seen = b""
    for command in (f"train-source one {QUICK} --prompt-length 4", "eval --prompt one --test-file test.csv"):
        ours, theirs = os.openpty()
        running = attempt_here.start(f"{command} --dtype float32", prepare=partial(on_a_terminal, os.ttyname(theirs)))
        # the terminal holds little: it is read while the command writes
        os.set_blocking(ours, False)
        while running.process.is_alive():
            with suppress(BlockingIOError):
                seen += os.read(ours, 65536)
            running.process.join(0.01)
        with suppress(BlockingIOError):
            seen += os.read(ours, 65536)
        os.close(theirs)
        os.close(ours)
        assert running.result().code == 0, seen
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert re.search(r"one +━+ 1/1 +loss \d+\.\d+ +\d+(\.\d+)? rows/s", text)
    assert re.search(r"^one +one@1 +accuracy +\d", text, flags=re.MULTILINE)
    assert b"\x1b[" in seen


# --- the library

IMPORT = """
import json, sys
import attempt_cli
names = set(dir(attempt_cli))
assert set(attempt_cli.__all__) <= names and "__version__" in names
attempt_cli.Listener, attempt_cli.Session, attempt_cli.AttemptError, attempt_cli.Changes, attempt_cli.load_task
light = sorted(sys.modules)
from attempt_cli import *
from attempt_cli.api.training import train_target as theirs
assert train_target is attempt_cli.train_target is theirs
print(json.dumps({"light": light, "kinds": {name: type(globals()[name]).__name__ for name in attempt_cli.__all__}}))
"""


def test_importing_the_library_imports_nothing_heavy() -> None:
    found = python(IMPORT)
    assert not HEAVY & set(found["light"])
    kinds = found["kinds"]
    assert {kinds[name] for name in kinds if name.islower()} == {"function"}
    assert not {kinds[name] for name in kinds if not name.islower()} & {"function", "module"}


def test_the_library_s_names_are_the_same_for_type_checkers() -> None:
    import attempt_cli

    source = Path(attempt_cli.__file__).read_text("utf-8")
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == attempt_cli._MODULES
    assert sorted(typed) == sorted(attempt_cli.__all__)
    # a module of that name inside the package would take the function's place as soon as it is imported
    folder = Path(attempt_cli.__file__).parent
    assert not {path.stem for path in folder.iterdir()} & set(typed)
    with pytest.raises(AttributeError, match="module 'attempt_cli' has no attribute 'train_sauce'"):
        attempt_cli.train_sauce  # noqa: B018
