"""What a page of the proof holds already, so that the runs of another machine add to it.

The scores are read from proof.csv, what methods cost and what changed sources gave from proof.json. A section that the
new runs do not make again stays on the page as it stands.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.proof_claims import Scores, by_title

HUNDREDS = 100  # from so many rows on a score belongs to the part of hundreds of rows, below to the few-shot part
Costs = Mapping[str, Mapping[str, float]]  # method -> steps, parameters, tokens, seconds
Dtypes = Mapping[tuple[str, str, str, int, int], str]  # (backbone, method, task, k, seed) -> in what it was computed


@dataclass(frozen=True)
class Earlier:
    """Holds what a page has.

    Args:
        scores: by backbone and method.
        costs: by backbone and method.
        changed: what the claim on changed sources rests on.
        sections: the lines below each heading.
        dtypes: in what each score was computed, where that is known.
    """

    scores: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)
    changed: Mapping[str, Any] | None = None
    sections: Mapping[str, list[str]] = field(default_factory=dict)
    dtypes: Dtypes = field(default_factory=dict)

    def few(self, backbone: str) -> dict[str, Scores]:
        """Returns the few-shot scores on a backbone, by method."""
        return self._part(backbone, hundreds=False)

    def many(self, backbone: str) -> dict[str, Scores]:
        """Returns the scores with hundreds of rows, by method."""
        return self._part(backbone, hundreds=True)

    def section(self, heading: str, made: list[str]) -> list[str]:
        """Returns a section as it was made, unless the page has a larger one; nothing where there is none.

        Such a table cannot be put together of two, and one of few tasks should not replace one of many.
        """
        there = self.sections.get(heading, [])
        if made and _cells(made) < _cells(there):
            print(f"{heading}: the page's own table is larger, and stays")
        lines = made if made and _cells(made) >= _cells(there) else there
        return [heading, "", *lines] if lines else []

    def changed_by(self, new: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Returns what the claim on changed sources rests on: the new compositions, unless the page has more."""
        sizes = [sum(one["n"] for one in (claims or {}).values()) for claims in (new, self.changed)]
        return new if sizes[0] >= sizes[1] else self.changed

    def cost_of(self, backbone: str, new: Costs) -> dict[str, dict[str, float]]:
        """Returns what methods cost, with the seconds of the runs that came first: two processors do not compare."""
        there = self.costs.get(backbone, {})
        return {
            method: {**there.get(method, {}), **new.get(method, {}), **_seconds(there.get(method, {}))}
            for method in sorted({*there, *new}, key=by_title)
        }

    def _part(self, backbone: str, *, hundreds: bool) -> dict[str, Scores]:
        found = {}
        for method, own in self.scores.get(backbone, {}).items():
            part = {place: score for place, score in own.items() if (place[1] >= HUNDREDS) == hundreds}
            if part:
                found[method] = part
        return found


def earlier(folder: Path) -> Earlier:
    """Reads the page in a folder; where there is none, nothing was there before."""
    if not (folder / "proof.csv").exists():
        return Earlier()
    scores: dict[str, dict[str, dict[tuple[str, int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    dtypes = {}
    with (folder / "proof.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            place = row["task"], int(row["k"]), int(row["seed"])
            scores[row["backbone"]][row["method"]][place] = float(row["score"])
            dtypes[(row["backbone"], row["method"], *place)] = row["dtype"]
    report = json.loads((folder / "proof.json").read_text("utf-8"))
    page = (folder / "proof.md").read_text("utf-8")
    return Earlier(scores, report.get("costs", {}), report.get("changed"), _sections(page), dtypes)


def merged(before: Mapping[str, Scores], new: Mapping[str, Scores]) -> dict[str, Scores]:
    """Returns the scores of both, by method; a cell that was run again has its new score."""
    methods = {*before, *new}
    return {method: {**before.get(method, {}), **new.get(method, {})} for method in sorted(methods, key=by_title)}


def _cells(lines: list[str]) -> int:
    return sum(line.count("|") for line in lines)


def _seconds(cost: Mapping[str, float]) -> dict[str, float]:
    return {"seconds": cost["seconds"]} if "seconds" in cost else {}


def _sections(text: str) -> dict[str, list[str]]:
    parts = re.split(r"^(##+ .*)$", text, flags=re.MULTILINE)
    return {heading: [*body.strip().split("\n"), ""] for heading, body in zip(parts[1::2], parts[2::2], strict=True)}
