"""Which rows are in which step: a function of the seed alone, so that a resumed run meets the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attempt_cli.errors import AttemptError

# A window this many batches wide is sorted by length: rows of a batch are of like length, and still well mixed.
WINDOW = 16


class BatchOrder:
    """Every epoch's batches: all rows once, in random order, rows of like length together.

    With shares, an epoch holds a number of rows of each task, drawn again in every epoch: its batches mix tasks. A task
    whose share exceeds its rows repeats rows.

    Args:
        lengths: tokens of each row.
        batch_rows: rows of one optimiser step over all processes; fewer where the data is smaller.
        seed: the run's seed.
        tasks: each row's task, from 0; needed with shares.
        shares: how many rows of each task an epoch holds.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_rows: int,
        seed: int,
        tasks: Sequence[int] | None = None,
        shares: Sequence[int] | None = None,
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._seed = seed
        self._shares = shares
        self._rows_of = [np.flatnonzero(np.asarray(tasks) == task) for task in range(len(shares or ()))]
        self._epoch_rows = sum(shares) if shares is not None else len(lengths)
        self._batch_rows = min(batch_rows, self._epoch_rows)
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        return -(-self._epoch_rows // self._batch_rows)

    def batch(self, step: int) -> list[int]:
        """Returns the rows of a step, which counts from 0."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._epoch_batches(epoch)
        return self._batches[number]

    def _epoch_batches(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([self._seed, epoch])
        if self._shares is None:
            rows = generator.permutation(len(self._lengths))
        else:
            drawn = [
                np.resize(generator.permutation(own), share)
                for own, share in zip(self._rows_of, self._shares, strict=True)
            ]
            rows = generator.permutation(np.concatenate(drawn))
        window = self._batch_rows * WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch_rows].tolist() for i in range(0, len(part), self._batch_rows)]
        return [batches[i] for i in generator.permutation(len(batches))]


def task_shares(counts: Sequence[int], cap: int | None = None, temperature: float = 1.0) -> list[int]:
    """Computes how many rows of each task an epoch of mixed batches holds.

    Sampling in proportion to size (T = 1) lets large tasks drown small ones; a cap (Raffel et al., 2020) or a
    temperature T > 1, where a task's share is in proportion to n^(1/T), evens them out. The epoch's size stays the sum
    of the capped counts; every task has at least one row.

    Args:
        counts: rows of each task.
        cap: no task counts for more rows than this.
        temperature: T.

    Raises:
        AttemptError: a temperature below 1 or a cap below 1.
    """
    if temperature < 1 or (cap is not None and cap < 1):
        raise AttemptError(
            f"tasks cannot be sampled with a temperature of {temperature:g} and at most {cap} rows",
            "The temperature is 1 (in proportion to size) or more, --max-rows-per-task at least 1.",
        )
    capped = [min(count, cap) if cap is not None else count for count in counts]
    weights = [count ** (1 / temperature) for count in capped]
    return [max(1, round(sum(capped) * weight / sum(weights))) for weight in weights]
