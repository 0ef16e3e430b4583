"""`attempt predict`: rows in, predictions out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
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
    split_names,
)
from attempt_cli.errors import AttemptError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Example, Task
    from attempt_cli.evaluation.prediction import Predictions, RowPrediction
    from attempt_registry import Registry


@click.command("predict")
@click.argument("name", required=False)
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--prompts", help="Ask several prompts or compositions at once, comma separated, instead of NAME.")
@click.option("--task", "task_name", help="For a composition with several targets: whose prompt to use.")
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@mixture_options
@backbone_options
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
    **options: Any,
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
    from attempt_cli.evaluation.prediction import PromptedTask, predict_many

    registry = settings.registry()
    if (name is None) == (prompts is None) and (name is None or file is not None):
        raise click.UsageError("name one prompt or composition, or several with --prompts")
    if prompts is not None:  # the only argument is then the file
        name, file = None, name
    changes = chosen_changes(options)
    questions = [
        question
        for each in (split_names(prompts) if prompts is not None else [str(name)])
        for question in _questions(
            registry, with_changes(registry, named_model(registry, each), changes), each, task_name
        )
    ]
    if name is not None and len(questions) > 1:
        tasks = ", ".join(task for _, _, task, _ in questions)
        raise click.UsageError(f"'{name}' serves several tasks: choose one with --task ({tasks})")
    for _, model, _, _ in questions:
        if isinstance(model, Prompt) and model.method == "attempt":
            settings.output.note(alone_note(model))
    tasks_of = [trained_task(prompt.settings if prompt else None, task) for _, _, task, prompt in questions]
    inputs = read_input(file or "-", tasks_of[0])
    rendered = [
        [task.render_input(row, number, place=file or "-") for number, row in enumerate(inputs)] for task in tasks_of
    ]
    backbone = chosen_backbone(registry, options, [model for _, model, _, _ in questions], settings.output.note)
    loaded = {model.ref: load_model(registry, backbone, model) for _, model, _, _ in questions}
    answers: dict[int, Predictions] = {}
    lengths = [
        max_length or ((prompt.settings.get("training") or {}) if prompt else {}).get("max_length")
        for _, _, _, prompt in questions
    ]
    for group in _alike(rendered, lengths):
        asked = [
            PromptedTask(
                loaded[questions[i][1].ref].model, tasks_of[i], loaded[questions[i][1].ref].task_index(questions[i][2])
            )
            for i in group
        ]
        said = predict_many(asked, rendered[group[0]], max_length=lengths[group[0]], max_tokens=max_tokens)
        answers |= dict(zip(group, said, strict=True))
    for number in range(len(inputs)):
        lines = [
            _line(tasks_of[i], answers[i].rows[number], [*loaded[questions[i][1].ref].sources, "target"])
            for i in range(len(questions))
        ]
        labels = [label for label, _, _, _ in questions]
        line = lines[0] if name is not None else dict(zip(labels, lines, strict=True))
        click.echo(json.dumps(line, ensure_ascii=False))
    truncated = max(said.truncated for said in answers.values())
    if truncated:
        settings.output.note(f"{truncated:,} inputs were longer than the limit and lost their middle.")


Question = tuple[str, Prompt | Composition, str, Prompt | None]  # its name in the output, model, task, target prompt


def _questions(registry: Registry, model: Prompt | Composition, name: str, task: str | None) -> list[Question]:
    """What a prompt or composition can be asked: one question a target prompt.

    Raises:
        AttemptError: no target prompt is for the task, or there is none and no task is named.
    """
    if isinstance(model, Composition) and not model.targets:  # sources and a G serve any task
        if task is None:
            raise AttemptError(f"'{name}' has no target prompt, so its task is not known", "Name one with --task.")
        return [(name, model, task, None)]
    targets = [registry.prompt(ref) for ref in model.targets] if isinstance(model, Composition) else [model]
    chosen = [prompt for prompt in targets if task in (None, prompt.task)]
    if not chosen:
        raise AttemptError(f"'{name}' has no target prompt for the task '{task}'", "Leave --task out.")
    return [(name if len(chosen) == 1 else f"{name}:{p.task}", model, p.task, p) for p in chosen]


def _alike(rendered: Sequence[Sequence[Example]], lengths: Sequence[int | None]) -> list[list[int]]:
    """Questions whose inputs are the same text under the same limit, together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (examples, length) in enumerate(zip(rendered, lengths, strict=True)):
        groups.setdefault((length, *(example.input for example in examples)), []).append(number)
    return list(groups.values())


def _line(task: Task, row: RowPrediction, sources: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"label" if task.is_classification else "text": row.text}
    if task.is_classification and task.labels is not None:
        raw = list(task.labels)[task.label_words.index(row.text)]
        line = {"label": raw, "word": row.text}
    if row.probabilities is not None:
        line["probabilities"] = named(task.label_words, row.probabilities)
    if row.attention is not None:
        line["attention"] = named(sources, row.attention)
    return line


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
