"""The methods that a comparison can hold, by name: the one place that says how a cell of each is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attempt_cli.errors import AttemptError
from attempt_registry.errors import nearest_names

# what can be trained on the source tasks for targets to start from: G (the attention prior), one prompt (SPoT-g), one
# prompt under low-rank factors of each task (MPT)
PREPARED = ("attention", "shared", "factored")


@dataclass(frozen=True)
class Method:
    """How a cell of a method is made.

    Args:
        description: for `--help` and reports.
        trains: False for what is scored as it stands.
        source: "stands": the best source is the model; "starts": the training starts from it; "shared": it starts from
            one prompt that was trained on all source tasks, "factored": with each task's factors; None: needs no
            source.
        mixes: "all": the sources go into the training (mixed by attention; for MPT, their mean is where it starts);
            "best": only the best of them; None: none does.
        prior: G starts from one that was trained on the source tasks.
        together: several targets in one training.
        settings: what the method changes in `TrainingConfig`.
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
        """Whether its result depends on source prompts."""
        return self.source is not None or self.mixes is not None

    def needs_sources(self, start_is_given: bool = False) -> bool:
        """Whether source prompts must be there; one that only starts from a prompt is content with a named one."""
        return self.uses_sources and not (self.source == "starts" and self.mixes is None and start_is_given)

    @property
    def prepared(self) -> str | None:
        """What is trained on the source tasks once, before any target: a name in PREPARED, or nothing."""
        return "attention" if self.prior else self.source if self.source in PREPARED else None


def _attempt(
    description: str, *, mixes: str = "all", prior: bool = False, together: bool = False, **settings: Any
) -> Method:
    """ATTEMPT and what differs from it: all start from the best source, and mix sources."""
    return Method(description, True, "starts", mixes, prior, together, {"method": "attempt", **settings})


def _alone(method: str, description: str) -> Method:
    """A method that needs no sources."""
    return Method(description, settings={"method": method})


METHODS: dict[str, Method] = {
    "none": Method("the backbone without a prompt", trains=False),
    "source": Method("the best source prompt as it stands", trains=False, source="stands"),
    "prompt-tuning": _alone("prompt-tuning", "a prompt from frequent words"),
    "spot": Method("SPoT-t: prompt tuning from the best source", source="starts", settings={"method": "spot"}),
    "spot-g": Method(
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
    "mpt": Method(
        "multitask prompt tuning: a prompt trained on all sources with their factors (no distillation), times its own",
        source="factored",
        settings={"method": "mpt"},
    ),
    "mpt-mean": Method(
        "multitask prompt tuning without a source stage: the sources' mean times low-rank factors",
        mixes="all",
        settings={"method": "mpt"},
    ),
    "dept": _alone("dept", "decomposed prompt tuning: a short prompt and low-rank offsets"),
    "fine-tuning": _alone("fine-tuning", "all weights of the backbone"),
    "fine-tuning-m": Method(
        "all weights of the backbone, one set for many targets", together=True, settings={"method": "fine-tuning"}
    ),
    "adapter-m": Method(
        "adapters in every layer, one set for many targets", together=True, settings={"method": "adapter"}
    ),
    "bitfit": _alone("bitfit", "biases"),
    "adapter": _alone("adapter", "adapters in every layer"),
    "adapterdrop": _alone("adapterdrop", "adapters in the upper layers"),
    "lora": _alone("lora", "low-rank updates of the attention"),
    "ia3": _alone("ia3", "(IA)³: learned scales of keys, values and the feed-forward"),
}

# what `attempt fewshot` can compare: nothing has to be prepared for it, and one target is trained at a time
ALONE = [name for name, method in METHODS.items() if method.prepared is None and not method.together]


def check_methods(names: Iterable[str], known: Iterable[str] = tuple(METHODS)) -> None:
    """Refuses unknown methods, all of them at once.

    Raises:
        AttemptError: naming each with the nearest known ones.
    """
    known = list(known)
    names = list(names)
    elsewhere = [name for name in names if name in METHODS and name not in known]
    problems = [f"'{name}' needs a training on several tasks: `attempt reproduce` has it" for name in elsewhere]
    problems += unknown_names("method", [name for name in names if name not in elsewhere], known)
    if problems:
        raise AttemptError("; ".join(problems), f"There are {', '.join(known)}.")


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """What is wrong with names that are not among the known ones, each with its nearest."""
    known = list(known)
    problems = []
    for name in names:
        if name not in known:
            near = nearest_names(name, known)
            problems.append(f"no {kind} named '{name}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    return problems
