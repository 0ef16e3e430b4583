"""The label words of a task as branches behind one prefix, so that one pass scores them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class LabelTree:
    """Label words as branches: all tokens of a word but its last, which is predicted and never read.

    Args:
        labels: the words' tokens.
        on_device: moves whole numbers to where the tree is used.

    Attributes:
        ids, word_of, steps: of each branch token, [k]: its id, its word, and its place in the word from 0.
    """

    def __init__(self, labels: Sequence[Sequence[int]], on_device: Callable[[list[int]], Tensor]) -> None:
        tokens = [(token, j, k) for j, word in enumerate(labels) for k, token in enumerate(word[:-1])]
        table = on_device([number for token in tokens for number in token]).view(-1, 3)
        self.ids, self.word_of, self.steps = table.unbind(dim=1)

    @property
    def count(self) -> int:
        """k, the number of branch tokens."""
        return len(self.ids)

    def allowed(self, prefix: int) -> Tensor:
        """Returns which position may see which, [1, prefix + k, prefix + k]; every branch sees the whole prefix."""
        size = prefix + self.count
        allowed = torch.zeros(1, size, size, dtype=torch.bool, device=self.ids.device)
        index = torch.arange(prefix, device=self.ids.device)
        allowed[:, :prefix, :prefix] = index[:, None] >= index
        allowed[:, prefix:, :prefix] = True
        allowed[:, prefix:, prefix:] = (self.word_of[:, None] == self.word_of) & (self.steps[:, None] >= self.steps)
        return allowed
