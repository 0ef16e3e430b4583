"""`attempt registry`: what has been trained, where it came from, and keeping it in order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.errors import AttemptError
from attempt_cli.placement import PLACEMENTS
from attempt_registry.errors import RegistryError, nearest_names, unknown_name_text

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_registry import Attention, Composition, Prompt, Registry, Run

KIND_OF = {"prompts": "prompt", "attentions": "attention", "compositions": "composition"}
COLUMNS = {
    "prompts": ("ref", "kind", "task", "method", "backbone", "length", "placement", "tags", "created"),
    "attentions": ("ref", "level", "rank", "backbone", "parents", "created"),
    "compositions": ("ref", "sources", "attention", "targets", "backbone", "created"),
    "runs": ("id", "command", "inputs", "artefacts", "seed", "duration", "created"),
}
# which filters make sense for which table
FILTERS = {
    "prompts": {"kind", "task", "backbone", "tag", "method"},
    "attentions": {"backbone"},
    "compositions": {"task", "backbone"},
    "runs": set[str](),
}
SORTS = ("name", "created", "task", "kind", "method", "backbone", "length", "width", "seed")
ROWS_ON_A_TERMINAL = 100
LISTS = {"tags", "parents", "sources", "targets", "artefacts", "inputs"}

what_option = click.option(
    "--what", type=click.Choice(list(KIND_OF)), default="prompts", show_default=True, help="What NAME names."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would happen.")


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
@click.option("--task", help="Only of this task; compositions: with a target for it.")
@click.option("--backbone", help="Only of this backbone, by name or fingerprint.")
@click.option("--tag", help="Only prompts with this tag.")
@click.option("--method", help="Only trained this way: prompt-tuning, spot, attempt, imported.")
@click.option("--sort", type=click.Choice(SORTS), help="Order of prompts.  [default: name]")
@click.option("--reverse", is_flag=True, help="Last first.")
@click.option("--limit", type=click.IntRange(1), help="At most so many rows.")
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
    order: dict[str, Any] = {"reverse": reverse, "limit": limit, **({"sort": sort} if sort else {})}
    records = getattr(registry, what)(**given, **order)
    rows = [_row(record) for record in records]
    shown = rows
    if settings.output.format == "table" and limit is None and sys.stdout.isatty():
        shown = rows[:ROWS_ON_A_TERMINAL]
    settings.output.rows(what, shown, COLUMNS[what], name="id" if what == "runs" else "ref")
    if len(shown) < len(rows):
        settings.output.note(f"{len(shown)} of {len(rows)} {what}; --limit {len(rows)} shows all, filters show fewer.")
    if not rows:
        for name, value in given.items():
            _note_unknown_value(settings, registry, what, name, value)


def _note_unknown_value(settings: Settings, registry: Registry, what: str, name: str, value: str) -> None:
    """A mistyped filter must not look like an empty registry."""
    if what == "compositions" and name == "task":
        what = "prompts"
    known: set[str] = set()
    for record in getattr(registry, what)():
        known.update(record.tags if name == "tag" else [getattr(record, name)])
        known.update([record.fingerprint] if name == "backbone" else [])
    if known and value not in known:
        near = nearest_names(value, known)
        did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
        settings.output.note(f"Nothing here has the {name} '{value}'.{did_you_mean}")


@command.command()
@click.argument("name")
@click.option("--what", type=click.Choice(list(COLUMNS)), help="What NAME names.  [default: whatever there is]")
@click.pass_obj
def show(settings: Settings, name: str, what: str | None) -> None:
    """Show everything about one prompt, attention, composition or run.

    All metadata, where it came from, what grew from it, the runs that made or used it, the compositions it is part of.

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
    if what is not None:
        kind = KIND_OF[what]
    else:
        kind, *others = _kinds(registry, name)
        for other in others:
            settings.output.note(f"There is also {_a(other)} '{name}': --what {other}s shows it.")
    settings.output.record(kind, _everything(settings, registry, name, kind), name="ref")


def _kinds(registry: Registry, name: str) -> list[str]:
    """The kinds of record that have this name, at least one."""
    kinds = registry.kinds_of(name)
    if kinds:
        return kinds
    for kind in registry.kinds_of(name.partition("@")[0]):
        registry.named(name, kind)  # tells which versions there are
    known = {known for kind in KIND_OF.values() for known in registry.names(kind=kind)}
    raise RegistryError(
        *unknown_name_text("prompt, attention or composition", name.partition("@")[0], known, "attempt registry list")
    )


