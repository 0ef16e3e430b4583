"""Writes the bundle and the card of the starter sources from the registry that they were trained in.

benchmarks/starters.sh FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from attempt_cli.evaluation.record import evaluations
from attempt_cli.exchange.exporting import export_records
from attempt_cli.exchange.starter import FOLDER, PREFIX
from attempt_cli.session import Session

BACKBONE = "smollm2-135m"
# as the authors of the rows state them
LICENCES = {
    "sst2": "none stated",
    "qqp": "Quora's terms of service, non-commercial use",
    "qnli": "CC BY-SA 4.0",
    "mnli": "mostly the OANC licence, parts CC BY 3.0 and CC BY-SA 3.0",
    "cola": "none stated",
    "squad": "CC BY-SA 4.0",
}


def _missing(there: Sequence[str]) -> list[str]:
    left = [name for name in LICENCES if name not in there]
    return [f"The script also trains {', '.join(left)}, which are not among them yet."] if left else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("registry", type=Path)
    session = Session(parser.parse_args().registry)
    registry = session.store
    prompts = [prompt for name in LICENCES for prompt in registry.prompts(task=name, kind="source")[-1:]]
    FOLDER.mkdir(exist_ok=True)
    export_records(session, prompts, FOLDER / f"{BACKBONE}.attempt", "bundle", force=True, for_others=True)
    bare = {one.task: one for one in [*evaluations(registry, "none", "no prompt")][::-1]}
    lines = [
        f"# Starter sources for {BACKBONE}",
        "",
        "`attempt registry add --starter` adds these source prompts to the registry. Each is a matrix of 10 tokens,",
        "placed after the input, of SmolLM2-135M-Instruct (Apache-2.0). They were trained by `benchmarks/starters.sh`",
        "on samples of the tasks' training rows; the best validated step is kept. Test rows are those of",
        "the official validation split, or 1,000 of them; the interval is 95 %.",
        "Where the best step is the last, more steps might give more.",
        *_missing([prompt.task for prompt in prompts]),
        "",
        "| name | metric | rows | steps | best at | validation | test | no prompt | test rows | licence of the rows |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for prompt in prompts:
        test = next(evaluations(registry, "prompt", prompt.ref))
        low, high = test.interval or (0.0, 0.0)
        without = next(iter(bare[prompt.task].metrics.values()))
        (metric, validation), *_ = prompt.numbers["validation"].items()
        rows = registry.lineage(prompt.ref).made_by[0].rows["train"]["n"]
        cells = [
            f"{PREFIX}{prompt.name}",
            metric,
            f"{rows:,}",
            f"{prompt.numbers['steps']:,}",
            f"{prompt.numbers['best_step']:,}",
            f"{100 * validation:.1f}",
            f"{100 * test.metrics[metric]:.1f} ({100 * low:.1f}–{100 * high:.1f})",
            f"{100 * without:.1f}",
            f"{test.rows['n']:,}",
            LICENCES[prompt.name],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    (FOLDER / f"{BACKBONE}.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
