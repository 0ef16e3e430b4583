"""Shows how a training or an evaluation goes: a bar on a terminal, a few lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress


class TrainingProgress:
    """A `training.loop.Listener` for people.

    Args:
        title: what is trained.
        silent: say nothing (other processes, `--format quiet`).
    """

    def __init__(self, title: str, *, silent: bool = False) -> None:
        self._title = title
        self._silent = silent
        self._bar: Progress | None = None
        self._metric = ""
        self._loss: float | None = None
        self._last_line = 0.0
        self._total = 0
        if not silent and sys.stderr.isatty():
            self._bar = _bar(numbers=True)

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, step: int, total: int) -> None:
        self._total = total
        if step:
            self._say(f"going on from step {step} of {total}")
        if self._bar is not None:
            self._task = self._bar.add_task(self._title, total=total, completed=step, numbers="")

    def note(self, text: str) -> None:
        self._say(text)

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        # a running mean: the loss of a single small batch jumps too much to read
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        numbers = f"loss {self._loss:.3f}  {self._metric}{rows_per_second:.1f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif time.monotonic() - self._last_line > 30 or step == self._total:
            self._last_line = time.monotonic()
            self._say(f"{self._title}: step {step}/{self._total}  {numbers}")

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None:
        name, value = next(iter(metrics.items()))
        self._metric = f"{name} {100 * value:.1f}  "
        if self._bar is None:
            self._say(f"{self._title}: step {step}/{self._total}  validation {self._metric}{'(best)' if best else ''}")

    def _say(self, text: str) -> None:
        if not self._silent:
            click.echo(text.rstrip(), err=True)


class RowProgress:
    """A bar over rows on a terminal, nothing elsewhere.

    Args:
        total: rows in all.
        output_format: under `quiet` there is no bar.
    """

    def __init__(self, total: int, output_format: str = "table") -> None:
        self._bar: Progress | None = None
        if output_format != "quiet" and sys.stderr.isatty():
            self._bar = _bar(numbers=False)
            self._task = self._bar.add_task("rows", total=total)

    def __enter__(self) -> RowProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        if self._bar is not None:
            self._bar.advance(self._task, rows)


def _bar(*, numbers: bool) -> Progress:
    """A bar with title, count and time left; one with numbers stays on the screen, one without goes when it is full."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[numbers]}")] if numbers else []),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=not numbers,
    )
