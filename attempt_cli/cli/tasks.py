"""`attempt tasks`: lists tasks, shows one, and checks one of your own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import refuse_options
from attempt_cli.cli.output import write_text

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.check import SplitCheck
    from attempt_cli.data.example import Example
    from attempt_cli.data.task import Task


# more bad rows than this are only counted
SHOWN_PROBLEMS = 20


@click.group()
def command() -> None:
    """List, show and check the tasks that prompts are trained on.

    A task is a YAML file: where the rows are, how they become text, which words stand for the labels.

    \b
      attempt tasks list
      attempt tasks show rte
      attempt tasks check my-task.yaml
    """


@command.command("list")
@click.pass_obj
def list_tasks(settings: Settings) -> None:
    """List the tasks that come with the package.

    \b
      attempt tasks list
      attempt --format json tasks list
      attempt --format quiet tasks list
    """
    from attempt_cli.data.catalogue import task_summaries

    settings.output.rows("tasks", task_summaries(), ["name", "kind", "rows", "metrics"])


@command.command()
@click.argument("name", metavar="NAME|FILE.yaml")
@click.option("--rows", default=2, show_default=True, type=click.IntRange(0), help="Number of example rows to show.")
@click.option("--text-format", default="words", show_default=True, help="words, or reference (the authors' code).")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the task's YAML file, to start one of your own from.")
@click.pass_obj
def show(settings: Settings, name: str, rows: int, text_format: str, as_yaml: bool) -> None:
    """Show a task's fields, and rows as the model sees them if this machine has any.

    \b
      attempt tasks show rte
      attempt tasks show rte --data-dir rows --rows 5
      attempt tasks show rte --text-format reference
      attempt tasks show sst2 --yaml > my-task.yaml
    """
    from attempt_cli.data.catalogue import load_task, task_file
    from attempt_cli.data.check import sample_examples

    task = load_task(name).with_format(text_format)
    if as_yaml:
        refuse_options(click.get_current_context(), ["rows", "text_format"], "with --yaml: it prints the file")
        write_text(task_file(name).read_text(encoding="utf-8").rstrip())
        return
    place, examples = sample_examples(task, settings.data_dir, rows) if rows else ("", [])
    settings.output.record("task", _record(task, place, examples, as_json=settings.output.format == "json"))
    if rows and not place:
        settings.output.note("No rows of this task are on this machine. --data-dir FOLDER shows some.")


@command.command()
@click.argument("name", metavar="FILE.yaml|NAME")
@click.pass_obj
def check(settings: Settings, name: str) -> None:
    """Check a task: its fields, and every row of every split that is on this machine.

    Exits with 1 when something is wrong, and names the rows.

    \b
      attempt tasks check my-task.yaml
      attempt tasks check rte --data-dir rows
    """
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.data.check import check_rows

    task = load_task(name)
    checks = check_rows(task, settings.data_dir)
    if checks or settings.output.format == "json":
        columns = ["split", "rows", "bad", "targets", "file"]
        as_text = settings.output.format == "table"
        settings.output.rows("splits", [_check_record(found, as_text) for found in checks], columns, name="split")
    if not checks:
        settings.output.note(f"The fields of task '{task.name}' are in order; no rows of it are on this machine.")
    problems = [problem for found in checks for problem in found.problems]
    for problem in problems[:SHOWN_PROBLEMS]:
        settings.output.note(problem)
    if len(problems) > SHOWN_PROBLEMS:
        settings.output.note(f"… and {len(problems) - SHOWN_PROBLEMS} more rows.")
    if problems:
        sys.exit(1)
    if checks:
        settings.output.note(f"Task '{task.name}' is in order.")


def _record(task: Task, place: str, examples: list[Example], *, as_json: bool) -> dict[str, Any]:
    from attempt_cli.data.fields import task_fields

    record = task_fields(task)
    record["label_words"] = list(task.label_words)
    if as_json:
        fields = ("row", "input", "target", "label", "references", "group")
        record["examples"] = [{name: getattr(example, name) for name in fields} for example in examples]
        record["examples_from"] = place or None
        return record
    reference = record.pop("reference", None)
    if reference:
        record["reference"] = reference["input"]
    if examples:
        record["examples"] = f"from {place}"
    for example in examples:
        record[f"row {example.row + 1}"] = f"{example.input} {example.target}"
    return record


def _check_record(found: SplitCheck, as_text: bool) -> dict[str, Any]:
    targets = ", ".join(f"{word} {count}" for word, count in found.targets.items())
    return {
        "split": found.split,
        "rows": found.rows,
        "bad": len(found.problems),
        "targets": targets if as_text else found.targets,
        "longest": found.longest,
        "problems": found.problems,
        "file": found.place,
    }
