"""Claim 6 of docs/results/protocol.md: sources that are added or dropped after the training, without training.

    python -m benchmarks.proof_sources FOLDER --tasks yelp.yaml,mrpc --seeds 5 --learning-rate 0.03

64 validation rows choose what is changed, test rows score it. *Added*: ATTEMPT is trained without the source that is
best on the validation rows, which is then added. *Dropped*: ATTEMPT is trained with all sources; the one without which
the validation score rises most is dropped, where there is one. Scores that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import attempt_cli as attempt
from attempt_cli.evaluation.statistics import mean_interval
from attempt_cli.session import Session
from benchmarks.proof import table
from benchmarks.proof_claims import interval

CHOOSE, TEST = 64, 200


def name_of(task: str) -> str:
    """Returns the name of a task that is given by name or as a YAML file."""
    return Path(task).name.removesuffix(".yaml")


def trained(session: Session, name: str, task: str, sources: list[str], start: str, seed: int, rate: float) -> None:
    """Trains ATTEMPT as the few-shot grid does: 16 rows, 100 steps of 4."""
    attempt.train_target(
        task,
        sources=sources,
        init_from=start,
        name=name,
        train_limit=16,
        seed=seed,
        steps=100,
        batch_size=4,
        max_length=256,
        eval_every=0,
        learning_rate=rate,
        session=session,
    )


def cell(session: Session, task: str, seed: int, best: list[str], rate: float) -> dict[str, Any]:
    """Trains, changes and scores one task with one seed; `best` has its sources, the best first."""
    label = name_of(task).replace(".", "-")
    found: dict[str, Any] = {"task": name_of(task), "seed": seed}

    def score(name: str, changes: attempt.Changes) -> dict[str, float]:
        before, after = attempt.evaluate(name, task, limit=TEST, changes=changes, session=session)
        return {"before": 100 * before.metrics[before.metric], "after": 100 * after.metrics[after.metric]}

    less = f"less-{label}-{seed}"
    trained(session, less, task, best[1:], best[1], seed, rate)
    found["added"] = {"source": best[0], **score(less, attempt.Changes(add=best[0]))}
    whole = f"whole-{label}-{seed}"
    trained(session, whole, task, best, best[0], seed, rate)
    (with_it,) = attempt.evaluate(whole, task, limit=TEST, session=session)
    found["added"]["trained_with_it"] = 100 * with_it.metrics[with_it.metric]
    ranking = attempt.rank_sources(task, composition=whole, limit=CHOOSE, session=session)
    changes = {one.source: one.change.difference for one in ranking.sources if one.change is not None}
    worst = max(changes, key=changes.__getitem__)
    if changes[worst] > 0:
        found["dropped"] = {"source": worst, **score(whole, attempt.Changes(drop=worst))}
    return found


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the claim rests on, and the page's table; intervals are over compositions."""
    claims: dict[str, Any] = {}
    rows = []
    for kind, name in (("added", "the best source added"), ("dropped", "the most harmful source dropped")):
        there = [one for one in cells if kind in one]
        if not there:
            continue
        change = [one[kind]["after"] - one[kind]["before"] for one in there]
        average, width = mean_interval(change)
        claims[name] = {"mean": average, "width": width, "n": len(there)}
        for task in sorted({one["task"] for one in there}):
            own = [one[kind] for one in there if one["task"] == task]
            before, after = (sum(one[at] for one in own) / len(own) for at in ("before", "after"))
            with_it = [one["trained_with_it"] for one in own if "trained_with_it" in one]
            sources = sorted({one["source"].removeprefix("starter-").partition("@")[0] for one in own})
            rows.append(
                [
                    name,
                    task,
                    ", ".join(sources),
                    str(len(own)),
                    f"{before:.1f}",
                    f"{after:.1f}",
                    interval(*mean_interval([one["after"] - one["before"] for one in own])),
                    f"{sum(with_it) / len(with_it):.1f}" if with_it else "–",
                ]
            )
    header = ["change", "task", "source", "compositions", "before", "after", "difference", "trained with it"]
    return {"claims": claims, "table": table(header, rows, 3), "cells": cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, required=True)
    options = parser.parse_args()
    os.chdir(options.folder)
    file = Path("sources.json")
    cells = json.loads(file.read_text())["cells"] if file.exists() else []
    done = {(one["task"], one["seed"]) for one in cells}
    session = attempt.Session(registry="changed", backbone="smollm2-135m")
    if not list(session.store.prompts()):
        raise SystemExit("add the sources first: `attempt --registry changed registry add --starter`")
    for task in options.tasks.split(","):
        if all((name_of(task), seed) in done for seed in range(options.seeds)):
            continue
        ranking = attempt.rank_sources(task, sources="all", limit=CHOOSE, session=session)
        best = [one.source for one in ranking.sources]
        for seed in range(options.seeds):
            if (name_of(task), seed) in done:
                continue
            cells.append(cell(session, task, seed, best, options.learning_rate))
            file.write_text(json.dumps(summary(cells), indent=1) + "\n", "utf-8")
            print(json.dumps(cells[-1]), flush=True)


if __name__ == "__main__":
    main()
