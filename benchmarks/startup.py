"""How long the commands take until they say something.

    python -m benchmarks.startup --full

`attempt --help` and `attempt registry list` in seconds of wall clock, beside a Python that does nothing and one that
imports torch and transformers; and a whole training of one step from rows and weights that were used before, which
bounds the time to the first step from above.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Report, arguments, rounds_of

EMPTY = "python, nothing"


def seconds_of(call: list[str], folder: Path) -> float:
    """The wall clock of one call."""
    began = time.perf_counter()
    subprocess.run(call, check=True, capture_output=True, cwd=folder, env=os.environ)
    return time.perf_counter() - began


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    rounds = rounds_of(options) * 3  # these are short
    report = Report("startup", {"backbone": options.backbone, "rounds": rounds})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        attempt = [sys.executable, "-m", "attempt_cli"]
        registry = ["--registry", str(folder / "registry")]
        data = [] if options.data_dir is None else ["--data-dir", str(options.data_dir.resolve())]
        training = [*attempt, *registry, "train-source", "sst2", "--backbone", options.backbone, "--steps", "1"]
        training += ["--eval-every", "0", "--train-limit", "64", *data]
        calls = {
            EMPTY: [sys.executable, "-c", "pass"],
            "attempt --help": [*attempt, "--help"],
            "attempt registry list": [*attempt, *registry, "registry", "list"],
            "python, import torch and transformers": [sys.executable, "-c", "import torch, transformers"],
            "a training of one step, from start to record": training,
        }
        taken: dict[str, list[float]] = {way: [] for way in calls}
        for number in range(rounds + 1):
            for way, call in calls.items():
                if number > rounds // 3 + 1 and call is training:
                    continue  # seconds, not tenths
                seconds = seconds_of(call, folder)
                if number:  # the first reads the disk
                    taken[way].append(seconds)
    report.add_sizes("start-up", taken, EMPTY, "s")
    medians = {entry["name"]: entry["median"] for entry in report.tables[0]["entries"]}
    report.goal("attempt --help, seconds", medians["attempt --help"], at_most=0.3)
    report.goal("attempt registry list, seconds", medians["attempt registry list"], at_most=0.3)
    first = medians["a training of one step, from start to record"]
    report.goal("first training step from a warm cache, seconds (whole command)", first, at_most=10)
    report.finish(options.out)


if __name__ == "__main__":
    main()