def _everything(settings: Settings, registry: Registry, name: str, kind: str) -> dict[str, Any]:
    from attempt_registry import Composition

    record = registry.named(name, kind)
    lineage = registry.lineage(f"{kind}:{record.ref}", kind=kind)
    row = _row(record)
    row.pop("id")
    if settings.output.format == "table":
        del row["name"], row["version"]
    if not isinstance(record, Composition):
        row["file"] = str(registry.tensor_path(record))
    # dicts last: they take many lines
    long = {key: row.pop(key) for key in ("settings", "numbers") if key in row}
    row["ancestors"] = list(lineage.parents)
    row["removed_ancestors"] = list(lineage.removed)
    row["children"] = list(lineage.children)
    row["compositions"] = [composition.ref for composition in lineage.compositions]
    row["made_by_runs"] = _run_summaries(settings, lineage.made_by)
    row["used_by_runs"] = _run_summaries(settings, lineage.used_by)
    return row | long


def _run_summaries(settings: Settings, runs: Sequence[Run]) -> list[Any]:
    """Runs for JSON each by itself, for the eye those of one command together: a grid has hundreds."""
    if settings.output.format == "json":
        return [{"id": run.id, "command": run.command, "created": run.created} for run in runs]
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.command, []).append(run)
    summaries = []
    for command, alike in together.items():
        first, last = alike[0], alike[-1]
        if first is last:
            summaries.append(f"{first.id} ({command}, {first.created})")
        else:
            ids = f"{len(alike)} from {first.id} to {last.id}"
            summaries.append(f"{ids} ({command}, {first.created} to {last.created})")
    return summaries


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--backbone", required=True, help="The backbone it was trained for, by name or fingerprint.")
@click.option("--task", required=True, help="The task it was trained for.")
@click.option("--name", help="Its name in the registry.  [default: the task's]")
@click.option(
    "--kind",
    type=click.Choice(["source", "target"]),
    default="source",
    show_default=True,
    help="A source to mix from, or the prompt of a target task.",
)
@click.option("--tensor", help="Which tensor of a safetensors file with several.")
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
    help="Where it was trained to stand: before the input (the paper), or after it.",
)
@click.option("--note", default="", help="A remark to keep with it.")
@click.option("--tag", "tags", multiple=True, help="A tag; may be given several times.")
@click.pass_obj
def add(
    settings: Settings,
    file: Path,
    backbone: str,
    task: str,
    name: str | None,
    kind: str,
    tensor: str | None,
    scale: float,
    placement: str,
    note: str,
    tags: tuple[str, ...],
) -> None:
    """Add a soft prompt from a .safetensors or .npy file.

    FILE holds a matrix of one row per prompt token, as wide as the backbone's embeddings. 16 and 64-bit floats become
    32-bit ones. Pickles (.pt, .bin) are refused, because opening one can run a program hidden in it; the error says how
    to convert them.

    \b
      attempt registry add sst2.safetensors --backbone t5-base --task sst2
      attempt registry add adapter_model.safetensors --tensor prompt_embeddings --backbone t5-base --task rte
      attempt registry add prompt.npy --backbone smollm2-135m --task mine --name mine-v1 --tag trial --note "lr 0.1"
    """
    registry = settings.registry()
    known = registry.backbone(backbone)

    from attempt_registry.files import read_tensor

    matrix = read_tensor(file, tensor)
    if matrix.ndim == 2 and matrix.shape[1] != known.width:
        turned = matrix.shape[0] == known.width
        raise RegistryError(
            f"{file} has width {matrix.shape[1]}, but the embeddings of {known.name} have width {known.width}",
            "Its height fits: save the transposed matrix, one row per prompt token."
            if turned
            else "Name the backbone that it was trained for with --backbone.",
        )
    prompt = registry.add_prompt(
        matrix,
        name=name or task,
        kind=kind,
        method="imported",
        backbone=known.name,
        fingerprint=known.fingerprint,
        task=task,
        task_version=None,
        embedding_scale=scale,
        settings={"file": file.name, "tensor": tensor} if tensor else {"file": file.name},
        numbers={},
        seed=None,
        placement=placement,
        note=note,
        tags=tags,
    )
    row = _row(prompt) | {"file": str(registry.tensor_path(prompt))}
    if settings.output.format != "json":
        columns = (
            *("ref", "kind", "task", "backbone", "length", "width", "embedding_scale", "placement", "tags"),
            *("note", "file"),
        )
        row = {key: row[key] for key in columns}
    settings.output.record("prompt", row, name="ref")


