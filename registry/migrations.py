"""Defines the tables as migrations: opening an old database brings it up to date step by step."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from attempt_registry.database import MIGRATION_SET

migrations = Migrations(MIGRATION_SET)

_NAMED = {"name": str, "version": int}
_BOUND = {"backbone": str, "fingerprint": str}


@migrations(name="0001_first_tables")
def first_tables(db: Database) -> None:
    """Creates backbones, prompts, attentions, compositions, runs, and the last version given to each name."""
    db.table("backbones").create(
        {
            "name": str,
            "fingerprint": str,
            "architecture": str,
            "width": int,
            "embedding_rms": float,
            "parameters": int,
            "source": str,
            "created": str,
        },
        pk=("name", "fingerprint"),
    )
    # A version is never reused: a reference to a removed prompt must not come to mean another one.
    db.table("names").create({"kind": str, "name": str, "version": int}, pk=("kind", "name"))
    db.table("prompts").create(
        {
            "id": int,
            **_NAMED,
            "kind": str,
            "method": str,
            **_BOUND,
            "task": str,
            "task_version": int,
            "length": int,
            "width": int,
            "dtype": str,
            "embedding_scale": float,
            "sha256": str,
            "settings": str,
            "numbers": str,
            "seed": int,
            "created": str,
            "note": str,
            "tags": str,
            "parents": str,
        },
        pk="id",
        not_null={"name", "version", "kind", "backbone", "fingerprint", "task", "sha256", "tags", "parents"},
    ).create_index(["name", "version"], unique=True).create_index(["task"])
    db.table("attentions").create(
        {
            "id": int,
            **_NAMED,
            **_BOUND,
            "rank": int,
            "level": str,
            "temperature": float,
            "width": int,
            "sha256": str,
            "settings": str,
            "seed": int,
            "created": str,
            "note": str,
            "parents": str,
        },
        pk="id",
        not_null={"name", "version", "backbone", "fingerprint", "sha256", "parents"},
    ).create_index(["name", "version"], unique=True)
    db.table("compositions").create(
        {
            "id": int,
            **_NAMED,
            **_BOUND,
            "sources": str,
            "attention": str,
            "targets": str,
            "settings": str,
            "created": str,
            "note": str,
        },
        pk="id",
        not_null={"name", "version", "backbone", "fingerprint", "sources", "targets"},
    ).create_index(["name", "version"], unique=True)
    db.table("runs").create(
        {
            "id": int,
            "command": str,
            "settings": str,
            "rows": str,
            "seed": int,
            "budget": str,
            "numbers": str,
            "versions": str,
            "duration": float,
            "created": str,
            "artefacts": str,
            "inputs": str,
        },
        pk="id",
        not_null={"command", "artefacts", "inputs"},
    )


@migrations(name="0002_placement")
def placement(db: Database) -> None:
    """Adds the placement of prompts; all earlier prompts stand before the input."""
    for table in ("prompts", "attentions", "compositions"):
        db.table(table).add_column("placement", str, not_null_default="before")
