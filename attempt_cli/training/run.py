"""Trains what a request asks for: from a task's rows to records in the registry."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from attempt_cli.artefacts import remember_backbone
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.data.fields import task_fields
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import encode_examples
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.bank import PromptBank
from attempt_cli.training.build import build_model
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.determinism import equal_bits
from attempt_cli.training.loop import Scores, Trained, TrainingLoop
from attempt_cli.training.memory import largest_batch
from attempt_cli.training.order import task_shares
from attempt_cli.training.processes import Processes
from attempt_cli.training.record import record_training
from attempt_cli.training.request import Outcome, Request, checkpoint_path
from attempt_cli.training.validation import joint_validation_scores, validation_scores
from attempt_registry import Registry


def train(
    registry: Registry,
    backbone: FrozenBackbone,
    request: Request,
    *,
    command: str = "",
    resume: bool = False,
    listener: Listener | None = None,
    processes: Processes | None = None,
    on_trained: Callable[[PromptedModel], None] | None = None,
) -> Outcome | None:
    """Trains what the request asks for, on one task or on several at once, and records what it keeps.

    Of several tasks a prompt gets gradient only from its own task's rows, G from all (section 3.4 of the paper); the
    step is kept at which the mean over tasks of their first metric was best.

    Args:
        registry: where prompts are kept; its folder holds the checkpoint.
        backbone: the frozen model.
        request: what is to be trained.
        command: as it was typed, for the record.
        resume: continue from the checkpoint of the same request, if there is one.
        listener: is told how it goes, and can stop it.
        processes: this process's place among those that share the training.
        on_trained: is given the trained model before it is recorded: after a kill in there, a resumed training repeats
            no step and records nothing twice.

    Returns:
        What was recorded; None on the processes that only helped.

    Raises:
        AttemptError: rows, prompts or settings do not fit; or see `training.loop.TrainingLoop`.
    """
    processes, listener = processes or Processes(), listener or Listener()
    one = _prepared(registry, backbone, request, processes)
    with released_on_failure(one.model):
        plan_input_cache([one], processes)
        listener.begin(one.request.name)
        with layers_for(one.model, one.request.config):
            trained = one.loop(registry, listener, processes).train(resume)
        if not processes.is_main:
            one.model.release()
            return None
        if on_trained is not None:
            on_trained(one.model)
        return one.recorded(registry, trained, command, processes)


def train_together(
    registry: Registry,
    backbone: FrozenBackbone,
    requests: Sequence[Request],
    *,
    command: str = "",
    resume: bool = False,
    listener: Listener | None = None,
    on_trained: Callable[[Mapping[int, PromptedModel]], None] | None = None,
) -> Iterator[tuple[int, Outcome | AttemptError]]:
    """Trains prompts that differ in rows, seed, rates or method in one pass, and records each as `train` would.

    Those whose rows can go through the backbone together (of one placement, length and chat template) are a bank.

    Args:
        registry, backbone, command, resume: as in `train`.
        requests: what is to be trained, no two of them the same; methods that keep a prompt.
        listener: is told how the banks go, and can stop them.
        on_trained: is given each bank's models by their requests' numbers, before they are recorded.

    Yields:
        A request's number, and what was recorded of it or why it failed (it does not fit, or its loss is no number), as
        soon as that is known: each request once, in the order of banks.

    Raises:
        TrainingStoppedError: stopped by a signal or by the listener; all checkpoints are written.
    """
    if not all(request.joins_banks for request in requests):
        raise ValueError("a bank trains prompts alone, neither weights nor what changes inputs")
    listener = listener or Listener()
    banks: dict[Hashable, dict[int, _Prepared]] = {}
    for number, request in enumerate(requests):
        # whether layers are compiled is no part of a training's key
        plain = replace(request, config=request.config.model_copy(update={"compile": False}))
        try:
            one = _prepared(registry, backbone, plain, Processes())
        except AttemptError as error:
            yield number, error
            continue
        config = one.request.config
        banks.setdefault((one.model.joins, config.max_tokens, config.gradient_checkpointing), {})[number] = one
    for members in banks.values():
        first, *others = members.values()
        plan_input_cache([first, *others], Processes())
        listener.begin(f"{first.request.name} and {len(others)} more at once" if others else first.request.name)
        with layers_for(first.model, first.request.config):
            loops = [one.loop(registry, _Member(listener, one.request.name), Processes()) for one in members.values()]
            bank = PromptBank(loops, listener, partial(_joint_scores, list(members.values())))
            ended = dict(zip(members, bank.train(resume), strict=True))
        if on_trained is not None:
            on_trained({number: members[number].model for number, how in ended.items() if isinstance(how, Trained)})
        for number, how in ended.items():
            if isinstance(how, Trained):
                yield number, members[number].recorded(registry, how, command, Processes())
            else:
                yield number, how


def _joint_scores(members: Sequence[_Prepared], numbers: Sequence[int]) -> list[Scores]:
    """Scores members of a bank on their validation rows."""
    chosen = [members[number] for number in numbers]
    return joint_validation_scores([one.model for one in chosen], [one.request for one in chosen])


class _Member(Listener):
    """Passes on the remarks of a bank's member, with its name; the bank itself tells of steps.

    Args:
        listener: is told.
        name: of the training.
    """

    def __init__(self, listener: Listener, name: str) -> None:
        self._listener, self._name = listener, name

    def note(self, text: str) -> None:
        self._listener.note(f"{self._name}: {text}")

    def unfinished(self, text: str) -> None:
        self._listener.unfinished(f"{self._name}: {text}")


@dataclass(frozen=True)
class _Prepared:
    """A request on its backbone, with the model before its first step and the tokens of each task's rows."""

    request: Request
    model: PromptedModel
    rows: list[list[EncodedRow]]
    key: str

    def loop(self, registry: Registry, listener: Listener, processes: Processes) -> TrainingLoop:
        """Returns the training that is to be taken."""
        request = self.request
        validates = any(task.validation is not None for task in request.tasks)
        return TrainingLoop(
            self.model,
            [row for own in self.rows for row in own],
            request.config,
            (lambda trained: validation_scores(trained, request, processes)) if validates else None,
            checkpoint_path(registry, self.key),
            self.key,
            listener,
            processes,
            mixed_tasks(request, self.rows),
        )

    def recorded(self, registry: Registry, trained: Trained, command: str, processes: Processes) -> Outcome:
        """Records what is kept; the checkpoint is needed no more."""
        outcome = record_training(
            registry, self.request, self.model, trained, command=command, processes=processes.count
        )
        # and what a kill left of writing it
        for file in checkpoint_path(registry, self.key).parent.glob(f"{self.key}.*"):
            file.unlink(missing_ok=True)
        return replace(outcome, notes=row_notes(self.request, self.rows))


