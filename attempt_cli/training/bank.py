"""Many prompts trained at once: trainings in step, whose rows go through the frozen backbone together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_cli.training.diagnosis import mean
from attempt_cli.training.gradient import joint_gradient
from attempt_cli.training.loop import (
    NotFiniteError,
    Scores,
    Trained,
    TrainingLoop,
    TrainingStoppedError,
    fetch_next,
)
from attempt_cli.training.signals import caught_signals


@dataclass
class PromptBank:
    """Trainings of prompts on one frozen backbone, which take their steps together.

    Nothing but the pass through the backbone is shared. Each member has its own rows and their order, loss, clipping,
    learning rates and schedule, optimiser, evaluations and checkpoint, and leaves when it is done: it ends as it would
    alone, up to rounding. Members may be at different steps, so each continues from its own checkpoint, whether that
    was written in a bank or alone.

    Args:
        members: the trainings, of one process each and with uncompiled layers, whose models have `joins` in common.
        listener: is told the members' mean loss at every step, and can stop them all.
        evaluate: scores the members of some numbers on their validation rows together; without it each scores alone.
    """

    members: Sequence[TrainingLoop]
    listener: Listener
    evaluate: Callable[[Sequence[int]], Sequence[Scores]] | None = None

    def __post_init__(self) -> None:
        joins = {member.model.joins for member in self.members}
        if len(joins) != 1 or None in joins:
            raise ValueError(f"these trainings cannot share their passes: {joins}")
        if len({member.checkpoint for member in self.members}) < len(self.members):
            raise ValueError("two of these trainings are the same")

    def train(self, resume: bool = False) -> list[Trained | AttemptError]:
        """Takes all steps of all members.

        Args:
            resume: continue from the members' checkpoints, where there are some.

        Returns:
            How each member ended: the error of one whose loss is no number; the others go on.

        Raises:
            TrainingStoppedError: stopped by a signal or by the listener; all checkpoints are written.
        """
        for member in self.members:
            member.begin(resume)
            member.state.bank = max(member.state.bank, len(self.members))
        self.listener.start(self._step, self._total)
        ended: dict[int, Trained | AttemptError] = {}
        with caught_signals() as signals:
            started = time.monotonic()
            starting = [number for number, member in enumerate(self.members) if member.scores_start]
            for number, found in self._scores(starting).items():
                self.members[number].score_start(found)
            self._share(time.monotonic() - started, self.members)
            running = list(range(len(self.members)))
            while running := [number for number in running if number not in ended]:
                done = [number for number in running if not self.members[number].has_steps()]
                if done:
                    ended |= {number: self.members[number].end() for number in done}
                    continue
                if signals or self.listener.stopped:
                    for number in running:
                        self.members[number].save()
                    raise TrainingStoppedError(
                        f"stopped at step {self._step} of {self._total} of {len(running)} trainings; nothing is lost",
                        "Continue with the same command and --resume.",
                    )
                ended |= self._take_step(running)
        self.members[0].model.backbone.fetch([])  # as a training alone does
        return [ended[number] for number in range(len(self.members))]

    def _take_step(self, running: Sequence[int]) -> dict[int, Trained | AttemptError]:
        """Takes a step of each running member; returns the errors of those that cannot go on."""
        started = time.monotonic()
        members = [self.members[number] for number in running]
        rows = [member.batch(member.state.step) for member in members]
        losses = joint_gradient(
            [member.model for member in members],
            rows,
            members[0].config.max_tokens,
            [member.positions for member in members],
        )
        fetch_next(members)
        failed: dict[int, Trained | AttemptError] = {}
        for number, member, loss in zip(running, members, losses, strict=True):
            try:
                member.update(loss)
            except NotFiniteError as error:
                failed[number] = error
        updated = [number for number in running if number not in failed]
        scores = self._scores([number for number in updated if self.members[number].scores_step])
        for number in updated:
            try:
                self.members[number].after_step(scores.get(number))
            except NotFiniteError as error:
                failed[number] = error
        spent = time.monotonic() - started
        self._share(spent, members)
        last = [member.state.losses[-1] for member in members if member.state.losses]
        if not any(member.pending for member in members):
            self.listener.step(self._step, mean(last), sum(map(len, rows)) / spent)
        return failed

    def _share(self, seconds: float, members: Sequence[TrainingLoop]) -> None:
        """Counts time that members spent together as their shares."""
        for member in members:
            member.began += seconds * (1 - 1 / len(members))

    def _scores(self, numbers: Sequence[int]) -> dict[int, Scores | None]:
        """Returns the scores of members on their validation rows; None of those that score alone."""
        together = [number for number in numbers if self.evaluate and self.members[number].evaluate]
        if self.evaluate is None or not together:
            return dict.fromkeys(numbers)
        with self.members[0].model.backbone.as_loaded():
            return {**dict.fromkeys(numbers), **dict(zip(together, self.evaluate(together), strict=True))}

    @property
    def _step(self) -> int:
        return max(member.state.step for member in self.members)

    @property
    def _total(self) -> int:
        return max(member.total for member in self.members)
