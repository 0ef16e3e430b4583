"""Reports how long work goes: the command line draws bars, a notebook may do what it likes."""

from __future__ import annotations


class Listener:
    """Receives the progress of trainings and evaluations. Every method does nothing here; override those that you need.

    Set `stopped` to True (from any thread) to end a training at its next step: its checkpoint is written, and the same
    call with `resume=True` continues from there. Predictions and evaluations end after the batch they are at, with a
    `StoppedError`.
    """

    stopped: bool = False

    def begin(self, name: str) -> None:
        """Receives the name of the training that is about to begin."""

    def start(self, step: int, total: int) -> None:
        """Receives the step that a training begins at (0, or that of its checkpoint) and the number of all steps."""

    def note(self, text: str) -> None:
        """Receives a remark for the user."""

    def unfinished(self, text: str) -> None:
        """Receives what becomes of an unfinished training of the same command; passes it to `note`."""
        self.note(text)

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        """Receives the loss of an optimiser step, per target token, and the speed."""

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None:
        """Receives the metrics of the validation rows; `best` says whether this step is the best so far."""

    def rows(self, done: int, total: int) -> None:
        """Receives how many of all rows are scored."""
