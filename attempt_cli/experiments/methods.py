"""The methods that a comparison can hold, by name: the one place that says how a cell of each is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attempt_cli.errors import AttemptError
from registry.errors import nearest_names


@dataclass(frozen=True)
class Method:
    """How a cell of a method is made.

    Args:
        description: for `--help` and reports.
        trains: False for what is scored as it stands.
        source: "stands": the best source is the model; "starts": the training starts from it; None: needs no source.
        mixes: "all": the sources are mixed by attention; "best": only the best of them; None: none is.
        settings: what the method changes in `TrainingConfig`.
    """

    description: str
    trains: bool = True
    source: str | None = None
    mixes: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uses_sources(self) -> bool:
        """Whether its result depends on source prompts."""
        return self.source is not None or self.mixes is not None

    def needs_sources(self, start_is_given: bool = False) -> bool:
        """Whether source prompts must be there; one that only starts from a prompt is content with a named one."""
        return self.uses_sources and not (self.source == "starts" and self.mixes is None and start_is_given)


METHODS: dict[str, Method] = {
    "none": Method("the backbone without a prompt", trains=False),
    "source": Method("the best source prompt as it stands", trains=False, source="stands"),
    "prompt-tuning": Method("a prompt from frequent words", settings={"method": "prompt-tuning"}),
    "spot": Method("SPoT-t: prompt tuning from the best source", source="starts", settings={"method": "spot"}),
    "attempt": Method("ATTEMPT, a G of its own", source="starts", mixes="all", settings={"method": "attempt"}),
}


def check_methods(names: Iterable[str], command: str = "attempt fewshot --help") -> None:
    """Refuses unknown methods, all of them at once.

    Raises:
        AttemptError: naming each with the nearest known ones.
    """
    problems = unknown_names("method", names, METHODS)
    if problems:
        raise AttemptError("; ".join(problems), f"`{command}` lists them: {', '.join(METHODS)}.")


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """What is wrong with names that are not among the known ones, each with its nearest."""
    known = list(known)
    problems = []
    for name in names:
        if name not in known:
            near = nearest_names(name, known)
            problems.append(f"no {kind} named '{name}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    return problems