@command.command()
@click.argument("name")
@what_option
@click.option("--force", is_flag=True, help="Also when a composition uses it; the composition then cannot be loaded.")
@yes_option
@dry_run_option
@click.pass_obj
def remove(settings: Settings, name: str, what: str, force: bool, yes: bool, dry_run: bool) -> None:
    """Remove one version of a prompt, attention or composition.

    Without @VERSION it is the newest. The number of a removed version is not given again. Its file stays until
    `attempt registry gc`.

    \b
      attempt registry remove rte@1
      attempt registry remove rte --dry-run
      attempt registry remove reviews --what compositions --yes
    """
    registry = settings.registry()
    plan = registry.remove(name, kind=KIND_OF[what], force=force, dry_run=True)
    if not dry_run:
        notes = []
        if plan.compositions:
            notes.append(f"These compositions will not load any more: {', '.join(plan.compositions)}.")
        if plan.children:
            notes.append(f"Its children stay: {', '.join(plan.children)}.")
        if plan.other_versions:
            notes.append(f"Other versions stay: {', '.join(plan.other_versions)}.")
        if not _agreed(settings, f"Remove {plan.kind} {plan.ref}?", notes, yes):
            return
        # the version that was shown, even if a newer one has come meanwhile
        plan = registry.remove(plan.ref, kind=plan.kind, force=force)
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(plan).items()}
    settings.output.record("removal", row, name="ref")


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
    from attempt_registry.rows import KIND_OF as KIND_OF_RECORD

    rows = [
        {"what": KIND_OF_RECORD[type(record)], **_row(record)} for record in settings.registry().search(" ".join(text))
    ]
    settings.output.rows("matches", rows, ("what", "ref", "task", "backbone", "tags", "note"), name="ref")


@command.command()
@click.argument("name")
@click.option("--add", "added", multiple=True, metavar="TAG", help="A tag to add; may be given several times.")
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="A tag to take away; likewise.")
@click.pass_obj
def tag(settings: Settings, name: str, added: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Add tags to a prompt, or take them away.

    \b
      attempt registry tag rte --add paper --add best
      attempt registry tag rte@1 --remove best
    """
    if not added and not removed:
        raise click.UsageError("Say which tag with --add TAG or --remove TAG.")
    prompt = settings.registry().tag(name, add=added, remove=removed)
    settings.output.record("prompt", {"ref": prompt.ref, "tags": list(prompt.tags)}, name="ref")


@command.command()
@click.pass_obj
def verify(settings: Settings) -> None:
    """Check that every file is there and whole, and that every reference resolves.

    Exits with 1 when anything is wrong.

    \b
      attempt registry verify
    """
    problems = settings.registry().verify()
    settings.output.rows("problems", [vars(problem) for problem in problems], ("what", "problem", "file"), name="what")
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise RegistryError(f"{count} in the registry", "Put back copies of the files, or remove what is broken.")


@command.command()
@click.option(
    "--grace",
    type=click.IntRange(0),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="Leave newer files alone: a training may be about to record them.",
)
@yes_option
@dry_run_option
@click.pass_obj
def gc(settings: Settings, grace: int, yes: bool, dry_run: bool) -> None:
    """Remove the files that nothing in the registry refers to.

    They stay behind after `remove`, or when a program was killed while it added something.

    \b
      attempt registry gc --dry-run
      attempt registry gc --yes
    """
    registry = settings.registry()
    found = registry.gc(dry_run=True, grace=grace)
    if found.files and not dry_run:
        count = f"{len(found.files)} file" + ("s" if len(found.files) > 1 else "")
        if not _agreed(settings, f"Remove {count}, {found.bytes} bytes?", [], yes):
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
    fields = vars(record)
    row: dict[str, Any] = {"ref": record.ref, **fields} if "name" in fields else dict(fields)  # type: ignore[union-attr]
    for key in LISTS & fields.keys():
        row[key] = list(row[key])
    return row


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _agreed(settings: Settings, question: str, notes: Sequence[str], yes: bool) -> bool:
    """Asks on stderr, so that stdout holds only the result."""
    if yes:
        return True
    for note in notes:
        click.echo(note, err=True)
    try:
        if click.confirm(question, err=True):
            return True
    except click.Abort:
        click.echo(err=True)
        if sys.stdin.isatty():
            raise
        raise AttemptError("nothing was removed: the question got no answer", "--yes answers it.") from None
    click.echo("Nothing was removed.", err=True)
    return False
