"""A prior for the attention: how likely each prompt, alone, makes a few training rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import PromptedTask, predict_many, text_likelihoods
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.request import Request

EVIDENCE_ROWS = 16
WORST = 5.0  # nats: a prompt that is less likely than the best by more counts as if it were by these


def evidence(sources: Sequence[PromptedModel], starts: Sequence[PromptedModel], request: Request) -> Tensor:
    """Returns each task's log-likelihood of a few training rows under every source and its own start, [n, t + 1].

    Of label words it is that among the labels, of free text that of the target; summed over rows it is the logarithm of
    how probable each prompt is as the one that wrote the answers. None is more than `WORST` below the best, so that
    gradients still reach it.

    Args:
        sources: the backbone with each source alone.
        starts: the backbone with where each task's prompt starts; one for all tasks if they share it.
        request: gives the rows, and the seed of the sample.
    """
    found = []
    for number, rows in enumerate(request.tasks):
        examples = rows.train.examples
        if len(examples) > EVIDENCE_ROWS:
            examples = random.Random(request.config.seed).sample(examples, EVIDENCE_ROWS)
        models = [*sources, starts[min(number, len(starts) - 1)]]
        found.append(_likelihoods(models, rows.task, examples, request.config))
    scores = torch.stack(found)  # [n, t + 1]
    return (scores - scores.max(dim=1, keepdim=True).values).clamp(min=-WORST)


def _likelihoods(
    models: Sequence[PromptedModel], task: Task, examples: Sequence[Example], config: TrainingConfig
) -> Tensor:
    """Returns the log-likelihood of rows under each model, [t]; inputs before their prompts are read once."""
    if task.is_classification:
        asked = [PromptedTask(model, task) for model in models]
        answers = predict_many(asked, examples, max_length=config.max_length, max_tokens=config.max_tokens)
        sums = []
        for found in answers:
            own = [
                row.probabilities[example.label]
                for row, example in zip(found.rows, examples, strict=True)
                if row.probabilities is not None and example.label is not None
            ]
            sums.append(sum(math.log(max(p, 1e-9)) for p in own))
        return torch.tensor(sums)
    return torch.tensor(text_likelihoods(models, task, examples, config.max_length, config.max_tokens))
