"""Predicts rows with prompted models: a label word by its probability, or generated text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.prompted import PromptedModel, likelihoods_of_many, read_for, score_many

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

MAX_TOKENS = 8192
MAX_NEW_TOKENS = 32  # an extracted answer is a few words


class Reading(TypedDict, total=False):
    """How rows are read.

    Args:
        max_length: the longest input in tokens; None takes the task's own limit.
        max_tokens: the token budget of a batch.
        progress: is called with the number of rows that were finished since its last call.
    """

    max_length: int | None
    max_tokens: int
    progress: Callable[[int], Any] | None


@dataclass(frozen=True)
class RowPrediction:
    """The prediction for one row.

    Args:
        text: the most probable label word, or the generated text.
        probabilities: of the label words, summing to 1; None for free text.
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
        rows: one prediction per row.
        seconds: the time they took, tokenisation included.
        truncated: the number of rows that were longer than the limit.
    """

    rows: list[RowPrediction]
    seconds: float
    truncated: int

    @property
    def texts(self) -> list[str]:
        """The predicted texts: metrics are computed from them."""
        return [row.text for row in self.rows]


def encode_examples(
    model: PromptedModel, task: Task, examples: Sequence[Example], max_length: int | None = None
) -> list[EncodedRow]:
    """Tokenises the examples and their targets."""
    backbone = model.backbone
    if task.is_classification:
        words = model.label_tokens(task.label_words)
        targets = [[] if example.label is None else words[example.label] for example in examples]
        room = max(map(len, words))
    else:
        targets = [backbone.target_tokens(example.target, end=True, frame=model.frame) for example in examples]
        room = max([MAX_NEW_TOKENS, *map(len, targets)])
    # room for any answer, even where the row's own is short or unknown: it must not change where an input is cut
    limit = model.longest_input(max_length or task.max_length, room)
    inputs, tails = [example.input for example in examples], [example.tail for example in examples]
    return backbone.encode(inputs, targets, limit, tails, model.around)


def predict(
    model: PromptedModel, task: Task, examples: Sequence[Example], *, task_index: int = 0, **reading: Unpack[Reading]
) -> Predictions:
    """Scores the label words of every row in one pass, or generates text where the task is free text.

    Args:
        model: the backbone and its prompts.
        task: gives the label words.
        examples: the rows.
        task_index: the index of these rows' target prompt in the mixture.
        reading: see `Reading`.
    """
    return predict_many([PromptedTask(model, task, task_index)], examples, **reading)[0]


@dataclass(frozen=True)
class PromptedTask:
    """A prompted model and the task that it predicts; several of them can share one reading of the rows.

    Args:
        model: the backbone and its prompts.
        task: gives the label words; it renders the rows to the same inputs as the others' tasks do.
        task_index: the index of its target prompt in the mixture.
    """

    model: PromptedModel
    task: Task
    task_index: int = 0


def predict_many(
    prompted: Sequence[PromptedTask],
    examples: Sequence[Example],
    *,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], Any] | None = None,
) -> list[Predictions]:
    """Predicts the same rows with several prompts of one backbone.

    With prompts after the input, an input is read once: N tasks cost one reading and N short suffixes.

    Args:
        prompted: the prompts, all with the same rows (`PromptedModel.around`); `predict` is this function with one.
        examples: the rows.
        max_length, max_tokens, progress: see `Reading`.

    Returns:
        The predictions of each prompt; the time is shared equally between them.
    """
    began = time.monotonic()
    if len({one.model.around for one in prompted}) > 1:
        raise ValueError("these models read the rows in different ways, inside and outside of a chat template")
    # all prompts see the same truncated input: the longest prompt leaves the least room
    longest = max(prompted, key=lambda one: one.model.prompt_length)
    encoded = encode_examples(longest.model, longest.task, examples, max_length)
    targets = [
        encoded if one is longest else encode_examples(one.model, one.task, examples, max_length) for one in prompted
    ]
    found: list[list[RowPrediction | None]] = [[None] * len(encoded) for _ in prompted]
    for indices, batches in _batches(prompted, encoded, targets, max_tokens):
        for predictions, batch in zip(found, batches, strict=True):
            for index, prediction in zip(indices, batch, strict=True):
                predictions[index] = prediction
        if progress is not None:
            progress(len(indices))
    seconds = (time.monotonic() - began) / len(prompted)
    truncated = sum(row.truncated > 0 for row in encoded)
    return [
        Predictions([prediction for prediction in predictions if prediction is not None], seconds, truncated)
        for predictions in found
    ]


def text_likelihoods(
    models: Sequence[PromptedModel],
    task: Task,
    examples: Sequence[Example],
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[float]:
    """Returns the log-likelihood of the rows' targets under each model, summed over rows; nothing is generated.

    With prompts after the input, an input is read once for all models that read it in the same way.
    """
    sums: list[Tensor | float] = [0.0] * len(models)
    for places in same_reading(models):
        some = [models[place] for place in places]
        longest = max(some, key=lambda model: model.prompt_length)
        rows = encode_examples(longest, task, examples, max_length)
        sizes = [len(row.input_ids) + len(row.target_ids) for row in rows]
        for part in by_length(sizes, longest.prompt_length, max_tokens):
            found = likelihoods_of_many(some, [rows[i] for i in part])
            for place, likelihoods in zip(places, found, strict=True):
                sums[place] = sums[place] + likelihoods.sum()  # on the device: it is waited for at the end
    return [float(one) for one in sums]


def same_reading(models: Sequence[PromptedModel]) -> list[list[int]]:
    """Returns the places of models in groups that read rows in the same way, inside or outside of a chat template."""
    together: dict[object, list[int]] = {}
    for place, model in enumerate(models):
        together.setdefault(model.around, []).append(place)
    return list(together.values())


def _batches(
    prompted: Sequence[PromptedTask],
    encoded: Sequence[EncodedRow],
    targets: Sequence[Sequence[EncodedRow]],
    max_tokens: int,
) -> Iterator[tuple[list[int], list[list[RowPrediction]]]]:
    """Yields a batch's row indices and the predictions of every prompt for them."""
    backbone = prompted[0].model.backbone
    labels = [one.model.label_tokens(one.task.label_words) if one.task.is_classification else [] for one in prompted]
    behind = max(sum(len(word) for word in words) if words else MAX_NEW_TOKENS for words in labels)
    lengths = [len(row.input_ids) for row in encoded]
    widest = max(lengths, default=0) + behind
    prompt = max(
        one.model.overhead(widest) if words else one.model.prompt_length
        for one, words in zip(prompted, labels, strict=True)
    )
    scored = [number for number, words in enumerate(labels) if words]
    for indices in by_length(lengths, prompt + behind, max_tokens, least=backbone.least_positions):
        rows = [encoded[i] for i in indices]
        results: list[list[RowPrediction]] = [[] for _ in prompted]
        answers = score_many(
            [prompted[number].model for number in scored],
            rows,
            [labels[number] for number in scored],
            task_ids=[prompted[number].task_index for number in scored],
            max_tokens=max_tokens,
        )
        for number, (scores, probabilities, attention) in zip(scored, _on_host(answers), strict=True):
            words, golds = labels[number], [targets[number][i].target_ids for i in indices]
            texts = [prompted[number].task.label_words[max(range(len(own)), key=own.__getitem__)] for own in scores]
            # a row without an answer has none of the labels as its target
            places = [words.index(gold) if gold in words else None for gold in golds]
            likelihoods = [None if g is None else scores[i][g] for i, g in enumerate(places)]
            results[number] = _predictions(texts, attention, probabilities, likelihoods)
        writing = [number for number, words in enumerate(labels) if not words]
        past = read_for([prompted[number].model for number in writing], rows)
        for number in writing:
            one = prompted[number]
            own = [replace(row, task=one.task_index) for row in rows]
            watch = _FirstLines(backbone.tokenizer, len(own))
            written, weights = one.model.generate(own, MAX_NEW_TOKENS, watch, past)
            results[number] = _predictions(
                [text.split("\n", 1)[0].strip() for text in written], None if weights is None else weights.tolist()
            )
        yield indices, results


