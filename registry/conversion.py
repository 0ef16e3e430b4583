"""Converts records to database rows and back; dicts and lists are JSON columns."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import PurePath
from typing import Any, TypeVar

from attempt_registry.errors import RegistryError
from attempt_registry.records import Attention, Backbone, Composition, Prompt, Run

Record = TypeVar("Record", Prompt, Attention, Composition, Run, Backbone)
Named = TypeVar("Named", Prompt, Attention, Composition)

TABLES: dict[type, str] = {
    Prompt: "prompts",
    Attention: "attentions",
    Composition: "compositions",
    Run: "runs",
    Backbone: "backbones",
}
RECORDS: dict[str, type] = {"prompt": Prompt, "attention": Attention, "composition": Composition}
KIND_OF: dict[type, str] = {record: kind for kind, record in RECORDS.items()}

_DICTS = {"settings", "numbers", "rows", "budget", "versions"}
# SQLite keeps any type in any column: a damaged cell may hold another one
_TYPES: dict[str, set[type]] = {
    "str": {str},
    "str | None": {str, type(None)},
    "int": {int},
    "int | None": {int, type(None)},
    "float": {float, int},
}
_HASH = re.compile(r"[0-9a-f]{64}")
_TUPLES = {"tags", "parents", "sources", "targets", "artefacts", "inputs"}


def kind_of(record: Prompt | Attention | Composition) -> str:
    """Returns "prompt", "attention" or "composition"."""
    return KIND_OF[type(record)]


def columns(record: type) -> str:
    """Lists the columns of a record's table in the order of its fields, for a SELECT."""
    return ", ".join(field.name for field in fields(record))


class DamagedRowError(Exception):
    """A row of the database that cannot become a record; the text says why."""


def records(record: type[Record], rows: Sequence[Sequence[Any]]) -> list[Record]:
    """Converts database rows, selected by `columns`, to records.

    Raises:
        DamagedRowError: when one of them cannot be converted.
    """
    if not rows:
        return []
    table: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for index, field in enumerate(fields(record)):
        # one call per column: thousands of calls of json.loads would take longer than everything else
        table[index] = _converted(field.name, str(field.type), table[index])
    return list(map(record, *table))


def _converted(name: str, type_: str, cells: Sequence[Any]) -> Sequence[Any]:
    if not {*map(type, cells)} <= _TYPES.get(type_, {str}):
        raise DamagedRowError(f"its field '{name}' holds another type of value")
    if name == "sha256" and not all(map(_HASH.fullmatch, cells)):
        raise DamagedRowError("its field 'sha256' is no hash")
    if name not in _DICTS | _TUPLES:
        return cells
    try:
        values = json.loads(f"[{','.join(cells)}]")
    except (ValueError, RecursionError) as error:
        raise DamagedRowError(f"its field '{name}' cannot be read as JSON") from error
    kind = dict if name in _DICTS else list
    if len(values) != len(cells) or not {*map(type, values)} <= {kind}:
        raise DamagedRowError(f"its field '{name}' is no JSON {'object' if kind is dict else 'list'}")
    if kind is dict:
        return list(values)
    if not {type(item) for items in values for item in items} <= {str}:
        raise DamagedRowError(f"its field '{name}' is no list of texts")
    return list(map(tuple, values))


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