def _prepared(registry: Registry, backbone: FrozenBackbone, request: Request, processes: Processes) -> _Prepared:
    """Checks a request, and builds its model and rows."""
    request.check()
    request = request.on(backbone)
    if processes.is_main:
        remember_backbone(registry, backbone)
    model = build_model(registry, backbone, request)
    with released_on_failure(model):
        rows = [encoded_rows(model, request, number) for number in range(len(request.tasks))]
        if request.largest_batch:
            request = with_largest_batch(model, request, [row for own in rows for row in own])
        return _Prepared(request, model, rows, request.key(backbone, processes.count))


@contextmanager
def released_on_failure(model: PromptedModel) -> Iterator[None]:
    """Takes trained weights out of the backbone, which others share, when a training fails or is stopped."""
    try:
        yield
    except BaseException:
        model.release()
        raise


@contextmanager
def layers_for(model: PromptedModel, config: TrainingConfig) -> Iterator[None]:
    """Puts the backbone's layers as the settings want them, and back at the end: it serves other trainings, too."""
    backbone = model.backbone
    if config.gradient_checkpointing:
        backbone.checkpoint_gradients(True)
    at_once, backbone.read_at_once = backbone.read_at_once, config.max_tokens
    try:
        with equal_bits(bool(config.deterministic)):
            yield
    finally:
        backbone.read_at_once = at_once
        if config.gradient_checkpointing:
            backbone.checkpoint_gradients(False)
        if backbone.compiled:
            backbone.compile_layers(False)


