"""`attempt predict`: rows in, predictions out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
from attempt_cli.cli.row_options import encoding_option

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.serving import Prediction


WAITING = "Waiting for rows from the keyboard, one a line; Ctrl-D (Windows: Ctrl-Z, Enter) ends them."


@click.command("predict")
@click.argument("name", required=False)
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--prompts", help="Ask several prompts or compositions at once, comma separated, instead of NAME.")
@click.option("--task", "task_name", help="For `none`, or a composition with several targets: the task to predict.")
@click.option(
    "--chat-template",
    is_flag=True,
    help="Of `none`, the bare backbone: read inside the tokenizer's chat template. A prompt is used as it was trained.",
)
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@encoding_option
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
    chat_template: bool,
    encoding: str | None,
    mixture: MixtureOptions,
    where: BackboneOptions,
    **options: Any,
) -> None:
    """Predict with the composition or prompt NAME for the rows of FILE (standard input without one).

    `none` is the bare backbone, without a prompt; it needs --task.

    FILE is JSONL, CSV, TSV, JSON or parquet (also .gz, .zst, or an address such as hf://…) with the columns of the
    task's input, or plain lines where the task reads a single column. Standard input and files of another ending are
    recognised by what they hold. Every row gives one JSON line: row (its number, from 0), label (or text),
    probabilities, attention; with --prompts one such object under each prompt's name. A blank line between plain lines
    gives a line with null for the label. An input is read once for all prompts that stand after it and whose tasks read
    it alike.

    \b
      attempt predict reviews new-reviews.csv > labels.jsonl
      echo "It broke on the second day." | attempt predict reviews
      attempt predict glue pairs.jsonl --task rte
      attempt predict glue pairs.jsonl --task rte --drop sst2
      attempt predict none pairs.jsonl --task rte --chat-template
      attempt predict --prompts mood,topic,urgent messages.jsonl
    """
    from attempt_cli.api.scoring import predict
    from attempt_cli.cli.progress import RowProgress
    from attempt_cli.data.unlabelled import read_unlabelled
    from attempt_cli.evaluation.models import find_model
    from attempt_cli.evaluation.serving import check_one_task, find_served

    if (name is None) == (prompts is None) and (name is None or file is not None):
        raise click.UsageError("name one prompt or composition, or several with --prompts")
    if prompts is not None:  # the only argument is then the file
        name, file = None, name
    with RowProgress(settings.output) as progress:
        session = settings.session(where, input_cache=0, listener=progress)
        names, changes = split_names(prompts) if prompts is not None else [str(name)], mixture.changes()
        models: list[Any] = [find_model(session, one, chat_template=True) for one in names] if chat_template else names
        served = find_served(session, models, task_name, changes)
        if name is not None:
            check_one_task(served)
        if file in (None, "-") and sys.stdin is not None and sys.stdin.isatty():
            settings.output.note(WAITING)
        given = read_unlabelled(file or "-", next(iter(served.values())).task, encoding)
        for note in given.notes:
            progress.note(note)
        numbers = [number for number, row in enumerate(given.rows) if row is not None]
        found = predict(
            models,
            [row for row in given.rows if row is not None],
            task=task_name,
            changes=changes,
            place=given.place,
            numbers=numbers,
            session=session,
            **options,
        )
    predictions = {key: dict(zip(numbers, answers, strict=True)) for key, answers in found.items()}
    for number in range(len(given.rows)):
        records = {key: _record(served[key].task, number, answers.get(number)) for key, answers in predictions.items()}
        line = records if name is None else next(iter(records.values()))
        write_json(json.dumps(line, ensure_ascii=False))
    for model, answers in found.items() if options["min_confidence"] is not None else ():
        settings.output.note(f"{model}: {_coverage(answers)}")


def _coverage(answers: Sequence[Prediction]) -> str:
    """Says how many rows got a label."""
    sure = sum(not answer.abstains for answer in answers)
    return f"{sure:,} of {len(answers):,} rows got a label ({100 * sure / len(answers):.1f} %)"


def _record(task: Task, number: int, prediction: Prediction | None) -> dict[str, Any]:
    """Returns a row's line: its number from 0, and what was predicted; null for a blank line."""
    empty: dict[str, Any] = {"label": None, "word": None} if task.is_classification else {"text": None}
    return {"row": number, **(empty if prediction is None else prediction.record())}
