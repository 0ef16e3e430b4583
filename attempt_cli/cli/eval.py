"""`attempt eval`: scores prompts and compositions on a task's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    MixtureOptions,
    change_options,
    limit_option,
    max_tokens_option,
    seed_option,
    split_names,
    split_option,
    where_options,
)
from attempt_cli.cli.output import write_table
from attempt_cli.cli.row_options import RowOptions, row_options
from attempt_cli.cli.scores import difference_text, interval_text, percent, weights_text

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.models import TrainedModel
    from attempt_cli.evaluation.record import EvaluationResult
    from attempt_cli.session import Session

COLUMNS = ("task", "model", "metric", "score", "interval", "n", "rows_per_second", "attention")


@click.command("eval")
@click.option("--tasks", help="Tasks, comma separated.")
@row_options
@click.option("--prompt", "prompts", multiple=True, help="A prompt, or `none` for the bare model; may be repeated.")
@click.option(
    "--chat-template",
    is_flag=True,
    help="Of `--prompt none`: read inside the tokenizer's chat template. A prompt is used as it was trained.",
)
@click.option("--composition", "compositions", multiple=True, help="A composition; may be repeated.")
@split_option("test", "train", "validation", "test", help="The rows to score, by the task's split rule.")
@limit_option(None)
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@seed_option
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write every prediction here as JSONL.")
@click.option("--confusion", is_flag=True, help="Show the right and the predicted labels, and the calibration.")
@change_options
@where_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    tasks: str | None,
    rows: RowOptions,
    prompts: tuple[str, ...],
    compositions: tuple[str, ...],
    chat_template: bool,
    confusion: bool,
    mixture: MixtureOptions,
    where: BackboneOptions,
    **options: Any,
) -> None:
    """Score prompts on the rows of tasks.

    Without --prompt or --composition a task is served by what was trained for it last. Label words are scored in one
    pass; free text is generated. The interval is of 95 %. Sources that are added or dropped, and forced weights, need
    no training: a composition is scored as it is and as changed, on the same rows, with the difference.

    \b
      attempt eval --tasks rte,boolq
      attempt eval --tasks rte --prompt none --prompt mnli --composition rte-attempt
      attempt eval --tasks mrpc --split validation --limit 200 --output predictions.jsonl
      attempt eval --prompt reviews --test-file more.csv
      attempt eval --composition rte-attempt --drop sst2
      attempt eval --composition rte-attempt --weights mnli=.5,target=.5
    """
    from attempt_cli.api.scoring import evaluate
    from attempt_cli.cli.progress import RowProgress

    changes = mixture.changes()
    with RowProgress(settings.output) as progress:
        session = settings.session(where, input_cache=0, listener=progress)
        models = _models(session, prompts, compositions, chat_template)
        chosen = _tasks(tasks, rows, models)
        results = evaluate(models, chosen, changes=changes, text_format=rows.text_format, session=session, **options)
    if options["output"] is not None:
        settings.output.note(f"Wrote every prediction to {options['output']}")
    if settings.output.format == "json":
        settings.output.json({"evaluations": [result.record() for result in results]})
    else:
        columns = (*COLUMNS, "change") if changes else COLUMNS
        settings.output.rows("evaluations", [_table_row(result) for result in results], columns, name="score")
        if confusion:
            _write_confusion(settings, results)


def _write_confusion(settings: Settings, results: Sequence[EvaluationResult]) -> None:
    """Writes, for each classification, its calibration and how many rows of each label got which."""
    for result in results:
        if result.calibration is None:
            settings.output.note(f"\n{result.task} is free text: it has no labels to confuse.")
            continue
        settings.output.note(
            f"\n{result.model} on {result.task}: expected calibration error {percent(result.calibration.ece)} %, "
            f"Brier score {result.calibration.brier:.3f}; rows by right label (down) and predicted label"
        )
        if settings.output.format == "table":
            rows = [{"right": right, **row} for right, row in result.calibration.confusion.items()]
            words = list(result.calibration.confusion)
            write_table([[str(row[name]) for name in ("right", *words)] for row in rows], ["", *words])


def _models(session: Session, prompts: Sequence[str], compositions: Sequence[str], in_chat: bool) -> list[TrainedModel]:
    """Finds the models of `--prompt` and `--composition`; the prompt `none` is the bare model."""
    from attempt_cli.evaluation.models import TrainedModel

    if in_chat and "none" not in prompts:
        raise click.UsageError("--chat-template is of --prompt none: a prompt is used as it was trained")
    records = [None if name == "none" else session.store.prompt(name) for name in prompts]
    return [
        TrainedModel(record, session, chat_template=in_chat and record is None)
        for record in (*records, *map(session.store.composition, compositions))
    ]


def _tasks(names: str | None, rows: RowOptions, models: Sequence[TrainedModel]) -> Sequence[str | Task]:
    """Chooses the tasks of --tasks; else those of files; else those that the first model was trained for."""
    from attempt_cli.evaluation.models import own_tasks

    if names is not None:
        rows.check_unnamed()
        return split_names(names)
    if rows.input_template is not None or all(model.record is None for model in models):
        return [replace(rows, text_format=None).task(None)]
    loose = [name for name in ("label", "labels", "answers", "metrics") if getattr(rows, name) is not None]
    if loose:
        raise click.UsageError(f"--{loose[0]} goes with --input; without both the prompt's own are used")
    own, given = own_tasks(models), rows.files()
    if len(own) > 1 and given:
        raise click.UsageError("a composition with several targets needs --tasks, or --input and --label with files")
    if rows.encoding is not None and not given:
        raise click.UsageError("--encoding goes with files")
    return [_on_files(task, given, rows.encoding) for task in own]


def _on_files(task: Task, files: dict[str, Path | str], encoding: str | None) -> Task:
    """Returns a task whose rows are the files, as they are; the same task without files."""
    if not files:
        return task
    from attempt_cli.data.own_files import located

    paths = {split: located(path) for split, path in files.items()}
    update = {"hub": None, "files": paths, "encoding": encoding, "split_rule": "own", "splits": {}}
    return task.model_copy(update=update)


def _table_row(result: EvaluationResult) -> dict[str, Any]:
    """Writes an evaluation for people: in percent, with the interval's bounds."""
    others = [f"{name} {percent(value)}" for name, value in result.metrics.items() if name != result.metric]
    return {
        "task": result.task,
        "model": result.model,
        "metric": ", ".join([result.metric, *others]),
        "score": percent(result.score),
        "interval": interval_text(result.interval),
        "n": result.n,
        "rows_per_second": f"{result.rows_per_second:.1f}",
        "attention": weights_text(result.attention),
        "change": difference_text(result.change) if result.change else None,
    }
