"""`attempt train-attention`: the attention prior, a G trained on the source tasks themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    CacheOptions,
    attention_rank_option,
    attention_rate_option,
    names_or_all,
    sampling_options,
    shape_options,
    split_names,
    temperature_option,
    training_options,
)
from attempt_cli.cli.training import report, training_session

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("train-attention")
@click.option("--sources", required=True, help="Source prompts, comma separated and in order, or `all`.")
@click.option("--tasks", help="Train on these tasks. [default: those of the sources]")
@attention_rank_option
@attention_rate_option
@temperature_option
@shape_options
@sampling_options
@training_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    sources: str,
    tasks: str | None,
    cache: CacheOptions,
    where: BackboneOptions,
    **training: Any,
) -> None:
    """Pre-train the attention G on the source tasks (the paper's attention prior).

    Every source task gets a fresh target prompt, G is shared by all; G is kept under --name (`prior` without it), the
    target prompts are not. A target's training starts from it with `--attention-from`, and a task without training
    rows is served by it as it is: `attempt compose NAME --sources … --attention prior`.

    \b
      attempt train-attention --sources mnli,sst2,qqp,qnli --name glue-prior
      attempt train-attention --sources all --steps 2000 --max-rows-per-task 10000
      attempt train-target rte --sources mnli,sst2,qqp,qnli --attention-from glue-prior
    """
    from attempt_cli.api.training import train_attention

    training["name"] = training["name"] or "prior"
    with training_session(settings, where, cache) as session:
        outcome = train_attention(
            names_or_all(sources) or (),
            tasks=split_names(tasks) if tasks else None,
            session=session,
            **training,
        )
    report(settings, outcome)
