"""Converts records to database rows and back; dicts and lists are JSON columns."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import PurePath
from typing import Any, TypeVar

from attempt_registry.errors import RegistryError
from attempt_registry.records import Attention, Composition, Prompt, Run

Record = TypeVar("Record", Prompt, Attention, Composition, Run)
Named = TypeVar("Named", Prompt, Attention, Composition)

TABLES: dict[type, str] = {
    Prompt: "prompts",
    Attention: "attentions",
    Composition: "compositions",
    Run: "runs",
}
RECORDS: dict[str, type] = {"prompt": Prompt, "attention": Attention, "composition": Composition}
KIND_OF: dict[type, str] = {record: kind for kind, record in RECORDS.items()}

_DICTS = {"settings", "numbers", "rows", "budget", "versions"}
_TUPLES = {"tags", "parents", "sources", "targets", "artefacts", "inputs"}


def kind_of(record: Prompt | Attention | Composition) -> str:
    """Returns "prompt", "attention" or "composition"."""
    return KIND_OF[type(record)]


def columns(record: type) -> str:
    """Lists the columns of a record's table in the order of its fields, for a SELECT."""
    return ", ".join(field.name for field in fields(record))


def records(record: type[Record], rows: Sequence[Sequence[Any]]) -> list[Record]:
    """Converts database rows, selected by `columns`, to records."""
    if not rows:
        return []
    table: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for index, field in enumerate(fields(record)):
        # one call per column: thousands of calls of json.loads would take longer than everything else
        if field.name in _DICTS:
            table[index] = json.loads(f"[{','.join(table[index])}]")
        elif field.name in _TUPLES:
            table[index] = list(map(tuple, json.loads(f"[{','.join(table[index])}]")))
    return list(map(record, *table))


def now() -> str:
    """Returns the current time in UTC, as ISO 8601 in whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def json_text(value: Mapping[str, Any] | Sequence[Any], what: str) -> str:
    """Encodes a dict or list as JSON; numbers that JSON lacks (NaN, infinity) become null.

    Raises:
        RegistryError: when a value inside has no JSON form; the message names `what`.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain, allow_nan=False)
    except TypeError as error:
        raise RegistryError(f"cannot record {what}: {error}", "Pass text, numbers, lists and dicts.") from error


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    # arrays and their scalars convert themselves; paths and sets are common in settings
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
