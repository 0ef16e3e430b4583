"""`attempt registry`: finds, adds, removes and checks what was trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import refuse_options
from attempt_cli.cli.output import confirm_removal
from attempt_cli.placement import PLACEMENTS
from attempt_registry.conversion import kind_of
from attempt_registry.errors import RegistryError, did_you_mean
from attempt_registry.records import SORTS, Attention, Composition, Prompt, Run
from attempt_registry.references import KINDS

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_registry import Registry

KIND_OF = {f"{kind}s": kind for kind in KINDS}
RECORD_OF: dict[str, Any] = {"prompts": Prompt, "attentions": Attention, "compositions": Composition, "runs": Run}
COLUMNS = {
    "prompts": ("ref", "kind", "task", "method", "backbone", "length", "placement", "tags", "created"),
    "attentions": ("ref", "level", "rank", "backbone", "parents", "created"),
    "compositions": ("ref", "sources", "attention", "targets", "backbone", "created"),
    "runs": ("id", "command", "inputs", "artefacts", "seed", "duration", "created"),
}
# the filters that each table has
FILTERS = {
    "prompts": {"kind", "task", "backbone", "tag", "method"},
    "attentions": {"backbone"},
    "compositions": {"task", "backbone"},
    "runs": set[str](),
}
ROWS_ON_A_TERMINAL = 100

what_option = click.option(
    "--what", type=click.Choice(list(KIND_OF)), default="prompts", show_default=True, help="What NAME refers to."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would happen.")


@click.group()
def command() -> None:
    """Find, add, remove and check trained prompts.

    The registry holds prompts, attentions, compositions and runs. A name has versions: `rte@2` is the second one,
    `rte` the newest.

    \b
      attempt registry list
      attempt registry show rte
      attempt registry add sst2.safetensors --backbone t5-base --task sst2
    """


@command.command("list")
@click.option("--what", type=click.Choice(list(COLUMNS)), default="prompts", show_default=True, help="What to list.")
@click.option("--kind", type=click.Choice(["source", "target"]), help="Only source or target prompts.")
@click.option("--task", help="Only for this task; compositions: with a target for it.")
@click.option("--backbone", help="Only for this backbone, by name or fingerprint.")
@click.option("--tag", help="Only prompts with this tag.")
@click.option("--method", help="Only from this training method, e.g. attempt or mpt; `imported`: from files.")
@click.option("--sort", type=click.Choice(SORTS), help="Order of prompts.  [default: name]")
@click.option("--reverse", is_flag=True, help="Last first.")
@click.option("--limit", type=click.IntRange(1), help="At most this many rows.")
@click.pass_obj
def list_(
    settings: Settings, /, what: str, sort: str | None, reverse: bool, limit: int | None, **filters: str | None
) -> None:
    """List what is in the registry.

    \b
      attempt registry list
      attempt registry list --kind source --backbone t5-base
      attempt registry list --task rte --sort created --reverse --limit 5
      attempt registry list --what compositions
      attempt --format json registry list | jq '.prompts[].ref'
    """
    given = {name: value for name, value in filters.items() if value is not None}
    wrong = [f"--{name}" for name in given if name not in FILTERS[what]]
    wrong += ["--sort"] if sort and what != "prompts" else []
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)} {'does' if len(wrong) == 1 else 'do'} not go with --what {what}.")
    registry = settings.registry()
    record = RECORD_OF[what]
    on_a_terminal = settings.output.format == "table" and limit is None and sys.stdout.isatty()
    at_most = ROWS_ON_A_TERMINAL if on_a_terminal else limit
    records = registry.each(record, given, sort=sort or "name", reverse=reverse, limit=at_most)
    shown = settings.output.rows(what, map(_row, records), COLUMNS[what], name="id" if what == "runs" else "ref")
    if on_a_terminal and shown >= ROWS_ON_A_TERMINAL:
        count = registry.count(record, given)
        if count > shown:
            settings.output.note(f"{shown} of {count} {what}; --limit {count} shows all, filters show fewer.")
    _note_damaged(settings, registry)
    if not shown:
        for name, value in given.items():
            _note_unknown_value(settings, registry, what, name, value)


def _note_damaged(settings: Settings, registry: Registry) -> None:
    """Says what a list leaves out."""
    if registry.damaged:
        count = f"{len(registry.damaged)} damaged record" + ("s are" if len(registry.damaged) > 1 else " is")
        settings.output.note(f"{count} not shown: `attempt registry verify` says which.")


def _note_unknown_value(settings: Settings, registry: Registry, what: str, name: str, value: str) -> None:
    """Says when no record has a filter's value: a mistyped filter must not look like an empty registry."""
    if what == "compositions" and name == "task":
        what = "prompts"
    known = registry.values(what, "tags" if name == "tag" else name)
    known += registry.values(what, "fingerprint") if name == "backbone" else []
    if known and value not in known:
        settings.output.note(f"Nothing here has the {name} '{value}'. {did_you_mean(value, known)}".strip())


