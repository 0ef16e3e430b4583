"""Whether a training's layers are worth compiling: measured on its own batches, and only where it is long enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from attempt_cli.backbones.machine import machine_name, recall, remember, wait
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step, trained_tensors
from attempt_cli.training.processes import Processes

# a training's first steps run uncompiled: from them, but the very first, it is known how long the rest would take
MEASURED_STEPS = 5
# compiling takes a minute or so, and measuring ten steps: where less than this is left, it is not even tried
LONG_SECONDS = 20 * 60.0
LONG_STEPS = 500
# the same on a GPU, which takes fewer minutes for as many computations
GPU_SECONDS, GPU_STEPS = 5 * 60.0, 200
# a gain below this could be the machine's noise
LEAST_SPEED = 1.03
KIND = "compiled-layers"

Batches = Sequence[Sequence[EncodedRow]]


class CompileTrial:
    """Decides whether a training's layers are compiled, or whether that is to be measured.

    Args:
        model: the backbone and what is trained.
        config: the settings; `compile` decides beforehand.
        processes: several processes are not compiled unasked: each would decide for itself.
        note: is told what is done.
    """

    def __init__(
        self, model: PromptedModel, config: TrainingConfig, processes: Processes, note: Callable[[str], None]
    ) -> None:
        self._model, self._config, self._note = model, config, note
        # where layers are changed or computed twice a measurement says nothing
        plain = model.tuned is None and not config.gradient_checkpointing
        self._possible = plain and processes.count == 1 and model.backbone.can_compile
        self._spent: list[float] = []  # seconds of steps, while it is open whether layers are compiled

    def settle(self, compiled: bool | None, batches: Batches) -> bool | None:
        """Compiles the layers where that is decided.

        Args:
            compiled: what the checkpoint says.
            batches: the next step's rows; none where no step is left.

        Returns:
            Whether they are compiled; None while that is open.

        Raises:
            AttemptError: --compile asks for it and it cannot be done.
        """
        if self._config.compile is not None:
            compiled = self._config.compile
        elif not self._possible:
            compiled = False
        if compiled and batches:
            self._note("Compiling the layers; this takes a minute or two.")
            try:
                compile_now(self._model, batches, self._config)
            except AttemptError as error:
                if self._config.compile:
                    raise
                self._note(f"{error.message}; the training continues without.")
                compiled = False
        return compiled

    def worth_trying(self, started: float, steps_left: int) -> bool | None:
        """Counts a step; says whether a trial is worth its time, once enough steps were measured.

        Args:
            started: when the step began, on the monotonic clock.
            steps_left: of the training.
        """
        device = self._model.backbone.device
        if steps_left < _long(device)[1]:
            return False
        if len(self._spent) in (0, MEASURED_STEPS - 1):  # a GPU is behind by what it has not computed: at both ends
            wait(device)
        self._spent.append(time.monotonic() - started)
        if len(self._spent) < MEASURED_STEPS:
            return None
        measured = self._spent[1:]
        return worth_trying(steps_left, sum(measured) / len(measured), device)


def worth_trying(steps_left: int, step_seconds: float, device: torch.device) -> bool:
    """Says whether the trial is a small part of the training that is left."""
    seconds, steps = _long(device)
    return steps_left >= steps and steps_left * step_seconds >= seconds


def _long(device: torch.device) -> tuple[float, int]:
    """Returns the seconds and steps that have to be left."""
    return (GPU_SECONDS, GPU_STEPS) if device.type == "cuda" else (LONG_SECONDS, LONG_STEPS)


def compile_now(model: PromptedModel, batches: Batches, config: TrainingConfig) -> None:
    """Compiles the backbone's layers, by the gradient of batches whose result is thrown away.

    Raises:
        AttemptError: they cannot be compiled; they are as they were.
    """
    try:
        model.backbone.compile_layers(True)
        _seconds(model, batches, config)
    except Exception as error:  # of many kinds: no C++ compiler, no Triton, what cannot be traced
        model.backbone.compile_layers(False)
        if isinstance(error, (AttemptError, torch.OutOfMemoryError)):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
        raise AttemptError(
            f"the layers of {model.backbone.name} cannot be compiled here: {reason}", "Train with --no-compile."
        ) from error


def compiling_pays(
    model: PromptedModel, batches: Batches, config: TrainingConfig, steps_left: int, note: Callable[[str], None]
) -> bool:
    """Decides whether the rest of a training runs with compiled layers, and compiles them then.

    How much faster they are is measured on the batches, both ways alternately, once a machine for a kind of training
    (`_kind`), and kept. Whatever goes wrong in it, the training continues uncompiled.

    Args:
        batches: some that were trained on just now: all that is set up at a length's first sight is.
        steps_left: of the training.
        note: is told what is done and found.
    """
    try:
        found = _compared(model, batches, config, steps_left, note)
    except Exception as error:
        note(f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; the training continues without.")
        found = False
    if model.backbone.compiled != found:
        model.backbone.compile_layers(found)
    return found


def _compared(
    model: PromptedModel, batches: Batches, config: TrainingConfig, steps_left: int, note: Callable[[str], None]
) -> bool:
    # the steps so far may have read inputs that are kept from now on: this is the speed from here on
    step_seconds = _seconds(model, batches, config) / len(batches)
    if not worth_trying(steps_left, step_seconds, model.backbone.device):
        return False
    seconds_left = steps_left * step_seconds
    name = _kind(model, batches, config)
    known = recall(KIND, name)
    if isinstance(known, dict) and {"speed", "seconds"} <= set(known):
        if known["speed"] < LEAST_SPEED or seconds_left * (1 - 1 / known["speed"]) <= known["seconds"]:
            return False
        note(f"Compiling the layers: on this machine they then take {1 / known['speed']:.2f} times as long.")
        compile_now(model, batches, config)
        return True
    note(f"About {seconds_left / 60:.0f} minutes are left: trying whether compiled layers are faster.")
    speed, seconds = _measured(model, batches, config)
    remember(KIND, name, {"speed": round(speed, 3), "seconds": round(seconds, 1)})
    faster = speed >= LEAST_SPEED
    note(
        f"Compiled layers take {1 / speed:.2f} times as long ({seconds:.0f} s to compile): "
        f"the training continues {'with' if faster else 'without'} them."
    )
    return faster


def _measured(model: PromptedModel, batches: Batches, config: TrainingConfig) -> tuple[float, float]:
    """Measures how many times as fast compiled layers are, and how long they took to compile."""
    began = time.perf_counter()
    compile_now(model, batches, config)
    first = time.perf_counter() - began
    best = {False: float("inf"), True: float("inf")}
    for _ in range(2):
        for on in best:
            model.backbone.compile_layers(on)
            best[on] = min(best[on], _seconds(model, batches, config))
    return best[False] / best[True], max(0.0, first - best[True])


def _seconds(model: PromptedModel, batches: Batches, config: TrainingConfig) -> float:
    """Times the gradients of batches; they are thrown away."""
    began = time.perf_counter()
    for batch in batches:
        try:
            gradient_step(model, batch, config, Processes())
        finally:  # half a gradient would be added to the next step's
            for tensor in trained_tensors(model.trained):
                tensor.grad = None
    wait(model.backbone.device)
    return time.perf_counter() - began


def _kind(model: PromptedModel, batches: Batches, config: TrainingConfig) -> str:
    """Names all that the speed of a training depends on."""
    backbone = model.backbone
    rows = [row for batch in batches for row in batch]

    def about(lengths: Sequence[int]) -> int:  # tokens of a batch, up to the next power of two
        return 1 << (sum(lengths) // len(batches)).bit_length()

    inputs, targets = about([len(row.input_ids) for row in rows]), about([len(row.target_ids) for row in rows])
    cached = backbone.input_cache is not None and all(backbone.input_cache.group_of(row.input_ids) for row in rows)
    return (
        f"{machine_name(backbone.device)} {backbone.precision} {backbone.model.config.model_type} of "
        f"{backbone.parameter_count} weights, {model.placement}{', inputs kept' if cached else ''}, "
        f"m {model.prompt_length}{' for all' if model.one_for_all(row.task for row in rows) else ''}, "
        f"{inputs} and {targets} tokens, "
        f"{config.batch_size} rows and {config.max_tokens} positions at once"
    )
