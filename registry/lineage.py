"""Follows parents and children, and searches by words."""

from __future__ import annotations

import json

from attempt_registry.conversion import RECORDS, TABLES, columns
from attempt_registry.find import Finder
from attempt_registry.records import Attention, Composition, Lineage, Prompt
from attempt_registry.references import parse


def lineage(registry: Finder, ref: str, *, kind: str) -> Lineage:
    """Collects; see `Registry.lineage`."""
    record = registry.named(ref, kind)
    parents, removed = _ancestors(registry, record)
    stored = record.ref if kind == "prompt" else f"{kind}:{record.ref}"
    full = f"{kind}:{record.ref}"
    runs = registry.runs(uses=full)
    return Lineage(
        ref=record.ref,
        parents=parents,
        removed=removed,
        children=children(registry, stored),
        made_by=tuple(run for run in runs if full in run.artefacts),
        used_by=tuple(run for run in runs if full in run.inputs),
        compositions=() if kind == "composition" else tuple(registry.compositions(uses=full)),
    )


def children(registry: Finder, stored: str) -> tuple[str, ...]:
    """Lists the full names of the children of `stored` ("rte@1", "attention:glue@1"); attentions with their kind."""
    found = []
    full = stored if ":" in stored else f"prompt:{stored}"
    for kind, prefix in (("prompt", ""), ("attention", "attention:")):
        query = (
            f"SELECT name, version FROM {kind}s WHERE id IN "
            "(SELECT id FROM links WHERE ref = ? AND kind = ? AND role = 'parent') ORDER BY name, version"
        )
        found += [f"{prefix}{name}@{version}" for name, version in registry._database.rows(query, (full, kind))]
    return tuple(found)


def users(registry: Finder, full: str) -> tuple[str, ...]:
    """Lists the full names of the compositions with a part such as "prompt:rte@1"."""
    query = (
        "SELECT name, version FROM compositions WHERE id IN "
        "(SELECT id FROM links WHERE ref = ? AND kind = 'composition') ORDER BY name, version"
    )
    return tuple(f"{name}@{version}" for name, version in registry._database.rows(query, (full,)))


def _ancestors(registry: Finder, record: Prompt | Attention | Composition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists all ancestors, nearest first, and those of them that were removed."""
    seen: dict[str, None] = {}
    removed = []
    waiting = list(parents_of(record))
    while waiting:
        ref = waiting.pop(0)
        if ref in seen:
            continue
        seen[ref] = None
        wanted = parse(ref)
        kind = wanted.kind or "prompt"
        rows = registry._rows(kind, wanted.name, wanted.version)
        if not rows:
            removed.append(ref)
        for parent in registry._records(RECORDS[kind], rows):
            waiting += parents_of(parent)
    return tuple(seen), tuple(removed)


def parents_of(record: Prompt | Attention | Composition) -> tuple[str, ...]:
    """Returns the names of what a record was made from: parents, or the parts of a composition."""
    if isinstance(record, Composition):
        mixer = (f"attention:{record.attention}",) if record.attention else ()
        return (*record.sources, *mixer, *record.targets)
    return record.parents


def search(registry: Finder, text: str) -> list[Prompt | Attention | Composition]:
    """Searches; see `Registry.search`."""
    words = text.casefold().split()
    if not words:
        return []
    # FTS5 finds three characters and more, by trigrams; what is shorter is looked for in what it finds
    long = " AND ".join(_phrase(word) for word in text.split() if len(word.casefold()) >= 3)
    short = [word for word in words if len(word) < 3]
    found: list[Prompt | Attention | Composition] = []
    for record in RECORDS.values():
        table = TABLES[record]
        chosen, values = f"SELECT rowid FROM {table}_words WHERE text MATCH ?", [long]
        if short:
            query = f"SELECT rowid, text FROM {table}_words" + (" WHERE text MATCH ?" if long else "")
            rows = registry._database.each_row(query, [long] if long else [])
            ids = [
                id
                for id, content in rows
                if isinstance(content, str) and all(word in content.casefold() for word in short)
            ]
            chosen, values = "SELECT value FROM json_each(?)", [json.dumps(ids)]
        query = f"SELECT {columns(record)} FROM {table} WHERE id IN ({chosen}) ORDER BY name, version"
        found += registry._records(record, registry._database.rows(query, values))
    return found


def _phrase(word: str) -> str:
    # FTS5 ignores case in most scripts, Python in all: what is typed as it is kept is found in any script
    forms = dict.fromkeys(form.replace('"', '""') for form in (word.casefold(), word))
    return "(" + " OR ".join(f'"{form}"' for form in forms) + ")"
