"""Scores validation rows during a training: what chooses the checkpoint."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from attempt_cli.backbones.batches import by_length
from attempt_cli.data.example import Example
from attempt_cli.data.scoring import score
from attempt_cli.evaluation.prediction import Predictions, PromptedTask, encode_examples, predict_many
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.loop import Scores
from attempt_cli.training.processes import Processes
from attempt_cli.training.request import Request

ALONE = Processes()


def validation_scores(model: PromptedModel, request: Request, processes: Processes = ALONE) -> Scores:
    """Scores a model as `joint_validation_scores` does."""
    return joint_validation_scores([model], [request], processes)[0]


def joint_validation_scores(
    models: Sequence[PromptedModel], requests: Sequence[Request], processes: Processes = ALONE
) -> list[Scores]:
    """Scores models on the validation rows of all their tasks that have some; those of the same rows together.

    Args:
        models: of one backbone, chat template and placement.
        requests: what each of them is trained for.
        processes: of several each scores its share of the rows.

    Returns:
        For each model the metrics, the one that chooses first: one task's own; of several the mean of their first
        metrics, then each under "TASK METRIC". And the log-likelihood per row, which tells equal metrics apart.
    """
    found: dict[tuple[int, int], Scores] = {}  # by the numbers of a model and of one of its tasks
    together: dict[Hashable, list[tuple[int, int]]] = {}
    for place, request in enumerate(requests):
        for number, rows in enumerate(request.tasks):
            if rows.validation is not None:
                limits = request.config.max_length, request.config.max_tokens
                together.setdefault((rows.task.name, rows.validation.sha256, *limits), []).append((place, number))
    for those in together.values():
        (first, task), prompted = those[0], []
        for place, number in those:
            request = requests[place]
            prompted.append(PromptedTask(models[place], request.tasks[number].task, request.task_index(number)))
        validation = requests[first].tasks[task].validation
        assert validation is not None
        found |= zip(those, task_scores(prompted, validation.examples, requests[first].config, processes), strict=True)
    scores = []
    for place, request in enumerate(requests):
        own = {rows.task.name: found.get((place, number)) for number, rows in enumerate(request.tasks)}
        known = {task: score for task, score in own.items() if score is not None}
        scores.append(_of_all_tasks(known, several=len(own) > 1))
    return scores


def _of_all_tasks(scores: Mapping[str, Scores], *, several: bool) -> Scores:
    """Joins the scores of a model's tasks, by their names."""
    metrics = {
        f"{task} {name}" if several else name: value for task, (own, _) in scores.items() for name, value in own.items()
    }
    firsts = [next(iter(own.values())) for own, _ in scores.values()]
    mean = {"mean": sum(firsts) / len(firsts)} if several else {}
    return {**mean, **metrics}, sum(likelihood for _, likelihood in scores.values()) / len(scores)


def task_scores(
    prompted: Sequence[PromptedTask], examples: Sequence[Example], config: TrainingConfig, processes: Processes = ALONE
) -> list[Scores]:
    """Returns each model's metrics on a task's rows, and its log-likelihood per row."""
    share = processes.share(examples)
    found = predict_many(prompted, share, max_length=config.max_length, max_tokens=config.max_tokens)
    scores = []
    for one, predictions in zip(prompted, found, strict=True):
        texts = processes.gathered(predictions.texts, len(examples))
        likelihoods = processes.gathered(_log_likelihoods(one, predictions, share, config), len(examples))
        scores.append((score(one.task, texts, examples), sum(likelihoods) / len(likelihoods)))
    return scores


def _log_likelihoods(
    one: PromptedTask, predictions: Predictions, examples: Sequence[Example], config: TrainingConfig
) -> list[float]:
    """Returns the log-likelihood of each row's own answer."""
    model, task = one.model, one.task
    likelihoods = [row.log_likelihood for row in predictions.rows if row.log_likelihood is not None]
    if not likelihoods:  # free text was generated, its own answer not yet scored
        encoded = [
            replace(row, task=one.task_index) for row in encode_examples(model, task, examples, config.max_length)
        ]
        lengths = [len(row.input_ids) + len(row.target_ids) for row in encoded]
        with torch.no_grad():
            least = model.backbone.least_positions
            by_row: dict[int, float] = {}
            for indices in by_length(lengths, model.overhead(max(lengths)), config.max_tokens, least=least):
                found = model.log_likelihood([encoded[i] for i in indices]).tolist()
                by_row |= dict(zip(indices, found, strict=True))
            likelihoods = [by_row[number] for number in range(len(encoded))]
    return likelihoods
