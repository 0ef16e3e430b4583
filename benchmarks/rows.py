"""The rows that all contenders work on: real ones, tokenised once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.rows import load_examples
from attempt_cli.evaluation.prediction import encode_examples
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.order import BatchOrder

BATCH = 16  # rows of a step, for everyone


def real_rows(
    task: str, count: int, backbone: FrozenBackbone, data_dir: Path | None, split: str = "train"
) -> list[EncodedRow]:
    """Rows of a task's split with their targets, as our commands would encode them."""
    chosen = load_task(task)
    examples = load_examples(chosen, split, data_dir=data_dir, limit=count).examples
    return encode_examples(PromptedModel(backbone), chosen, examples)


def label_tokens(task: str, backbone: FrozenBackbone) -> list[list[int]]:
    """The tokens of a task's label words."""
    return backbone.label_tokens(load_task(task).label_words)


def drawn_rows(lengths: Sequence[int], vocabulary: int, target_tokens: int = 2) -> list[EncodedRow]:
    """Rows of random tokens with the lengths of real ones, for models of random weights.

    Args:
        lengths: input tokens of each row.
        vocabulary: ids are drawn from 3 up to here; the first few are special.
        target_tokens: a label word and an end token by default.
    """
    generator = random.Random(0)

    def ids(count: int) -> list[int]:
        return [generator.randrange(3, vocabulary) for _ in range(count)]

    return [EncodedRow(ids(length), ids(target_tokens)) for length in lengths]


def bucketed_batches(rows: Sequence[EncodedRow], size: int = BATCH) -> list[list[EncodedRow]]:
    """An epoch's batches as our training takes them: rows of like length together."""
    order = BatchOrder([len(row.input_ids) + len(row.target_ids) for row in rows], size, seed=0)
    return [[rows[i] for i in order.batch(step)] for step in range(order.batches_per_epoch)]


def random_batches(rows: Sequence[EncodedRow], size: int = BATCH) -> list[list[EncodedRow]]:
    """An epoch's batches as a shuffled data loader takes them."""
    order = random.Random(0).sample(range(len(rows)), len(rows))
    return [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]


def padded(sequences: Sequence[Sequence[int]], pad: int, *, left: bool = False, width: int = 0) -> torch.Tensor:
    """Sequences side by side, [b, longest or width]."""
    width = max(width, *map(len, sequences))
    parts = [[pad] * (width - len(ids)) for ids in sequences]
    return torch.tensor([[*part, *ids] if left else [*ids, *part] for part, ids in zip(parts, sequences, strict=True)])