@command.command()
@click.argument("name")
@click.option("--what", type=click.Choice(list(COLUMNS)), help="What NAME refers to.  [default: whatever has the name]")
@click.pass_obj
def show(settings: Settings, name: str, what: str | None) -> None:
    """Show everything about one prompt, attention, composition or run.

    All metadata, its ancestors and children, the runs that made or used it, and the compositions it is part of.

    \b
      attempt registry show rte
      attempt registry show rte@1
      attempt registry show reviews --what compositions
      attempt registry show 17 --what runs
    """
    registry = settings.registry()
    if what == "runs":
        if not name.isdecimal():
            raise click.UsageError(f"A run has a number, not a name such as '{name}'.")
        settings.output.record("run", _row(registry.run(int(name))), name="id")
        return
    if what is None:
        record, *others = registry.find(name)
        for other in map(kind_of, others):
            article = "an" if other[0] in "aeiou" else "a"
            settings.output.note(f"There is also {article} {other} '{name}': --what {other}s shows it.")
    else:
        record = registry.named(name, KIND_OF[what])
    settings.output.record(kind_of(record), _everything(settings, registry, record), name="ref")


def _everything(settings: Settings, registry: Registry, record: Prompt | Attention | Composition) -> dict[str, Any]:
    """Collects a record's fields and what the registry knows of its relatives, long fields last."""
    from attempt_cli.sharing.references import hub_references

    lineage = registry.lineage(record.ref, kind=kind_of(record))
    row = _row(record)
    del row["id"]
    if settings.output.format == "table":
        del row["name"], row["version"]
    if not isinstance(record, Composition):
        row["file"] = str(registry.tensor_path(record))
    long = {key: row.pop(key) for key in ("settings", "numbers") if key in row}
    row["ancestors"] = lineage.parents
    row["removed_ancestors"] = lineage.removed
    row["children"] = lineage.children
    row["compositions"] = [composition.ref for composition in lineage.compositions]
    row["hub"] = hub_references(record.settings, lineage.used_by)
    row["made_by_runs"] = _run_summaries(settings, lineage.made_by)
    row["used_by_runs"] = _run_summaries(settings, lineage.used_by)
    return row | long


