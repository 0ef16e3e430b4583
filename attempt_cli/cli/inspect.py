"""`attempt inspect`: who attends to what, and which words a prompt is near to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    MixtureOptions,
    change_options,
    limit_option,
    max_tokens_option,
    refuse_options,
    seed_option,
    split_option,
    where_options,
)

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.evaluation.inside import NearToken
    from attempt_cli.evaluation.inspection import Inspection, TaskAttention

BARS = 48  # characters that all bars of a line may take together
EIGHTHS = " ▏▎▍▌▋▊▉"
SAME = 0.01  # a standard deviation of weights over rows below which inputs are said to make no difference


@click.command("inspect")
@click.argument("name")
@click.option("--task", help="Only this task's rows. [default: every task that it has a target for]")
@split_option("validation", "train", "validation", "test", help="The rows to inspect.")
@limit_option(200)
@click.option("--rows", type=click.IntRange(min=0), default=8, show_default=True, help="Show N of these rows.")
@seed_option
@click.option("--tokens", type=click.IntRange(min=1), help="The nearest tokens of each prompt position.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the heat-maps here.")
@change_options
@max_tokens_option
@where_options
@click.pass_obj
def command(
    settings: Settings, /, name: str, png: Path | None, mixture: MixtureOptions, where: BackboneOptions, **options: Any
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
    from attempt_cli.api.scoring import inspect
    from attempt_cli.evaluation.inspection import check_inspected
    from attempt_cli.evaluation.models import find_model

    changes = mixture.changes()
    session = settings.session(where, input_cache=0)
    model = find_model(session, name).with_changes(changes)
    if not model.sources:
        nothing = f"of '{name}': it mixes no sources, and no rows are read"
        refuse_options(click.get_current_context(), ("split", "limit", "rows", "seed", "max_tokens"), nothing)
    if png is not None:
        check_inspected(model, attention=True, tokens=False)
        check_picture(png)
    found = inspect(model, session=session, **options)
    if png is not None:
        draw(png, found.tasks or ())
        settings.output.note(f"Wrote {png}")
    if settings.output.format == "json":
        settings.output.json({"inspection": found.record()})
    else:
        _write_tables(settings, found)


def check_picture(file: Path) -> None:
    """Refuses a picture that cannot be drawn, before any work is done.

    Raises:
        AttemptError: matplotlib is not installed, or the file cannot be written.
    """
    from attempt_cli.evaluation.scoring import check_writable
    from attempt_cli.plots import new_figure

    new_figure(1, 1)
    check_writable(file)


def draw(file: Path, tasks: Sequence[TaskAttention]) -> None:
    """Draws targets on sources, and below them the rows of each task."""
    from attempt_cli.plots import HeatMap, draw_heat_maps

    def heat(title: str, rows: Sequence[str], attention: Sequence[Mapping[str, float]]) -> HeatMap:
        return HeatMap(title, rows, list(attention[0]), [list(weights.values()) for weights in attention])

    maps = [heat("mean attention", [task.task for task in tasks], [task.attention for task in tasks])]
    for task in tasks:
        if task.per_row:
            rows = [f"row {row.row}" for row in task.per_row]
            maps.append(heat(task.task, rows, [row.attention for row in task.per_row]))
    draw_heat_maps(file, maps)


def bar(weight: float, width: int) -> str:
    """Writes a weight in [0, 1] as a number and as a cell of `width` characters that is full at 1."""
    eighths = round(min(max(weight, 0.0), 1.0) * width * 8)
    full = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    return f"{weight:.2f} {full:░<{width}}"


def _write_tables(settings: Settings, found: Inspection) -> None:
    output, tasks = settings.output, found.tasks or ()
    if tasks:
        names = list(tasks[0].attention)
        width = max(2, min(8, BARS // len(names)))

        def cells(attention: Mapping[str, float]) -> dict[str, str]:
            return {name: bar(weight, width) for name, weight in attention.items()}

        rows = [{"task": task.task, "n": task.n, **cells(task.attention)} for task in tasks]
        output.note(f"mean attention over {found.split} rows")
        output.rows("tasks", rows, ("task", "n", *names), name="task")
        shown = [
            {"task": task.task, "row": row.row, **cells(row.attention), "input": _start(row.input)}
            for task in tasks
            for row in task.per_row
        ]
        if shown and output.format == "table":
            output.note("\nrow by row")
            output.rows("rows", shown, ("task", "row", *names, "input"))
        for task in tasks:
            output.note(_spread(task))
    if found.tokens is not None:
        output.note("nearest tokens (cosine, L2)")

        def text(tokens: Sequence[NearToken]) -> str:
            return "  ".join(f"{one.token} ({one.cosine:.2f}, {one.l2:.2f})" for one in tokens)

        near = [{**vars(line), "nearest": text(line.nearest)} for line in found.tokens]
        output.rows("tokens", near, ("prompt", "position", "nearest"), name="prompt")


def _spread(task: TaskAttention) -> str:
    """Says how much the weights depend on the input."""
    largest = max(task.deviation.values())
    said = f"{task.task}: over {task.n} rows a weight's standard deviation is at most {largest:.1g}"
    return f"{said}: the mixture is nearly the same for every input" if task.n > 1 and largest < SAME else said


def _start(text: str) -> str:
    return textwrap.shorten(text, 40, placeholder="…")
