"""`attempt compare`: is one evaluation better than another on the same rows, or is it chance?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.models import named_model, trained_task
from attempt_cli.errors import AttemptError
from attempt_registry.records import Composition

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.evaluation.pairing import Comparison
    from attempt_registry import Registry
    from attempt_registry.records import Run


@click.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--task", help="With names: their evaluations on this task. [default: the one that both were scored on]")
@click.option("--metric", help="One of the task's metrics. [default: its first]")
@click.pass_obj
def command(settings: Settings, first: str, second: str, task: str | None, metric: str | None) -> None:
    """Compare two evaluations on the same rows, row by row.

    FIRST and SECOND are numbers of `eval` runs, or names of prompts or compositions (`none`: the bare model), whose
    newest evaluation is taken. McNemar's test where a row is right or wrong, a paired bootstrap for other metrics. The
    difference is the first's score less the second's, with its 95 % interval; the last line says which difference
    these rows could have shown at all.

    \b
      attempt compare rte-attempt rte-spot
      attempt compare 12 17 --metric f1
      attempt compare none sst2 --task mrpc
    """
    from attempt_cli.evaluation.pairing import PerRow, compare

    registry = settings.registry()
    runs = _runs(registry, first, second, task)
    _check_same_rows(runs)
    known = trained_task(runs[0].settings, runs[0].numbers["task"])
    one, other = (PerRow(**run.numbers["per_row"]) for run in runs)
    result = compare(known, one, other, metric)
    models = [
        {"run": run.id, "model": run.numbers["model"], "score": round(score, 6)}
        for run, score in zip(runs, result.scores, strict=True)
    ]
    split, rows = _evaluated(runs[0])
    record = {
        "task": known.name,
        "metric": result.metric,
        "first": models[0],
        "second": models[1],
        **difference_record(result),
        "counts": result.counts,
        "n": result.n,
        "split": split,
        "rows": rows["origin"],
    }
    if settings.output.format == "table":
        settings.output.record("comparison", _for_people(record), name="difference")
    else:
        settings.output.record("comparison", record, name="difference")


def difference_record(result: Comparison) -> dict[str, Any]:
    """A paired difference as JSON holds it."""
    test = result.test
    return {
        "difference": round(test.difference, 6),
        "interval": [round(bound, 6) for bound in test.interval],
        "p": float(f"{test.p:.4g}"),
        "test": test.name,
        "smallest_difference": None if test.smallest is None else round(test.smallest, 6),
    }


def difference_text(record: dict[str, Any]) -> str:
    """A paired difference in points, with its interval: "+6.5 (+1.9 to +11.0), p 0.009"."""
    low, high = record["interval"]
    return f"{100 * record['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), p {record['p']:.2g}"


def _for_people(record: dict[str, Any]) -> dict[str, Any]:
    """Percent and whole sentences."""
    models = {
        place: f"{one['model']} (run {one['run']}): {100 * one['score']:.1f}"
        for place, one in (("first", record["first"]), ("second", record["second"]))
    }
    words = {
        "first": "only the first right" if "both" in record["counts"] else "the first higher",
        "second": "only the second right" if "both" in record["counts"] else "the second higher",
        "both": "both right",
        "neither": "both wrong",
        "different": "different predictions",
        "equal": "equal",
    }
    counts = ", ".join(f"{count:,} {words[name]}" for name, count in record["counts"].items())
    smallest = record["smallest_difference"]
    return {
        "task": record["task"],
        "metric": record["metric"],
        **models,
        "difference": difference_text(record),
        "test": record["test"],
        "counts": f"of {record['n']:,} rows {counts}",
        "rows": f"{record['split']}, {record['rows']}",
        "power": "these rows cannot tell the two apart"
        if smallest is None
        else f"differences from {100 * smallest:.1f} on are found in 80 % of such samples",
    }


def _runs(registry: Registry, first: str, second: str, task: str | None) -> list[Run]:
    """The two evaluations that are meant."""
    names = (first, second)
    found = [_by_number(registry, name) if name.isdigit() else _evaluations(registry, name) for name in names]
    tasks = [", ".join(sorted(of)) for of in found]
    shared = sorted(set(found[0]) & set(found[1]))
    if task is None and not shared:
        raise AttemptError(
            f"'{first}' was evaluated on {tasks[0]}, '{second}' on {tasks[1]}",
            "Evaluate both on one task: `attempt eval --tasks TASK --prompt … --composition …`.",
        )
    if task is None and len(shared) > 1:
        raise click.UsageError(f"both were evaluated on {', '.join(shared)}: choose one with --task")
    task = task or shared[0]
    for name, of, there in zip(names, found, tasks, strict=True):
        if task not in of:
            raise AttemptError(
                f"'{name}' was not evaluated on the task '{task}', but on {there}",
                f"Evaluate it: `attempt eval --tasks {task} …`; `attempt registry list --what runs` shows what was.",
            )
    return [of[task] for of in found]


def _by_number(registry: Registry, text: str) -> dict[str, Run]:
    """The evaluation of that number, under its task's name.

    Raises:
        RegistryError: there is no such run.
        AttemptError: it is no evaluation, or an old one.
    """
    run = registry.run(int(text))
    if "per_row" not in run.numbers:
        raise AttemptError(
            f"run {text} is no evaluation that kept its rows' scores: {run.command}",
            "`attempt eval` keeps them; name one of its runs, or score the prompt again.",
        )
    return {run.numbers["task"]: run}


def _evaluations(registry: Registry, name: str) -> dict[str, Run]:
    """A model's newest evaluation on each task; the task's name -> the run.

    Raises:
        RegistryError: there is no such prompt or composition.
        AttemptError: it was never evaluated.
    """
    if name == "none":
        kind, model, runs = "none", "no prompt", registry.runs(reverse=True)
    else:
        record = named_model(registry, name)
        kind, model = "composition" if isinstance(record, Composition) else "prompt", record.ref
        runs = registry.runs(uses=f"{kind}:{model}", reverse=True)
    found: dict[str, Run] = {}
    for run in runs:
        numbers = run.numbers
        if "per_row" in numbers and (numbers.get("kind"), numbers.get("model")) == (kind, model):
            found.setdefault(numbers["task"], run)
    if not found:
        option = f"--{kind} {name}" if kind != "none" else "--prompt none"
        raise AttemptError(
            f"there is no evaluation of '{name}' that kept its rows' scores", f"Make one: `attempt eval {option} …`."
        )
    return found


def _check_same_rows(runs: list[Run]) -> None:
    """Refuses runs on different rows."""
    sides = [(run, *_evaluated(run)) for run in runs]
    if len({rows["sha256"] for _, _, rows in sides}) == 1:
        return
    text = "; ".join(
        f"run {run.id} on {run.numbers['task']}, {split}, {rows['n']:,} rows of {rows['origin']} "
        f"(sha256 {rows['sha256'][:12]})"
        for run, split, rows in sides
    )
    raise AttemptError(
        f"the two evaluations are on different rows: {text}",
        "Evaluate both in one command: `attempt eval --tasks TASK --prompt … --composition …`.",
    )


def _evaluated(run: Run) -> tuple[str, dict[str, Any]]:
    """The split that was scored, and what the run says of its rows (it may know the training's, too)."""
    split = run.settings.get("split", "test")
    return split, run.rows[split]
