"""A training's state in one small file: what is trained and the optimiser's moments, never the frozen backbone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attempt_cli.errors import AttemptError


@dataclass
class TrainingState:
    """Where a training stands after `step` optimiser steps.

    Args:
        step: optimiser steps done.
        losses: mean loss per target token of every step.
        history: the evaluations, each with its step and metrics.
        best_step: the step of the best evaluation, None before the first.
        best_score: its rank: (metric, log-likelihood per row).
        best: the trained module's tensors then.
        stale: evaluations since the best.
        seconds: time spent, over all runs of this training.
        positions: computed positions of its steps, pads included, and those among them that hold a token.
        peak_memory: bytes at the most, of the GPU or of the process, over all runs.
        compiled: whether its layers are compiled; None while that is open.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: tuple[float, float] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    seconds: float = 0.0
    positions: tuple[int, int] = (0, 0)
    peak_memory: int = 0
    compiled: bool | None = None


_FIELDS = [one.name for one in fields(TrainingState) if one.name != "best"]  # tensors are kept as such


def save_checkpoint(
    path: Path, key: str, state: TrainingState, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the state whole or not at all: to a temporary name, synced, renamed.

    Raises:
        AttemptError: the disk is full or the folder cannot be written to; the checkpoint before is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"mixture.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    numbers = json.dumps({name: getattr(state, name) for name in _FIELDS})
    metadata = {"key": key, "state": numbers, "sha256": _digest(numbers, tensors)}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata)  # tensor by tensor: fine-tuning has gigabytes of them
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        kept = "; the one before it is kept" if path.exists() else ""
        raise AttemptError(
            f"the checkpoint {path} cannot be written: {getattr(error, 'strerror', None) or error}{kept}",
            "Free some space or check the folder's permissions, then go on with the same command and --resume.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, key: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Puts a saved state back into what is trained and the optimiser.

    Raises:
        AttemptError: the file is damaged or belongs to another training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata["sha256"] != _digest(metadata["state"], tensors):
            raise ValueError("its checksum is wrong")
        saved = json.loads(metadata["state"])
        state = TrainingState(**saved, best=_part(tensors, "best."))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise AttemptError(
            f"the checkpoint {path} is damaged ({error})", "Run without --resume to start again; it is then replaced."
        ) from error
    if metadata.get("key") != key:
        raise AttemptError(f"the checkpoint {path} belongs to another training", "Run without --resume to start again.")
    module.load_state_dict(_part(tensors, "mixture."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, moment = name.split(".", 1)
        moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    state.best_score = tuple(state.best_score) if state.best_score else None  # type: ignore[assignment]
    return state


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(numbers: str, tensors: Mapping[str, Tensor]) -> str:
    """Hashes all that a training continues from: safetensors itself does not notice a changed byte."""
    digest = hashlib.sha256(numbers.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