class _FirstLines:
    """Ends each row's text with its first line: an answer is one line, and all behind it costs time for nothing.

    A decoder-only model without a prompt goes on with a next question.

    Args:
        tokenizer: of the backbone.
        rows: how many are written.
    """

    def __init__(self, tokenizer: Any, rows: int) -> None:
        self._tokenizer = tokenizer
        self._written: list[list[int]] = [[] for _ in range(rows)]

    def __call__(self, tokens: Sequence[int]) -> list[bool]:
        for own, token in zip(self._written, tokens, strict=True):
            own.append(token)
        texts = self._tokenizer.batch_decode(self._written, skip_special_tokens=True)
        return ["\n" in text.lstrip() for text in texts]  # empty lines in front are no answer


def _on_host(
    answers: Sequence[tuple[Tensor, Tensor | None]],
) -> list[tuple[list[list[float]], list[list[float]], list[list[float]] | None]]:
    """Returns scores, probabilities and weights of all prompts as numbers; the device is waited for once."""
    import torch

    kinds = [(scores, scores.softmax(dim=-1), weights) for scores, weights in answers]
    tensors = [tensor for kind in kinds for tensor in kind if tensor is not None]
    if not tensors:
        return []
    together = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu()
    parts = iter(torch.split(together, [tensor.numel() for tensor in tensors]))
    return [
        tuple(None if tensor is None else next(parts).view(tensor.shape).tolist() for tensor in kind)  # type: ignore[misc]
        for kind in kinds
    ]


def _predictions(
    texts: Sequence[str],
    attention: Sequence[Sequence[float]] | None,
    probabilities: Sequence[Sequence[float]] | None = None,
    likelihoods: Sequence[float | None] | None = None,
) -> list[RowPrediction]:
    return [
        RowPrediction(
            text,
            tuple(probabilities[i]) if probabilities else None,
            likelihoods[i] if likelihoods else None,
            tuple(attention[i]) if attention else None,
        )
        for i, text in enumerate(texts)
    ]
