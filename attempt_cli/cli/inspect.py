"""`attempt inspect`: who attends to what, and which words a prompt is near to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.changes import TARGET
from attempt_cli.cli.eval import RowLoader, named
from attempt_cli.cli.models import as_trained, load_model, named_model, trained_task, with_changes
from attempt_cli.cli.options import (
    backbone_options,
    chosen_backbone,
    chosen_changes,
    max_tokens_option,
    mixture_options,
)
from attempt_cli.errors import AttemptError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.rows import Rows
    from attempt_cli.data.task import Task
    from attempt_registry import Registry

BARS = 48  # characters that all bars of a line may take together
EIGHTHS = " ▏▎▍▌▋▊▉"


@click.command("inspect")
@click.argument("name")
@click.option("--task", "task_name", help="Only this task's rows. [default: every task that it has a target for]")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="The rows that are looked at.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="A random sample of so many rows."
)
@click.option(
    "--rows", "shown", type=click.IntRange(min=0), default=8, show_default=True, help="Of these, show so many."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@click.option("--tokens", type=click.IntRange(min=1), help="The nearest tokens of each prompt position.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the heat-maps here.")
@mixture_options
@max_tokens_option
@backbone_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str,
    task_name: str | None,
    split: str,
    limit: int,
    shown: int,
    seed: int,
    tokens: int | None,
    png: Path | None,
    max_tokens: int,
    **options: Any,
) -> None:
    """Look into the composition or prompt NAME.

    Of a composition: the attention of each task on the sources, the mean over rows and row by row. `target` is the
    target prompt's own weight in the softmax, before it is added once more. With --tokens, and of a plain prompt: the
    nearest tokens of the vocabulary with their cosine and L2 distance.

    \b
      attempt inspect rte-attempt
      attempt inspect glue --task rte --rows 20 --png rte.png
      attempt inspect sst2 --tokens 5
    """
    changes = chosen_changes(options)
    registry = settings.registry()
    model = with_changes(registry, named_model(registry, name), changes)
    mixes = isinstance(model, Composition) and bool(model.sources)
    if not mixes and (png is not None or task_name is not None):
        raise AttemptError(
            f"'{model.ref}' has no sources, so nothing attends to anything",
            "--png and --task are for compositions with sources: `attempt registry list --what compositions`.",
        )
    if not mixes and tokens is None:
        if isinstance(model, Composition):
            raise AttemptError(
                f"the composition '{model.ref}' has no sources, so nothing attends to anything",
                f"`attempt inspect {model.ref} --tokens 3` shows the words that its prompts are near to.",
            )
        tokens = 3
    loader = RowLoader(split, settings.data_dir, limit, seed)
    jobs: list[tuple[Task, int | None]] = []
    if mixes:
        assert isinstance(model, Composition)
        for prompt, task in _tasks(registry, model, task_name):
            jobs.append(as_trained(task, prompt, None, settings.output.note))
            loader.rows(jobs[-1][0])  # before the backbone: rows are quick to find missing
    backbone = chosen_backbone(registry, options, [model], settings.output.note)
    loaded = load_model(registry, backbone, model, str(changes))
    record: dict[str, Any] = {"name": loaded.name, "kind": loaded.kind}
    if mixes:
        tasks = [_attention(loaded, task, loader.rows(task), shown, length, max_tokens) for task, length in jobs]
        record |= {"split": split, "tasks": tasks}
    if tokens is not None:
        record["tokens"] = nearest(registry, backbone, model, tokens)
    if png is not None:
        draw(png, record["tasks"])
        settings.output.note(f"Wrote {png}")
    if settings.output.format == "json":
        settings.output.json({"inspection": record})
    else:
        _write_tables(settings, record)


def _attention(
    loaded: Loaded, task: Task, rows: Rows, shown: int, max_length: int | None, max_tokens: int
) -> dict[str, Any]:
    """The mean attention of a task's rows, its deviation, and the attention of the rows that are shown."""
    from attempt_cli.evaluation.inside import row_attention

    index = loaded.task_index(task.name)
    weights = row_attention(
        loaded.model, task, rows.examples, task_index=index, max_length=max_length, max_tokens=max_tokens
    )
    names = (*loaded.sources, TARGET)
    return {
        "task": task.name,
        "n": len(rows.examples),
        "rows": rows.origin,
        "attention": named(names, weights.mean(dim=0).tolist()),
        "deviation": named(names, weights.std(dim=0, correction=0).tolist()),
        "per_row": [
            {"row": example.row, "input": example.input, "attention": named(names, of_row)}
            for example, of_row in zip(rows.examples[:shown], weights[:shown].tolist(), strict=True)
        ],
    }


