"""Shows the progress of a training or an evaluation on stderr: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from attempt_cli.cli.output import Output, printable, say
from attempt_cli.listener import Listener

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self

    from attempt_cli.experiments.cells import Cell, CellSpec


# without a terminal: the fewest seconds between two lines about steps, and the most lines between first and last step
SECONDS_BETWEEN_LINES = 30
LINES_OF_STEPS = 10


class _Progress:
    """Keeps a bar on the screen inside a `with` statement; without a terminal, or when silent, there is none."""

    _bar: Progress | None = None
    _silent = False

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _say(self, text: str) -> None:
        """Writes a line to stderr, above the bar where there is one."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(printable(text.rstrip()), markup=False, highlight=False)
        else:
            say(text.rstrip(), err=True)


class NoteListener(Listener):
    """Passes remarks on to the output."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def note(self, text: str) -> None:
        self._output.note(text)


class TrainingProgress(_Progress, Listener):
    """A `Listener` for people.

    Without a terminal it writes one line for the first step, one for the last, one for each evaluation, and in a long
    training at most ten more: a log stays short.

    Args:
        title: the name of what is trained, until a training says its own.
        silent: write nothing (other processes, `--format quiet`).
    """

    def __init__(self, title: str = "training", *, silent: bool = False) -> None:
        self._title = title
        self._silent = silent
        self._metric = ""
        self._loss: float | None = None
        self._total = 0
        self._last_line = (0.0, 0)  # time and step
        self._pending = ""  # the line of the newest step until it is written
        if not silent and sys.stderr.isatty():
            self._bar = _bar(numbers=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._pending:  # it stopped before the last step
            self._say(self._pending)

    def begin(self, name: str) -> None:
        """Takes the name of the training that is about to begin."""
        self._title = name

    def start(self, step: int, total: int) -> None:
        """Takes the step to start from and the number of all steps."""
        self._total = total
        if step:
            self._say(f"continuing from step {step} of {total}")
        if self._bar is not None:
            self._task = self._bar.add_task(printable(self._title), total=total, completed=step, numbers="")

    def note(self, text: str) -> None:
        """Writes a remark."""
        self._say(text)

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        """Shows a step's loss and speed."""
        # a running mean: the loss of a single small batch jumps too much to read
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        numbers = f"loss {self._loss:.3f}  {self._metric}{rows_per_second:.1f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
            return
        self._pending = f"{self._title}: step {step}/{self._total}  {numbers}"
        last_time, last_step = self._last_line
        far = (step - last_step) * LINES_OF_STEPS >= self._total
        late = time.monotonic() - last_time > SECONDS_BETWEEN_LINES
        if not last_step or (far and late) or step == self._total:
            self._last_line = (time.monotonic(), step)
            self._say(self._pending)
            self._pending = ""

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """Shows the first metric of an evaluation."""
        name, value = next(iter(metrics.items()))
        self._metric = f"{name} {100 * value:.1f}  "
        if self._bar is None:
            self._say(f"{self._title}: step {step}/{self._total}  validation {self._metric}{'(best)' if best else ''}")


class RowProgress(_Progress, NoteListener):
    """Shows a bar over rows on a terminal, nothing elsewhere, and passes remarks on to the output."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._shown = output.format != "quiet" and sys.stderr.isatty()

    def rows(self, done: int, total: int) -> None:
        """Shows how many rows are done."""
        if not self._shown:
            return
        if self._bar is None:
            self._bar = _bar(numbers=False)
            self._task = self._bar.add_task("rows", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)


class GridProgress(_Progress):
    """An `experiments.cell_queue.GridListener` for people: cells done, failed and left, and the time they will take.

    Args:
        specs: all cells of the grid.
        workers: how many run at once.
        silent: say nothing (`--format quiet`).
    """

    def __init__(self, specs: Sequence[CellSpec], workers: int, *, silent: bool = False) -> None:
        self._left = Counter(spec.method for spec in specs)
        self._total = len(specs)
        self._workers = workers
        self._silent = silent
        self._seconds: dict[str, list[float]] = {}  # by method, of the cells that were run
        self._failed = 0
        self._running: dict[CellSpec, str] = {}
        if not silent and sys.stderr.isatty():
            self._bar = _bar(numbers=True, time_left=False)
            self._task = self._bar.add_task("cells", total=self._total, numbers="")

    def began(self, spec: CellSpec) -> None:
        self._running[spec] = ""
        self._show()

    def step(self, spec: CellSpec, step: int, total: int, loss: float) -> None:
        self._running[spec] = f"step {step}/{total}"
        self._show()

    def note(self, text: str) -> None:
        self._say(text)

    def done(self, spec: CellSpec, cells: tuple[Cell, ...], seconds: float) -> None:
        # a cell that was read back, or that another one shares, says nothing of the time that the next will take
        if seconds > 0.5 * sum(cell.seconds for cell in cells):
            self._seconds.setdefault(spec.method, []).append(seconds)
        self._end(spec, ", ".join(f"{100 * cell.score:.1f}" for cell in cells) or "done")

    def failed(self, spec: CellSpec, error: str, seconds: float) -> None:
        self._failed += 1
        self._seconds.setdefault(spec.method, []).append(seconds)
        self._end(spec, f"failed: {error}")

    def _end(self, spec: CellSpec, result: str) -> None:
        self._left[spec.method] -= 1
        self._running.pop(spec, None)
        done = self._total - self._left.total()
        left = self._time_left()
        about = f"  (about {left} left)" if left and self._bar is None else ""
        self._say(f"[{done}/{self._total}] {spec}: {result}{about}")
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        self._show()

    def _time_left(self) -> str:
        """Estimates the time left: each cell takes as long as those of its method took so far."""
        known = [seconds for of in self._seconds.values() for seconds in of]
        if not known or not self._left.total():
            return ""
        mean = {method: sum(of) / len(of) for method, of in self._seconds.items()}
        seconds = sum(count * mean.get(method, sum(known) / len(known)) for method, count in self._left.items())
        return duration_text(seconds / self._workers)

    def _show(self) -> None:
        if self._bar is not None:
            # of cells that are trained together one tells of the steps
            shown = [item for item in self._running.items() if item[1]] or list(self._running.items())[:1]
            parts = [f"{spec} {where}".strip() for spec, where in shown]
            more = len(self._running) - len(shown)
            parts += [f"and {more} more"] if more else []
            left = self._time_left()
            parts += [f"{self._failed} failed"] if self._failed else []
            parts += [f"about {left} left"] if left else []
            self._bar.update(self._task, numbers=printable("  ".join(parts)))


def duration_text(seconds: float) -> str:
    """Formats a duration for people: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _bar(*, numbers: bool, time_left: bool = True) -> Progress:
    """Makes a bar with title, count and time left; it stays on the screen only with numbers."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[numbers]}", markup=False)] if numbers else []),
        *([TimeRemainingColumn()] if time_left else []),
        console=Console(stderr=True),
        transient=not numbers,
    )
