"""Rows as a backbone reads them: tokens, alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EncodedRow:
    """The tokens of a row.

    Args:
        input_ids: the input's tokens, at least one.
        target_ids: the target's tokens; empty for a row that is only predicted.
        truncated: the number of input tokens that did not fit.
        task: the index of the row's target prompt in a mixture.
    """

    input_ids: list[int]
    target_ids: list[int]
    truncated: int = 0
    task: int = 0


@dataclass(frozen=True)
class BatchShape:
    """The widths of a batch.

    Args:
        rows: b; those that there are not are one pad long, and have no target.
        inputs, targets: l and c.
        predicted, read: k and the number of target tokens that are read.
        filled: whether some of the predicted and read tokens are repeated to make up these numbers.
    """

    rows: int
    inputs: int
    targets: int
    predicted: int
    read: int
    filled: bool = False

    @staticmethod
    def of(rows: Sequence[EncodedRow]) -> BatchShape:
        """Returns the smallest shape that holds these rows."""
        targets = [len(row.target_ids) for row in rows]
        read = sum(max(0, count - 1) for count in targets)
        return BatchShape(len(rows), max(len(row.input_ids) for row in rows), max(targets), sum(targets), read)

    def rounded(self, room: int | None) -> BatchShape:
        """Returns one of few shapes that hold it, a quarter larger at the most; a small vocabulary projection may be.

        Args:
            room: positions that inputs and targets may take; a shape beyond it keeps these as they are. None: any.
        """
        inputs, targets = few(self.inputs, 8), few(self.targets)
        if room is not None and inputs + targets > room:
            inputs, targets = self.inputs, self.targets
        rows = few(self.rows)
        predicted, read = (
            min(rows * width, max(FEW_TOKENS, few(count)))
            for width, count in ((targets, self.predicted), (targets - 1, self.read))
        )
        return BatchShape(rows, inputs, targets, predicted, read, filled=True)


# target tokens up to which a batch's number of them does not matter
FEW_TOKENS = 256


def few(n: int, least: int = 1) -> int:
    """Rounds up to one of four numbers an octave, and to a multiple of `least`."""
    step = max(least, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


@dataclass(frozen=True)
class Batch:
    """Rows side by side, padded on the right.

    Args:
        input_ids: [b, l].
        input_lengths: real tokens of each input, [b].
        target_ids: [b, c].
        targets: row and step of every real target token, two tensors [k].
        read: the same of those that are read before the next is predicted: all but each row's last.
        task_ids: each row's task, [b].
        counted: 1 where `targets` names a target token, 0 where it repeats one to fill its width, [k]; None: all count.
        tasks: `task_ids` as the host knows them; None in a graph, which holds no numbers of the host.
    """

    input_ids: Tensor
    input_lengths: Tensor
    target_ids: Tensor
    targets: tuple[Tensor, Tensor]
    read: tuple[Tensor, Tensor]
    task_ids: Tensor
    counted: Tensor | None = None
    tasks: tuple[int, ...] | None = None

    @property
    def input_mask(self) -> Tensor:
        """True at real input tokens, [b, l]."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < self.input_lengths[:, None]

    def of_rows(self, at: Tensor) -> Batch:
        """Returns some of its rows, by number, [n], and without targets; a row may come several times."""
        none = (at[:0], at[:0])
        return Batch(self.input_ids[at], self.input_lengths[at], self.target_ids[at, :0], none, none, self.task_ids[at])
