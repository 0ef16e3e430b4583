"""Trainings that end in the same bits each time on a GPU, too, where sums otherwise come in any order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attempt_cli.errors import AttemptError, first_line


def prepare_equal_bits() -> None:
    """Gives cuBLAS workspaces of one size; to be called before a process computes on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def equal_bits(on: bool) -> Iterator[None]:
    """Lets only operations run that give the same bits each time.

    Args:
        on: whether that is wanted; without it nothing is changed.

    Raises:
        AttemptError: an operation has no such form on this device.
    """
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error).lower():
            raise
        raise AttemptError(
            f"this training cannot have equal bits here: {first_line(error)}", "Train without --deterministic."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
