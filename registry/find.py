"""Reads the registry: one record by its name, or many by filters, each with a single SELECT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from attempt_registry.conversion import KIND_OF, RECORDS, TABLES, DamagedRowError, Named, Record, columns, records
from attempt_registry.database import Database
from attempt_registry.errors import RegistryError, did_you_mean, unknown_name_text
from attempt_registry.records import SORTS, Attention, Backbone, Composition, Prompt, Run
from attempt_registry.references import KINDS, parse


class Finder:
    """The reading half of `Registry`."""

    folder: Path
    # what could not be read because its row is damaged, and why; lists leave it out
    damaged: dict[str, str]
    _database: Database

    def prompt(self, ref: str) -> Prompt:
        """Returns a prompt by name ("rte": the newest version) or full name ("rte@2").

        Raises:
            RegistryError: when it is unknown (the hint lists the nearest names, or the existing versions), or when its
                row is damaged.
        """
        return self._one(Prompt, ref)

    def attention(self, ref: str) -> Attention:
        """Returns an attention by name or full name.

        Raises:
            RegistryError: as `prompt`.
        """
        return self._one(Attention, ref)

    def composition(self, ref: str) -> Composition:
        """Returns a composition by name or full name.

        Raises:
            RegistryError: as `prompt`.
        """
        return self._one(Composition, ref)

    def run(self, id: int) -> Run:
        """Returns a run by its number.

        Raises:
            RegistryError: when it is unknown.
        """
        rows = self._database.rows(f"SELECT {columns(Run)} FROM runs WHERE id = ?", (id,))
        if not rows:
            raise RegistryError(f"no run {id}", "`attempt registry list --what runs` shows all runs.")
        return self._whole(Run, rows[0], f"run {id}")

    def backbone(self, name_or_fingerprint: str) -> Backbone:
        """Returns a recorded backbone, the newest of several with the same name and place.

        Raises:
            RegistryError: when it is unknown, with the nearest names in the hint, or when backbones of several places
                have the name.
        """
        backbones = self.backbones()
        found = [known for known in backbones if name_or_fingerprint in (known.name, known.fingerprint)]
        if len({known.source for known in found if known.fingerprint != name_or_fingerprint}) > 1:
            places = ", ".join(f"{known.fingerprint} ({known.source})" for known in found)
            raise RegistryError(
                f"'{name_or_fingerprint}' is the name of {len(found)} recorded backbones",
                f"Name one by its fingerprint: {places}.",
            )
        if found:
            return found[-1]
        near = did_you_mean(name_or_fingerprint, [backbone.name for backbone in backbones])
        raise RegistryError(
            f"no backbone named '{name_or_fingerprint}' is recorded here",
            f"{near}`attempt backbone show {name_or_fingerprint}` records it.",
        )

    def named(self, ref: str, kind: str) -> Prompt | Attention | Composition:
        """Returns a record of the kind "prompt", "attention" or "composition".

        Raises:
            RegistryError: when the name or the kind is unknown.
        """
        if kind not in RECORDS:
            raise RegistryError(f"'{kind}' is not a kind of record", f"There are {', '.join(RECORDS)}.")
        found: Prompt | Attention | Composition = self._one(RECORDS[kind], ref)
        return found

    def find(self, ref: str) -> list[Prompt | Attention | Composition]:
        """Returns all records with a name, at most one of each kind, prompts first.

        Raises:
            RegistryError: when no kind has the name.
        """
        wanted = parse(ref)
        found: list[Prompt | Attention | Composition] = []
        for kind in KINDS:
            rows = self._rows(kind, wanted.name, wanted.version) if wanted.kind in (None, kind) else []
            found += [self._whole(RECORDS[kind], row, _row_name(RECORDS[kind], row)) for row in rows]
        if found:
            return found
        name = ref.partition("@")[0]
        for kind in self.kinds_of(name):
            self.named(ref, kind)  # fails: the name exists without this version, and the hint lists its versions
        known = dict.fromkeys(known for kind in KINDS for known in self.names(kind=kind))
        text = unknown_name_text("prompt, attention or composition", name, known, "attempt registry list")
        raise RegistryError(*text)

    def state(self) -> object:
        """Returns a value that differs, in this thread, from an earlier one if another has written meanwhile."""
        return self._database.state()

    def kinds_of(self, ref: str) -> list[str]:
        """Lists the kinds of record that have this name, e.g. ["prompt", "composition"]."""
        wanted = parse(ref)
        return [kind for kind in KINDS if wanted.kind in (None, kind) and self._rows(kind, wanted.name, wanted.version)]

    def versions(self, name: str, *, kind: str = "prompt") -> list[int]:
        """Lists the existing versions of a name, oldest first."""
        rows = self._database.rows(f"SELECT version FROM {kind}s WHERE name = ? ORDER BY version", (name,))
        return [version for (version,) in rows]

    def names(self, *, kind: str = "prompt") -> list[str]:
        """Lists all names of a kind, without versions, in alphabetical order."""
        return self.values(f"{kind}s", "name")

    def values(self, what: str, column: str) -> list[str]:
        """Lists the texts that a column of a table holds, each once, in alphabetical order.

        Args:
            what: "prompts", "attentions", "compositions" or "runs".
            column: one of its columns; "tags" gives the single tags.
        """
        source = f"SELECT DISTINCT {column} FROM {what} ORDER BY 1"
        if column == "tags":
            source = f"SELECT DISTINCT value FROM {what}, {_each('tags')} ORDER BY 1"
        return [text for (text,) in self._database.rows(source) if isinstance(text, str)]

    def backbones(self) -> list[Backbone]:
        """Lists all recorded backbones, oldest first."""
        rows = self._database.rows(f"SELECT {columns(Backbone)} FROM backbones ORDER BY created, rowid")
        return list(self._records(Backbone, rows))

    def prompts(
        self,
        kind: str | None = None,
        task: str | None = None,
        backbone: str | None = None,
        tag: str | None = None,
        method: str | None = None,
        sort: str = "name",
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[Prompt]:
        """Lists the prompts that pass every given filter.

        Args:
            backbone: a name or fingerprint; it also finds prompts of the same weights under another name.
            sort: one of `SORTS`.
            limit: the largest number of prompts to return.

        Raises:
            RegistryError: for an unknown `sort`.
        """
        given = {"kind": kind, "task": task, "backbone": backbone, "tag": tag, "method": method}
        return list(self.each(Prompt, given, sort=sort, reverse=reverse, limit=limit))

    def attentions(
        self, backbone: str | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> list[Attention]:
        """Lists the attentions, by name."""
        return list(self.each(Attention, {"backbone": backbone}, reverse=reverse, limit=limit))

    def compositions(
        self,
        task: str | None = None,
        backbone: str | None = None,
        *,
        uses: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[Composition]:
        """Lists the compositions, by name.

        Args:
            task: only those with a target prompt for this task.
            uses: only those with this source, target or attention ("attention:…"), by full name.
        """
        given = {"task": task, "backbone": backbone, "uses": uses}
        return list(self.each(Composition, given, reverse=reverse, limit=limit))

    def runs(self, uses: str | None = None, *, reverse: bool = False, limit: int | None = None) -> list[Run]:
        """Lists the runs, oldest first.

        Args:
            uses: only those that made or used this: "rte@1" or "prompt:rte@1"; any version when none is given.
        """
        return list(self.each(Run, {"uses": uses}, reverse=reverse, limit=limit))

    def each(
        self,
        record: type[Listed],
        filters: Mapping[str, str | None],
        *,
        sort: str = "name",
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Listed]:
        """Yields the records that pass every given filter, without holding all of them.

        Args:
            record: Prompt, Attention, Composition or Run.
            filters: as in the method that lists them; None filters nothing.
            sort: one of `SORTS`, for prompts; attentions and compositions come by name, runs by number.

        Raises:
            RegistryError: for an unknown `sort`.
        """
        if sort not in SORTS:
            message, _ = unknown_name_text("order", sort, SORTS, "")
            raise RegistryError(message, f"There are {', '.join(SORTS)}.")
        where, values = _conditions(record, filters)
        # the time is in whole seconds: prompts of the same second keep the order in which they were added
        by = ("id",) if record is Run else ("created", "id") if sort == "created" else (sort, "name", "version")
        order = ", ".join(f"{column} {'DESC' if reverse else 'ASC'}" for column in dict.fromkeys(by))
        sql = _select(record, where, f"ORDER BY {order}", limit)
        return self._records(record, self._database.each_row(sql, values))

    def count(self, record: type[Listed], filters: Mapping[str, str | None]) -> int:
        """Counts the records that pass every given filter, as `each`."""
        where, values = _conditions(record, filters)
        rows = self._database.rows(f"SELECT count(*) FROM {TABLES[record]}{_joined(where)}", values)
        return int(rows[0][0]) if rows else 0

    def _records(self, record: type[Record], rows: Iterable[Sequence[Any]]) -> Iterator[Record]:
        """Yields the records of rows; notes those that are damaged and goes on."""
        waiting = iter(rows)
        while some := list(islice(waiting, 1000)):
            try:
                yield from records(record, some)
            except DamagedRowError:
                for row in some:
                    try:
                        (made,) = records(record, [row])
                    except DamagedRowError as problem:
                        self.damaged[_row_name(record, row)] = str(problem)
                    else:
                        yield made

    def _whole(self, record: type[Record], row: Sequence[Any], what: str) -> Record:
        """Returns the record of one row that was asked for by name."""
        try:
            return records(record, [row])[0]
        except DamagedRowError as problem:
            raise RegistryError(
                f"{what} is damaged in the database: {problem}",
                "Restore a copy of the registry, or remove it (`attempt registry remove`) and make it again.",
            ) from problem

    def _rows(self, kind: str, name: str, version: int | None) -> list[tuple[Any, ...]]:
        where, values = _where({"name": name, "version": version})
        return self._database.rows(_select(RECORDS[kind], where, "ORDER BY version DESC", 1), values)

    def _one(self, record: type[Named], ref: str) -> Named:
        row = self._row(record, ref)
        return self._whole(record, row, _row_name(record, row))

    def _row(self, record: type[Prompt | Attention | Composition], ref: str) -> tuple[Any, ...]:
        """Returns the row of a name, in the order of the record's fields; name and version stand first."""
        kind, wanted = KIND_OF[record], parse(ref)
        if wanted.kind not in (None, kind):
            raise RegistryError(f"'{ref}' is not of the kind {kind}", f"Give the name alone: {wanted.name}.")
        rows = self._rows(kind, wanted.name, wanted.version)
        if rows:
            return rows[0]
        versions = self.versions(wanted.name, kind=kind)
        if versions:
            there = ", ".join(f"{wanted.name}@{version}" for version in versions)
            raise RegistryError(f"{kind} '{wanted.name}' has no version {wanted.version}", f"There is {there}.")
        command = "attempt registry list" + ("" if kind == "prompt" else f" --what {kind}s")
        raise RegistryError(*unknown_name_text(kind, wanted.name, self.names(kind=kind), command))

    def _parent(self, ref: str) -> str:
        """Returns a parent as it is stored: a full name, with its kind unless it is a prompt."""
        kind = parse(ref).kind or "prompt"
        full = self.named(ref, kind).ref
        return full if kind == "prompt" else f"{kind}:{full}"

    def _full_reference(self, ref: str) -> str:
        """Returns a run's artefact or input as it is stored: kind and full name, or unchanged when it is no record."""
        if ":" in ref and parse(ref).kind is None:
            return ref
        wanted = parse(ref)
        kind = wanted.kind or "prompt"
        if self._rows(kind, wanted.name, wanted.version):
            return f"{kind}:{self.named(ref, kind).ref}"
        return f"{kind}:{wanted.ref}"


