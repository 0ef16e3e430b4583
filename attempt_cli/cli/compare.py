"""`attempt compare`: is one evaluation better than another on the same rows, or is it chance?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.scores import difference_text, percent

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.evaluation.comparison import RunComparison, RunScore


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
    difference is the first's score minus the second's, with its 95 % interval; the last line says which differences
    these rows could have detected at all.

    \b
      attempt compare rte-attempt rte-spot
      attempt compare 12 17 --metric f1
      attempt compare none sst2 --task mrpc
    """
    from attempt_cli.api.scoring import compare

    found = compare(first, second, task=task, metric=metric, session=settings.session())
    record = _for_people(found) if settings.output.format == "table" else found.record()
    settings.output.record("comparison", record, name="difference")


def _for_people(found: RunComparison) -> dict[str, Any]:
    """Writes a comparison in percent and whole sentences."""

    def model(one: RunScore) -> str:
        return f"{one.model} (run {one.run}): {percent(one.score)}"

    words = {
        "first": "only the first right" if "both" in found.counts else "the first higher",
        "second": "only the second right" if "both" in found.counts else "the second higher",
        "both": "both right",
        "neither": "both wrong",
        "different": "different predictions",
        "equal": "equal",
    }
    counts = ", ".join(f"{count:,} {words[name]}" for name, count in found.counts.items())
    return {
        "task": found.task,
        "metric": found.metric,
        "first": model(found.first),
        "second": model(found.second),
        "difference": difference_text(found.test),
        "test": found.test.name,
        "counts": f"of {found.n:,} rows {counts}",
        "rows": f"{found.split}, {found.rows}",
        "power": "these rows cannot tell the two apart"
        if found.test.smallest is None
        else f"differences of at least {percent(found.test.smallest)} are detected in 80 % of such samples",
    }
