"""Rows as a backbone reads them: tokens, alone and in a batch."""

from __future__ import annotations

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
class Batch:
    """Rows side by side, padded on the right.

    Args:
        input_ids: [b, l].
        input_lengths: real tokens of each input, [b].
        target_ids: [b, c].
        targets: row and step of every real target token, two tensors [k].
        read: the same of those that are read before the next is predicted: all but each row's last.
        task_ids: each row's task, [b].
    """

    input_ids: Tensor
    input_lengths: Tensor
    target_ids: Tensor
    targets: tuple[Tensor, Tensor]
    read: tuple[Tensor, Tensor]
    task_ids: Tensor

    @property
    def input_mask(self) -> Tensor:
        """True at real input tokens, [b, l]."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < self.input_lengths[:, None]

    def of_rows(self, at: Tensor) -> Batch:
        """Returns some of its rows, by number, [n], and without targets; a row may come several times."""
        none = (at[:0], at[:0])
        return Batch(self.input_ids[at], self.input_lengths[at], self.target_ids[at, :0], none, none, self.task_ids[at])