def _run_summaries(settings: Settings, runs: Sequence[Run]) -> list[Any]:
    """Lists every run in JSON, one line per command in a table: a grid has hundreds of runs."""
    if settings.output.format == "json":
        return [{"id": run.id, "command": run.command, "created": run.created} for run in runs]
    by_command: dict[str, list[Run]] = {}
    for run in runs:
        by_command.setdefault(run.command, []).append(run)
    return [
        f"{of[0].id} ({command}, {of[0].created})"
        if len(of) == 1
        else f"{len(of)} from {of[0].id} to {of[-1].id} ({command}, {of[0].created} to {of[-1].created})"
        for command, of in by_command.items()
    ]


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--starter", is_flag=True, help="Instead of FILE: the source prompts that come with the package.")
@click.option("--backbone", help="The backbone it was trained for, by name or fingerprint.")
@click.option("--task", help="The task it was trained for.")
@click.option("--name", help="Its name in the registry.  [default: the task's]")
@click.option(
    "--kind",
    type=click.Choice(["source", "target"]),
    default="source",
    show_default=True,
    help="A source to mix from, or the prompt of a target task.",
)
@click.option("--tensor", help="The tensor to take from a safetensors file with several.")
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="The prompt that enters the model is the tensor times this; 1 for raw embeddings.",
)
@click.option(
    "--placement",
    type=click.Choice(PLACEMENTS),
    default="before",
    show_default=True,
    help="Its place in training: before the input (the paper) or after it.",
)
@click.option("--note", default="", help="A remark to keep with it.")
@click.option("--tag", "tags", multiple=True, help="A tag; may be repeated.")
@click.pass_obj
def add(settings: Settings, /, file: Path | None, starter: bool, **fields: Any) -> None:
    """Add a soft prompt from a .safetensors or .npy file, or the starter sources.

    FILE holds a matrix with one row per prompt token, as wide as the backbone's embeddings. 16-bit and 64-bit floats
    are converted to 32-bit ones. Pickles (.pt, .bin) are refused, because opening one can run a program hidden in it;
    the error says how to convert them.

    The starter sources are prompts for SmolLM2-135M, trained on public tasks: `train-target --sources all` transfers
    from them at once. They are named after their tasks, with `starter-` in front.

    \b
      attempt registry add --starter
      attempt registry add sst2.safetensors --backbone t5-base --task sst2
      attempt registry add adapter_model.safetensors --tensor prompt_embeddings --backbone t5-base --task rte
      attempt registry add prompt.npy --backbone smollm2-135m --task mine --name mine-v1 --tag trial --note "lr 0.1"
    """
    context = click.get_current_context()
    if starter:
        refuse_options(context, ("file", *(field for field in fields if field != "backbone")), "with --starter")
        return _add_starters(settings, fields["backbone"])
    for name, value in (("--backbone", fields["backbone"]), ("--task", fields["task"]), ("FILE", file)):
        if value is None:
            raise click.UsageError(f"{name} is missing; or add the starter sources with --starter")
    assert file is not None
    registry = settings.registry()
    prompt = registry.import_prompt(file, **fields)
    row = _row(prompt) | {"file": str(registry.tensor_path(prompt))}
    if settings.output.format != "json":
        columns = (
            *("ref", "kind", "task", "backbone", "length", "width", "embedding_scale", "placement", "tags"),
            *("note", "file"),
        )
        row = {key: row[key] for key in columns}
    settings.output.record("prompt", row, name="ref")


def _add_starters(settings: Settings, backbone: str | None) -> None:
    from attempt_cli.api.exchange import add_starters
    from attempt_cli.cli.options import BackboneOptions

    added = add_starters(session=settings.session(BackboneOptions(backbone, None, None)))
    rows = [_row(prompt) for prompt in added.prompts]
    settings.output.rows("starters", rows, ("ref", "kind", "task", "backbone", "length", "placement"), name="ref")
    settings.output.note("Next: `attempt train-target --train-file ROWS.csv … --sources all --backbone smollm2-135m`")


@command.command()
@click.argument("name")
@what_option
@click.option("--force", is_flag=True, help="Even when a composition uses it, which then no longer loads.")
@yes_option
@dry_run_option
@click.pass_obj
def remove(settings: Settings, name: str, what: str, force: bool, yes: bool, dry_run: bool) -> None:
    """Remove one version of a prompt, attention or composition.

    Without @VERSION it is the newest. The number of a removed version is never reused. Its file stays until
    `attempt registry gc`.

    \b
      attempt registry remove rte@1
      attempt registry remove rte --dry-run
      attempt registry remove reviews --what compositions --yes
    """
    registry = settings.registry()
    plan = registry.remove(name, kind=KIND_OF[what], force=force, dry_run=True)
    if not dry_run:
        consequences = {
            "These compositions will no longer load": plan.compositions,
            "Its children stay": plan.children,
            "Other versions stay": plan.other_versions,
        }
        notes = [f"{text}: {', '.join(refs)}." for text, refs in consequences.items() if refs]
        if not yes and not confirm_removal(f"Remove {plan.kind} {plan.ref}?", notes):
            return
        # the version that was shown, even if a newer one was added meanwhile
        plan = registry.remove(plan.ref, kind=plan.kind, force=force)
    settings.output.record("removal", vars(plan), name="ref")


