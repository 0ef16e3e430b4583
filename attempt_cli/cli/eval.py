"""`attempt eval`: scores prompts and compositions on a task's rows."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from attempt_cli.cli.compare import difference_record, difference_text
from attempt_cli.cli.models import (
    alone_note,
    as_trained,
    load_model,
    model_for_task,
    named_models,
    trained_task,
    with_files,
)
from attempt_cli.cli.options import (
    FILE_FIELDS,
    backbone_name,
    backbone_options,
    chosen_backbone,
    chosen_changes,
    chosen_task,
    max_tokens_option,
    mixture_options,
    split_names,
    task_options,
    typed_command,
)
from attempt_registry.errors import RegistryError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.changes import Changes
    from attempt_cli.cli.main import Settings
    from attempt_cli.cli.models import Chosen
    from attempt_cli.data.rows import Rows
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.evaluate import Evaluation
    from attempt_cli.evaluation.pairing import PerRow
    from attempt_registry import Registry

COLUMNS = ("task", "model", "metric", "score", "interval", "n", "rows_per_second", "attention")


@click.command("eval")
@click.option("--tasks", help="Tasks, comma separated.")
@task_options
@click.option("--prompt", "prompts", multiple=True, help="A prompt, or `none` for the bare model; may be repeated.")
@click.option("--composition", "compositions", multiple=True, help="A composition; may be repeated.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="The rows to score, by the task's split rule.",
)
@click.option("--limit", type=click.IntRange(min=1), help="A random sample of so many rows.")
@click.option("--max-length", type=click.IntRange(min=4), help="Input tokens of a row. [default: as trained]")
@max_tokens_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write every prediction here as JSONL.")
@mixture_options
@backbone_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    tasks: str | None,
    prompts: tuple[str, ...],
    compositions: tuple[str, ...],
    split: str,
    limit: int | None,
    max_length: int | None,
    max_tokens: int,
    seed: int,
    output: Path | None,
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
    from attempt_cli.artefacts import remember_backbone
    from attempt_cli.cli.progress import RowProgress
    from attempt_cli.evaluation.pairing import compare, per_row

    changes = chosen_changes(options)
    registry = settings.registry()
    named = named_models(registry, prompts, compositions)
    backbone = backbone_name(options)
    text_format = options.pop("text_format")
    wanted = _tasks(registry, tasks, options, named)
    models_of = {task.name: named or [model_for_task(registry, task.name, backbone)] for task in wanted}
    plan = _plan(registry, [(task, model) for task in wanted for model in models_of[task.name]], changes)
    # rows first: they are quick to find missing, the backbone is not
    loader = RowLoader(split, settings.data_dir, limit, seed)
    for task in wanted:
        loader.rows(task)
    used = [model for _, model, _ in plan if model is not None]
    frozen = chosen_backbone(registry, options, used, settings.output.note)
    models = {(_key(model), words): load_model(registry, frozen, model, words) for _, model, words in plan}
    jobs = []
    note = functools.cache(settings.output.note)  # each remark once: a composition is scored twice with changes
    for task, model, words in plan:
        loaded = models[_key(model), words]
        own, length = as_trained(task, loaded.prompt_for(task.name), text_format, note)
        jobs.append(_Job(own, loaded, loader.rows(own), max_length or length, words))
    for prompt in {model.ref: model for model in used if isinstance(model, Prompt)}.values():
        if prompt.method == "attempt":
            settings.output.note(alone_note(prompt))
    records: list[dict[str, Any]] = []
    as_it_is: PerRow | None = None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(output.open("w", encoding="utf-8")) if output is not None else None
        groups = [list(group) for _, group in itertools.groupby(jobs, lambda job: (id(job.rows), job.max_length))]
        rows_in_all = sum(len(group[0].rows.examples) for group in groups)
        progress = stack.enter_context(RowProgress(rows_in_all, settings.output.format))
        for job, result in (pair for group in groups for pair in _evaluated(group, max_tokens, progress.advance)):
            record = summary(job.task, job.loaded, job.rows, result)
            kept = per_row(job.task, result.predictions.texts, job.rows.examples)
            if job.changes and as_it_is is not None:
                record["change"] = difference_record(compare(job.task, kept, as_it_is))
            else:
                as_it_is = kept
            try:  # each as it ends: a later failure loses nothing
                remember_backbone(registry, frozen)
                how = {"split": split, "limit": limit, "dtype": str(frozen.dtype)}
                seconds = result.predictions.seconds
                record["run"] = _keep_run(registry, job, {**record, "per_row": kept.record()}, how, seed, seconds)
            except RegistryError as error:  # someone else's registry may be evaluated, too
                settings.output.note(f"This evaluation is not recorded: {error.message}")
            records.append(record)
            if file is not None:
                write_predictions(file, job.task, job.loaded, job.rows, result)
    if output is not None:
        settings.output.note(f"Wrote every prediction to {output}")
    truncated = sum(record["truncated"] for record in records)
    if truncated:
        settings.output.note(f"{truncated:,} inputs were longer than the limit and lost their middle.")
    if settings.output.format == "json":
        settings.output.json({"evaluations": records})
    else:
        columns = (*COLUMNS, "change") if changes else COLUMNS
        settings.output.rows("evaluations", [table_row(record) for record in records], columns, name="score")


def _evaluated(
    jobs: Sequence[_Job], max_tokens: int, progress: Callable[[int], Any]
) -> Iterable[tuple[_Job, Evaluation]]:
    """Jobs on the same rows, each with its result: an input is read once for all prompts that stand after it."""
    from attempt_cli.evaluation.evaluate import evaluate_many
    from attempt_cli.evaluation.prediction import PromptedTask

    asked = [PromptedTask(job.loaded.model, job.task, job.loaded.task_index(job.task.name)) for job in jobs]
    results = evaluate_many(
        asked, jobs[0].rows.examples, max_length=jobs[0].max_length, max_tokens=max_tokens, progress=progress
    )
    return zip(jobs, results, strict=True)


@dataclass(frozen=True)
class _Job:
    """One row of the table: a model on a task's rows, in the text format that it was trained under."""

    task: Task
    loaded: Loaded
    rows: Rows
    max_length: int | None
    changes: str  # in words; empty where the model is as it is kept


