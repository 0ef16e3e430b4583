"""`attempt rank-sources`: which source helps which target."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.changes import Changes, changed
from attempt_cli.cli.compare import difference_record, difference_text
from attempt_cli.cli.eval import RowLoader
from attempt_cli.cli.models import as_trained, load_model
from attempt_cli.cli.options import (
    backbone_name,
    backbone_options,
    chosen_backbone,
    chosen_sources,
    max_tokens_option,
    typed_command,
)
from attempt_cli.errors import AttemptError
from attempt_registry.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.cli.main import Settings
    from attempt_cli.cli.progress import RowProgress
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.evaluate import Evaluation
    from attempt_cli.evaluation.pairing import PerRow
    from attempt_registry import Composition, Prompt, Registry


@click.command("rank-sources")
@click.argument("task_name", metavar="TASK")
@click.option("--sources", help="Source prompts, comma separated, or `all`. [default: the composition's, else all]")
@click.option("--target", help="The prompt that sources are likened to. [default: the task's newest target prompt]")
@click.option("--composition", "composition_name", help="Its sources are left out one by one.")
@click.option(
    "--split",
    type=click.Choice(["validation", "train"]),
    default="validation",
    show_default=True,
    help="The rows to score; never the test's, since a source is chosen by them.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="A random sample of so many rows."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@max_tokens_option
@backbone_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    task_name: str,
    sources: str | None,
    target: str | None,
    composition_name: str | None,
    split: str,
    limit: int,
    seed: int,
    max_tokens: int,
    **options: Any,
) -> None:
    """Rank source prompts by what they do for TASK, in up to three ways.

    The score of each source as it stands (zero-shot transfer); where the task has a target prompt, SPoT's cosines with
    it: of the mean rows of two prompts, and the mean over all pairs of rows; with --composition what its score loses
    or wins when the source is left out, with the 95 % interval.

    \b
      attempt rank-sources rte
      attempt rank-sources rte --composition rte-attempt --limit 500
      attempt rank-sources boolq --sources mnli,qnli --target boolq-prompt-tuning
    """
    from attempt_cli.artefacts import remember_backbone, versions
    from attempt_cli.cli.progress import RowProgress
    from attempt_cli.data.task import load_task
    from attempt_cli.evaluation.pairing import rows_record

    registry = settings.registry()
    task = load_task(task_name)
    composition = None if composition_name is None else registry.composition(composition_name)
    ranked = _sources(registry, task, sources, composition, backbone_name(options))
    likened = _likened(registry, task, target, composition, ranked[0])
    loader = RowLoader(split, settings.data_dir, limit, seed)
    n = len(loader.rows(task).examples)  # before the backbone: rows are quick to find missing
    backbone = chosen_backbone(registry, options, ranked, settings.output.note)
    left_out = _left_out(composition, ranked)
    passes = len(ranked) + (1 + len(left_out) if left_out else 0)
    with RowProgress(passes * n, settings.output.format) as progress:
        note = functools.cache(settings.output.note)  # each remark once, however often a composition is scored
        scorer = _Scorer(registry, backbone, task, loader, max_tokens, progress, note)
        records = [scorer.as_it_stands(prompt) for prompt in ranked]
        if composition is not None and left_out:
            changes = scorer.without_each(composition, left_out)
            records = [{**record, **changes.get(record["source"], {})} for record in records]
    if likened is not None:
        records = [{**record, **_cosines(registry, record["source"], likened)} for record in records]
    else:
        settings.output.note(f"No cosines: '{task.name}' has no target prompt yet; --target names one.")
    records.sort(key=lambda record: -record["score"])
    rows = loader.rows(task)
    try:
        remember_backbone(registry, backbone)
        registry.add_run(
            command=typed_command(),
            settings={"split": split, "limit": limit, "dtype": str(backbone.dtype)},
            rows={split: rows_record(rows)},
            seed=seed,
            budget={},
            numbers={"task": task.name, "ranking": records},
            versions=versions(),
            duration=scorer.seconds,
            inputs=[
                *(f"prompt:{prompt.ref}" for prompt in ranked),
                *([f"composition:{composition.ref}"] if composition else []),
            ],
        )
    except RegistryError as error:  # someone else's registry may be looked at, too
        settings.output.note(f"This ranking is not recorded: {error.message}")
    if settings.output.format == "json":
        document = {
            "task": task.name,
            "metric": task.metrics[0],
            "split": split,
            "rows": rows.origin,
            "n": n,
            "target": likened.ref if likened else None,
            "composition": composition.ref if composition else None,
            "sources": records,
        }
        settings.output.json({"ranking": document})
        return
    columns = ["source", "task", task.metrics[0], "interval"]
    columns += ["cosine", "cosine of pairs"] if likened else []
    columns += ["change without it"] if left_out else []
    settings.output.rows("sources", [_for_people(record, task) for record in records], columns, name="source")
    if likened is not None:
        settings.output.note(f"Cosines with {likened.ref}.")


def _sources(
    registry: Registry, task: Task, names: str | None, composition: Composition | None, backbone: str | None
) -> Sequence[Prompt]:
    """The sources that are ranked.

    Raises:
        AttemptError: the composition has none, or there are none of the backbone.
    """
    if composition is not None and not composition.sources:
        raise AttemptError(
            f"the composition '{composition.ref}' has no sources to leave out",
            "Name another: `attempt registry list --what compositions`.",
        )
    if composition is not None and names is None:
        return [registry.prompt(ref) for ref in composition.sources]
    backbone = composition.backbone if composition is not None else backbone
    return chosen_sources(registry, names or "all", backbone, targets=[task.name])


def _left_out(composition: Composition | None, ranked: Sequence[Prompt]) -> list[str]:
    """The ranked sources that the composition can do without; without its only one it would be no mixture."""
    if composition is None or len(composition.sources) == 1:
        return []
    return [prompt.ref for prompt in ranked if prompt.ref in composition.sources]


def _likened(
    registry: Registry, task: Task, name: str | None, composition: Composition | None, source: Prompt
) -> Prompt | None:
    """The prompt that sources are likened to, if there is one.

    Raises:
        AttemptError: the one that is named belongs to another backbone than the sources.
    """
    if name is not None:
        prompt = registry.prompt(name)
        if prompt.fingerprint != source.fingerprint:
            raise AttemptError(
                f"'{prompt.ref}' belongs to {prompt.backbone}, the source '{source.ref}' to {source.backbone}",
                f"Name a prompt of {source.backbone} with --target.",
            )
        return prompt
    own = [registry.prompt(ref) for ref in composition.targets] if composition is not None else []
    found = [prompt for prompt in own if prompt.task == task.name]
    found = found or registry.prompts(
        kind="target", task=task.name, backbone=source.fingerprint, sort="created", reverse=True, limit=1
    )
    return found[0] if found else None


def _cosines(registry: Registry, source: str, target: Prompt) -> dict[str, float]:
    import torch

    from attempt_cli.evaluation.inside import prompt_cosines

    tensors = [torch.tensor(registry.prompt_tensor(prompt)) for prompt in (registry.prompt(source), target)]
    pooled, pairs = prompt_cosines(tensors[0], tensors[1])
    return {"cosine": round(pooled, 5), "pair_cosine": round(pairs, 5)}


@dataclass
class _Scorer:
    """Scores models on one task's rows, each in the text format that it was trained under."""

    registry: Registry
    backbone: FrozenBackbone
    task: Task
    loader: RowLoader
    max_tokens: int
    progress: RowProgress
    note: Callable[[str], None]
    seconds: float = 0.0

    def as_it_stands(self, prompt: Prompt) -> dict[str, Any]:
        """A source's score without any training on the task."""
        _, result = self._evaluated(prompt)
        return {
            "source": prompt.ref,
            "task": prompt.task,
            "score": round(result.score, 6),
            "interval": [round(bound, 6) for bound in result.interval],
        }

    def without_each(self, composition: Composition, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Each source -> the composition's score without it, and the paired difference to its score with all."""
        from attempt_cli.evaluation.pairing import compare, per_row

        def kept(model: Composition) -> tuple[Task, Evaluation, PerRow]:
            task, result = self._evaluated(model)
            return task, result, per_row(task, result.predictions.texts, self.loader.rows(task).examples)

        _, _, whole = kept(composition)
        found = {}
        for source in sources:
            task, result, rest = kept(changed(self.registry, composition, Changes(drop=(source,))))
            found[source] = {
                "score_without": round(result.score, 6),
                "change": difference_record(compare(task, rest, whole)),
            }
        return found

    def _evaluated(self, model: Prompt | Composition) -> tuple[Task, Evaluation]:
        from attempt_cli.evaluation.evaluate import evaluate

        loaded = load_model(self.registry, self.backbone, model)
        task, length = as_trained(self.task, loaded.prompt_for(self.task.name), None, self.note)
        result = evaluate(
            loaded.model,
            task,
            self.loader.rows(task).examples,
            task_index=loaded.task_index(task.name),
            max_length=length,
            max_tokens=self.max_tokens,
            progress=self.progress.advance,
        )
        self.seconds += result.predictions.seconds
        return task, result


def _for_people(record: dict[str, Any], task: Task) -> dict[str, Any]:
    low, high = record["interval"]
    row = {**record, task.metrics[0]: f"{100 * record['score']:.1f}", "interval": f"{100 * low:.1f}-{100 * high:.1f}"}
    if "cosine" in record:
        row |= {"cosine": f"{record['cosine']:.3f}", "cosine of pairs": f"{record['pair_cosine']:.3f}"}
    if "change" in record:
        row["change without it"] = difference_text(record["change"])
    return row
