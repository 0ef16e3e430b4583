"""Defines the tables as migrations: opening an old database brings it up to date step by step."""

from __future__ import annotations

from collections.abc import Callable

from sqlite_utils import Database, Migrations

migrations = Migrations("registry")  # `database.MIGRATION_SET`

_NAMED = "id INTEGER PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL"
_BOUND = "backbone TEXT NOT NULL, fingerprint TEXT NOT NULL"
_TABLES = {
    "backbones": """
        name TEXT, fingerprint TEXT, architecture TEXT, width INTEGER, embedding_rms REAL, parameters INTEGER,
        source TEXT, created TEXT, PRIMARY KEY (name, fingerprint)
    """,
    # a version is never reused: a reference to a removed prompt must not come to mean another one
    "names": "kind TEXT, name TEXT, version INTEGER, PRIMARY KEY (kind, name)",
    "prompts": f"""
        {_NAMED}, kind TEXT NOT NULL, method TEXT, {_BOUND}, task TEXT NOT NULL, task_version INTEGER,
        length INTEGER, width INTEGER, dtype TEXT, embedding_scale REAL, sha256 TEXT NOT NULL,
        settings TEXT, numbers TEXT, seed INTEGER, created TEXT, note TEXT, tags TEXT NOT NULL, parents TEXT NOT NULL
    """,
    "attentions": f"""
        {_NAMED}, {_BOUND}, rank INTEGER, level TEXT, temperature REAL, width INTEGER, sha256 TEXT NOT NULL,
        settings TEXT, seed INTEGER, created TEXT, note TEXT, parents TEXT NOT NULL
    """,
    "compositions": f"""
        {_NAMED}, {_BOUND}, sources TEXT NOT NULL, attention TEXT, targets TEXT NOT NULL,
        settings TEXT, created TEXT, note TEXT
    """,
    "runs": """
        id INTEGER PRIMARY KEY, command TEXT NOT NULL, settings TEXT, rows TEXT, seed INTEGER, budget TEXT,
        numbers TEXT, versions TEXT, duration REAL, created TEXT, artefacts TEXT NOT NULL, inputs TEXT NOT NULL
    """,
}


@migrations(name="0001_first_tables")
def first_tables(db: Database) -> None:
    """Creates backbones, prompts, attentions, compositions, runs, and the last version given to each name."""
    for table, columns in _TABLES.items():
        db.execute(f"CREATE TABLE {table} ({columns})")
    for table in ("prompts", "attentions", "compositions"):
        db.table(table).create_index(["name", "version"], unique=True)
    db.table("prompts").create_index(["task"])


@migrations(name="0002_placement")
def placement(db: Database) -> None:
    """Adds the placement of prompts; all earlier prompts stand before the input."""
    for table in ("prompts", "attentions", "compositions"):
        db.table(table).add_column("placement", str, not_null_default="before")


# the columns that `search` looks into
_SEARCHED = {
    "prompts": ("name", "version", "task", "note", "tags", "backbone", "method", "kind"),
    "attentions": ("name", "version", "note", "backbone", "level"),
    "compositions": ("name", "version", "note", "backbone", "sources", "targets"),
}
# the columns that name other records, and what they name them as
_LINKS = {
    "prompts": {"parents": "parent"},
    "attentions": {"parents": "parent"},
    "compositions": {"sources": "source", "targets": "target", "attention": "attention"},
    "runs": {"inputs": "input", "artefacts": "artefact"},
}
# Characters that become several when case is ignored, as Python's casefold does; FTS5 folds one to one only.
_FOLDED = {"ß": "ss", "ẞ": "ss", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}


@migrations(name="0003_links_and_words")
def links_and_words(db: Database) -> None:
    """Adds what makes large registries fast: references by what they refer to, words for search, hashes for gc.

    Triggers keep both tables current. They use SQLite's own functions only, so that any program may write.
    """
    for table in ("prompts", "attentions"):
        db.table(table).create_index(["sha256"])
    db.table("prompts").create_index(["created"])
    db.execute(
        "CREATE TABLE links (ref TEXT, kind TEXT, id INTEGER, role TEXT, PRIMARY KEY (ref, kind, id, role)) "
        "WITHOUT ROWID"
    )
    db.execute("CREATE INDEX links_of ON links (kind, id)")
    fill_links_and_words(db.execute)


def fill_links_and_words(execute: Callable[[str], object]) -> None:
    """Makes references and words from the rows, and the triggers that keep them, whatever there was before.

    Args:
        execute: runs one statement, in a transaction that writes.
    """
    execute("DELETE FROM links")
    for table, roles in _LINKS.items():
        kind = table.removesuffix("s")
        forget = f"DELETE FROM links WHERE kind = '{kind}' AND id = old.id"
        inserts = [f"INSERT OR IGNORE INTO links {_links(kind, 'new', *role)}" for role in roles.items()]
        _trigger(execute, f"{table}_linked", f"INSERT ON {table}", *inserts)
        _trigger(execute, f"{table}_linked_again", f"UPDATE OF {', '.join(roles)} ON {table}", forget, *inserts)
        _trigger(execute, f"{table}_unlinked", f"DELETE ON {table}", forget)
        for role in roles.items():
            execute(f"INSERT OR IGNORE INTO links {_links(kind, table, *role, table=table)}")
    for table, columns in _SEARCHED.items():
        words = f"{table}_words"
        execute(f"DROP TABLE IF EXISTS {words}")
        execute(f"CREATE VIRTUAL TABLE {words} USING fts5(text, tokenize = 'trigram')")
        new = f"INSERT INTO {words} (rowid, text) VALUES (new.id, {_words('new', columns)})"
        forget = f"DELETE FROM {words} WHERE rowid = old.id"
        _trigger(execute, f"{words}_added", f"INSERT ON {table}", new)
        _trigger(execute, f"{words}_changed", f"UPDATE OF {', '.join(columns)} ON {table}", forget, new)
        _trigger(execute, f"{words}_removed", f"DELETE ON {table}", forget)
        execute(f"INSERT INTO {words} (rowid, text) SELECT id, {_words(table, columns)} FROM {table}")


def _trigger(execute: Callable[[str], object], name: str, event: str, *statements: str) -> None:
    execute(f"DROP TRIGGER IF EXISTS {name}")
    execute(f"CREATE TRIGGER {name} AFTER {event} BEGIN {'; '.join(statements)}; END")


def _links(kind: str, row: str, column: str, role: str, table: str = "") -> str:
    """Selects the rows of `links` that a column stands for: full references, with their kinds."""
    cell = f"{row}.{column}"
    if role == "attention":
        source = f"FROM {table} WHERE" if table else "WHERE"
        return f"SELECT 'attention:' || {cell}, '{kind}', {row}.id, '{role}' {source} {cell} IS NOT NULL"
    # a damaged cell refers to nothing; `verify` names it
    each = f"json_each(CASE WHEN json_valid({cell}) THEN {cell} ELSE '[]' END)"
    return (
        "SELECT CASE WHEN instr(value, ':') THEN value ELSE 'prompt:' || value END, "
        f"'{kind}', {row}.id, '{role}' FROM {f'{table}, ' if table else ''}{each} WHERE type = 'text'"
    )


def _words(row: str, columns: tuple[str, ...]) -> str:
    text = " || char(10) || ".join(f"coalesce({row}.{column}, '')" for column in columns)
    for character, folded in _FOLDED.items():
        text = f"replace({text}, '{character}', '{folded}')"
    return text
