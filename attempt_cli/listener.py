"""Reports how long work goes: the command line draws bars, a notebook may do what it likes."""

from __future__ import annotations


class Listener:
    """Is told how a training or an evaluation goes. Every method does nothing here; override those that you need.

    Set `stopped` to True (from any thread) to end a training at its next step: its checkpoint is written, and the same
    call with `resume=True` continues from there.
    """

    stopped: bool = False

    def begin(self, name: str) -> None:
        """A training of this name is about to begin."""

    def start(self, step: int, total: int) -> None:
        """A training begins at a step (0, or where its checkpoint ends) of `total`."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        """An optimiser step is done."""

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """Validation rows were scored; `best` says whether this step is the best so far."""

    def rows(self, done: int, total: int) -> None:
        """Rows were scored: `done` of `total` so far."""
