"""Ranks source prompts for a task: by score, by cosine with a target, and by what a mixture loses without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attempt_cli.backbones.names import listed_as
from attempt_cli.changes import Changes
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.models import TrainedModel
from attempt_cli.evaluation.record import rows_record
from attempt_cli.evaluation.scoring import ScoringJob, Split, load_jobs, score_jobs, scoring_jobs
from attempt_cli.evaluation.statistics import PairedTest, adjusted
from attempt_cli.sources import source_prompts
from attempt_registry.errors import RegistryError

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.data.rows import Rows
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.evaluate import Evaluation
    from attempt_cli.session import Session
    from attempt_registry import Composition, Prompt, Registry


@dataclass(frozen=True)
class RankedSource:
    """A source prompt's worth for a task.

    Args:
        source: its full name.
        task: the task that it was trained for.
        score: its score on the ranked task as it is (zero-shot transfer).
        interval: the 95 % interval of the score.
        score_without: the composition's score without it; None without a composition.
        change: the paired difference of `score_without` from the composition's own score.
        cosine: the cosine of its mean row with the target prompt's; None without a target prompt.
        pair_cosine: the mean cosine of all pairs of rows of the two prompts.
    """

    source: str
    task: str
    score: float
    interval: tuple[float, float]
    score_without: float | None = None
    change: PairedTest | None = None
    cosine: float | None = None
    pair_cosine: float | None = None

    def record(self) -> dict[str, Any]:
        """Returns the source as runs and JSON hold it."""
        found: dict[str, Any] = {
            "source": self.source,
            "task": self.task,
            "score": round(self.score, 6),
            "interval": [round(bound, 6) for bound in self.interval],
        }
        if self.score_without is not None and self.change is not None:
            found |= {"score_without": round(self.score_without, 6), "change": self.change.record()}
        if self.cosine is not None and self.pair_cosine is not None:
            found |= {"cosine": round(self.cosine, 5), "pair_cosine": round(self.pair_cosine, 5)}
        return found


@dataclass(frozen=True)
class SourceRanking:
    """Source prompts, the best first.

    Args:
        task: the task that they are ranked for.
        metric: the metric of the scores.
        split: the split that was scored.
        rows: where the rows come from, in words.
        n: the number of rows.
        target: the target prompt of the cosines; None without one.
        composition: the composition that sources were left out of; None without one.
        sources: the ranked sources.
    """

    task: str
    metric: str
    split: str
    rows: str
    n: int
    target: str | None
    composition: str | None
    sources: tuple[RankedSource, ...]

    def record(self) -> dict[str, Any]:
        """Returns the ranking as JSON holds it."""
        return {**vars(self), "sources": [source.record() for source in self.sources]}


def ranked_sources(
    session: Session, task: str, names: str | Sequence[str] | None, composition: Composition | None
) -> Sequence[Prompt]:
    """Finds the sources to rank: those that are named, else the composition's, else all of the backbone.

    Raises:
        AttemptError: the composition has none, or there are none of the backbone.
    """
    if composition is not None and not composition.sources:
        raise AttemptError(
            f"the composition '{composition.ref}' has no sources to leave out",
            "Name another: `attempt registry list --what compositions`.",
        )
    if composition is not None and names is None:
        return [session.store.prompt(ref) for ref in composition.sources]
    backbone = session.backbone_name
    if composition is not None:
        backbone = listed_as(session.store, composition.backbone, composition.fingerprint)
    return source_prompts(session.store, "all" if names is None else names, backbone, targets=[task])


def similarity_target(
    registry: Registry, task: str, name: str | None, composition: Composition | None, source: Prompt
) -> Prompt | None:
    """Finds the target prompt that sources are compared with: the one that is named, else the task's newest, if any.

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
    found = [prompt for prompt in own if prompt.task == task]
    found = found or registry.prompts(
        kind="target", task=task, backbone=source.fingerprint, sort="created", reverse=True, limit=1
    )
    return found[0] if found else None


