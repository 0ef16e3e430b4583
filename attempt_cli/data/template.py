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

    Braces in the row's text stay braces. `{{` and `}}` in the template are single braces. A column may be empty beside
    others that are not (a review without a title); null is the same as empty.

    Raises:
        MissingColumnError: naming the column.
        MissingValueError: naming the first column, where all that the template names are empty.
        ValueError: a value that is no text.
    """
    texts = {column: _cell_text(row, column) for column in template_columns(template)}
    if texts and not any(texts.values()):
        raise MissingValueError(next(iter(texts)))
    return _filled(template, texts)


def after_longest(template: str, row: Mapping[str, Any]) -> str:
    """Returns the text after the longest column's value: what an input that is too long must not lose (question, cue).

    Raises:
        MissingColumnError, ValueError: as in `fill`.
    """
    texts = {column: _cell_text(row, column) for column in template_columns(template)}
    longest, after = -1, ""
    for found in _PIECE.finditer(template):
        if found.group(1) and len(texts[found.group(1)]) > longest:
            longest, after = len(texts[found.group(1)]), template[found.end() :]
    return _filled(after, texts)


def _cell_text(row: Mapping[str, Any], column: str) -> str:
    value = lookup(row, column)
    return "" if is_empty(value) else text_value(value, column)


def _filled(template: str, texts: Mapping[str, str]) -> str:
    return _PIECE.sub(lambda found: found.group(0)[0] if found.group(1) is None else texts[found.group(1)], template)


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


def is_empty(value: Any) -> bool:
    """Says whether a cell is null or not-a-number, as tables write what is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_value(value: Any, column: str) -> str:
    """Turns a cell into text: 1.0 and 1 become "1", true "true", a list its items joined by commas.

    Raises:
        MissingValueError: for None and not-a-number.
        ValueError: bytes that are not UTF-8, an object, or half a character.
    """
    if is_empty(value):
        raise MissingValueError(column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(text_value(item, column) for item in value)
    if isinstance(value, Mapping):
        raise ValueError(f"column '{column}' holds an object: name one of its fields, like {{{column}.field}}")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(f"column '{column}' holds bytes that are not UTF-8 text") from None
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write one as "\\ud800"
        raise ValueError(f"column '{column}' holds half a character (a lone surrogate)") from None
    return text
