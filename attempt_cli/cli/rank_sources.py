"""`attempt rank-sources`: which source helps which target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    limit_option,
    max_tokens_option,
    names_or_all,
    seed_option,
    split_option,
    where_options,
)
from attempt_cli.cli.scores import difference_text, interval_text, percent

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.evaluation.ranking import RankedSource


@click.command("rank-sources")
@click.argument("task_name", metavar="TASK")
@click.option("--sources", help="Source prompts, comma separated, or `all`. [default: the composition's, else all]")
@click.option("--target", help="The prompt of the cosines. [default: the task's newest target prompt]")
@click.option("--composition", help="Its sources are left out one by one.")
@split_option(
    "validation", "validation", "train", help="The rows to score; never the test's, since a source is chosen by them."
)
@limit_option(200)
@seed_option
@max_tokens_option
@where_options
@click.pass_obj
def command(
    settings: Settings, /, task_name: str, sources: str | None, split: str, where: BackboneOptions, **options: Any
) -> None:
    """Rank source prompts by what they do for TASK, in up to three ways.

    The score of each source as it is (zero-shot transfer); where the task has a target prompt, SPoT's cosines with
    it: of the mean rows of two prompts, and the mean over all pairs of rows; with --composition how its score changes
    when the source is left out, with the 95 % interval.

    \b
      attempt rank-sources rte
      attempt rank-sources rte --composition rte-attempt --limit 500
      attempt rank-sources boolq --sources mnli,qnli --target boolq-prompt-tuning
    """
    from attempt_cli.api.scoring import rank_sources
    from attempt_cli.cli.progress import RowProgress

    with RowProgress(settings.output) as progress:
        session = settings.session(where, input_cache=0, listener=progress)
        ranking = rank_sources(task_name, sources=names_or_all(sources), split=split, session=session, **options)
    if ranking.target is None:
        settings.output.note(f"No cosines: '{ranking.task}' has no target prompt yet; --target names one.")
    if settings.output.format == "json":
        settings.output.json({"ranking": ranking.record()})
        return
    columns = ["source", "task", ranking.metric, "interval"]
    columns += ["cosine", "cosine of pairs"] if ranking.target else []
    columns += ["change without it"] if any(source.change for source in ranking.sources) else []
    rows = [_table_row(source, ranking.metric) for source in ranking.sources]
    settings.output.rows("sources", rows, columns, name="source")
    if ranking.target is not None:
        settings.output.note(f"Cosines with {ranking.target}.")


def _table_row(source: RankedSource, metric: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "source": source.source,
        "task": source.task,
        metric: percent(source.score),
        "interval": interval_text(source.interval),
    }
    if source.cosine is not None:
        row |= {"cosine": f"{source.cosine:.3f}", "cosine of pairs": f"{source.pair_cosine:.3f}"}
    if source.change is not None:
        row["change without it"] = difference_text(source.change)
    return row