@command.command()
@click.argument("text", nargs=-1, required=True)
@click.pass_obj
def search(settings: Settings, text: tuple[str, ...]) -> None:
    """Find prompts, attentions and compositions by words.

    Every word must occur in the name, task, note, tags, method or backbone; case does not matter.

    \b
      attempt registry search sentiment
      attempt registry search t5-base trial
    """
    registry = settings.registry()
    rows = [{"what": kind_of(record), **_row(record)} for record in registry.search(" ".join(text))]
    settings.output.rows("matches", rows, ("what", "ref", "task", "backbone", "tags", "note"), name="ref")
    _note_damaged(settings, registry)


@command.command()
@click.argument("name")
@click.option("--add", "added", multiple=True, metavar="TAG", help="A tag to add; may be repeated.")
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="A tag to remove; may be repeated.")
@click.pass_obj
def tag(settings: Settings, name: str, added: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Add tags to a prompt or remove them.

    \b
      attempt registry tag rte --add paper --add best
      attempt registry tag rte@1 --remove best
    """
    if not added and not removed:
        raise click.UsageError("Name a tag with --add TAG or --remove TAG.")
    prompt = settings.registry().tag(name, add=added, remove=removed)
    settings.output.record("prompt", {"ref": prompt.ref, "tags": prompt.tags}, name="ref")


@command.command()
@click.option("--repair", is_flag=True, help="First make again what follows from the rows: search words, references.")
@click.pass_obj
def verify(settings: Settings, repair: bool) -> None:
    """Check that every file is present and intact, and that every reference resolves.

    Exits with 1 when anything is wrong.

    \b
      attempt registry verify
      attempt registry verify --repair
    """
    registry = settings.registry()
    if repair:
        registry.repair()
        settings.output.note("Search words and references are made again from the rows.")
    problems = registry.verify()
    settings.output.rows("problems", [vars(problem) for problem in problems], ("what", "problem", "file"), name="what")
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        words = any(problem.what == "search" for problem in problems)
        mend = "`attempt registry verify --repair` makes the words again. " if words else ""
        raise RegistryError(
            f"{count} in the registry", f"{mend}Restore copies of the files, or remove the broken records."
        )


@command.command()
@click.option(
    "--grace",
    type=click.IntRange(0),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="Keep files newer than this: a training may be about to record them.",
)
@yes_option
@dry_run_option
@click.pass_obj
def gc(settings: Settings, grace: int, yes: bool, dry_run: bool) -> None:
    """Remove the files that nothing in the registry refers to.

    Such files remain after `remove`, or when a program is killed while it adds something.

    \b
      attempt registry gc --dry-run
      attempt registry gc --yes
    """
    registry = settings.registry()
    found = registry.gc(dry_run=True, grace=grace)
    if found.files and not dry_run:
        count = f"{len(found.files)} file" + ("s" if len(found.files) > 1 else "")
        if not yes and not confirm_removal(f"Remove {count}, {found.bytes} bytes?"):
            return
        found = registry.gc(grace=grace)
    row: dict[str, Any] = {**vars(found), "removed": found.removed and bool(found.files)}
    if settings.output.format != "json":
        row["files"] = len(found.files)
    settings.output.record("garbage", row, name="bytes")


@command.command()
@click.pass_obj
def path(settings: Settings) -> None:
    """Print the registry's folder.

    It is --registry, else $ATTEMPT_REGISTRY, else the user's data folder.

    \b
      attempt registry path
      du -sh "$(attempt registry path)"
    """
    folder = str(settings.registry().folder)
    if settings.output.format == "json":
        settings.output.json({"registry": {"path": folder}})
    else:
        click.echo(folder)


def _row(record: Prompt | Attention | Composition | Run) -> dict[str, Any]:
    return dict(vars(record)) if isinstance(record, Run) else {"ref": record.ref, **vars(record)}
