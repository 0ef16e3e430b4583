"""Removes records, checks the registry and deletes unused files."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from attempt_registry.database import Database, translated_errors
from attempt_registry.errors import RegistryError
from attempt_registry.lineage import children
from attempt_registry.objects import Objects, age
from attempt_registry.records import Composition, Garbage, Problem, Removal
from attempt_registry.references import parse

if TYPE_CHECKING:
    from attempt_registry.find import Finder

# A file is written before its row; an hour is far more than a process needs between the two.
GRACE_SECONDS = 3600.0
# files that `gc` removes under one lock
_AT_ONCE = 200


def remove(registry: Finder, database: Database, ref: str, *, kind: str, force: bool, dry_run: bool) -> Removal:
    """Removes; see `Registry.remove`."""
    registry.named(ref, kind)  # an unknown name needs no lock, and makes no database
    # a dry run takes no lock and works on a read-only registry
    with contextlib.nullcontext() if dry_run else database.transaction():
        record = registry.named(ref, kind)
        stored = record.ref if kind == "prompt" else f"{kind}:{record.ref}"
        used = [] if kind == "composition" else registry.compositions(uses=f"{kind}:{record.ref}")
        removal = Removal(
            kind=kind,
            ref=record.ref,
            compositions=tuple(composition.ref for composition in used),
            children=children(registry, stored),
            other_versions=tuple(
                f"{record.name}@{version}"
                for version in registry.versions(record.name, kind=kind)
                if version != record.version
            ),
            removed=not dry_run,
        )
        if used and not force:
            names = ", ".join(removal.compositions)
            raise RegistryError(
                f"{kind} {record.ref} is part of {'a composition' if len(used) == 1 else 'compositions'}: {names}",
                f"Remove {'it' if len(used) == 1 else 'them'} first "
                f"(`attempt registry remove {removal.compositions[0]} --what compositions`), or use --force.",
            )
        if not dry_run:
            database.execute(f"DELETE FROM {kind}s WHERE id = ?", (record.id,))
    return removal


def verify(registry: Finder, database: Database, objects: Objects) -> list[Problem]:
    """Checks; see `Registry.verify`."""
    problems = [
        Problem("database", text, str(database.file)) for (text,) in database.rows("PRAGMA quick_check") if text != "ok"
    ]
    states: dict[str, str | None] = {}
    for kind in ("prompt", "attention"):
        for name, version, sha256 in database.rows(f"SELECT name, version, sha256 FROM {kind}s ORDER BY name, version"):
            if sha256 not in states:
                states[sha256] = objects.problem(sha256)
            problem = states[sha256]
            if problem:
                problems.append(Problem(f"{kind} {name}@{version}", problem, str(objects.path(sha256))))
    there = {
        f"{kind}:{name}@{version}"
        for kind in ("prompt", "attention", "composition")
        for name, version in database.rows(f"SELECT name, version FROM {kind}s")
    }
    given = {(kind, name): version for kind, name, version in database.rows("SELECT kind, name, version FROM names")}

    def full(ref: str) -> str:
        wanted = parse(ref)
        return f"{wanted.kind or 'prompt'}:{wanted.ref}"

    def never_existed(ref: str) -> bool:
        wanted = parse(ref)
        last: int = given.get((wanted.kind or "prompt", wanted.name), 0)
        return (wanted.version or 1) > last

    for composition in registry.compositions():
        problems += [
            Problem(f"composition {composition.ref}", f"its part {part} is not in the registry")
            for part in _parts(composition)
            if full(part) not in there
        ]
    for kind in ("prompt", "attention"):
        query = f"SELECT name, version, value FROM {kind}s, json_each(parents) ORDER BY name, version"
        problems += [
            Problem(f"{kind} {name}@{version}", f"its parent {parent} never existed here")
            for name, version, parent in database.rows(query)
            if never_existed(parent)
        ]
    return problems


def _parts(composition: Composition) -> tuple[str, ...]:
    mixer = (f"attention:{composition.attention}",) if composition.attention else ()
    return (*composition.sources, *mixer, *composition.targets)


def gc(database: Database, objects: Objects, *, dry_run: bool, grace: float) -> Garbage:
    """Collects garbage; see `Registry.gc`."""
    with translated_errors(objects.folder):
        there = list(objects.files())
        if there and not database.file.exists():
            raise RegistryError(
                f"{objects.folder} holds tensors, but their database {database.file.name} is missing",
                "Restore a copy of it. Nothing was removed: without the database every tensor would look unused.",
            )
        if not dry_run and database.file.exists():
            database.require_writable()
        used = _used(database)
        unused = [(path, sha256) for path, sha256 in there if sha256 not in used]
        files, size, young = [], 0, 0
        for start in range(0, len(unused), _AT_ONCE):
            some = unused[start : start + _AT_ONCE]
            # The lock: no row is committed between asking whether a file is used and removing it. Looking for the
            # files needs none, and is what takes long; between two batches other writers have their turn.
            with contextlib.nullcontext() if dry_run else database.transaction():
                used_again = set() if dry_run else _used(database, [sha256 for _, sha256 in some if sha256])
                for path, sha256 in some:
                    if sha256 in used_again:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        if age(path) < grace:
                            young += 1
                            continue
                        length = path.lstat().st_size
                        if not dry_run:
                            path.unlink()
                        files.append(str(path))
                        size += length
    return Garbage(tuple(files), size, young, removed=not dry_run)


def _used(database: Database, among: list[str] | None = None) -> set[str]:
    where = "" if among is None else f" WHERE sha256 IN ({', '.join('?' * len(among))})"
    return {
        sha256
        for kind in ("prompt", "attention")
        for (sha256,) in database.rows(f"SELECT DISTINCT sha256 FROM {kind}s{where}", among or ())
    }
