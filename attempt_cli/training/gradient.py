"""The gradient of one optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.processes import Processes


@dataclass
class Positions:
    """Counts what steps computed: positions trained through, pads included, and the real ones among them."""

    computed: int = 0
    real: int = 0


def gradient_step(
    model: PromptedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    processes: Processes,
    positions: Positions | None = None,
) -> Tensor:
    """Leaves the gradient of the mean loss per target token in what is trained, summed over processes.

    Args:
        positions: what is computed is added here.

    Returns:
        The loss over the rows of all processes, a scalar on the device.
    """
    tokens = sum(len(row.target_ids) for row in rows)
    mine = rows[processes.index :: processes.count]
    loss = torch.zeros((), device=model.backbone.device)
    # behind an input that is read once, only the prompt and the target are trained through
    after = model.placement == "after"
    lengths = [(0 if after else len(row.input_ids)) + len(row.target_ids) for row in mine]
    prompt = model.overhead(max(lengths, default=0), (row.task for row in mine))
    # forward and back, with a prompt's own pass where it has one: a micro-batch costs twice what scoring sets up
    least = 2 * model.backbone.least_positions
    for micro in by_length(lengths, prompt, config.max_tokens, config.batch_size, least=least):
        share = -model.log_likelihood([mine[i] for i in micro]).sum() / tokens
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
        if positions is not None:
            longest = max(lengths[i] for i in micro)
            each = model.overhead(longest, (mine[i].task for i in micro)) if len(micro) > 1 else model.prompt_length
            once = model.prompt_length - each  # of a prompt that has a pass of its own
            positions.computed += len(micro) * (longest + each - 1) + once  # the last target token is not read
            positions.real += sum(lengths[i] + each - 1 for i in micro) + once
    gradients: list[Tensor] = []
    for parameter in trained_tensors(model.trained):
        if parameter.grad is None:  # a process may have no rows in the last batch of an epoch
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    processes.sum_([*gradients, loss])
    return loss


def trained_tensors(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns the tensors of a module that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
