"""A worker on a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cell_queue import WorkerDiedError
from attempt_cli.experiments.cells import CellResult, CellSpec
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.runner import Runner
from attempt_cli.listener import Listener


class RayWorker:
    """An actor of a Ray cluster; its machine must see the registry's folder and the rows under the same paths.

    Args:
        plan: what all cells share.
        threads: processors of an actor.
    """

    def __init__(self, plan: Plan, threads: int) -> None:
        ray = connected_ray()
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self._ray = ray
        self._actor = ray.remote(num_cpus=threads, num_gpus=gpus)(Runner).remote(plan)

    def run_many(self, specs: Sequence[CellSpec], listener: Listener | None = None) -> list[CellResult | AttemptError]:
        """Returns the actor's results; the listener hears nothing of its progress.

        Raises:
            WorkerDiedError: the actor died.
            AttemptError: all cells failed.
        """
        try:
            results: list[CellResult | AttemptError] = self._ray.get(self._actor.run_many.remote(specs))
            return results
        except self._ray.exceptions.RayTaskError as error:
            raise AttemptError(first_line(error.cause or error)) from error
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(f"the Ray actor died ({first_line(error)})") from error

    def close(self) -> None:
        """Gives the actor back."""
        self._ray.kill(self._actor)


def processors_of_an_actor(workers: int) -> int:
    """Connects to Ray and returns how many processors each of its actors gets.

    Raises:
        AttemptError: Ray is not installed.
    """
    ray = connected_ray()
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes()), default=1)
    return max(1, min(largest, int(ray.cluster_resources().get("CPU", 1)) // workers))


def connected_ray() -> Any:
    """Returns the library, connected to the cluster of RAY_ADDRESS, else to one of this machine.

    Raises:
        AttemptError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise AttemptError("Ray is not installed", "pip install 'attempt-cli[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    return ray
