"""Turns the JSON of a full run into docs/results/speed.md and docs/results/speed.json.

python -m benchmarks.report --out FOLDER --to docs/results
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.check import COMMITTED, read_answers
from benchmarks.harness import RESULTS, as_markdown

# the order of the page, and what each question asks
QUESTIONS = {
    "training_speed": "Training, against PEFT and against the bare frozen model",
    "mixture": "What the mixture adds to a step",
    "t5_training_speed": "Training T5, against the arrangement of the paper's released code",
    "evaluation_speed": "Evaluation, against lm-evaluation-harness' way and `generate`",
    "many_tasks": "Many tasks on one input",
    "serving": "Serving, against one request at a time and against a server around PEFT",
    "bank": "Many prompts trained in one pass, against one after the other",
    "memory": "Peak memory of training",
    "startup": "Start-up",
    "compiled": "What torch.compile brings a training",
    "growth": "Growth of a step's cost",
}


INTRODUCTION = """# Speed

Every number is of one run in which all contenders took turns, step by step. A rate is the median over rounds, a ratio
the median of the ratios within a round; lowest and highest are those of the rounds. Seconds belong to the machine
named; ratios are what is claimed. How it is measured: [benchmarks/README.md](../../benchmarks/README.md); every
number: [speed.json](speed.json)."""


def page(answers: Sequence[Mapping[str, Any]]) -> str:
    """The page, as Markdown."""
    lines = [INTRODUCTION, "", *goal_lines(answers)]
    for answer in answers:
        setting = ", ".join(f"{key} {value}" for key, value in answer["setting"].items())
        lines += [f"## {QUESTIONS[answer['question']]}", "", machine_line(answer["machine"]), ""]
        lines += [f"Setting: {setting}.", "", "```console", answer["command"], "```", "", as_markdown(answer)]
    return "\n".join(lines).rstrip() + "\n"


def goal_lines(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many goals were met, and every one that was not."""
    goals = [(answer["question"], goal) for answer in answers for goal in answer["goals"]]
    missed = [(question, goal) for question, goal in goals if not goal["met"]]
    lines = [f"Goals: {len(goals) - len(missed)} of {len(goals)} met." + (" Not met:" if missed else ""), ""]
    for question, goal in missed:
        lines.append(
            f"- {QUESTIONS[question]}: {goal['text']}: {goal['value']:.3g}, wanted {goal['sense']} {goal['bound']:g}"
        )
    return [*lines, ""] if missed else lines


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one sentence."""
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, bf16 by {machine['bf16']}"
    if "gpu" in machine:
        where = f"{machine['gpu']} beside {where}"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft") if machine.get(name))
    return f"{where}; {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the scripts' JSON (default {RESULTS})")
    parser.add_argument("--to", type=Path, default=COMMITTED.parent, help="folder of speed.md and speed.json")
    options = parser.parse_args()
    order = list(QUESTIONS)
    found = [answer for answer in read_answers(options.out) if answer["question"] in order]
    answers = sorted(found, key=lambda answer: order.index(answer["question"]))
    if not answers:
        sys.exit(f"No results in {options.out}. Run the scripts first, see benchmarks/README.md.")
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "speed.json").write_text(json.dumps({"answers": answers}, indent=1) + "\n", "utf-8")
    (options.to / "speed.md").write_text(page(answers), "utf-8")
    print(f"{len(answers)} of {len(order)} questions written to {options.to / 'speed.md'}")


if __name__ == "__main__":
    main()
