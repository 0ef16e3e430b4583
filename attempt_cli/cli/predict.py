"""`attempt predict`: rows in, predictions out."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.eval import named
from attempt_cli.cli.models import alone_note, load_model, named_model, trained_task, with_changes
from attempt_cli.cli.options import (
    backbone_options,
    chosen_backbone,
    chosen_changes,
    max_tokens_option,
    mixture_options,
)
from attempt_cli.errors import AttemptError
from registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task


@click.command("predict")
@click.argument("name")
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--task", "task_name", help="For a composition with several targets: whose prompt to use.")
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@mixture_options
@backbone_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str,
    file: str,
    task_name: str | None,
    max_length: int | None,
    max_tokens: int,
    **options: Any,
) -> None:
    """Predict with the composition or prompt NAME for the rows of FILE (standard input without one).

    FILE is JSONL, CSV, TSV, JSON or parquet with the columns of the task's input, or plain lines where the task reads a
    single column; standard input is JSONL, CSV or TSV with a header, or plain lines. Every row gives one JSON line:
    label (or text), probabilities, attention.

    \b
      attempt predict reviews new-reviews.csv > labels.jsonl
      echo "It broke on the second day." | attempt predict reviews
      attempt predict glue pairs.jsonl --task rte
      attempt predict glue pairs.jsonl --task rte --drop sst2
    """
    from attempt_cli.evaluation.predict import predict

    registry = settings.registry()
    model = with_changes(registry, named_model(registry, name), chosen_changes(options))
    targets = [registry.prompt(ref) for ref in model.targets] if isinstance(model, Composition) else [model]
    if task_name is None and len(targets) > 1:
        tasks = ", ".join(prompt.task for prompt in targets)
        raise click.UsageError(f"'{name}' serves several tasks: choose one with --task ({tasks})")
    prompt = next((p for p in targets if task_name in (None, p.task)), None)
    if prompt is None:
        raise AttemptError(f"'{name}' has no target prompt for the task '{task_name}'", "Leave --task out.")
    task = trained_task(prompt.settings, prompt.task)
    rows = read_input(file, task)
    examples = [task.render_input(row, number, place=file) for number, row in enumerate(rows)]
    if isinstance(model, Prompt) and model.method == "attempt":
        settings.output.note(alone_note(model))
    backbone = chosen_backbone(registry, options, [model], settings.output.note)
    loaded = load_model(registry, backbone, model)
    training = prompt.settings.get("training") or {}
    said = predict(
        loaded.model,
        task,
        examples,
        task_index=loaded.task_index(prompt.task),
        max_length=max_length or training.get("max_length"),
        max_tokens=max_tokens,
    )
    sources = [*loaded.sources, "target"]
    for row in said.rows:
        line: dict[str, Any] = {"label" if task.is_classification else "text": row.text}
        if task.is_classification and task.labels is not None:
            raw = list(task.labels)[task.label_words.index(row.text)]
            line = {"label": raw, "word": row.text}
        if row.probabilities is not None:
            line["probabilities"] = named(task.label_words, row.probabilities)
        if row.attention is not None:
            line["attention"] = named(sources, row.attention)
        click.echo(json.dumps(line, ensure_ascii=False))
    if said.truncated:
        settings.output.note(f"{said.truncated:,} inputs were longer than the limit and lost their middle.")


def read_input(file: str, task: Task) -> list[dict[str, Any]]:
    """The rows of a file or of standard input.

    Raises:
        AttemptError: there are none, or plain lines do not fit a task that reads several columns.
    """
    from attempt_cli.data.readers import ENDINGS, read_rows

    if file != "-" and Path(file).suffix.lower() in ENDINGS:
        return read_rows(Path(file))
    if file != "-" and not Path(file).exists():
        raise AttemptError(f"no file '{file}'", "Check the path, or pipe rows in without one.")
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise AttemptError(f"the rows are not UTF-8 text ({error.reason})", "Save them as UTF-8.") from None
    # not splitlines(): a text may hold a form feed or a line separator, and is one row all the same
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    lines = [line for _, line in numbered]
    if not lines:
        raise AttemptError(f"no rows in {'standard input' if file == '-' else file}", "Give one row a line.")
    if lines[0].lstrip().startswith("{"):
        return [_json_row(line, number) for number, line in numbered]
    columns = task.input_columns()
    for delimiter in (",", "\t"):
        if set(columns) <= set(next(csv.reader(lines[:1], delimiter=delimiter))):
            return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    if len(columns) != 1:
        raise AttemptError(
            f"the task '{task.name}' reads the columns {', '.join(columns)}, plain lines have only one",
            "Give JSONL or CSV with these columns.",
        )
    return [{columns[0]: line} for line in lines]


def _json_row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AttemptError(f"line {number} is not JSON: {error}", "Give one JSON object a line.") from None
    if not isinstance(row, dict):
        raise AttemptError(f"line {number} is not a JSON object", "Give one JSON object a line.")
    return row
