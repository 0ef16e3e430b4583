"""Reading the registry: one record by its name, or many by filters; each is a single SELECT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attempt_registry.conversion import KIND_OF, RECORDS, TABLES, Named, columns, records
from attempt_registry.database import Database
from attempt_registry.errors import RegistryError, nearest_names, unknown_name_text
from attempt_registry.records import Attention, Backbone, Composition, Prompt, Run
from attempt_registry.references import KINDS, parse

# what `prompts(sort=…)` takes
SORTS = ("name", "created", "task", "kind", "method", "backbone", "length", "width", "seed")


class Finder:
    """The reading half of `Registry`."""

    folder: Path
    _database: Database

    # --- one

    def prompt(self, ref: str) -> Prompt:
        """A prompt by name ("rte": the newest version) or full name ("rte@2").

        Raises:
            RegistryError: with the nearest names, or the versions that there are.
        """
        return self._one(Prompt, ref)

    def attention(self, ref: str) -> Attention:
        """An attention by name or full name.

        Raises:
            RegistryError: with the nearest names, or the versions that there are.
        """
        return self._one(Attention, ref)

    def composition(self, ref: str) -> Composition:
        """A composition by name or full name.

        Raises:
            RegistryError: with the nearest names, or the versions that there are.
        """
        return self._one(Composition, ref)

    def run(self, id: int) -> Run:
        """A run by its number.

        Raises:
            RegistryError: when there is none.
        """
        found = records(Run, self._database.rows(f"SELECT {columns(Run)} FROM runs WHERE id = ?", (id,)))
        if not found:
            raise RegistryError(f"no run {id}", "`attempt registry list --what runs` shows all runs.")
        return found[0]

    def backbone(self, name_or_fingerprint: str) -> Backbone:
        """A recorded backbone; of several with one name the newest.

        Raises:
            RegistryError: with the nearest names.
        """
        for backbone in reversed(self.backbones()):
            if name_or_fingerprint in (backbone.name, backbone.fingerprint):
                return backbone
        near = nearest_names(name_or_fingerprint, [backbone.name for backbone in self.backbones()])
        did_you_mean = f"Did you mean {' or '.join(near)}? " if near else ""
        raise RegistryError(
            f"no backbone named '{name_or_fingerprint}' is recorded here",
            f"{did_you_mean}`attempt backbone show {name_or_fingerprint}` records it.",
        )

    def named(self, ref: str, kind: str) -> Prompt | Attention | Composition:
        """A record of the kind "prompt", "attention" or "composition".

        Raises:
            RegistryError: when there is no such name or kind.
        """
        if kind not in RECORDS:
            raise RegistryError(f"'{kind}' is no kind of record", f"There are {', '.join(RECORDS)}.")
        found: Prompt | Attention | Composition = self._one(RECORDS[kind], ref)
        return found

    def kinds_of(self, ref: str) -> list[str]:
        """The kinds under which something with this name is there, e.g. ["prompt", "composition"]."""
        wanted = parse(ref)
        return [kind for kind in KINDS if wanted.kind in (None, kind) and self._rows(kind, wanted.name, wanted.version)]

    def versions(self, name: str, *, kind: str = "prompt") -> list[int]:
        """The versions of a name that are there, oldest first."""
        rows = self._database.rows(f"SELECT version FROM {kind}s WHERE name = ? ORDER BY version", (name,))
        return [version for (version,) in rows]

    def names(self, *, kind: str = "prompt") -> list[str]:
        """All names of a kind, without versions, in alphabetical order."""
        return [name for (name,) in self._database.rows(f"SELECT DISTINCT name FROM {kind}s ORDER BY name")]

    # --- many

    def backbones(self) -> list[Backbone]:
        """All recorded backbones, oldest first."""
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
        """The prompts that pass every given filter.

        Args:
            backbone: its name or its fingerprint; prompts of the same weights under another name count.
            sort: one of `SORTS`.
            limit: at most so many.

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
        # the time is in seconds: what was added within one keeps its order
        ties = ("id",) if sort == "created" else ("name", "version")
        order = "ORDER BY " + ", ".join(f"{column} {down}" for column in (sort, *ties))
        return records(Prompt, self._database.rows(_select(Prompt, where, order, limit), values))

    def attentions(
        self, backbone: str | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> list[Attention]:
        """The attentions, by name."""
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
        """The compositions, by name.

        Args:
            task: only those with a target prompt for this task.
            uses: only those with this source, target or ("attention:…") attention, by full name.
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
        """The runs, oldest first.

        Args:
            uses: only those that made or used this; "rte@1" or "prompt:rte@1", without a version any of its versions.
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

    # --- inside

    def _rows(self, kind: str, name: str, version: int | None) -> list[tuple[Any, ...]]:
        where, values = _where({"name": name, "version": version})
        return self._database.rows(_select(RECORDS[kind], where, "ORDER BY version DESC", 1), values)

    def _one(self, record: type[Named], ref: str) -> Named:
        kind, wanted = KIND_OF[record], parse(ref)
        if wanted.kind not in (None, kind):
            raise RegistryError(f"'{ref}' is no {kind}", f"Name a {kind}, for example {wanted.name}.")
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
        """A parent as it is stored: a full name, with its kind unless it is a prompt."""
        kind = parse(ref).kind or "prompt"
        full = self.named(ref, kind).ref
        return full if kind == "prompt" else f"{kind}:{full}"

    def _full_reference(self, ref: str) -> str:
        """What a run made or used as it is stored: kind and full name; what is not in the registry stays as given."""
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
