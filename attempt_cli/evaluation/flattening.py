"""Turns a composition into one plain prompt: the mean over rows of the prompts that it gives them.

P_instance is linear in the attention's weights a (equation 4), so that the mean of the rows' prompts is the prompt of
their mean attention, at the instance and at the token level alike.

The training rows of a task give the mean, its validation rows score the result, and so no row does both. Rows of a file
are cut in the same way: a tenth of them is held out (`data.splits`, "held-out").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.changes import TARGET
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.comparison import compare_runs, paired_evaluations
from attempt_cli.evaluation.models import TrainedModel
from attempt_cli.evaluation.record import rows_record
from attempt_cli.evaluation.scoring import ScoringJob, Split, record_jobs, scoring_jobs
from attempt_cli.evaluation.serving import named, rounded
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from attempt_cli.artefacts import Loaded
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.comparison import RunComparison
    from attempt_cli.session import Session

METHOD = "flattened"
LIMIT = 1000  # rows that give the mean; more change it by less than training noise


@dataclass(frozen=True)
class Flattened:
    """A composition as one plain prompt.

    Args:
        prompt: the new prompt.
        composition: the full name of what it was made from.
        attention: the mean weight of each source, and of "target".
        n: the number of rows that gave the mean.
        rows: where they come from, in words.
        comparison: the scores on held-out rows: of the composition (first) and of the prompt (second).
    """

    prompt: Prompt
    composition: str
    attention: Mapping[str, float]
    n: int
    rows: str
    comparison: RunComparison

    def record(self) -> dict[str, Any]:
        """Returns the result as JSON holds it."""
        return {
            "name": self.prompt.ref,
            "task": self.prompt.task,
            "composition": self.composition,
            "attention": rounded(self.attention),
            "n": self.n,
            "rows": self.rows,
            "comparison": self.comparison.record(),
        }


def flatten_composition(
    session: Session,
    composition: Composition,
    name: str,
    tasks: Sequence[Task],
    *,
    limit: int | None = LIMIT,
    seed: int = 0,
    note: str = "",
    max_tokens: int | None = None,
) -> list[Flattened]:
    """Makes a plain prompt of a composition for each task, and scores both on held-out rows.

    Args:
        session: says where the registry, the rows and the backbone are.
        composition: with sources.
        name: the prompt's; with several tasks the part before their names.
        tasks: those whose rows give the mean and the scores.
        limit: a random sample of at most this many rows gives the mean.
        seed: of the sample.
        note: a remark to keep with it.
        max_tokens: the token budget of a batch.

    Raises:
        AttemptError: the composition mixes nothing, has no target prompt for a task, or rows are missing.
    """
    from attempt_cli.artefacts import remember_backbone

    if not composition.sources:
        raise AttemptError(
            f"'{composition.ref}' mixes no sources: its target prompts are plain already",
            f"Use them as they are: {', '.join(composition.targets)}.",
        )
    model = TrainedModel(composition, session)
    mean, held_out = Split(session, "train", limit, seed), Split(session, "validation", None, seed)
    pairs = [(task, model) for task in tasks]
    jobs = list(zip(scoring_jobs(pairs, mean), scoring_jobs(pairs, held_out), strict=True))
    backbone = session.load_backbone([composition])
    loaded = model.load(backbone)
    remember_backbone(session.store, backbone)
    made = []
    for job, scored in jobs:
        own = name if len(tasks) == 1 else f"{name}.{job.task.name}"
        prompt, attention = _add_prompt(session, composition, loaded, own, job, scored, seed, note, max_tokens)
        after = replace(scored, model=TrainedModel(prompt, session))
        first, second = record_jobs([scored, after], held_out, max_tokens=max_tokens)
        comparison = compare_runs(*paired_evaluations(session, [str(first.run), str(second.run)], None))
        made.append(Flattened(prompt, composition.ref, attention, len(job.rows.examples), job.rows.origin, comparison))
    return made


def _add_prompt(
    session: Session,
    composition: Composition,
    loaded: Loaded,
    name: str,
    job: ScoringJob,
    scored: ScoringJob,
    seed: int,
    note: str,
    max_tokens: int | None,
) -> tuple[Prompt, Mapping[str, float]]:
    """Records the mean prompt and the run that made it; returns it with the mean weights."""
    from attempt_cli.artefacts import versions
    from attempt_cli.data.fields import task_fields
    from attempt_cli.evaluation.prediction import MAX_TOKENS

    scale = loaded.model.scale
    mean, weights = mean_prompt(loaded, job, max_tokens or MAX_TOKENS)
    attention = named((*loaded.sources, TARGET), weights.tolist())
    target = job.model.target_for(job.task.name)
    trained = target.settings.get("training") if target is not None else None
    rows = {"train": rows_record(job.rows), "validation": rows_record(scored.rows)}
    settings = {
        "task": task_fields(job.task),
        "format": job.task.format,
        "flattened": {"from": composition.ref, "attention": rounded(attention)},
        **({"training": trained} if trained else {}),
    }
    registry = session.store
    with registry.transaction():
        prompt = registry.add_prompt(
            (mean / scale).float().cpu().numpy(),
            name=name,
            kind="target",
            method=METHOD,
            backbone=composition.backbone,
            fingerprint=composition.fingerprint,
            task=job.task.name,
            task_version=job.task.version,
            embedding_scale=scale,
            placement=composition.placement,
            settings=settings,
            numbers={},
            seed=seed,
            note=note,
            parents=[f"composition:{composition.ref}"],
        )
        registry.add_run(
            command=session.command,
            settings={"flattened": composition.ref},
            rows=rows,
            seed=seed,
            budget={},
            numbers={"attention": rounded(attention)},
            versions=versions(),
            duration=0.0,
            artefacts=[f"prompt:{prompt.ref}"],
            inputs=loaded.inputs,
        )
    return prompt, attention


def mean_prompt(loaded: Loaded, job: ScoringJob, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Computes the mean of rows' prompts from embeddings alone: the backbone's layers do not run.

    Args:
        loaded: the composition.
        job: the rows.
        max_tokens: the token budget of a batch.

    Returns:
        The prompt as it enters the model, [m, d], and the mean weights, [t + 1], both in float64.
    """
    import torch

    from attempt_cli.backbones.batches import by_length
    from attempt_cli.evaluation.prediction import encode_examples

    model, index = loaded.model, loaded.task_index(job.task.name)
    encoded = encode_examples(model, job.task, job.rows.examples, job.max_length)
    prompts: Any = 0.0
    weights: Any = 0.0
    with torch.no_grad():
        for numbers in by_length([len(row.input_ids) for row in encoded], 0, max_tokens):
            batch = model.backbone.collate([encoded[i] for i in numbers])
            task_ids = torch.full((len(numbers),), index, device=model.backbone.device)
            of_rows, a = model.prompts(batch, model.backbone.embed(batch.input_ids), task_ids)
            assert of_rows is not None
            assert a is not None
            # float64: the sum depends on the rows, not on how they were put into batches
            prompts = prompts + of_rows.double().sum(dim=0)
            weights = weights + a.double().sum(dim=0)
    return prompts / len(encoded), weights / len(encoded)


def on_file(task: Task, rows: Path | str) -> Task:
    """Returns a task whose rows are a file's, of which a tenth is held out."""
    from attempt_cli.data.own_files import located

    update = {"hub": None, "files": {"train": located(rows)}, "split_rule": "held-out", "splits": {}, "encoding": None}
    return task.model_copy(update=update)
