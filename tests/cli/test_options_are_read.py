"""No option does nothing: what a command takes is read by the code behind it, or refused with what it does not go with.

Read from the source: parameters of commands and of the public functions, fields of what options are gathered in, and
the names in the dictionaries of options that commands hand on.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

import attempt_cli
from attempt_cli.cli import options, row_options
from attempt_cli.cli.main import attempt
from attempt_cli.experiments.cells import CellSpec
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.run import GridOptions
from attempt_cli.server.settings import ServerSettings
from attempt_cli.session import Session
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.methods import METHODS
from attempt_cli.training.request import Request, TaskRows
from attempt_registry import Registry

ROOT = Path(attempt_cli.__file__ or "").parent
TREES = {file: ast.parse(file.read_text("utf-8")) for file in sorted(ROOT.rglob("*.py"))}
GROUPS = [
    each
    for each in [*vars(options).values(), *vars(row_options).values()]
    if dataclasses.is_dataclass(each) and isinstance(each, type)
]


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, f"{path}{name} ")
        else:
            yield f"{path}{name}", found


COMMANDS = dict(commands(attempt))


def names_read(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


@cache
def attributes_read() -> set[str]:
    return {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def unread_parameters(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    body = ast.Module(function.body, [])
    return {each.arg for each in taken if each is not None} - names_read(body) - {"self"}


@pytest.mark.parametrize("folder", ["cli", "api", "experiments", "evaluation", "training"])
def test_every_parameter_of_a_function_is_read(folder: str) -> None:
    unread = {
        f"{file.stem}.{node.name}": found
        for file, tree in TREES.items()
        if file.parent.name == folder
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and (found := unread_parameters(node))
    }
    assert unread == {}


@pytest.mark.parametrize(
    "kind", [*GROUPS, GridOptions, ServerSettings, Plan, CellSpec, Session, Request, TaskRows, TrainingConfig]
)
def test_every_field_that_options_are_gathered_in_is_read(kind: type) -> None:
    fields = kind.model_fields if kind is TrainingConfig else {f.name: f for f in dataclasses.fields(kind)}
    handed_on = hasattr(kind, "arguments")  # as the arguments of a function, whose parameters are all read
    assert [name for name in fields if name not in attributes_read() and not handed_on] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_reaches_a_parameter_that_is_read(name: str) -> None:
    found = COMMANDS[name]
    body: Any = inspect.unwrap(found.callback) if found.callback is not None else None
    parameters = inspect.signature(body).parameters
    module = importlib.import_module(body.__module__)
    texts = {
        node.value
        for node in ast.walk(TREES[Path(inspect.getsourcefile(module) or "")])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    grouped = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    handed_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    public = [getattr(attempt_cli, each) for each in attempt_cli.__all__]
    public += [each for base in Registry.__mro__ for each in vars(base).values()]
    reading = {each for one in public if inspect.isfunction(one) for each in inspect.signature(one).parameters}
    reading |= set(TrainingConfig.model_fields) | {field.name for field in dataclasses.fields(ServerSettings)}
    reading |= {f"{method}_{setting}".replace("-", "_") for method, row in METHODS.items() for setting in row.settings}
    for option in found.params:
        assert option.name is not None
        read = option.name in parameters or option.name in grouped
        assert read or (handed_on and option.name in reading | texts), f"{name}: {option.name}"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("backbone show t5-base --backbone t5-small", "--backbone says nothing beside NAME"),
        ("tasks show rte --yaml --rows 3", "--rows says nothing with --yaml"),
        ("tasks show rte --yaml --rows 3 --text-format reference", "--rows and --text-format say nothing with --yaml"),
        ("train-source rte --eval-every 0 --patience 3", "--patience says nothing with --eval-every 0"),
        (
            "train-target rte --sources none-such --eval-every 0 --patience 3 --eval-rows 9",
            "no prompt named 'none-such'",
        ),
        ("train-target rte --method prompt-tuning --eval-every 0 --eval-rows 9", "--eval-rows says nothing"),
        ("reproduce table3 --methods prompt-tuning,spot --source-steps 5 --sources a", "no prompt named 'a'"),
        ("reproduce table1 --methods prompt-tuning --source-steps 5", "--source-steps says nothing here"),
        ("reproduce table1 --methods prompt-tuning --sources sst2", "--sources says nothing here"),
    ],
)
def test_options_that_would_do_nothing_are_refused_at_once(
    command: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from attempt_cli.cli.main import main

    monkeypatch.setattr("sys.argv", ["attempt", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (1, 2)
    assert told in " ".join(capsys.readouterr().err.split())
