"""The number of parameters that each method trains per task, by formula (figure 7 of the paper)."""

from __future__ import annotations


def prompt_tuning_parameters(width: int, length: int) -> int:
    """Returns the count for prompt tuning: m·d; every task has a prompt of its own."""
    return length * width


def attempt_parameters(
    width: int,
    length: int,
    rank: int,
    tasks: int = 1,
    *,
    learned_temperature: bool = False,
    with_target: bool = True,
    prior: int = 0,
) -> float:
    """Returns the count for ATTEMPT: d·m + (2rd + 2d)/N for N tasks that share one G.

    Args:
        width: d.
        length: m.
        rank: r of G.
        tasks: N.
        learned_temperature: G has one more parameter.
        with_target: False if only G is trained, without a target prompt.
        prior: the numbers of each task's prior: t + 1, or 0 for none.
    """
    attention = 2 * rank * width + 2 * width + int(learned_temperature)
    return int(with_target) * length * width + prior + attention / tasks


def mpt_parameters(width: int, length: int, rank: int = 1, tasks: int = 1, *, train_shared: bool = True) -> float:
    """Returns the count for multitask prompt tuning: m·d/N + (m + d)·r for N tasks that share one prompt.

    Args:
        width: d.
        length: m.
        rank: r of a task's factors.
        tasks: N.
        train_shared: False if the shared prompt is frozen.
    """
    return int(train_shared) * length * width / tasks + (length + width) * rank


def dept_parameters(width: int, short_length: int, positions: int, rank: int) -> int:
    """Returns the count for decomposed prompt tuning: m'·d + (s + d)·r; every task has its own.

    Args:
        width: d.
        short_length: m', the short prompt's tokens.
        positions: s, the input positions with an offset.
        rank: r of the offsets.
    """
    return short_length * width + (positions + width) * rank