Listed = TypeVar("Listed", Prompt, Attention, Composition, Run)

_OF_BACKBONE = "(backbone = ? OR fingerprint = ? OR fingerprint IN (SELECT fingerprint FROM backbones WHERE name = ?))"
_WITH_TARGET_FOR = (
    "id IN (SELECT links.id FROM prompts JOIN links ON ref = 'prompt:' || name || '@' || version "
    "WHERE prompts.task = ? AND links.kind = 'composition' AND role = 'target')"
)


def _each(column: str) -> str:
    # a damaged cell has no items; its record is noted where it is read
    return f"json_each(CASE WHEN json_valid({column}) THEN {column} ELSE '[]' END)"


def _conditions(record: type, filters: Mapping[str, str | None]) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for name, value in filters.items():
        if value is None:
            continue
        if name == "backbone":
            condition, of = _OF_BACKBONE, [value] * 3
        elif name == "tag":
            condition, of = f"EXISTS (SELECT 1 FROM {_each('tags')} WHERE value = ?)", [value]
        elif name == "task" and record is Composition:
            condition, of = _WITH_TARGET_FOR, [value]
        elif name == "uses":
            kinds = ("prompt",) if record is Composition else KINDS
            condition, of = _linked(TABLES[record].removesuffix("s"), value, kinds)
        else:
            condition, of = f"{name} = ?", [value]
        where.append(condition)
        values += of
    return where, values


