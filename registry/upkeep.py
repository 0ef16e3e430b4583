"""Removes records, checks the registry and deletes unused files."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from attempt_registry.conversion import RECORDS, kind_of
from attempt_registry.database import Database, translated_errors
from attempt_registry.errors import RegistryError
from attempt_registry.lineage import children, parents_of, users
from attempt_registry.objects import Objects, age
from attempt_registry.records import Attention, Composition, Garbage, Problem, Prompt, Removal, Run
from attempt_registry.references import KINDS, parse

if TYPE_CHECKING:
    from attempt_registry.find import Finder

# A file is written before its row; an hour is far more than a process needs between the two.
GRACE_SECONDS = 3600.0
_SEARCHED = ("prompts", "attentions", "compositions")
# files that `gc` removes under one lock
_AT_ONCE = 200


def remove(registry: Finder, database: Database, ref: str, *, kind: str, force: bool, dry_run: bool) -> Removal:
    """Removes; see `Registry.remove`."""
    if kind not in RECORDS:
        raise RegistryError(f"'{kind}' is not a kind of record", f"There are {', '.join(RECORDS)}.")
    registry._row(RECORDS[kind], ref)  # an unknown name needs no lock, and makes no database
    # a dry run takes no lock and works on a read-only registry
    with contextlib.nullcontext() if dry_run else database.transaction():
        row = registry._row(RECORDS[kind], ref)  # not its record: what is damaged can be removed, too
        name, version = row[:2]
        full = f"{name}@{version}"
        used = () if kind == "composition" else users(registry, f"{kind}:{full}")
        removal = Removal(
            kind=kind,
            ref=full,
            compositions=used,
            children=children(registry, full if kind == "prompt" else f"{kind}:{full}"),
            other_versions=tuple(f"{name}@{other}" for other in registry.versions(name, kind=kind) if other != version),
            removed=not dry_run,
        )
        if used and not force:
            names = ", ".join(removal.compositions)
            raise RegistryError(
                f"{kind} {full} is part of {'a composition' if len(used) == 1 else 'compositions'}: {names}",
                f"Remove {'it' if len(used) == 1 else 'them'} first "
                f"(`attempt registry remove {removal.compositions[0]} --what compositions`), or use --force.",
            )
        if not dry_run:
            database.execute(f"DELETE FROM {kind}s WHERE name = ? AND version = ?", (name, version))
    return removal


def repair(database: Database) -> None:
    """Makes search words and references again; see `Registry.repair`."""
    from attempt_registry.migrations import fill_links_and_words

    database.require_writable()
    with database.transaction():
        fill_links_and_words(database.execute)


def verify(registry: Finder, database: Database, objects: Objects) -> list[Problem]:
    """Checks; see `Registry.verify`."""
    problems = [
        Problem("database", text, str(database.file)) for (text,) in database.rows("PRAGMA quick_check") if text != "ok"
    ]
    problems += [
        Problem("search", f"its words do not fit the {table}", str(database.file))
        for table in _SEARCHED
        if _words_differ(database, table)
    ]
    registry.damaged.clear()
    prompts, attentions = list(registry.each(Prompt, {})), list(registry.each(Attention, {}))
    compositions = list(registry.each(Composition, {}))
    deque(registry.each(Run, {}), maxlen=0)
    registry.backbones()
    problems += [Problem(what, f"its row is damaged: {why}") for what, why in registry.damaged.items()]
    states: dict[str, str | None] = {}
    tensors: list[Prompt | Attention] = [*prompts, *attentions]
    for record in tensors:
        if record.sha256 not in states:
            states[record.sha256] = objects.problem(record.sha256)
        problem = states[record.sha256]
        if problem:
            problems.append(Problem(f"{kind_of(record)} {record.ref}", problem, str(objects.path(record.sha256))))
    # from the rows, not the records: a part with a damaged row is still there
    there = {
        f"{kind}:{name}@{version}"
        for kind in KINDS
        for name, version in database.rows(f"SELECT name, version FROM {kind}s")
    }
    given = {(kind, name): version for kind, name, version in database.rows("SELECT kind, name, version FROM names")}
    for composition in compositions:
        problems += [
            Problem(f"composition {composition.ref}", f"its part {part} is not in the registry")
            for part in parents_of(composition)
            if _full(part) not in there
        ]
    for record in tensors:
        problems += [
            Problem(f"{kind_of(record)} {record.ref}", f"its parent {parent} never existed here")
            for parent in record.parents
            if not _existed(parent, given)
        ]
    return problems


def _words_differ(database: Database, table: str) -> bool:
    try:
        ((rows,),) = database.rows(f"SELECT count(*) FROM {table}") or [(0,)]
        ((words,),) = database.rows(
            f"SELECT count(*) FROM {table} JOIN {table}_words ON {table}_words.rowid = {table}.id"
        ) or [(0,)]
        return bool(rows != words) or _index_is_damaged(database, f"{table}_words")
    except RegistryError:
        return True


def _index_is_damaged(database: Database, words: str) -> bool:
    """Asks FTS5 whether its index fits its texts: a statement that writes, so it is not asked on read-only media."""
    if not database.file.exists():
        return False
    try:
        database.require_writable()
    except RegistryError:
        return False
    try:
        with database.transaction():
            database.execute(f"INSERT INTO {words} ({words}) VALUES ('integrity-check')")
    except RegistryError as error:
        return "malformed" in str(error.__cause__)
    return False


def _full(ref: str) -> str:
    try:
        wanted = parse(ref)
    except RegistryError:
        return ref
    return f"{wanted.kind or 'prompt'}:{wanted.ref}"


def _existed(ref: str, given: dict[tuple[str, str], int]) -> bool:
    try:
        wanted = parse(ref)
    except RegistryError:
        return False
    last = given.get((wanted.kind or "prompt", wanted.name))
    return isinstance(last, int) and (wanted.version or 1) <= last


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
