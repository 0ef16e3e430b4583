"""Templates such as "review: {text}": only `{column}` is replaced, and text from a row is never read as a template."""

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
    """The columns that a template names, in order, each once."""
    return tuple(dict.fromkeys(found.group(1) for found in _PIECE.finditer(template) if found.group(1)))


def template_problems(template: str) -> list[str]:
    """What is wrong with a template's braces; empty when all is well."""
    problems = [f"'{found.group(0)}' names no column" for found in _PIECE.finditer(template) if found.group(1) == ""]
    if re.search(r"[{}]", _PIECE.sub("", template)):
        problems.append("a brace has no partner (write {{ or }} for a brace that is text)")
    return problems


def fill(template: str, row: Mapping[str, Any]) -> str:
    """The template with every `{column}` replaced by the row's text, without spaces around it.

    The text of the row is inserted as it is: braces in it stay braces. `{{` and `}}` in the template are single braces.

    Raises:
        MissingColumnError, MissingValueError: naming the column.
    """

    def text_of(found: re.Match[str]) -> str:
        column = found.group(1)
        return found.group(0)[0] if column is None else text_value(lookup(row, column), column)

    return _PIECE.sub(text_of, template)


def behind_longest(template: str, row: Mapping[str, Any]) -> str:
    """The text that stands behind the longest column's value: what a too long input must not lose (question, cue).

    Raises:
        MissingColumnError, MissingValueError: naming the column.
    """
    longest, behind = -1, ""
    for found in _PIECE.finditer(template):
        if found.group(1):
            length = len(text_value(lookup(row, found.group(1)), found.group(1)))
            if length > longest:
                longest, behind = length, template[found.end() :]
    return fill(behind, row)


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or with dots of a field inside it: "idx.question" is row["idx"]["question"].

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
    """A cell as text: 1.0 and 1 are "1", true is "true", a list is joined by commas; nothing at all is an error.

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
