"""Reads the registry: one record by its name, or many by filters, each with a single SELECT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attempt_registry.conversion import KIND_OF, RECORDS, TABLES, Named, columns, records
from attempt_registry.database import Database
from attempt_registry.errors import RegistryError, did_you_mean, unknown_name_text
from attempt_registry.records import SORTS, Attention, Backbone, Composition, Prompt, Run
from attempt_registry.references import KINDS, parse


class Finder:
    """The reading half of `Registry`."""

    folder: Path
    _database: Database

    def prompt(self, ref: str) -> Prompt:
        """Returns a prompt by name ("rte": the newest version) or full name ("rte@2").

        Raises:
            RegistryError: when it is unknown; the hint lists the nearest names, or the existing versions.
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
        found = records(Run, self._database.rows(f"SELECT {columns(Run)} FROM runs WHERE id = ?", (id,)))
        if not found:
            raise RegistryError(f"no run {id}", "`attempt registry list --what runs` shows all runs.")
        return found[0]

    def backbone(self, name_or_fingerprint: str) -> Backbone:
        """Returns a recorded backbone, the newest of several with the same name.

        Raises:
            RegistryError: when it is unknown; the hint lists the nearest names.
        """
        backbones = self.backbones()
        for backbone in reversed(backbones):
            if name_or_fingerprint in (backbone.name, backbone.fingerprint):
                return backbone
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
        kinds = self.kinds_of(ref)
        if kinds:
            return [self.named(ref, kind) for kind in kinds]
        name = ref.partition("@")[0]
        for kind in self.kinds_of(name):
            self.named(ref, kind)  # fails: the name exists without this version, and the hint lists its versions
        known = dict.fromkeys(known for kind in KINDS for known in self.names(kind=kind))
        text = unknown_name_text("prompt, attention or composition", name, known, "attempt registry list")
        raise RegistryError(*text)

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
        return [name for (name,) in self._database.rows(f"SELECT DISTINCT name FROM {kind}s ORDER BY name")]

    def backbones(self) -> list[Backbone]:
        """Lists all recorded backbones, oldest first."""
        rows = self._database.rows(f"SELECT {columns(Backbone)} FROM backbones ORDER BY created, rowid")
        return [Backbone(*row) for row in rows]

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
        if sort not in SORTS:
            message, _ = unknown_name_text("order", sort, SORTS, "")
            raise RegistryError(message, f"There are {', '.join(SORTS)}.")
        where, values = _where({"kind": kind, "task": task, "method": method})
        if backbone is not None:
            where.append(_OF_BACKBONE)
            values += [backbone] * 3
        if tag is not None:
            where.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
            values.append(tag)
        down = "DESC" if reverse else "ASC"
        # the time is in whole seconds: prompts of the same second keep the order in which they were added
        ties = ("id",) if sort == "created" else ("name", "version")
        order = "ORDER BY " + ", ".join(f"{column} {down}" for column in (sort, *ties))
        return records(Prompt, self._database.rows(_select(Prompt, where, order, limit), values))

    def attentions(
        self, backbone: str | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> list[Attention]:
        """Lists the attentions, by name."""
        where, values = ([_OF_BACKBONE], [backbone] * 3) if backbone is not None else ([], [])
        order = "ORDER BY name DESC, version DESC" if reverse else "ORDER BY name, version"
        return records(Attention, self._database.rows(_select(Attention, where, order, limit), values))

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
        where: list[str] = []
        values: list[Any] = []
        if task is not None:
            where.append(
                "EXISTS (SELECT 1 FROM json_each(targets) "
                "JOIN prompts ON value = prompts.name || '@' || prompts.version WHERE prompts.task = ?)"
            )
            values.append(task)
        if backbone is not None:
            where.append(_OF_BACKBONE)
            values += [backbone] * 3
        if uses is not None:
            part = parse(uses)
            if part.kind == "attention":
                where.append("attention = ?")
                values.append(part.ref)
            else:
                where.append(
                    "EXISTS (SELECT 1 FROM json_each(sources) WHERE value = ?) "
                    "OR EXISTS (SELECT 1 FROM json_each(targets) WHERE value = ?)"
                )
                values += [part.ref] * 2
        order = "ORDER BY name DESC, version DESC" if reverse else "ORDER BY name, version"
        return records(Composition, self._database.rows(_select(Composition, where, order, limit), values))

    def runs(self, uses: str | None = None, *, reverse: bool = False, limit: int | None = None) -> list[Run]:
        """Lists the runs, oldest first.

        Args:
            uses: only those that made or used this: "rte@1" or "prompt:rte@1"; any version when none is given.
        """
        where, values = [], []
        if uses is not None:
            wanted = parse(uses)
            full = [f"{kind}:{wanted.ref}" for kind in ([wanted.kind] if wanted.kind else KINDS)]
            value = "value" if wanted.version else "substr(value, 1, instr(value, '@') - 1)"
            marks = ", ".join("?" * len(full))
            where = [
                f"EXISTS (SELECT 1 FROM json_each(inputs) WHERE {value} IN ({marks})) "
                f"OR EXISTS (SELECT 1 FROM json_each(artefacts) WHERE {value} IN ({marks}))"
            ]
            values = full * 2
        order = "ORDER BY id DESC" if reverse else "ORDER BY id"
        return records(Run, self._database.rows(_select(Run, where, order, limit), values))

    def _rows(self, kind: str, name: str, version: int | None) -> list[tuple[Any, ...]]:
        where, values = _where({"name": name, "version": version})
        return self._database.rows(_select(RECORDS[kind], where, "ORDER BY version DESC", 1), values)

    def _one(self, record: type[Named], ref: str) -> Named:
        kind, wanted = KIND_OF[record], parse(ref)
        if wanted.kind not in (None, kind):
            raise RegistryError(f"'{ref}' is not of the kind {kind}", f"Give the name alone: {wanted.name}.")
        found = records(record, self._rows(kind, wanted.name, wanted.version))
        if found:
            return found[0]
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


_OF_BACKBONE = "(backbone = ? OR fingerprint = ? OR fingerprint IN (SELECT fingerprint FROM backbones WHERE name = ?))"


def _where(equal: dict[str, Any]) -> tuple[list[str], list[Any]]:
    given = {column: value for column, value in equal.items() if value is not None}
    return [f"{column} = ?" for column in given], list(given.values())


def _select(record: type, where: Sequence[str], order: str, limit: int | None) -> str:
    conditions = f"WHERE {' AND '.join(f'({condition})' for condition in where)}" if where else ""
    at_most = f"LIMIT {int(limit)}" if limit is not None else ""
    return f"SELECT {columns(record)} FROM {TABLES[record]} {conditions} {order} {at_most}"
