"""Follows parents and children, and searches by words."""

from __future__ import annotations

from attempt_registry.conversion import RECORDS, TABLES, columns, records
from attempt_registry.find import Finder
from attempt_registry.records import Attention, Composition, Lineage, Prompt
from attempt_registry.references import parse

_SEARCHED = {
    "prompt": ("name", "version", "task", "note", "tags", "backbone", "method", "kind"),
    "attention": ("name", "version", "note", "backbone", "level"),
    "composition": ("name", "version", "note", "backbone", "sources", "targets"),
}


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
    for kind, prefix in (("prompt", ""), ("attention", "attention:")):
        query = (
            f"SELECT name, version FROM {kind}s WHERE EXISTS (SELECT 1 FROM json_each(parents) WHERE value = ?) "
            "ORDER BY name, version"
        )
        found += [f"{prefix}{name}@{version}" for name, version in registry._database.rows(query, (stored,))]
    return tuple(found)


def _ancestors(registry: Finder, record: Prompt | Attention | Composition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists all ancestors, nearest first, and those of them that were removed."""
    seen: dict[str, None] = {}
    removed = []
    waiting = list(_parents(record))
    while waiting:
        ref = waiting.pop(0)
        if ref in seen:
            continue
        seen[ref] = None
        wanted = parse(ref)
        kind = wanted.kind or "prompt"
        if wanted.version in registry.versions(wanted.name, kind=kind):
            waiting += _parents(registry.named(ref, kind))
        else:
            removed.append(ref)
    return tuple(seen), tuple(removed)


def _parents(record: Prompt | Attention | Composition) -> tuple[str, ...]:
    if isinstance(record, Composition):
        mixer = (f"attention:{record.attention}",) if record.attention else ()
        return (*record.sources, *mixer, *record.targets)
    return record.parents


def search(registry: Finder, text: str) -> list[Prompt | Attention | Composition]:
    """Searches; see `Registry.search`."""
    words = text.casefold().split()
    if not words:
        return []
    found: list[Prompt | Attention | Composition] = []
    for kind, searched in _SEARCHED.items():
        record = RECORDS[kind]
        # SQLite folds only ASCII, so the words are compared here
        text_of = " || char(10) || ".join(f"coalesce({column}, '')" for column in searched)
        rows = registry._database.rows(f"SELECT id, {text_of} FROM {TABLES[record]}")
        ids = [id for id, content in rows if all(word in content.casefold() for word in words)]
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            marks = ", ".join("?" * len(some))
            query = f"SELECT {columns(record)} FROM {TABLES[record]} WHERE id IN ({marks}) ORDER BY name, version"
            found += records(record, registry._database.rows(query, some))
    return found