def rank(
    task: Task,
    prompts: Sequence[Prompt],
    composition: Composition | None,
    similar: Prompt | None,
    split: Split,
    max_tokens: int | None = None,
) -> SourceRanking:
    """Scores source prompts and the composition without each of them, and records the ranking as a run.

    Args:
        task: the task that they are ranked for.
        prompts: the source prompts.
        composition: its sources are left out one by one.
        similar: the target prompt of the cosines.
        split: the rows to score.
        max_tokens: the token budget of a batch; None takes 8192.
    """
    session, rows = split.session, split.rows(task)
    models = [TrainedModel(prompt, session) for prompt in prompts]
    left_out: list[str] = []
    if composition is not None and len(composition.sources) > 1:  # without its only source it would be no mixture
        left_out = [prompt.ref for prompt in prompts if prompt.ref in composition.sources]
        whole = TrainedModel(composition, session)
        models += [whole, *(whole.with_changes(Changes(drop=(source,))) for source in left_out)]
    jobs = scoring_jobs([(task, model) for model in models], split)
    backbone = load_jobs(jobs, session)
    scored = list(score_jobs(jobs, backbone, session, max_tokens))
    without = _without(left_out, scored[len(prompts) :])
    sources = [
        RankedSource(
            source=prompt.ref,
            task=prompt.task,
            score=result.score,
            interval=result.interval,
            **without.get(prompt.ref, {}),
            **_cosines(session.store, prompt, similar),
        )
        for prompt, (_, result) in zip(prompts, scored, strict=False)
    ]
    ranking = SourceRanking(
        task=task.name,
        metric=task.metrics[0],
        split=split.name,
        rows=rows.origin,
        n=len(rows.examples),
        target=similar.ref if similar else None,
        composition=composition.ref if composition else None,
        sources=tuple(sorted(sources, key=lambda source: -source.score)),
    )
    _record(ranking, split, rows, backbone, sum(result.predictions.seconds for _, result in scored))
    return ranking


def _without(left_out: Sequence[str], scored: Sequence[tuple[ScoringJob, Evaluation]]) -> dict[str, dict[str, Any]]:
    """Pairs each source that is left out with the composition's score without it and the difference.

    Args:
        left_out: the sources.
        scored: the composition with all of its sources, then without each.
    """
    from attempt_cli.evaluation.pairing import compare, per_row

    kept = [per_row(job.task, result.predictions.texts, job.rows.examples) for job, result in scored]
    tests = adjusted(
        [compare(job.task, rows, kept[0]).test for (job, _), rows in zip(scored[1:], kept[1:], strict=True)]
    )
    return {
        source: {"score_without": result.score, "change": test}
        for source, (_, result), test in zip(left_out, scored[1:], tests, strict=True)
    }


def _record(ranking: SourceRanking, split: Split, rows: Rows, backbone: FrozenBackbone, seconds: float) -> None:
    """Adds a ranking as a run; a registry that cannot be written is only remarked on."""
    from attempt_cli.artefacts import remember_backbone, versions

    session = split.session
    inputs = [f"prompt:{source.source}" for source in ranking.sources]
    inputs += [f"composition:{ranking.composition}"] if ranking.composition else []
    try:
        remember_backbone(session.store, backbone)
        session.store.add_run(
            command=session.command,
            settings={"split": split.name, "limit": split.limit, "dtype": backbone.precision},
            rows={split.name: rows_record(rows)},
            seed=split.seed,
            numbers={"task": ranking.task, "ranking": [source.record() for source in ranking.sources]},
            versions=versions(),
            duration=seconds,
            inputs=inputs,
        )
    except RegistryError as error:  # someone else's registry may be ranked, too
        session.listener.note(f"This ranking is not recorded: {error.message}")


def _cosines(registry: Registry, source: Prompt, target: Prompt | None) -> dict[str, Any]:
    """Computes the two cosines of a source with a target prompt; none without a target."""
    if target is None:
        return {}
    import torch

    from attempt_cli.evaluation.inside import prompt_cosines

    tensors = [torch.tensor(registry.prompt_tensor(prompt)) for prompt in (source, target)]
    pooled, pairs = prompt_cosines(tensors[0], tensors[1])
    return {"cosine": pooled, "pair_cosine": pairs}
