"""`attempt train-target`: ATTEMPT, its variants and the baselines on a target task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.many import named_tasks, sampling_options, starts, train_many_and_report
from attempt_cli.cli.options import (
    backbone_name,
    backbone_options,
    chosen_sources,
    chosen_task,
    record_options,
    task_options,
    training_options,
    where_from,
)
from attempt_cli.cli.training import train_and_report

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_registry import Composition, Registry

# `training.config` has them too, but is not imported for help
WEIGHTS = ("fine-tuning", "bitfit", "adapter", "adapterdrop", "lora", "ia3")
METHODS = ("attempt", "spot", "prompt-tuning", "mpt", "dept", *WEIGHTS)
PROMPTS = METHODS[: -len(WEIGHTS)]

# what G is, and how fast it is trained
SHAPE_OF_G = ("attention_rank", "temperature", "learned_temperature", "level")
OF_G = (*SHAPE_OF_G, "attention_learning_rate")

# where the first is given, the others say nothing: there is no G, or it is there already
SETTLED = {"constant_attention": OF_G, "attention_from": (*SHAPE_OF_G, "constant_attention")}

# which methods an option says something for; one that is not here is for all
OPTION_METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("attention_from", "constant_attention", "no_target", "balanced_start", *OF_G), ("attempt",)),
    "attention_learning_rate": ("attempt", "mpt", "dept"),
    "sources": ("attempt", "mpt"),
    "init_from": ("attempt", "spot"),
    "weight_learning_rate": WEIGHTS,
    **dict.fromkeys(("learning_rate", "prompt_length", "placement", "units"), PROMPTS),
}


@click.command("train-target")
@click.argument("task", required=False, metavar="[TASK[,TASK…]]")
@task_options
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="attempt",
    show_default=True,
    metavar="NAME",
    help="attempt mixes sources and target; spot starts from a source; prompt-tuning uses none; mpt trains the "
    "sources' mean times low-rank factors; dept a short prompt and offsets on the input; fine-tuning, bitfit, "
    "adapter, adapterdrop, lora and ia3 train weights.",
)
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--init-from", help="The prompt that the target starts from. [default: the first source]")
@click.option("--attention-rank", type=int, help="r, the width inside G. [default: 100, at most half the width]")
@click.option(
    "--attention-learning-rate", type=float, help="Of G, of MPT's factors, of DePT's offsets. [default: 0.01]"
)
@click.option("--weight-learning-rate", type=float, help="Of weights: fine-tuning to ia3. [default: 3e-4]")
@click.option(
    "--temperature", type=float, help="T of the softmax. [default: e·√d in RMS units, the paper's e·d in raw ones]"
)
@click.option("--learned-temperature", is_flag=True, default=None, help="T is trained, too, from that value.")
@click.option(
    "--level",
    type=click.Choice(["instance", "token"]),
    help="What has a weight: a prompt (equation 3), or each of its rows (equation 5). [default: instance]",
)
@click.option("--constant-attention", is_flag=True, default=None, help="Every source has the weight 1/t, without G.")
@click.option("--no-target", is_flag=True, default=None, help="Only sources are mixed, and only G is trained.")
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
@record_options
@backbone_options
@click.pass_obj
def command(settings: Settings, /, task: str | None, method: str, **options: Any) -> None:
    """Train a target prompt for TASK, by default with ATTEMPT (equations 2 to 4 of the paper).

    Sources and backbone stay frozen. The prompt, G and the composition that joins them are kept in the registry under
    --name (TASK-METHOD without it). Several tasks share one G and mix in every batch (ATTEMPT-m); each has a target
    prompt of its own, NAME.TASK.

    Weights and DePT's offsets are no prompts and are not kept: such a model is scored on the test rows when it is
    trained, and its runs are recorded.

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
      attempt train-target reviews --train-file reviews.csv --input "{text} sentiment:" --label stars --sources all
    """
    registry = settings.registry()
    _check_options(method, options)
    if options.pop("no_target"):
        options["with_target"] = False
    added, composition = options.pop("add_task"), options.pop("composition")
    if (added is None) != (composition is None) or (added is not None and task is not None):
        raise click.UsageError("tasks join a composition with: --add-task TASK --composition NAME")
    names, start = options.pop("sources"), options.pop("init_from")
    attention_from = options.pop("attention_from")
    if added is not None:
        _add_tasks(settings, registry, added, registry.composition(composition), names, start, attention_from, options)
        return
    if method == "attempt" and names is None:
        raise click.UsageError("ATTEMPT mixes source prompts: give --sources a,b,c or --sources all")
    if method == "spot" and start is None:
        raise click.UsageError("SPoT starts from a source prompt: give --init-from NAME")
    if method == "mpt" and names is None:
        raise click.UsageError("MPT starts from source prompts: give --sources a,b,c or --sources all")
    several = task is not None and "," in task
    if method != "attempt" and several:
        raise click.UsageError(f"several tasks only go with --method attempt, not with {method}")
    if several or attention_from is not None:
        tasks = named_tasks(task, options) if several and task else (chosen_task(task, options),)
        sources = chosen_sources(registry, names, backbone_name(options), targets=[t.name for t in tasks])
        train_many_and_report(
            settings,
            registry,
            tasks,
            options,
            name=f"{'-'.join(t.name for t in tasks)}-attempt",
            keep="targets",
            sources=sources,
            init_from=starts(sources, tasks, registry.prompt(start) if start else None),
            attention_from=registry.attention(attention_from) if attention_from else None,
        )
        return
    if options.pop("max_rows_per_task") is not None or options.pop("sampling_temperature") != 1:
        raise click.UsageError("--max-rows-per-task and --sampling-temperature are for several tasks")
    chosen = chosen_task(task, options)
    sources = chosen_sources(registry, names, backbone_name(options), targets=[chosen.name])
    train_and_report(
        settings,
        registry,
        chosen,
        options,
        kind="target",
        method=method,
        sources=sources,
        init_from=registry.prompt(start) if start else (sources[0] if method == "attempt" else None),
        name=f"{chosen.name}-{method}",
    )


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Refuses options that say nothing for the method, or for what is given with them.

    Raises:
        UsageError: naming the option and what it goes with.
    """
    given = {name for name, value in options.items() if value is not None}
    if method == "prompt-tuning" and "init_from" in given:
        raise click.UsageError("prompt tuning from another prompt is SPoT: --method spot --init-from NAME")
    for name, fitting in OPTION_METHODS.items():
        if name in given and method not in fitting:
            raise click.UsageError(f"{_option(name)} only goes with --method {' or '.join(fitting)}, not with {method}")
    for name, others in SETTLED.items():
        for other in others:
            if name in given and other in given:
                raise click.UsageError(f"{_option(other)} says nothing with {_option(name)}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_tasks(
    settings: Settings,
    registry: Registry,
    names: str,
    composition: Composition,
    sources: str | None,
    start: str | None,
    attention_from: str | None,
    options: dict[str, Any],
) -> None:
    """Trains target prompts for a composition's own sources and G, which stay as they are."""
    if sources is not None or attention_from is not None:
        raise click.UsageError("--add-task takes the sources and the attention of --composition")
    if composition.attention is None:
        raise click.UsageError(f"the composition '{composition.ref}' has no attention that a task could join")
    for option in (*OF_G, "constant_attention", "with_target"):
        if options.get(option) is not None:
            option = "no_target" if option == "with_target" else option
            raise click.UsageError(f"{_option(option)} is settled: --add-task leaves G as it is")
    tasks = named_tasks(names, options)
    mixed = tuple(registry.prompt(ref) for ref in composition.sources)
    if options["backbone"] is None:
        options["backbone"] = where_from(registry, composition)
    train_many_and_report(
        settings,
        registry,
        tasks,
        options,
        name=composition.name,
        keep="targets",
        sources=mixed,
        init_from=starts(mixed, tasks, registry.prompt(start) if start else None),
        attention_from=registry.attention(composition.attention),
        onto=composition,
    )
