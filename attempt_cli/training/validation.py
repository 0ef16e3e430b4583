"""Scores validation rows during a training: what chooses the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attempt_cli.backbones.batches import by_length
from attempt_cli.data.example import Example
from attempt_cli.data.scoring import score
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import encode_examples, predict
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.processes import Processes
from attempt_cli.training.request import Request

ALONE = Processes()


def validation_scores(
    model: PromptedModel, request: Request, processes: Processes = ALONE
) -> tuple[dict[str, float], float]:
    """Scores the validation rows of all tasks that have some; of several processes each scores its share of them.

    Returns:
        The metrics, the one that chooses first: one task's own; of several the mean of their first metrics, then each
        under "TASK METRIC". And the log-likelihood per row, which tells equal metrics apart.
    """
    several = len(request.tasks) > 1
    metrics: dict[str, float] = {}
    firsts, likelihoods = [], []
    for number, rows in enumerate(request.tasks):
        if rows.validation is None:
            continue
        examples = rows.validation.examples
        index = request.task_index(number)
        own, likelihood = task_scores(model, rows.task, examples, request.config, index, processes)
        metrics |= {f"{rows.task.name} {name}" if several else name: value for name, value in own.items()}
        firsts.append(next(iter(own.values())))
        likelihoods.append(likelihood)
    mean = {"mean": sum(firsts) / len(firsts)} if several else {}
    return {**mean, **metrics}, sum(likelihoods) / len(likelihoods)


def task_scores(
    model: PromptedModel,
    task: Task,
    examples: Sequence[Example],
    config: TrainingConfig,
    task_index: int = 0,
    processes: Processes = ALONE,
) -> tuple[dict[str, float], float]:
    """Returns a task's metrics on rows, and the log-likelihood per row."""
    share = processes.share(examples)
    predictions = predict(
        model, task, share, task_index=task_index, max_length=config.max_length, max_tokens=config.max_tokens
    )
    likelihoods = [row.log_likelihood for row in predictions.rows if row.log_likelihood is not None]
    if not likelihoods:  # free text was generated, its own answer not yet scored
        encoded = [replace(row, task=task_index) for row in encode_examples(model, task, share, config.max_length)]
        lengths = [len(row.input_ids) + len(row.target_ids) for row in encoded]
        with torch.no_grad():
            least = model.backbone.least_positions
            by_row: dict[int, float] = {}
            for indices in by_length(lengths, model.overhead(max(lengths)), config.max_tokens, least=least):
                found = model.log_likelihood([encoded[i] for i in indices]).tolist()
                by_row |= dict(zip(indices, found, strict=True))
            likelihoods = [by_row[number] for number in range(len(encoded))]
    texts = processes.gathered(predictions.texts, len(examples))
    likelihoods = processes.gathered(likelihoods, len(examples))
    return score(task, texts, examples), sum(likelihoods) / len(likelihoods)
