"""`attempt train-target`: ATTEMPT, its variants and the baselines on one or several target tasks."""

from __future__ import annotations

from collections.abc import Mapping
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
    stacked,
    temperature_option,
    training_options,
    weight_rate_option,
)
from attempt_cli.cli.row_options import RowOptions, row_options
from attempt_cli.cli.training import report, training_session
from attempt_cli.training.methods import METHODS, READERS, method_help

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings

# what G is, and how fast it is trained
SHAPE_OF_G = (
    *("attention_rank", "temperature", "learned_temperature", "level"),
    *("attention_input", "attention_top", "cosine"),
)
OF_G = (*SHAPE_OF_G, "attention_learning_rate", "evidence")

# where the first is given, the others say nothing: there is no G, or it is there already
SETTLED = {
    "constant_attention": OF_G,
    "attention_from": (*SHAPE_OF_G, "constant_attention"),
    "composition": ("sources", "attention_from", *OF_G, "constant_attention", "with_target"),
}
OPTIONS = {"with_target": "--no-target"}  # where an option is not its setting's name

method_options = stacked(
    click.option(
        "--method",
        type=click.Choice(list(METHODS)),
        default="attempt",
        show_default=True,
        metavar="NAME",
        help=method_help(),
    ),
    *(
        click.option(
            f"--{name}-{key}",
            type=type(setting.default),
            help=f"With --method {name}: {setting.help} [default: {setting.default}]",
        )
        for name, method in METHODS.items()
        for key, setting in method.settings.items()
    ),
)


@click.command("train-target")
@click.argument("task", required=False, metavar="[TASK[,TASK…]]")
@row_options
@method_options
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--init-from", help="The prompt that the target starts from. [default: the first of another task]")
@attention_rank_option
@attention_rate_option
@weight_rate_option
@temperature_option
@click.option("--learned-temperature", is_flag=True, default=None, help="T is trained, too, from that value.")
@click.option(
    "--level",
    type=click.Choice(["instance", "token"]),
    help="What has a weight: a prompt (equation 3), or each of its rows (equation 5). [default: instance]",
)
@shape_options
@click.option(
    "--evidence",
    is_flag=True,
    default=None,
    help="The attention starts from how likely each prompt makes 16 training rows.",
)
@click.option("--one-norm", is_flag=True, default=None, help="Sources are scaled to one norm, their mean.")
@click.option("--constant-attention", is_flag=True, default=None, help="Every source has the weight 1/t, without G.")
@click.option(
    "--no-target", "with_target", flag_value=False, default=None, help="Only sources are mixed, and only G is trained."
)
@click.option(
    "--balanced-start",
    is_flag=True,
    default=None,
    help="Where attention is flat, the mixture starts as the prompt of --init-from, not the target prompt alone.",
)
@click.option("--attention-from", help="Start from this trained G: an attention prior, or another target's.")
@click.option("--add-task", help="Tasks that join --composition: its G and its targets stay as they are.")
@click.option("--composition", help="With --add-task: the composition that they join.")
@sampling_options
@training_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    task: str | None,
    add_task: str | None,
    sources: str | None,
    rows: RowOptions,
    cache: CacheOptions,
    where: BackboneOptions,
    **training: Any,
) -> None:
    """Train a target prompt for TASK, by default with ATTEMPT (equations 2 to 4 of the paper).

    Sources and backbone stay frozen. The prompt, G and the composition that joins them are kept in the registry under
    --name (TASK-METHOD without it). Several tasks share one G and mix in every batch (ATTEMPT-m); each has a target
    prompt of its own, NAME.TASK.

    Weights are no prompts and are not kept: such a model is scored on the test rows when it is trained, and its runs
    are recorded.

    \b
      attempt train-target rte --sources mnli,qnli,sst2 --init-from mnli
      attempt train-target cb --sources all
      attempt train-target rte,mrpc,cb --sources all --name glue-m
      attempt train-target --add-task boolq --composition glue-m
      attempt train-target rte --sources all --attention-from prior
      attempt train-target rte --method spot --init-from mnli
      attempt train-target rte --method prompt-tuning
      attempt train-target rte --sources all --level token --learned-temperature
      attempt train-target rte --method mpt --sources mnli,qnli
      attempt train-target rte --method lora --weight-learning-rate 1e-3
      attempt train-target rte,mrpc,cb --method hyperformer
      attempt train-target reviews --train-file reviews.csv --input "{text} sentiment:" --label stars --sources all
    """
    from attempt_cli.api.training import train_target

    if (add_task is None) != (training["composition"] is None) or (add_task is not None and task is not None):
        raise click.UsageError("tasks join a composition with: --add-task TASK --composition NAME")
    check_options(training["method"], {**training, "sources": sources, "test_file": rows.test_file})
    tasks = rows.tasks(add_task or task)
    sampled = training["max_rows_per_task"] is not None or training["sampling_temperature"] != 1
    if len(tasks) == 1 and add_task is None and sampled:
        raise click.UsageError("--max-rows-per-task and --sampling-temperature are for several tasks")
    with training_session(settings, where, cache) as session:
        outcome = train_target(
            tasks,
            sources=names_or_all(sources),
            session=session,
            **own_settings(training),
        )
    report(settings, outcome)


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuses options that say nothing for the method, or beside another option.

    Raises:
        UsageError: naming the option and what it goes with.
    """
    row = METHODS[method]
    given = {name for name, value in options.items() if value is not None}
    if method == "prompt-tuning" and "init_from" in given:
        raise click.UsageError("prompt tuning from another prompt is SPoT: --method spot --init-from NAME")
    readers = dict(READERS)
    for taken in ("sources", "init_from", "attention_from", "composition"):
        readers[taken] = tuple(name for name, one in METHODS.items() if taken in one.takes and name != "prompt-tuning")
    for name, fitting in readers.items():
        if name in given and method not in fitting:
            raise click.UsageError(f"{_option(name)} only goes with --method {' or '.join(fitting)}, not with {method}")
    for name, others in SETTLED.items():
        for other in others:
            if name in given and other in given and name == "composition":
                raise click.UsageError(f"{_option(other)} is settled: --add-task takes sources and G of --composition")
            if name in given and other in given:
                raise click.UsageError(f"{_option(other)} says nothing with {_option(name)}")
    for name, another in METHODS.items():
        for key in another.settings:
            if name != method and f"{name}_{key}".replace("-", "_") in given:
                raise click.UsageError(f"--{name}-{key} only goes with --method {name}, not with {method}")
    if "test_file" in given and row.kept:
        raise click.UsageError("--test-file is for models that cannot be kept; a prompt is scored by `attempt eval`")
    missing = row.missing({"sources": "sources" in given, "init_from": "init_from" in given})
    if missing and "composition" not in given:
        raise click.UsageError(missing)


def own_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with the numbers of the chosen method under `method_settings`."""
    rest, own = dict(options), {}
    for name, method in METHODS.items():
        for key in method.settings:
            value = rest.pop(f"{name}_{key}".replace("-", "_"))
            if value is not None:
                own[key] = value
    return {**rest, "method_settings": own or None}


def _option(name: str) -> str:
    return OPTIONS.get(name, f"--{name.replace('_', '-')}")
