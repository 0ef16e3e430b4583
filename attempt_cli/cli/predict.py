"""`attempt predict`: rows in, predictions out."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    MixtureOptions,
    change_options,
    max_tokens_option,
    split_names,
    where_options,
)
from attempt_cli.cli.output import write_json
from attempt_cli.errors import AttemptError

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task


@click.command("predict")
@click.argument("name", required=False)
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--prompts", help="Ask several prompts or compositions at once, comma separated, instead of NAME.")
@click.option("--task", "task_name", help="For a composition with several targets: the task to predict.")
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Abstain where no label has this probability.")
@change_options
@where_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str | None,
    file: str | None,
    prompts: str | None,
    task_name: str | None,
    max_length: int | None,
    max_tokens: int,
    min_confidence: float | None,
    mixture: MixtureOptions,
    where: BackboneOptions,
) -> None:
    """Predict with the composition or prompt NAME for the rows of FILE (standard input without one).

    FILE is JSONL, CSV, TSV, JSON or parquet with the columns of the task's input, or plain lines where the task reads a
    single column; standard input is JSONL, CSV or TSV with a header, or plain lines. Every row gives one JSON line:
    label (or text), probabilities, attention; with --prompts one such object under each prompt's name. An input is
    read once for all prompts that stand after it and whose tasks read it alike.

    \b
      attempt predict reviews new-reviews.csv > labels.jsonl
      echo "It broke on the second day." | attempt predict reviews
      attempt predict glue pairs.jsonl --task rte
      attempt predict glue pairs.jsonl --task rte --drop sst2
      attempt predict --prompts mood,topic,urgent messages.jsonl
    """
    from attempt_cli.api.scoring import predict
    from attempt_cli.cli.progress import RowProgress
    from attempt_cli.evaluation.serving import check_one_task, find_served

    if (name is None) == (prompts is None) and (name is None or file is not None):
        raise click.UsageError("name one prompt or composition, or several with --prompts")
    if prompts is not None:  # the only argument is then the file
        name, file = None, name
    with RowProgress(settings.output) as progress:
        session = settings.session(where, input_cache=0, listener=progress)
        names, changes = split_names(prompts) if prompts is not None else [str(name)], mixture.changes()
        served = find_served(session, names, task_name, changes)
        if name is not None:
            check_one_task(served)
        if file in (None, "-") and sys.stdin.isatty():
            settings.output.note(
                "Waiting for rows from the keyboard, one a line; Ctrl-D (Windows: Ctrl-Z, Enter) ends them."
            )
        rows = read_input(file or "-", next(iter(served.values())).task)
        found = predict(
            names,
            rows,
            task=task_name,
            changes=changes,
            max_length=max_length,
            max_tokens=max_tokens,
            min_confidence=min_confidence,
            place=file or "-",
            session=session,
        )
    for predictions in zip(*found.values(), strict=True):
        records = [prediction.record() for prediction in predictions]
        line = records[0] if name is not None else dict(zip(found, records, strict=True))
        write_json(json.dumps(line, ensure_ascii=False))
    if min_confidence is not None:
        for model, answers in found.items():
            sure = sum(not answer.abstains for answer in answers)
            settings.output.note(
                f"{model}: {sure:,} of {len(answers):,} rows got a label ({100 * sure / len(answers):.1f} %)"
            )


def read_input(file: str, task: Task) -> list[dict[str, Any]]:
    """Reads the rows of a file or of standard input.

    Raises:
        AttemptError: there are no rows, or plain lines do not fit a task that reads several columns.
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
        raise AttemptError(f"no rows in {'standard input' if file == '-' else file}", "Give one row per line.")
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
        raise AttemptError(f"line {number} is not JSON: {error}", "Give one JSON object per line.") from None
    if not isinstance(row, dict):
        raise AttemptError(f"line {number} is not a JSON object", "Give one JSON object per line.")
    return row
