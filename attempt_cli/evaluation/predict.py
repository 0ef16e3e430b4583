"""What a prompted model says of rows: a label word by its probability, or free text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_cli.backbones.base import EncodedRow
from attempt_cli.backbones.prompted import PromptedModel, by_length
from attempt_cli.data.task import Example, Task

MAX_TOKENS = 8192
MAX_NEW_TOKENS = 32  # an extracted answer is a few words


@dataclass(frozen=True)
class Prediction:
    """What the model said of one row.

    Args:
        text: the label word, or the generated text.
        probabilities: of the label words among each other; None for free text.
        log_likelihood: log p of the row's own target; None for free text.
        attention: the mixture's weights, sources first, the target last; None without a mixture.
    """

    text: str
    probabilities: tuple[float, ...] | None = None
    log_likelihood: float | None = None
    attention: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of rows, in the rows' order.

    Args:
        rows: one prediction a row.
        seconds: the time they took, tokenisation included.
        truncated: how many rows were longer than the limit.
    """

    rows: list[Prediction]
    seconds: float
    truncated: int

    @property
    def texts(self) -> list[str]:
        """What metrics are computed from."""
        return [row.text for row in self.rows]


def encode_examples(
    model: PromptedModel, task: Task, examples: Sequence[Example], max_length: int | None = None
) -> list[EncodedRow]:
    """The examples' tokens, targets included."""
    backbone = model.backbone
    if task.is_classification:
        words = backbone.label_tokens(task.label_words)
        targets = [[] if example.label is None else words[example.label] for example in examples]
        room = max(map(len, words))
    else:
        targets = [backbone.target_tokens(example.target, end=True) for example in examples]
        room = max([MAX_NEW_TOKENS, *map(len, targets)])
    # room for any answer, also where the row's own is short or not known: a row is cut alike whatever is asked of it
    limit = model.longest_input(max_length or task.max_length, room)
    inputs, tails = [example.input for example in examples], [example.tail for example in examples]
    return backbone.encode(inputs, targets, limit, tails)


def predict(
    model: PromptedModel,
    task: Task,
    examples: Sequence[Example],
    *,
    task_index: int = 0,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], Any] | None = None,
) -> Predictions:
    """Scores the label words of every row in one pass, or generates where the task is free text.

    Args:
        model: the backbone and its prompts.
        task: gives the label words.
        examples: the rows.
        task_index: which of the mixture's target prompts these rows have.
        max_length: the longest input in tokens; the task's own limit without it.
        max_tokens: the token budget of a batch.
        progress: is told how many more rows are done.
    """
    began = time.monotonic()
    encoded = encode_examples(model, task, examples, max_length)
    found: list[Prediction | None] = [None] * len(encoded)
    for indices, batch in _batches(model, task, encoded, max_tokens, task_index):
        for index, prediction in zip(indices, batch, strict=True):
            found[index] = prediction
        if progress is not None:
            progress(len(indices))
    rows = [prediction for prediction in found if prediction is not None]
    truncated = sum(row.truncated > 0 for row in encoded)
    return Predictions(rows, time.monotonic() - began, truncated)


def _batches(
    model: PromptedModel, task: Task, encoded: Sequence[EncodedRow], max_tokens: int, task_index: int
) -> Iterator[tuple[list[int], list[Prediction]]]:
    import torch

    labels = model.backbone.label_tokens(task.label_words) if task.is_classification else []
    behind = sum(len(word) for word in labels) if labels else MAX_NEW_TOKENS
    lengths = [len(row.input_ids) for row in encoded]
    for indices in by_length(lengths, model.prompt_length + behind, max_tokens):
        rows = [encoded[i] for i in indices]
        task_ids = torch.full((len(rows),), task_index, device=model.backbone.device)
        if labels:
            scores, weights = model.score_labels(rows, labels, task_ids)
            probabilities = scores.softmax(dim=-1).tolist()
            texts = [task.label_words[best] for best in scores.argmax(dim=-1).tolist()]
            # a row that is only to be predicted has no answer among the labels
            gold = [labels.index(row.target_ids) if row.target_ids in labels else None for row in rows]
            likelihoods = [None if g is None else float(scores[i, g]) for i, g in enumerate(gold)]
        else:
            written, weights = model.generate(rows, MAX_NEW_TOKENS, task_ids)
            # an answer is one line; a bare decoder-only model goes on with the next question
            texts = [text.split("\n", 1)[0].strip() for text in written]
            probabilities = likelihoods = [None] * len(rows)
        attention = [None] * len(rows) if weights is None else weights.tolist()
        yield (
            indices,
            [
                Prediction(text, p and tuple(p), likelihood, a and tuple(a))
                for text, p, likelihood, a in zip(texts, probabilities, likelihoods, attention, strict=True)
            ],
        )