def _keep_run(
    registry: Registry, job: _Job, numbers: dict[str, Any], how: dict[str, Any], seed: int, seconds: float
) -> int:
    """Records an evaluation, with all that `attempt compare` needs of it; gives its number.

    Raises:
        RegistryError: the registry cannot be written.
    """
    from attempt_cli.artefacts import versions
    from attempt_cli.data.schema import task_fields
    from attempt_cli.evaluation.pairing import rows_record

    task = {"task": task_fields(job.task), "format": job.task.format}
    return registry.add_run(
        command=typed_command(),
        settings={**how, "max_length": job.max_length, "changes": job.changes or None, **task},
        rows={how["split"]: rows_record(job.rows)},
        seed=seed,
        budget={},
        numbers=numbers,
        versions=versions(),
        duration=seconds,
        inputs=job.loaded.inputs,
    ).id


class RowLoader:
    """Loads the rows of a task once for each of its text formats."""

    def __init__(self, split: str, data_dir: Path | None, limit: int | None, seed: int) -> None:
        self._arguments: dict[str, Any] = {"data_dir": data_dir, "limit": limit, "seed": seed}
        self._split = split
        self._loaded: dict[tuple[str, str], Rows] = {}

    def rows(self, task: Task) -> Rows:
        from attempt_cli.data.rows import load_examples

        key = (task.name, task.format)
        if key not in self._loaded:
            self._loaded[key] = load_examples(task, self._split, **self._arguments)
        return self._loaded[key]


