"""How a prompt is trained: every setting, its default and its bounds."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attempt_cli.errors import AttemptError, unknown_name
from attempt_cli.placement import Placement
from attempt_cli.training.methods import READERS, Method, check_settings, find_method
from attempt_registry.errors import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class TrainingConfig(BaseModel):
    """The settings of one training.

    Defaults are for prompts in units of the backbone's embedding RMS, where one set serves every backbone; the preset
    `paper` holds the published settings, which are for T5's own units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = "prompt-tuning"  # a name in `methods.METHODS`
    method_settings: dict[str, int | float] | None = None  # numbers that this method alone has
    prompt_length: int = Field(20, ge=1, le=2000)  # m
    placement: Placement | None = None  # of the prompt, before or after the input; None: the backbone's default
    chat_template: bool | None = None  # of the tokenizer, around input and prompt; None: as the prompts that are used
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)  # rows of a micro-step, per process
    accumulate: int = Field(1, ge=1)  # micro-steps of an optimiser step
    learning_rate: float = Field(0.03, gt=0)  # of prompts, in their units
    attention_learning_rate: float = Field(0.01, gt=0)  # of G, or of the factors and offsets in its place
    weight_learning_rate: float = Field(3e-4, gt=0)  # of weights: the paper's for fine-tuning, BitFit and Adapter
    weight_decay: float = Field(1e-5, ge=0)
    warmup_steps: int | None = Field(None, ge=0)  # None: a tenth of the steps, at most the paper's 500
    clip_norm: float = Field(
        1.0, gt=0
    )  # of all trained tensors together; the released code has it, the paper does not say
    seed: int = Field(0, ge=0, lt=2**63)  # the registry counts in 64 bits, and would say so only after the training
    units: Literal["rms", "raw"] = "rms"
    attention_rank: int | None = Field(None, ge=1)  # r; None: the paper's 100, or half the width where that is less
    temperature: float | None = Field(None, gt=0)  # None: e·√d in RMS units, the paper's e·d in raw ones
    level: Literal["instance", "token"] = "instance"  # of the attention: equation 3, or 5
    constant_attention: bool = False  # 1/t for every source instead of G
    with_target: bool = True  # whether the target prompt takes part in the mixture
    learned_temperature: bool = False  # T is trained with G
    attention_input: Literal["words", "last", "mean"] = "words"  # x̂: word embeddings, or the frozen model's states
    attention_top: int | None = Field(None, ge=1)  # prompts that have a weight; None: all
    cosine: bool = False  # scores are cosines of query and keys, over a temperature that is trained
    evidence: bool = False  # scores start from the likelihood of training rows under each prompt
    one_norm: bool = False  # sources are scaled to their mean norm
    balanced_start: bool = False  # the mixture, not the target prompt, starts as the prompt that is started from
    max_length: int | None = Field(None, ge=4)  # input tokens; None: the task's own limit
    max_tokens: int = Field(8192, ge=1)  # positions computed at once, pads included
    gradient_checkpointing: bool = False  # compute layers twice rather than keep what their gradient needs
    compile: bool | None = None  # layers through torch.compile; None: where a measurement says that it pays back
    deterministic: bool | None = None  # the same bits each time, on a GPU, too
    eval_every: int | None = Field(None, ge=0)  # steps; None: ten times a training; 0: never
    eval_rows: int = Field(200, ge=1)  # validation rows looked at during training
    patience: int | None = Field(None, ge=1)  # evaluations without improvement before stopping

    @model_validator(mode="before")
    @classmethod
    def _method_settings(cls, values: Any) -> Any:
        name = values.get("method", cls.model_fields["method"].default)
        try:
            settings = check_settings(name, values.get("method_settings") or {})
        except AttemptError as error:
            raise ValueError(error.message) from None
        return {**values, "method_settings": settings or None}

    @model_validator(mode="after")
    def _no_conflict(self) -> TrainingConfig:
        if conflicts := self.conflicts():
            raise ValueError("; ".join(conflicts))
        return self

    @property
    def row(self) -> Method:
        """The method's row in the table of methods."""
        return find_method(self.method)

    def identity(self) -> dict[str, Any]:
        """Returns what a training's result depends on: fields that came later count where they are set."""
        unset = {name for name in LATER if getattr(self, name) in (default_of(name), False)}
        return self.model_dump(exclude={"compile", "chat_template", *unset})

    def conflicts(self) -> list[str]:
        """Lists settings that contradict each other (a copy with an update is not validated, and may hold such)."""
        # a setting that is switched on for a method that does not read it; rates and lengths have defaults for all
        switches = {
            "--level token": ("level", self.level == "token"),
            "--constant-attention": ("constant_attention", self.constant_attention),
            "--no-target": ("with_target", not self.with_target),
            "--learned-temperature": ("learned_temperature", self.learned_temperature),
            "--balanced-start": ("balanced_start", self.balanced_start),
            "--attention-input": ("attention_input", self.attention_input != "words"),
            "--attention-top": ("attention_top", self.attention_top is not None),
            "--cosine": ("cosine", self.cosine),
            "--evidence": ("evidence", self.evidence),
            "--one-norm": ("one_norm", self.one_norm),
        }
        unread = [
            f"{option} only goes with --method {' or '.join(READERS[field])}, not with {self.method}"
            for option, (field, on) in switches.items()
            if on and self.method not in READERS[field]
        ]
        if unread:
            return unread
        found = ["give --steps or --epochs, not both"] if self.steps is not None and self.epochs is not None else []
        if self.balanced_start and not self.with_target:
            found.append("--balanced-start is the target prompt's, and --no-target has none")
        if self.constant_attention:
            of_g = (
                "--level token",
                "--learned-temperature",
                "--attention-input",
                "--attention-top",
                "--cosine",
                "--evidence",
            )
            without = [option for option in of_g if switches[option][1]]
            found += [f"{option} is the attention's, and --constant-attention has none" for option in without]
            if not self.with_target:
                found.append("--constant-attention with --no-target leaves nothing to train")
        parts = (self.method_settings or {}).get("prompts", 1)
        if parts > self.prompt_length:
            found.append(f"--prompt-length {self.prompt_length} has no {parts} parts: lower --smop-prompts")
        if self.placement is not None and self.placement not in self.row.placements:
            found.append(f"{self.method} changes how the input is read: --placement {self.placement} is not for it")
        if self.compile and self.row.trains_weights:
            found.append(f"--compile does not go with {self.method}: the layers are other ones after the training")
        if self.compile and self.gradient_checkpointing:
            found.append("--compile does not go with --gradient-checkpointing: compiled layers are not computed twice")
        return found

    def total_steps(self, rows: int, processes: int = 1) -> int:
        """Counts the optimiser steps of the whole training."""
        if self.epochs is not None:
            batches = math.ceil(rows / self.rows_per_step(processes))  # the last of an epoch may be ragged
            return max(1, math.ceil(self.epochs * batches))
        return self.steps or DEFAULT_STEPS

    def rows_per_step(self, processes: int = 1) -> int:
        """Counts the rows of one optimiser step over all processes."""
        return self.batch_size * self.accumulate * processes

    def learning_rate_factor(self, step: int, total: int) -> float:
        """Returns the factor of linear warm-up, then linear decay to zero; `step` counts from 0."""
        warmup = self.warmup_steps if self.warmup_steps is not None else min(500, total // 10)
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total - step) / max(1, total - warmup))


