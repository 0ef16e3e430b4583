"""Rows of like length together, under a budget of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# A row that is shorter than this share of a batch's longest goes into the next batch, where batches are large enough.
TIGHT = 0.85


def by_length(
    lengths: Sequence[int],
    overhead: int,
    max_tokens: int,
    max_rows: int | None = None,
    *,
    least: int | None = None,
) -> Iterator[list[int]]:
    """Groups rows of like length into batches under a token budget.

    Args:
        lengths: tokens of each row, input and target.
        overhead: tokens that every row has besides (the prompt).
        max_tokens: the largest number of positions of a batch, pads included; a longer row stands alone.
        max_rows: the largest number of its rows, if that is bounded too.
        least: from so many positions on, a batch takes no row that is much shorter than its longest: pads would cost
            more than another batch does. None: it takes all that fit.

    Yields:
        Indices of a batch's rows, longest rows first: a batch that is too large for the memory fails at once.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = lengths[group[0] if group else index] + overhead
        full = width * (len(group) + 1) > max_tokens or len(group) == max_rows
        loose = least is not None and width * len(group) >= least and lengths[index] + overhead < TIGHT * width
        if group and (full or loose):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
