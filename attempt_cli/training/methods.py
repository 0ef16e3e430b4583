"""The methods that can be trained, a row each. Everything that differs between methods is said here, and only here.

The settings' checks, the command line's choices and help, the starting values, the optimiser's groups, what is kept in
the registry and figure 7's count are derived from this table. `docs/extending.md` shows how to add a row.
Nothing heavy is imported before a method is built: help is made from this table, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attempt_cli.errors import AttemptError, unknown_name
from attempt_cli.late_imports import imported

OF_PROMPTS = ("prompt_length", "units")  # settings that methods without a prompt do not read
RATES = {"prompts": "learning_rate", "attention": "attention_learning_rate", "weights": "weight_learning_rate"}


@dataclass(frozen=True)
class Setting:
    """A number that belongs to one method; the command line has it as `--METHOD-NAME`.

    Args:
        default: its value when it is not given; its type is the setting's type.
        least: the smallest value.
        help: what it is, for `--help`.
        apart: a training where it is not 0 shares its steps with no others: they depend on the order of its rows.
    """

    default: int | float
    least: int | float
    help: str
    apart: bool = False


@dataclass(frozen=True)
class Method:
    """What a method trains, from what, and what is kept of it.

    Args:
        title: the method's name in messages and figures.
        help: what it does, for `--help`.
        build: "module:function" that makes what is trained. It takes `method.BuildInputs` and returns a
            `method.PromptModule`; of weight methods it takes the backbone and a seed and returns a `TunedWeights`.
        takes: what of the registry it can start from: "sources", "init_from", "attention_from" (a trained G),
            "composition" (to join one).
        needs: at least one of these must be given.
        options: fields of `TrainingConfig` that this method reads besides those that all read.
        rates: the optimiser's groups: "prompts", "attention" (G, or the factors in its place) or "weights".
        placements: where its prompt may stand.
        kept: whether the registry keeps a prompt of it; of others the run alone is kept.
        alone: whether it never shares a pass with other trainings, because it changes how inputs are read.
        several: whether several targets can be trained at once, each with a prompt of its own.
        first_source: whether its prompt starts from the first source where no other prompt is named.
        factors: whether each task has factors of its own under one shared prompt.
        least_tasks: how many tasks it is trained on at the least.
        per_task: whether the builder of a weight method takes the number of tasks too: some tensors are a task's own.
        start: what training starts from, where that is neither a prompt nor frequent words; for the record.
        check: "module:function" that refuses a backbone and a request that do not fit the method.
        settings: numbers that this method alone has.
        parameters: "module:function" that gives the number of trained parameters for a task, by formula (figure 7).
            It takes what `build` takes; of weight methods it takes the backbone's shape, a `BackboneShape`, and of
            those that are for several tasks their number.
    """

    title: str
    help: str
    build: str
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rates: tuple[str, ...] = ("prompts",)
    placements: tuple[str, ...] = ("before", "after")
    kept: bool = True
    alone: bool = False
    several: bool = False
    first_source: bool = False
    factors: bool = False
    least_tasks: int = 1
    per_task: bool = False
    start: str = "vocabulary"
    check: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    parameters: str = ""

    @property
    def trains_weights(self) -> bool:
        """Whether it trains weights in the backbone, and no prompt."""
        return self.rates == ("weights",)

    @property
    def banks(self) -> bool:
        """Whether trainings of it can share passes with others."""
        return self.kept and not self.alone

    @property
    def reads(self) -> set[str]:
        """The fields of `TrainingConfig` that some methods read and others do not, of those that this one reads."""
        own = {*self.options, *(RATES[rate] for rate in self.rates)}
        return own if self.trains_weights else own | {*OF_PROMPTS, "placement"}

    def builder(self) -> Callable[..., Any]:
        """Imports the function that makes what is trained."""
        return imported(self.build)

    def missing(self, given: Mapping[str, bool]) -> str | None:
        """Says what the method needs and was not given; None where nothing is missing."""
        if not self.needs or any(given[name] for name in self.needs):
            return None
        wanted = {
            "sources": "source prompts: --sources a,b,c or --sources all",
            "init_from": "a prompt to start from: --init-from NAME",
        }
        return f"{self.title} needs {' or '.join(wanted[name] for name in self.needs)}"


def _weights(title: str, help: str, build: str, parameters: str, module: str = "tuned", **more: Any) -> Method:
    """A row of a method that trains weights of the backbone, or weights put into it."""
    return Method(
        title,
        help,
        f"attempt_cli.backbones.{module}:{build}",
        rates=("weights",),
        placements=("before",),  # the input is read again in every step: no prompt could stand after it
        kept=False,
        start="the backbone",
        parameters=f"attempt_cli.backbones.{module}:{parameters}",
        **more,
    )


_ROUTER = {
    "noise": Setting(
        1.0, 0.0, "σ of the noise ε in training, which multiplies the router's scores by 1 + ε", apart=True
    ),
    "balance": Setting(0.0, 0.0, "α of the loss that evens out how often each is picked", apart=True),
}

METHODS: dict[str, Method] = {
    "attempt": Method(
        "ATTEMPT",
        "mixes source prompts and a target prompt by attention",
        "attempt_cli.training.build:attempt",
        takes=("sources", "init_from", "attention_from", "composition"),
        needs=("sources",),
        options=(
            "attention_rank",
            "temperature",
            "learned_temperature",
            "level",
            "constant_attention",
            "with_target",
            "balanced_start",
            "attention_input",
            "attention_top",
            "cosine",
            "evidence",
            "one_norm",
        ),
        rates=("prompts", "attention"),
        several=True,
        first_source=True,
        parameters="attempt_cli.training.build:attempt_count",
    ),
    "spot": Method(
        "SPoT",
        "trains a prompt that starts from a source prompt",
        "attempt_cli.training.build:prompt_tuning",
        takes=("init_from",),
        needs=("init_from",),
    ),
    "prompt-tuning": Method(
        "prompt tuning",
        "trains a prompt that starts from frequent words",
        "attempt_cli.training.build:prompt_tuning",
        takes=("init_from",),  # a source prompt may start from another one; of a target that is SPoT
        parameters="attempt_cli.training.build:prompt_tuning_count",
    ),
    "mpt": Method(
        "MPT",
        "trains a shared prompt (the sources' mean, or the prompt of --init-from) times low-rank factors",
        "attempt_cli.training.build:mpt",
        takes=("sources", "init_from"),
        needs=("sources", "init_from"),
        rates=("prompts", "attention"),
        factors=True,
        start="the mean of the sources",
        parameters="attempt_cli.training.build:mpt_count",
    ),
    "dept": Method(
        "DePT",
        "trains a short prompt and low-rank offsets on the input's embeddings",
        "attempt_cli.training.build:dept",
        rates=("prompts", "attention"),
        placements=("before",),  # it changes X itself
        alone=True,
        check="attempt_cli.training.build:check_offsets",
        parameters="attempt_cli.training.build:dept_count",
    ),
    "adept": Method(
        "ADePT",
        "trains a short prompt and a feed-forward network that adds an offset to each input token's embedding",
        "attempt_cli.method.adaptive:build",
        rates=("prompts", "attention"),
        placements=("before",),
        alone=True,
        check="attempt_cli.training.build:check_adaptive",
        parameters="attempt_cli.method.adaptive:parameters",
    ),
    "ulpt": Method(
        "ULPT",
        "trains a prompt in few dimensions, which a frozen random matrix projects up, and a scale and a shift",
        "attempt_cli.method.low_dimensional:build",
        start="random numbers",
        settings={"rank": Setting(2, 1, "r, the dimensions of a prompt token")},
        parameters="attempt_cli.method.low_dimensional:parameters",
    ),
    "smop": Method(
        "SMoP",
        "trains several short prompts, of which a router picks one for each input",
        "attempt_cli.method.routed:build_smop",
        rates=("prompts", "attention"),
        settings={
            "prompts": Setting(4, 1, "k, the short prompts; each has a k-th of the prompt's tokens"),
            **_ROUTER,
        },
        parameters="attempt_cli.method.routed:smop_parameters",
    ),
    "pt-moe": Method(
        "PT-MoE",
        "trains low-rank prompts that share a factor, of which a router picks one for each input",
        "attempt_cli.method.routed:build_pt_moe",
        rates=("attention",),  # all of it are factors
        settings={
            "experts": Setting(2, 1, "N, the low-rank prompts"),
            "rank": Setting(0, 0, "R of the factors; 0 takes nine tenths of the prompt's tokens"),
            **_ROUTER,
        },
        parameters="attempt_cli.method.routed:pt_moe_parameters",
    ),
    "fine-tuning": _weights("fine-tuning", "trains all weights", "fine_tuning", "fine_tuning_parameters"),
    "bitfit": _weights("BitFit", "trains biases", "bitfit", "bitfit_parameters"),
    "adapter": _weights("Adapter", "trains adapters in every layer", "adapter", "adapter_parameters"),
    "adapterdrop": _weights(
        "AdapterDrop", "trains adapters in the upper layers", "adapterdrop", "adapterdrop_parameters"
    ),
    "hyperformer": _weights(
        "HyperFormer",
        "trains a network that makes adapters for each task and layer",
        "hyperformer",
        "hyperformer_parameters",
        "generated",
        several=True,
        per_task=True,
    ),
    "hyperdecoder": _weights(
        "HyperDecoder",
        "trains a network that makes the decoder's adapters from each input",
        "hyperdecoder",
        "hyperdecoder_parameters",
        "generated",
        several=True,
    ),
    "adapterfusion": _weights(
        "AdapterFusion",
        "trains adapters of each task, then an attention over all of them",
        "adapterfusion",
        "adapterfusion_parameters",
        "fusion",
        several=True,
        least_tasks=2,
        per_task=True,
    ),
    "lora": _weights("LoRA", "trains low-rank updates of the attention", "lora", "lora_parameters"),
    "ia3": _weights("(IA)³", "trains scales of keys, values and the feed-forward", "ia3", "ia3_parameters"),
}

# settings that only some methods read -> the methods that read them
READERS: dict[str, tuple[str, ...]] = {
    setting: tuple(name for name, method in METHODS.items() if setting in method.reads)
    for setting in sorted({setting for method in METHODS.values() for setting in method.reads})
}


def find_method(name: str) -> Method:
    """The row of a method.

    Raises:
        AttemptError: there is none of that name, with the nearest.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, "attempt train-target --help")
    return METHODS[name]


def method_help() -> str:
    """One sentence a method, for `--method`."""
    return "; ".join(f"{name} {method.help}" for name, method in METHODS.items()) + "."


def check_settings(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a method alone has, with defaults where they are not given.

    Raises:
        AttemptError: a number that the method does not have, or one below its bound.
    """
    settings = find_method(name).settings
    for key, value in given.items():
        if key not in settings:
            raise AttemptError(f"{name} has no setting '{key}'", f"It has: {', '.join(settings) or 'none'}.")
        if value < settings[key].least:
            raise AttemptError(f"--{name}-{key} is at least {settings[key].least}, not {value}")
    return {key: type(setting.default)(given.get(key, setting.default)) for key, setting in settings.items()}
