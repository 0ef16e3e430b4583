"""Whether a training's layers are worth compiling: measured on its own batches, and only where it is long enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from attempt_cli.backbones.base import EncodedRow
from attempt_cli.backbones.measured import machine_name, recall, remember, wait
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.errors import AttemptError
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step, trained_tensors
from attempt_cli.training.processes import Processes

# a training's first steps run uncompiled: from them, but the very first, it is known how long the rest would take
MEASURED_STEPS = 5
# compiling takes a minute or so: where less than this is left, it is not even tried
LONG_SECONDS = 20 * 60.0
# a gain below this could be the machine's noise
LEAST_SPEED = 1.03
KIND = "compiled-layers"

Batches = Sequence[Sequence[EncodedRow]]


def compile_now(model: PromptedModel, batches: Batches, config: TrainingConfig) -> None:
    """Compiles the backbone's layers, by the gradient of batches whose result is thrown away.

    Raises:
        AttemptError: they cannot be compiled; they are as they were.
    """
    model.backbone.compile_layers(True)
    try:
        _steps(model, batches, config)
    except Exception as error:  # of many kinds: no C++ compiler, no Triton, no memory, what cannot be traced
        model.backbone.compile_layers(False)
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
        raise AttemptError(
            f"the layers of {model.backbone.name} cannot be compiled here: {reason}", "Train with --no-compile."
        ) from error


def compiling_pays(
    model: PromptedModel, batches: Batches, config: TrainingConfig, seconds_left: float, note: Callable[[str], None]
) -> bool:
    """Whether the rest of a training goes on with compiled layers; they are compiled then.

    How much faster they are is measured on the batches, both ways in turns, once a machine for a kind of training, and
    kept. A kind is all that the speed hangs on: device, dtype, the layers' sizes, the prompt's place and length, and
    positions of a batch up to the next power of two.

    Args:
        batches: some that were trained on just now: all that is set up at a length's first sight is.
        seconds_left: how long the rest takes uncompiled.
        note: is told what is done and found.
    """
    if seconds_left < LONG_SECONDS:
        return False
    name = _kind(model, batches)
    known = recall(KIND, name)
    if known is None:
        note(f"About {seconds_left / 60:.0f} minutes are left: trying whether compiled layers are faster.")
        try:
            speed, seconds = _measured(model, batches, config)
        except AttemptError as error:
            note(f"{error.message}; the training goes on without.")
            return False
        remember(KIND, name, {"speed": round(speed, 3), "seconds": round(seconds, 1)})
        faster = speed >= LEAST_SPEED
        note(
            f"Compiled layers take {1 / speed:.2f} times as long ({seconds:.0f} s to compile): "
            f"the training goes on {'with' if faster else 'without'} them."
        )
        model.backbone.compile_layers(faster)
        return faster
    if known["speed"] < LEAST_SPEED or seconds_left * (1 - 1 / known["speed"]) <= known["seconds"]:
        return False
    note(f"Compiling the layers: on this machine they then take {1 / known['speed']:.2f} times as long.")
    compile_now(model, batches, config)
    return True


def _measured(model: PromptedModel, batches: Batches, config: TrainingConfig) -> tuple[float, float]:
    """How many times as fast compiled layers are, and how long they took to compile."""
    began = time.perf_counter()
    compile_now(model, batches, config)
    first = time.perf_counter() - began
    best = {False: float("inf"), True: float("inf")}
    for _ in range(2):
        for on in best:
            model.backbone.compile_layers(on)
            began = time.perf_counter()
            _steps(model, batches, config)
            best[on] = min(best[on], time.perf_counter() - began)
    return best[False] / best[True], max(0.0, first - best[True])


def _steps(model: PromptedModel, batches: Batches, config: TrainingConfig) -> None:
    """The gradients of batches, thrown away."""
    for batch in batches:
        try:
            gradient_step(model, batch, config, Processes())
        finally:  # half a gradient would be added to the next step's
            for tensor in trained_tensors(model.trained):
                tensor.grad = None
    wait(model.backbone.device)


def _kind(model: PromptedModel, batches: Batches) -> str:
    backbone, settings = model.backbone, model.backbone.model.config
    lengths = [len(row.input_ids) + len(row.target_ids) for batch in batches for row in batch]
    positions = sum(lengths) // len(batches)
    one = model.one_for_all(row.task for batch in batches for row in batch)
    return (
        f"{machine_name(backbone.device)} {backbone.dtype} {settings.model_type} "
        f"{settings.num_hidden_layers}x{backbone.width} {model.placement} m {model.prompt_length} "
        f"{'one prompt' if one else 'a prompt a row'} {1 << (positions - 1).bit_length()} positions"
    )
