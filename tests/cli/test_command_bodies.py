"""Commands parse, call one function, print: their bodies stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import attempt_cli.cli

LONGEST = 40  # lines, without signature and docstring
FILES = sorted(Path(attempt_cli.cli.__file__ or "").parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_command_parses_calls_and_prints(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if any(".command(" in f".{ast.unparse(decorator)}" for decorator in function.decorator_list):
            statements = function.body[1:] if ast.get_docstring(function) else function.body
            first = statements[0]
            lines = (function.body[-1].end_lineno or 0) - first.lineno + 1
            assert lines <= LONGEST, f"{function.name} has {lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attempt_cli.cli."):
            shared = {"main", "options", "output", "progress", "row_options", "scores", "training"}
            assert (node.module or "").rsplit(".", 1)[-1] in shared, f"{file.name} imports the command {node.module}"
