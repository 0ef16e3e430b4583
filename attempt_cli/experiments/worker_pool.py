"""The workers of a grid: this process, others on this machine, or actors of a Ray cluster."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from attempt_cli.errors import AttemptError
from attempt_cli.experiments.cell_queue import GridListener, GridResult, KeepFailure, Worker, fill
from attempt_cli.experiments.cells import CellSpec, banks
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.process_worker import ProcessWorker
from attempt_cli.experiments.ray_worker import RayWorker, share_of
from attempt_cli.experiments.runner import Runner


@dataclass(frozen=True)
class WorkerPool:
    """Fills grids with a number of workers.

    Args:
        workers: how many at once.
        on_ray: as actors of a Ray cluster, else as processes of this machine (a single one is this process).
    """

    workers: int = 1
    on_ray: bool = False

    def fill(
        self,
        plan: Plan,
        specs: Sequence[CellSpec],
        listener: GridListener,
        keep_failure: KeepFailure,
        *,
        fresh: bool = False,
    ) -> GridResult:
        """Fills the cells of a plan; see `cell_queue.fill`.

        Raises:
            AttemptError: Ray is asked for and not installed, or each worker would take all GPUs.
            TrainingStoppedError: stopped by a signal.
        """
        workers = min(self.workers, len(specs))
        if plan.device == "auto" and (self.on_ray or self.workers > 1):
            raise AttemptError(
                "--device auto spreads a backbone over all GPUs: workers cannot each have them",
                "Leave --workers and --ray out, or --device.",
            )
        # no worker goes without cells for the sake of a larger bank
        together = banks(specs, 1 if fresh else max(1, min(plan.bank, len(specs) // max(1, workers))))
        if not self.on_ray and workers <= 1 and not fresh:
            return fill(specs, partial(Runner, plan), listener, keep_failure, together=together)
        worker: Callable[[], Worker]
        if self.on_ray:  # connects before there are threads, which would each connect
            worker = partial(RayWorker, plan, share_of(workers))
        else:
            numbers, threads = itertools.count(), max(1, (os.cpu_count() or 1) // workers)
            worker = lambda: ProcessWorker(plan, threads, next(numbers))  # noqa: E731
        return fill(specs, worker, listener, keep_failure, together=together, workers=workers, fresh=fresh)