DEFAULT_STEPS = 500
# settings that earlier versions lacked: at their defaults they leave the keys of unfinished trainings as they were
LATER = ("attention_input", "attention_top", "cosine", "evidence", "one_norm", "deterministic")


def default_of(name: str) -> Any:
    """Returns the default of a setting."""
    return TrainingConfig.model_fields[name].default


def make_config(preset: str | None, **given: Any) -> TrainingConfig:
    """Returns a preset's settings, overridden by those given (None means: not given).

    Raises:
        AttemptError: unknown preset; or settings out of bounds, all of them at once.
    """
    settings = dict(read_preset(preset)["training"]) if preset else {}
    chosen = {key: value for key, value in given.items() if value is not None}
    if "steps" in chosen:  # a budget that is given replaces the preset's
        settings.pop("epochs", None)
    if "epochs" in chosen:
        settings.pop("steps", None)
    if chosen.get("eval_every") == 0:
        unread = [f"--{name.replace('_', '-')}" for name in ("patience", "eval_rows") if name in chosen]
        if unread:
            raise AttemptError(
                f"{' and '.join(unread)} {'says' if len(unread) == 1 else 'say'} nothing with --eval-every 0",
                "Without evaluations nothing is looked at: leave one of them out.",
            )
    try:
        return TrainingConfig(**{**settings, **chosen})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if problem["type"] == "extra_forbidden":
                name = str(problem["loc"][0])
                lines.append(f"no setting named '{name}'. {did_you_mean(name, TrainingConfig.model_fields)}".strip())
                continue
            option = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{option}: {message}, got {problem['input']}" if option else message)
        raise AttemptError("these settings cannot be used:\n  " + "\n  ".join(lines)) from error


def preset_names() -> list[str]:
    """Lists the presets that come with the package."""
    return sorted(path.stem for path in (Path(__file__).parent / "presets").glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Reads a preset: its settings under "training", and the rules for what differs under "rules".

    Raises:
        AttemptError: there is none of that name.
    """
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names(), "attempt train-target --help")
    preset: dict[str, Any] = tomllib.loads((Path(__file__).parent / "presets" / f"{name}.toml").read_text("utf-8"))
    return preset
