"""Batches of rows of similar length, under a budget of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# A row shorter than this share of a batch's longest goes into the next batch, if the batch is large enough already.
TIGHT = 0.85


def by_length(
    lengths: Sequence[int],
    overhead: int,
    max_tokens: int,
    max_rows: int | None = None,
    *,
    least: int | None = None,
    computed: int | None = None,
) -> Iterator[list[int]]:
    """Groups rows of similar length into batches under a token budget.

    Args:
        lengths: tokens of each row, input and target.
        overhead: further tokens of every row (the prompt).
        max_tokens: the largest number of positions of a batch, pads included; a longer row is a batch of its own.
        max_rows: the largest number of rows of a batch, if that is bounded too.
        least: a batch of at least this many positions takes no row that is much shorter than its longest: pads would
            cost more than another batch does. None: a batch takes all rows that fit.
        computed: how many of a row's positions count towards `least`, where not all of them are computed.

    Yields:
        Indices of a batch's rows, longest rows first: a batch that is too large for the memory fails at once.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = lengths[group[0] if group else index] + overhead
        full = width * (len(group) + 1) > max_tokens or len(group) == max_rows
        loose = (
            least is not None
            and (computed or width) * len(group) >= least
            and lengths[index] + overhead < TIGHT * width
        )
        if group and (full or loose):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
