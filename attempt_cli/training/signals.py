"""Notes Ctrl-C and termination instead of dying in the middle of a step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_signals(then: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in a list instead of dying; the second of them ends the process as ever.

    Args:
        then: is called at each, too.
    """
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        then()
        signal.signal(number, previous[number])

    try:
        previous = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals belong to the main thread
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