def _tasks(registry: Registry, model: Composition, name: str | None) -> list[tuple[Prompt | None, Task]]:
    """The target prompts with their tasks; with a name the one that serves it (None: the sources alone do).

    Raises:
        AttemptError: a composition with several targets has none for that task.
        click.UsageError: one without targets serves any task, and none is named.
    """
    from attempt_cli.data.catalogue import load_task

    if not model.targets and name is None:
        raise click.UsageError(f"'{model.ref}' mixes sources for any task: name one with --task")
    prompts = [registry.prompt(ref) for ref in model.targets]
    own: list[tuple[Prompt | None, Task]] = [
        (prompt, trained_task(prompt.settings, prompt.task)) for prompt in prompts if name in (None, prompt.task)
    ]
    if own:
        return own
    if len(prompts) <= 1:  # a single target, or sources alone, serve any task
        return [(prompts[0] if prompts else None, load_task(name or ""))]
    raise AttemptError(
        f"the composition '{model.ref}' has no target prompt for the task '{name}'",
        f"It has: {', '.join(prompt.task for prompt in prompts)}.",
    )


def nearest(
    registry: Registry, backbone: FrozenBackbone, model: Prompt | Composition, count: int
) -> list[dict[str, Any]]:
    """The nearest tokens of every position of a prompt, or of all prompts of a composition."""
    from attempt_cli.artefacts import prompt_in_units
    from attempt_cli.evaluation.inside import nearest_tokens

    refs = (*model.targets, *model.sources) if isinstance(model, Composition) else (model.ref,)
    return [
        {
            "prompt": ref,
            "position": position,
            "nearest": [
                {"token": near.token, "cosine": round(near.cosine, 5), "l2": round(near.l2, 5)} for near in tokens
            ],
        }
        for ref in refs
        for position, tokens in enumerate(
            nearest_tokens(backbone, prompt_in_units(registry, backbone, registry.prompt(ref), 1.0), count)
        )
    ]


def draw(file: Path, tasks: Sequence[dict[str, Any]]) -> None:
    """Targets on sources, and below it the rows of each task."""
    from attempt_cli.plots import HeatMap, draw_heat_maps

    def heat(title: str, rows: Sequence[str], attention: Sequence[dict[str, float]]) -> HeatMap:
        return HeatMap(title, rows, list(attention[0]), [list(weights.values()) for weights in attention])

    maps = [heat("mean attention", [task["task"] for task in tasks], [task["attention"] for task in tasks])]
    for task in tasks:
        if task["per_row"]:
            rows = [f"row {row['row']}" for row in task["per_row"]]
            maps.append(heat(task["task"], rows, [row["attention"] for row in task["per_row"]]))
    draw_heat_maps(file, maps)


def bar(weight: float, width: int) -> str:
    """A weight in [0, 1] as a number and as a cell of `width` characters that is full at 1."""
    eighths = round(min(max(weight, 0.0), 1.0) * width * 8)
    full = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    return f"{weight:.2f} {full:░<{width}}"


def _write_tables(settings: Settings, record: dict[str, Any]) -> None:
    output, tasks = settings.output, record.get("tasks", [])
    if tasks:
        names = list(tasks[0]["attention"])
        width = max(2, min(8, BARS // len(names)))

        def cells(attention: dict[str, float]) -> dict[str, str]:
            return {name: bar(weight, width) for name, weight in attention.items()}

        rows = [{"task": task["task"], "n": task["n"], **cells(task["attention"])} for task in tasks]
        output.note(f"mean attention over {record['split']} rows")
        output.rows("tasks", rows, ("task", "n", *names), name="task")
        shown = [
            {"task": task["task"], "row": row["row"], **cells(row["attention"]), "input": _start(row["input"])}
            for task in tasks
            for row in task["per_row"]
        ]
        if shown and output.format == "table":
            output.note("\nrow by row")
            output.rows("rows", shown, ("task", "row", *names, "input"))
    if "tokens" in record:
        output.note("nearest tokens (cosine, L2)")

        def text(tokens: list[dict[str, Any]]) -> str:
            return "  ".join(f"{one['token']} ({one['cosine']:.2f}, {one['l2']:.2f})" for one in tokens)

        near = [{**line, "nearest": text(line["nearest"])} for line in record["tokens"]]
        output.rows("tokens", near, ("prompt", "position", "nearest"), name="prompt")


def _start(text: str) -> str:
    return textwrap.shorten(text, 40, placeholder="…")
