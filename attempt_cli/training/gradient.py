"""The gradient of one optimiser step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.prompted import PromptedModel, joint_log_likelihood
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.graphs import StepGraphs
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
    graphs: StepGraphs | None = None,
) -> Tensor:
    """Leaves the gradient of the mean loss per target token in what is trained, summed over processes.

    Args:
        positions: what is computed is added here.
        graphs: launch it, where the host is slower than the device.

    Returns:
        The loss over the rows of all processes, a scalar on the device.
    """
    tokens = sum(len(row.target_ids) for row in rows)
    mine = rows[processes.index :: processes.count]
    loss = torch.zeros((), device=model.backbone.device)
    if graphs is not None:
        graphs.begin()
    # behind an input that is read once, only the prompt and the target are trained through
    after = model.placement == "after"
    lengths = [(0 if after else len(row.input_ids)) + len(row.target_ids) for row in mine]
    prompt = model.overhead(max(lengths, default=0), (row.task for row in mine))
    # forward and back, with a prompt's own pass where it has one: a micro-batch costs twice what scoring sets up
    least = 2 * model.backbone.least_positions
    for micro in by_length(lengths, prompt, config.max_tokens, config.batch_size, least=least):
        some = [mine[i] for i in micro]
        if graphs is None:
            share = -model.log_likelihood(some).sum() / tokens
            penalty = model.trained.penalty()
            if penalty is not None:
                share = share + penalty * (len(micro) / len(rows))
            share.backward()  # type: ignore[no-untyped-call]
        else:
            share = graphs.add_gradient(some, tokens)
        loss += share.detach()
        if positions is not None:
            longest = max(lengths[i] for i in micro)
            each = model.overhead(longest, (mine[i].task for i in micro)) if len(micro) > 1 else model.prompt_length
            once = model.prompt_length - each  # of a prompt that has a pass of its own
            count = len(micro)
            if graphs is not None:  # pads that a graph's shape has beside the batch's own
                shape = graphs.shape_of(some)
                count, longest = shape.rows, shape.targets + (0 if after else shape.inputs)
            positions.computed += count * (longest + each - 1) + once  # the last target token is not read
            positions.real += sum(lengths[i] + each - 1 for i in micro) + once
    gradients: list[Tensor] = []
    for parameter in trained_tensors(model.trained):
        if parameter.grad is None:  # a process may have no rows in the last batch of an epoch
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    processes.sum_([*gradients, loss])
    return loss


Pair = tuple[int, EncodedRow]  # the number of a member, and one of its rows


def joint_gradient(
    models: Sequence[PromptedModel],
    rows: Sequence[Sequence[EncodedRow]],
    max_tokens: int,
    positions: Sequence[Positions],
) -> list[Tensor]:
    """Leaves in each model the gradient of its own mean loss per target token, as `gradient_step` would.

    All models' rows go through the backbone together.

    Args:
        models: as in `joint_log_likelihood`.
        rows: each model's rows.
        max_tokens: positions computed at once, and positions of inputs read at once.
        positions: what is computed for each model is added here.

    Returns:
        Each model's loss, a scalar on the device.
    """
    backbone = models[0].backbone
    tokens = [sum(len(row.target_ids) for row in own) for own in rows]
    losses = torch.zeros(len(models), device=backbone.device)
    for pairs, suffixes in _passes(models, rows, max_tokens):
        numbers = [number for number, _ in pairs]
        scores = joint_log_likelihood(models, pairs, suffixes)
        shares = -scores / backbone.on_device([tokens[number] for number in numbers])
        shares.sum().backward()  # type: ignore[no-untyped-call]
        losses.index_add_(0, backbone.on_device(numbers), shares.detach())
        _count(models[0], pairs, suffixes, positions)
    return list(losses.unbind())


def _passes(
    models: Sequence[PromptedModel], rows: Sequence[Sequence[EncodedRow]], max_tokens: int
) -> Iterator[tuple[list[Pair], int]]:
    """Puts the rows into passes; see `joint_log_likelihood` for the numbers of suffixes."""
    backbone, m = models[0].backbone, models[0].prompt_length
    after = models[0].placement == "after"
    least = 2 * backbone.least_positions  # as in `gradient_step`
    shared: dict[Hashable, list[Pair]] = {}
    longest = max(_length(row, after) for own in rows for row in own)
    shares = not after and backbone.shares_prompts(m + longest)
    for number, own in enumerate(rows):
        for place, row in enumerate(own):
            key: Hashable = tuple(row.input_ids) if after else (number, place)
            if shares and models[number].one_for_all([row.task]):
                key = (number, "task", row.task)
            shared.setdefault(key, []).append((number, row))
    # rows that share something are cut where they are too many for one pass, and join others of as many rows
    groups: dict[int, list[list[Pair]]] = {}
    for pairs in shared.values():
        lengths = [_length(row, after) for _, row in pairs]
        for part in by_length(lengths, m if after else 0, max_tokens, least=None if after else least):
            groups.setdefault(len(part), []).append([pairs[i] for i in part])

    def width(pairs: Sequence[Pair]) -> int:
        """Returns what is computed of rows that share something, or read where that is more."""
        own = max(_length(row, after) for _, row in pairs)
        computed = len(pairs) * own + m if shares and len(pairs) > 1 else len(pairs) * (own + m)
        return max(computed, len(pairs[0][1].input_ids))

    sizes = {count: sum(map(width, together)) for count, together in groups.items()}
    for count, size in sizes.items():
        # a pass for a few rows costs more than what they would share
        if count > 1 and size < backbone.least_positions and size < max(sizes.values()):
            groups.setdefault(1, []).extend([pair] for pairs in groups.pop(count) for pair in pairs)
    for count, together in groups.items():
        # behind an input that is read once, only the suffixes are computed
        suffixes = count * (m + longest) if after else None
        for part in by_length([width(pairs) for pairs in together], 0, max_tokens, least=least, computed=suffixes):
            yield [pair for i in part for pair in together[i]], count


def _length(row: EncodedRow, after: bool) -> int:
    """Returns the positions of a row that are trained through, its prompt left out."""
    return len(row.target_ids) + (0 if after else len(row.input_ids))


def _count(model: PromptedModel, pairs: Sequence[Pair], suffixes: int, positions: Sequence[Positions]) -> None:
    """Adds what a pass computed to each model's count, as `gradient_step` counts it."""
    after, m = model.placement == "after", model.prompt_length
    longest = max(_length(row, after) for _, row in pairs)
    for place, (number, row) in enumerate(pairs):
        prompt = m if after or place % suffixes == 0 else 0  # one that rows share has a pass of its own
        positions[number].computed += longest + prompt - 1
        positions[number].real += _length(row, after) + prompt - 1


def trained_tensors(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns the tensors of a module that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
