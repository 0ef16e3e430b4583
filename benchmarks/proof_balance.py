"""What few-shot prompts know apart from how often they give which answer: an experiment behind docs/results/proof.md.

    python -m benchmarks.proof_balance FOLDER --tasks mrpc,rte

Reads every prompt of the few-shot grid on the test rows again, and the sources and the bare model, on tasks of two
labels. Three numbers tell knowledge from balance.

*Score* is the accuracy as it is. *AUC* is the share of pairs of rows, one of each class, that the log odds of the
labels put in the right order: 50 % is chance, and no shift of the odds changes it. *Balanced* is the accuracy where the
odds are shifted so that the second label is given to as many rows as have it: what a model would score that knows how
frequent the classes are. The larger class alone scores `larger`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

import attempt_cli as attempt
from attempt_cli.evaluation.models import find_model
from attempt_cli.evaluation.scoring import Split, load_jobs, score_jobs, scoring_jobs
from attempt_cli.session import Session
from benchmarks.proof import read

METHODS = (
    "none",
    "source",
    "prompt-tuning",
    "spot",
    "spot-random",
    "spot-t",
    "attempt",
    "attempt-words",
    "attempt-random",
)
TEST, K = 200, 16


def balanced(odds: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the accuracy where as many rows get label 1 as have it: those with the highest odds."""
    highest = sorted(range(len(odds)), key=lambda row: -odds[row])[: sum(labels)]
    right = sum(labels[row] for row in highest)
    return 1 - 2 * (sum(labels) - right) / len(labels)


def log_odds(probabilities: Sequence[float]) -> float:
    """Returns log p(1) - log p(0) of two labels."""
    zero, one = (math.log(max(p, 1e-300)) for p in probabilities)
    return one - zero


def measured(session: Session, name: str, cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the three numbers of each cell's model on a task's test rows; each model is scored once."""
    task = attempt.load_task(name)
    models = list(dict.fromkeys(cell["prompt"] for cell in cells))
    split = Split(session, "test", TEST)
    pairs = [(task, find_model(session, "none" if model == "no prompt" else model)) for model in models]
    jobs = scoring_jobs(pairs, split, max_length=256)
    found = {}
    for model, (job, result) in zip(models, score_jobs(jobs, load_jobs(jobs, session), session), strict=True):
        labels = [int(example.label or 0) for example in job.rows.examples]
        odds = [log_odds(row.probabilities or ()) for row in result.predictions.rows]
        found[model] = {
            "score": result.score,
            "auc": float(roc_auc_score(labels, odds)),
            "balanced": balanced(odds, labels),
            "larger": max(sum(labels), len(labels) - sum(labels)) / len(labels),
        }
    return [{"method": one["method"], "seed": one["seed"], **found[one["prompt"]]} for one in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", required=True)
    options = parser.parse_args()
    os.chdir(options.folder)
    cells = [cell for cell in read(Path("fewshot")) if cell["k"] == K and cell["method"] in METHODS]
    Path("balance").mkdir(exist_ok=True)
    session = attempt.Session(registry="registry")
    for name in options.tasks.split(","):
        label = Path(name).name.removesuffix(".yaml")
        file = Path("balance") / f"{label}.json"
        if not file.exists():
            found = measured(session, name, [cell for cell in cells if cell["task"] == label])
            file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
            print(label, "done", flush=True)


if __name__ == "__main__":
    main()
