"""Moves records from one registry to another: rows and the files of their tensors, without a shared folder.

A registry that works for another one gets a parcel of what it needs, and gives back a parcel of what it made. The one
that keeps the records gives them their versions: until then they have such high ones that none can be mistaken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attempt_registry.conversion import RECORDS, TABLES, columns
from attempt_registry.records import Backbone, Run
from attempt_registry.references import parse

if TYPE_CHECKING:
    from attempt_registry.store import Registry

FIRST = 10**12  # no version that a registry gives of itself is as high; each name has a million
_PROVISIONAL = re.compile(r"\w[\w.+-]*@1\d{12}\b")
_RUN = re.compile(r"(?<=\(run )\d+(?=\))")


@dataclass(frozen=True)
class Parcel:
    """Records on their way.

    Args:
        rows: by table, in the order in which they were added; a row by its columns.
        files: of their tensors, by hash.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def pack(registry: Registry, refs: Collection[str]) -> Parcel:
    """Returns records, by full names with their kinds, and all backbones.

    Raises:
        RegistryError: one is unknown, or its file is damaged.
    """
    parcel = Parcel(rows={"backbones": _rows(registry, Backbone)})
    for kind in RECORDS:
        own = (parse(ref).ref for ref in refs if (parse(ref).kind or "prompt") == kind)
        for number in sorted({registry.named(ref, kind).id for ref in own}):
            parcel.rows.setdefault(f"{kind}s", []).extend(_rows(registry, RECORDS[kind], f"WHERE id = {number}"))
    return _with_files(registry, parcel)


def unpack(registry: Registry, parcel: Parcel) -> None:
    """Puts a parcel's records, as they are, into a new registry, whose own records get provisional versions."""
    database = registry._database
    for sha256, data in parcel.files.items():
        registry._objects.put(data, sha256)
    with database.transaction():
        database.execute(
            "CREATE TRIGGER provisional AFTER INSERT ON names BEGIN "
            f"UPDATE names SET version = {FIRST} + 1000000 * new.rowid WHERE rowid = new.rowid; END"
        )
        for table, rows in parcel.rows.items():
            for row in rows:
                database.insert(table, row)


def pack_new(registry: Registry, seen: Mapping[str, int]) -> tuple[Parcel, dict[str, int]]:
    """Returns what was added since, and what has been seen now.

    Args:
        registry: one that `unpack` has filled.
        seen: the last id of each table; empty before the first call.
    """
    parcel, now = Parcel(rows={"backbones": _rows(registry, Backbone)}), dict(seen)
    for record in (*RECORDS.values(), Run):
        table = TABLES[record]
        rows = _rows(registry, record, f"WHERE id > {seen.get(table, 0)} ORDER BY id")
        now[table] = max([seen.get(table, 0), *(row["id"] for row in rows)])
        parcel.rows[table] = [row for row in rows if record is Run or row["version"] >= FIRST]
    return _with_files(registry, parcel), now


def adopt(registry: Registry, parcel: Parcel) -> Callable[[str], str]:
    """Adds what another registry made, in one transaction and under versions of this one.

    Returns:
        What gives a text with provisional names and numbers of runs those that they have here.

    Raises:
        RegistryError: the disk is full, or the registry cannot be written to; then nothing is added.
    """
    database = registry._database
    names: dict[str, str] = {}
    runs: dict[str, str] = {}

    def here(text: str) -> str:
        known = _PROVISIONAL.sub(lambda found: names.get(found[0], found[0]), text)
        return _RUN.sub(lambda found: runs.get(found[0], found[0]), known)

    database.require_writable()
    for sha256, data in parcel.files.items():
        registry._objects.put(data, sha256)  # before the transaction: others need not wait for the disk
    with database.transaction():
        for sha256, data in parcel.files.items():
            registry._objects.put(data, sha256)  # `gc` may have taken it since
        for row in parcel.rows.get("backbones", ()):
            registry.remember_backbone(Backbone(**row))
        for kind in RECORDS:
            for row in parcel.rows.get(f"{kind}s", ()):
                version = registry.next_version(kind, row["name"])
                names[f"{row['name']}@{row['version']}"] = f"{row['name']}@{version}"
                database.insert(f"{kind}s", {**_told(row, here), "version": version})
        for row in parcel.rows.get("runs", ()):
            runs[str(row["id"])] = str(database.insert("runs", _told(row, here)))
    return here


def _told(row: Mapping[str, Any], here: Callable[[str], str]) -> dict[str, Any]:
    told = {name: here(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
    del told["id"]
    return told


def _rows(registry: Registry, record: type, which: str = "") -> list[dict[str, Any]]:
    names = columns(record).split(", ")
    rows = registry._database.rows(f"SELECT {', '.join(names)} FROM {TABLES[record]} {which}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _with_files(registry: Registry, parcel: Parcel) -> Parcel:
    for table in ("prompts", "attentions"):
        for row in parcel.rows.get(table, ()):
            registry._objects.get(row["sha256"], f"{table.removesuffix('s')} {row['name']}@{row['version']}")
            parcel.files[row["sha256"]] = registry._objects.path(row["sha256"]).read_bytes()
    return parcel
