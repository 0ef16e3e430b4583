"""The frozen model told what to do in words: an instruction, or solved rows before each question."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import MAX_NEW_TOKENS
from attempt_cli.method import PromptMixture
from attempt_cli.prompted import PromptedModel

APART = "\n\n"  # between an instruction or a solved row and what follows
MOST_TOKENS = 4096  # of demonstrations, in a model whose context is longer or without a bound


@dataclass(frozen=True)
class Told:
    """A frozen model with words before each input.

    Args:
        model: ready to predict; where it can be, the words are read once a batch.
        tokens: the words' tokens, which every query pays for.
        shown: how many rows they show.
    """

    model: PromptedModel
    tokens: int
    shown: int = 0


def instructed(backbone: FrozenBackbone, task: Task, *, chat_template: bool = False) -> Told:
    """Tells the model the task's instruction (`Task.instructions`) before each input.

    Raises:
        AttemptError: the task has none, and no description to make one of; it leaves less than half of the context to
            an input; or the backbone has no chat template.
    """
    words = backbone.text_tokens(task.instructions + APART)
    if 2 * len(words) > (backbone.max_positions or 2 * len(words)):
        raise AttemptError(
            f"the instruction of {task.name} has {len(words)} tokens of the {backbone.max_positions} that "
            f"{backbone.name} can read",
            "Give the task's YAML a shorter `instruction`.",
        )
    return _told(backbone, words, chat_template)


def demonstrated(
    backbone: FrozenBackbone,
    task: Task,
    examples: Sequence[Example],
    *,
    max_length: int | None = None,
    chat_template: bool = False,
) -> Told:
    """Shows the model solved rows, in their order, before each input.

    Args:
        backbone: the frozen model.
        task: the rows' task.
        examples: the rows; where the context does not hold all of them beside an input, the first are left out.
        max_length: input tokens of a row, a shown one's as well; None takes the task's own limit.
        chat_template: whether rows and input stand in one user turn of the chat template.

    Raises:
        AttemptError: the context holds none of them, or the backbone has no chat template.
    """
    frame = backbone.chat_frame if chat_template else None
    answers = [_answer(backbone, example.target) for example in examples]
    limit, apart = max_length or task.max_length, backbone.text_tokens(APART)
    around = backbone.with_words((), frame)
    room = max([MAX_NEW_TOKENS, *map(len, answers)])
    left = min(backbone.max_positions or MOST_TOKENS, MOST_TOKENS) - limit - room - len(around.head + around.tail)
    inputs = backbone.encode(
        [example.input for example in examples], None, limit, [example.tail for example in examples], ((), ())
    )
    words: list[int] = []
    shown = 0
    for row, answer in zip(reversed(inputs), reversed(answers), strict=True):
        solved = [*row.input_ids, *answer, *apart]
        if len(words) + len(solved) > left:
            break
        words, shown = [*solved, *words], shown + 1
    if not shown:
        raise AttemptError(
            f"the context of {backbone.name} holds no solved row beside an input of {limit} tokens",
            "Give a shorter --max-length.",
        )
    return _told(backbone, words, chat_template, shown)


def orders(examples: Sequence[Example], count: int, seed: int) -> list[list[Example]]:
    """Returns the rows in several random orders, the same for a seed."""
    randomness = random.Random(seed)
    return [randomness.sample(examples, len(examples)) for _ in range(count)]


def _answer(backbone: FrozenBackbone, text: str) -> list[int]:
    ids = backbone.target_tokens(text, end=False)
    return ids[:-1] if ids and ids[-1] == backbone.end_id else ids  # T5's targets always end


def _told(backbone: FrozenBackbone, words: Sequence[int], chat_template: bool, shown: int = 0) -> Told:
    """Puts words before each input: as what a prompt of no tokens of its own comes with, they are read once a batch."""
    frame = backbone.with_words(words, backbone.chat_frame if chat_template else None)
    nothing = PromptMixture(torch.zeros(1, 0, backbone.width, device=backbone.device)).requires_grad_(False)
    return Told(PromptedModel(backbone, nothing, frame=frame), len(words), shown)
