"""The methods that a comparison can hold, by name: the one table that says how a cell of each is made.

A method of `training.methods` that needs no source is here by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.training.methods import METHODS as TRAINED
from attempt_cli.training.methods import OF_PROMPTS, RATES, READERS
from attempt_registry.errors import nearest_names

# what can be trained on the source tasks for targets to start from: G (the attention prior), one prompt (SPoT-g), one
# prompt under low-rank factors of each task (MPT)
PREPARED = ("attention", "shared", "factored")


@dataclass(frozen=True)
class Comparison:
    """Describes a method in a comparison and how its cells are filled.

    Args:
        description: for `--help`.
        trains: False for a method that trains no prompt and no weights: it scores one as it stands, or is in
            `instead.INSTEAD`.
        source: "stands": the best source is scored as it is; "starts": the training starts from it; "nearest": from
            the source nearest to a target prompt that is trained first; "shared": from one prompt that was trained on
            all source tasks, "factored": with each task's factors; "random": from one that the seed draws; None: from
            frequent words.
        mixes: "all": the sources go into the training (mixed by attention; MPT starts from their mean); "best": only
            the best of them; None: none does.
        prior: G starts from one that was trained on the source tasks.
        together: one training for several targets.
        settings: the fields of `TrainingConfig` that the method changes.
    """

    description: str
    trains: bool = True
    source: str | None = None
    mixes: str | None = None
    prior: bool = False
    together: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uses_sources(self) -> bool:
        """True where its result depends on source prompts."""
        return self.source is not None or self.mixes is not None

    def needs_sources(self, start_is_given: bool = False) -> bool:
        """Tells whether it needs source prompts; a method that only starts from a prompt also takes a named one."""
        return self.uses_sources and not (self.source == "starts" and self.mixes is None and start_is_given)

    @property
    def trains_prompts(self) -> bool:
        """Whether it trains prompts that can share passes: neither weights nor what changes inputs."""
        return self.trains and TRAINED[self.settings["method"]].banks

    @property
    def trains_weights(self) -> bool:
        """Whether it trains weights of the backbone."""
        return self.trains and TRAINED[self.settings["method"]].trains_weights

    @property
    def keeps(self) -> bool:
        """Whether it trains prompts that the registry keeps."""
        return self.trains and TRAINED[self.settings["method"]].kept

    @property
    def rate(self) -> str:
        """The setting with the learning rate of what it trains first: prompts, else factors or weights.

        Raises:
            KeyError: it trains nothing.
        """
        return RATES[TRAINED[self.settings["method"]].rates[0]]

    def reads(self, field: str) -> bool:
        """Tells whether a given field of `TrainingConfig` counts: it is read, and not set by the method itself."""
        if not self.trains or field in self.settings:
            return False
        return field not in READERS or self.settings["method"] in READERS[field]

    @property
    def least_tasks(self) -> int:
        """How many tasks it is trained on at the least."""
        return TRAINED[self.settings["method"]].least_tasks if self.trains else 1

    @property
    def prepared(self) -> str | None:
        """A name in PREPARED: trained on the source tasks once, before any target; None where nothing is."""
        return "attention" if self.prior else self.source if self.source in PREPARED else None


def _attempt(
    description: str,
    *,
    source: str | None = "starts",
    mixes: str = "all",
    prior: bool = False,
    together: bool = False,
    **settings: Any,
) -> Comparison:
    """Makes ATTEMPT or a variant: nearly all start from the best source, and mix sources."""
    return Comparison(description, True, source, mixes, prior, together, {"method": "attempt", **settings})


METHODS: dict[str, Comparison] = {
    "none": Comparison("the backbone without a prompt", trains=False),
    "instruction": Comparison("the backbone told in the task's own words what to do", trains=False),
    "icl": Comparison("the training rows as solved examples before each input, in four orders", trains=False),
    "probe": Comparison(
        "logistic regression (of numbers ridge regression) on the frozen backbone's last state of the input",
        trains=False,
    ),
    "source": Comparison("the best source prompt as it stands", trains=False, source="stands"),
    **{
        name: Comparison(method.help, settings={"method": name}) for name, method in TRAINED.items() if not method.needs
    },
    "spot": Comparison(
        "prompt tuning from the source under which the training rows are likeliest",
        source="starts",
        settings={"method": "spot"},
    ),
    "spot-t": Comparison(
        "SPoT-t as published: prompt tuning from the source nearest, by cosine, to a target prompt that was trained in "
        "the first fifth of the steps",
        source="nearest",
        settings={"method": "spot"},
    ),
    "spot-random": Comparison(
        "prompt tuning from a random source: what a guess gives", source="random", settings={"method": "spot"}
    ),
    "spot-g": Comparison(
        "SPoT-g: prompt tuning from one prompt of all source tasks", source="shared", settings={"method": "spot"}
    ),
    "attempt": _attempt("ATTEMPT, a G of its own"),
    "attempt-prior": _attempt("ATTEMPT, its G pre-trained on the source tasks", prior=True),
    "attempt-m": _attempt("ATTEMPT, a G shared by many targets", together=True),
    "attempt-balanced": _attempt(
        "ATTEMPT whose mixture, not its target prompt, starts as the best source", balanced_start=True
    ),
    "attempt-no-target": _attempt("ATTEMPT without a target prompt", with_target=False),
    "attempt-constant": _attempt("ATTEMPT without attention: every source has 1/t", constant_attention=True),
    "attempt-single": _attempt("ATTEMPT with the best source only", mixes="best"),
    "attempt-token": _attempt("ATTEMPT with a weight for every row of the prompts", level="token"),
    "attempt-random": _attempt("ATTEMPT that starts from a random source", source="random"),
    "attempt-words": _attempt("ATTEMPT that starts from frequent words", source=None),
    "attempt-states": _attempt("ATTEMPT whose G reads the last state of the last token", attention_input="last"),
    "attempt-states-mean": _attempt("ATTEMPT whose G reads the mean of the last states", attention_input="mean"),
    "attempt-evidence": _attempt("ATTEMPT that starts from the likelihood of training rows", evidence=True),
    "attempt-top2": _attempt("ATTEMPT with a weight for two prompts only", attention_top=2),
    "attempt-cosine": _attempt(
        "ATTEMPT whose scores are cosines over a learned temperature", cosine=True, temperature=0.1
    ),
    "attempt-one-norm": _attempt("ATTEMPT with sources of one norm", one_norm=True),
    "mpt": Comparison(
        "multitask prompt tuning: a prompt trained on all sources with their factors (no distillation), times its own",
        source="factored",
        settings={"method": "mpt"},
    ),
    "mpt-mean": Comparison(
        "multitask prompt tuning without a source stage: the sources' mean times low-rank factors",
        mixes="all",
        settings={"method": "mpt"},
    ),
    **{
        name: Comparison(method.help, together=True, settings={"method": name})
        for name, method in TRAINED.items()
        if method.trains_weights and method.several
    },
    "fine-tuning-m": Comparison(
        "all weights of the backbone, one set for many targets", together=True, settings={"method": "fine-tuning"}
    ),
    "adapter-m": Comparison(
        "adapters in every layer, one set for many targets", together=True, settings={"method": "adapter"}
    ),
}

# what `attempt fewshot` can compare: nothing has to be prepared for it, and one target is trained at a time
ALONE = [name for name, method in METHODS.items() if method.prepared is None and not method.together]


def methods_help(names: Iterable[str] = tuple(METHODS)) -> str:
    """Returns the end of a command's help: the methods' names with their descriptions."""
    lines = [
        fill(f"{name}: {METHODS[name].description}", 78, initial_indent="  ", subsequent_indent="      ")
        for name in names
    ]
    return "\n".join(["\b", "Methods:", *lines])


def check_methods(names: Iterable[str], known: Iterable[str] = tuple(METHODS)) -> None:
    """Checks the names of methods.

    Raises:
        AttemptError: some are unknown; names all of them with their nearest.
    """
    known = list(known)
    names = list(names)
    elsewhere = [name for name in names if name in METHODS and name not in known]
    problems = [
        f"'{name}' needs a training on several tasks: `attempt reproduce` has it"
        if METHODS[name].trains
        else f"'{name}' trains nothing"
        for name in elsewhere
    ]
    problems += unknown_names("method", [name for name in names if name not in elsewhere], known)
    if problems:
        raise AttemptError("; ".join(problems), f"There are {', '.join(known)}.")


def unread_settings(settings: Iterable[str], methods: Sequence[str]) -> list[str]:
    """Says which of the given fields of `TrainingConfig` no method reads, and what they go with.

    The length, unit and place of prompts are left out: grids may name them for methods without prompts. Nothing is
    said where no method is trained.
    """
    trained = [name for name in methods if METHODS[name].trains]
    return [
        f"--{field.replace('_', '-')} says nothing to {', '.join(trained)}: it goes with {', '.join(READERS[field])}"
        for field in settings
        if trained
        and field in READERS
        and field not in (*OF_PROMPTS, "placement")
        and not any(METHODS[name].reads(field) for name in trained)
    ]


def check_weight_methods(names: Iterable[str], quantize: str | None, device: str | None) -> None:
    """Refuses methods that train weights where these are to be quantised at loading, or spread over several GPUs.

    Raises:
        ArgumentsError: names them.
    """
    training = [name for name in names if METHODS[name].trains_weights]
    if not training:
        return
    told = f"weights are trained by {', '.join(training)}, and not those that"
    if quantize:
        raise ArgumentsError(f"{told} --quantize {quantize} keeps", "Name other --methods, or leave --quantize out.")
    if device == "auto":
        from attempt_cli.backbones.spread import gpus

        if (count := len(gpus())) > 1:
            raise ArgumentsError(
                f"{told} --device auto spreads over {count} GPUs", "Name other --methods, or use --device cuda."
            )


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Returns a message for each name that is not among the known ones, with the nearest of them."""
    known = list(known)
    problems = []
    for name in names:
        if name not in known:
            near = nearest_names(name, known)
            problems.append(f"no {kind} named '{name}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    return problems
