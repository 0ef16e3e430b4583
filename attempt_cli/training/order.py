"""Which rows are in which step: a function of the seed alone, so that a resumed run meets the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A window this many batches wide is sorted by length: rows of a batch are of like length, and still well mixed.
WINDOW = 16


class BatchOrder:
    """Every epoch's batches: all rows once, in random order, rows of like length together.

    Args:
        lengths: tokens of each row.
        batch_rows: rows of one optimiser step over all processes; fewer where the data is smaller.
        seed: the run's seed.
    """

    def __init__(self, lengths: Sequence[int], batch_rows: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_rows = min(batch_rows, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._lengths) // self._batch_rows)

    def batch(self, step: int) -> list[int]:
        """The rows of a step, which counts from 0."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._epoch_batches(epoch)
        return self._batches[number]

    def _epoch_batches(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([self._seed, epoch])
        rows = generator.permutation(len(self._lengths))
        window = self._batch_rows * WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch_rows].tolist() for i in range(0, len(part), self._batch_rows)]
        return [batches[i] for i in generator.permutation(len(batches))]