def encoded_rows(model: PromptedModel, request: Request, number: int, *, validation: bool = False) -> list[EncodedRow]:
    """Returns the tokens of one task's training rows (or validation rows), each told which prompt is its own."""
    rows = request.tasks[number]
    chosen = rows.validation if validation else rows.train
    if chosen is None:
        return []
    encoded = encode_examples(model, rows.task, chosen.examples, request.config.max_length)
    return [replace(row, task=request.task_index(number)) for row in encoded]


def with_largest_batch(model: PromptedModel, request: Request, encoded: Sequence[EncodedRow]) -> Request:
    """Returns the request with as many rows a batch, and positions computed at once, as the free memory takes."""
    rows = largest_batch(model, encoded)
    longest = max(len(row.input_ids) + len(row.target_ids) for row in encoded) + model.prompt_length
    update = {"batch_size": rows, "max_tokens": max(request.config.max_tokens, rows * longest)}
    return replace(request, config=request.config.model_copy(update=update))


def plan_input_cache(trainings: Sequence[_Prepared], processes: Processes) -> None:
    """Keeps the inputs of rows that are read more than once: this process's of validation, then those of training."""
    cache = trainings[0].model.backbone.input_cache
    if cache is None or trainings[0].model.placement != "after":
        return
    validated: list[EncodedRow] = []
    read_again: list[EncodedRow] = []
    for one in trainings:
        config, rows = one.request.config, [row for own in one.rows for row in own]
        for number in range(len(one.request.tasks)):
            validated += processes.share(encoded_rows(one.model, one.request, number, validation=True))
        if config.total_steps(len(rows)) * config.rows_per_step() > len(rows):
            read_again += rows
    cache.plan([validated, read_again], trainings[0].model.backbone.cache_bytes_per_token)


def mixed_tasks(request: Request, encoded: Sequence[Sequence[EncodedRow]]) -> tuple[list[int], list[int]] | None:
    """Returns each row's task and how many rows of each task an epoch holds; None where all rows of one task count."""
    counts = [len(rows) for rows in encoded]
    shares = task_shares(counts, request.max_rows_per_task, request.sampling_temperature)
    if len(counts) == 1 and shares == counts:
        return None
    return [number for number, count in enumerate(counts) for _ in range(count)], shares


def row_notes(request: Request, encoded: Sequence[Sequence[EncodedRow]]) -> list[str]:
    """Lists what the user should know of the rows: inputs that were cut, validation rows that are missing."""
    notes = []
    several = len(request.tasks) > 1
    for rows, own in zip(request.tasks, encoded, strict=True):
        which = f"{rows.task.name}: " if several else ""
        if rows.note:
            notes.append(f"{which}{rows.note}")
        elif rows.validation is None:
            notes.append(f"{which}no validation rows were looked at: the last step is kept")
        if truncated := sum(row.truncated > 0 for row in own):
            notes.append(
                f"{which}{truncated:,} of {len(own):,} training inputs were longer than the limit "
                "and lost their middle; --max-length raises it"
            )
    return [*notes, *_seen_rows(request)]


def _seen_rows(request: Request) -> list[str]:
    """Names the prompts that were trained on a target's own rows as another task: "all" leaves out by name alone."""
    used = {prompt.ref: prompt for prompt in (*request.sources, *request.init_from) if prompt is not None}
    notes = []
    for prompt in used.values():
        trained = prompt.settings.get("task")
        for task in (rows.task for rows in request.tasks):
            own = task_fields(task)
            if not isinstance(trained, dict) or prompt.task == task.name:
                continue
            if _train_rows(trained) == _train_rows(own):
                notes.append(
                    f"'{prompt.ref}' was trained on the training rows of {task.name} itself, "
                    f"as the task {prompt.task}: what it gives is no transfer from another task"
                )
    return notes


def _train_rows(fields: Mapping[str, Any]) -> object:
    """Returns where a task's training rows are; of a task without any, something that equals nothing."""
    files = fields.get("files")
    return (files.get("train") if isinstance(files, dict) else None) or fields.get("hub") or object()