def _linked(kind: str, ref: str, kinds: Sequence[str]) -> tuple[str, list[Any]]:
    """Makes the condition that a record of a kind refers to `ref`, of one of `kinds` where `ref` names none."""
    wanted = parse(ref)
    some, values = [], [kind]
    for of in [wanted.kind] if wanted.kind else kinds:
        full = f"{of}:{wanted.ref}"
        # without a version: all of "prompt:rte@…"; the character after @ is A
        some.append("ref = ?" if wanted.version else "(ref > ? AND ref < ?)")
        values += [full] if wanted.version else [f"{full}@", f"{full}A"]
    return f"id IN (SELECT id FROM links WHERE kind = ? AND ({' OR '.join(some)}))", values


def _where(equal: dict[str, Any]) -> tuple[list[str], list[Any]]:
    given = {column: value for column, value in equal.items() if value is not None}
    return [f"{column} = ?" for column in given], list(given.values())


def _joined(where: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(f'({condition})' for condition in where)}" if where else ""


def _select(record: type, where: Sequence[str], order: str, limit: int | None) -> str:
    at_most = f" LIMIT {int(limit)}" if limit is not None else ""
    return f"SELECT {columns(record)} FROM {TABLES[record]}{_joined(where)} {order}{at_most}"


def _ref(row: Sequence[Any]) -> str:
    name, version = row[:2]
    return f"{name if isinstance(name, str) else ascii(name)}@{version}"


def _row_name(record: type, row: Sequence[Any]) -> str:
    """Names a row as `verify` does: "prompt rte@1", "run 17"."""
    if record is Run:
        return f"run {row[0]}"
    return f"backbone {row[0]}" if record is Backbone else f"{KIND_OF[record]} {_ref(row)}"