def summary(task: Task, loaded: Loaded, rows: Rows, result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON holds it: scores in [0, 1] (correlations in [-1, 1])."""
    record: dict[str, Any] = {
        "task": task.name,
        "model": loaded.name,
        "kind": loaded.kind,
        "metrics": {name: round(value, 6) for name, value in result.metrics.items()},
        "metric": task.metrics[0],
        "score": round(result.score, 6),
        "interval": [round(bound, 6) for bound in result.interval],
        "n": result.n,
        "rows_per_second": round(result.rows_per_second, 2),
        "truncated": result.predictions.truncated,
        "rows": rows.origin,
    }
    attention = result.mean_attention
    if attention is not None:
        names = [*(ref for ref in loaded.sources), "target"]
        record["attention"] = {name: round(weight, 4) for name, weight in zip(names, attention, strict=True)}
    return record


def table_row(record: dict[str, Any]) -> dict[str, Any]:
    """An evaluation as people read it: percent, with the interval's bounds."""
    low, high = record["interval"]
    attention = ", ".join(f"{name} {weight:.2f}" for name, weight in record.get("attention", {}).items())
    others = [f"{name} {100 * value:.1f}" for name, value in record["metrics"].items() if name != record["metric"]]
    return {
        **record,
        "metric": ", ".join([record["metric"], *others]),
        "score": f"{100 * record['score']:.1f}",
        "interval": f"{100 * low:.1f}-{100 * high:.1f}",
        "rows_per_second": f"{record['rows_per_second']:.1f}",
        "attention": attention,
        "change": difference_text(record["change"]) if "change" in record else None,
    }


def write_predictions(file: IO[str], task: Task, loaded: Loaded, rows: Rows, result: Evaluation) -> None:
    """One JSON object a row: its number, the answer, what the model said, and the attention it gave."""
    names = [*loaded.sources, "target"]
    for example, said in zip(rows.examples, result.predictions.rows, strict=True):
        line: dict[str, Any] = {
            "task": task.name,
            "model": loaded.name,
            "row": example.row,
            "input": example.input,
            "target": example.target,
            "prediction": said.text,
        }
        if said.probabilities is not None:
            line["probabilities"] = named(task.label_words, said.probabilities)
        if said.attention is not None:
            line["attention"] = named(names, said.attention)
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def named(names: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """Numbers under their names, to five digits."""
    return {name: round(value, 5) for name, value in zip(names, values, strict=True)}


def _tasks(registry: Registry, names: str | None, options: dict[str, Any], models: list[Chosen]) -> list[Task]:
    """The tasks of --tasks; else those of files; else those that the first model was trained for."""
    from attempt_cli.data.task import load_task

    first = next((model for model in models if model is not None), None)
    if names is None and (first is None or options["input_template"] is not None):
        return [chosen_task(None, {**{field: options.pop(field) for field in FILE_FIELDS}, "text_format": None})]
    files = {field: options.pop(field) for field in FILE_FIELDS}
    if names is not None:
        if any(value is not None for value in files.values()):
            raise click.UsageError("give --tasks or files, not both")
        return [load_task(name) for name in split_names(names)]
    loose = [field for field in ("label", "labels", "answers") if files[field] is not None]
    if loose:
        raise click.UsageError(f"--{loose[0]} goes with --input; without both the prompt's own are used")
    targets = [registry.prompt(ref) for ref in first.targets] if isinstance(first, Composition) else [first]
    if first is not None and not targets:
        raise click.UsageError(f"'{first.ref}' mixes sources for any task: name one with --tasks")
    rows = {"train": files["train_file"], "validation": files["validation_file"], "test": files["test_file"]}
    if len(targets) > 1 and any(rows.values()):
        raise click.UsageError("a composition with several targets needs --tasks, or --input and --label with files")
    return [with_files(trained_task(prompt.settings, prompt.task), **rows) for prompt in targets if prompt]


def _plan(registry: Registry, models: list[tuple[Task, Chosen]], changes: Changes) -> list[tuple[Task, Chosen, str]]:
    """What is scored: each model, and behind each composition the same with the changes, and these in words."""
    from attempt_cli.changes import changed

    if changes and not any(isinstance(model, Composition) for _, model in models):
        raise click.UsageError("--add, --drop, --only and --weights change compositions: name one with --composition")
    plan: list[tuple[Task, Chosen, str]] = []
    for task, model in models:
        plan.append((task, model, ""))
        if changes and isinstance(model, Composition):
            plan.append((task, changed(registry, model, changes), str(changes)))
    return plan


def _key(model: Chosen) -> str:
    return "none" if model is None else f"{type(model).__name__}:{model.ref}"
