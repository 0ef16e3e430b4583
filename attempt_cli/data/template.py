"""Fills templates such as "review: {text}": only `{column}` is replaced, and text from a row is never a template."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class MissingColumnError(KeyError):
    """A row lacks a column that a template names."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class MissingValueError(ValueError):
    """A row has the column, but nothing in it."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def template_columns(template: str) -> tuple[str, ...]:
    """Lists the columns that a template names, in order, each once."""
    return tuple(dict.fromkeys(found.group(1) for found in _PIECE.finditer(template) if found.group(1)))


def template_problems(template: str) -> list[str]:
    """Lists what is wrong with a template's braces."""
    problems = [f"'{found.group(0)}' names no column" for found in _PIECE.finditer(template) if found.group(1) == ""]
    if re.search(r"[{}]", _PIECE.sub("", template)):
        problems.append("a brace has no partner (write {{ or }} for a brace that is text)")
    return problems


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Replaces every `{column}` of a template by the row's text, without spaces around it.

    Braces in the row's text stay braces. `{{` and `}}` in the template are single braces.

    Raises:
        MissingColumnError, MissingValueError: naming the column.
    """

    def text_of(found: re.Match[str]) -> str:
        column = found.group(1)
        return found.group(0)[0] if column is None else text_value(lookup(row, column), column)

    return _PIECE.sub(text_of, template)


def after_longest(template: str, row: Mapping[str, Any]) -> str:
    """Returns the text after the longest column's value: what an input that is too long must not lose (question, cue).

    Raises:
        MissingColumnError, MissingValueError: naming the column.
    """
    longest, after = -1, ""
    for found in _PIECE.finditer(template):
        if found.group(1):
            length = len(text_value(lookup(row, found.group(1)), found.group(1)))
            if length > longest:
                longest, after = length, template[found.end() :]
    return fill(after, row)


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """Looks up a column, or with dots a field inside it: "idx.question" is row["idx"]["question"].

    Raises:
        MissingColumnError: naming the whole path.
    """
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise MissingColumnError(path)
        value = value[key]
    return value


def text_value(value: Any, column: str) -> str:
    """Turns a cell into text: 1.0 and 1 become "1", true "true", a list its items joined by commas.

    Raises:
        MissingValueError: for None and not-a-number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise MissingValueError(column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(text_value(item, column) for item in value)
    return str(value).strip()
