"""A training's state in one small file: what is trained and the optimiser's moments, never the frozen backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from attempt_cli.checked_files import DamagedFileError, read_checked, write_checked
from attempt_cli.errors import AttemptError, first_line


class Evaluated(TypedDict):
    """An evaluation: the step it was made after, and its metrics, the one that chooses first."""

    step: int
    metrics: Annotated[dict[str, float], Field(min_length=1)]


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
        bank: how many trainings shared its passes, at the most.
        graphs: how many CUDA graphs launched its steps.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    step: NonNegativeInt = 0
    losses: list[float] = field(default_factory=list)
    history: list[Evaluated] = field(default_factory=list)
    best_step: int | None = None
    best_score: tuple[float, float] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    seconds: float = 0.0
    positions: tuple[int, int] = (0, 0)
    peak_memory: int = 0
    compiled: bool | None = None
    bank: int = 1
    graphs: int = 0


_FIELDS = [one.name for one in fields(TrainingState) if one.name != "best"]  # tensors are kept as such


def save_checkpoint(
    path: Path, key: str, state: TrainingState, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the state whole or not at all: to a temporary name, synced, renamed.

    Raises:
        AttemptError: the disk is full or the folder cannot be written to; the checkpoint before is kept.
    """
    from safetensors import SafetensorError

    tensors = {f"mixture.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    numbers = json.dumps({name: getattr(state, name) for name in _FIELDS})
    try:
        write_checked(path, tensors, numbers, key=key)
    except (OSError, SafetensorError) as error:
        kept = "; the one before it is kept" if path.exists() else ""
        raise AttemptError(
            f"the checkpoint {path} cannot be written: {getattr(error, 'strerror', None) or error}{kept}",
            "Free some space or check the folder's permissions, then go on with the same command and --resume.",
        ) from error


def load_checkpoint(path: Path, key: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Puts a saved state back into what is trained and the optimiser.

    Raises:
        AttemptError: the file is damaged or belongs to another training.
    """
    try:
        tensors, metadata = read_checked(path)
        saved = json.loads(metadata["state"])
        state = TypeAdapter(TrainingState).validate_python({**saved, "best": _part(tensors, "best.")})
    except (DamagedFileError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if metadata.get("key") != key:
        raise AttemptError(f"the checkpoint {path} belongs to another training", "Run without --resume to start again.")
    try:
        moments = _moments(_part(tensors, "optimizer."), optimizer)
        own = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if state.best and own != {name: tensor.shape for name, tensor in state.best.items()}:
            raise ValueError("its best tensors have other shapes")
        module.load_state_dict(_part(tensors, "mixture."))
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, TypeError) as error:  # a file of this key that another program wrote
        raise _damaged(path, error) from error
    return state


def _moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Sorts the optimiser's tensors by parameter.

    Raises:
        ValueError: they are not those of AdamW for these parameters; it would only notice in its next step.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".", 1)
        moments.setdefault(int(index), {})[moment] = tensor
    parameters = dict(enumerate(tensor for group in optimizer.param_groups for tensor in group["params"]))
    for number, found in moments.items():
        shape = parameters[number].shape if number in parameters else None
        if {name: tensor.shape for name, tensor in found.items()} != {
            "step": torch.Size(),
            "exp_avg": shape,
            "exp_avg_sq": shape,
        }:
            raise ValueError(f"the optimiser's tensors of parameter {number} do not fit")
    return moments


def _damaged(path: Path, error: Exception) -> AttemptError:
    return AttemptError(
        f"the checkpoint {path} is damaged ({first_line(error)})",
        "Run without --resume to start again; it is then replaced.",
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
