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
    """The wall clock of one call.

    Raises:
        SystemExit: it failed; with what it said.
    """
    began = time.perf_counter()
    done = subprocess.run(call, capture_output=True, cwd=folder, env=os.environ, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(call)} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    rounds = rounds_of(options) * 3  # these are short
    report = Report("startup", {"backbone": options.backbone, "rounds": rounds})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        attempt = [str(Path(sys.executable).with_name("attempt"))]  # the command as it was installed
        registry = ["--registry", str(folder / "prompts")]
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
        for call in reversed(calls.values()):  # the training first: it makes the registry, and warms its cache
            seconds_of(call, folder)
        for number in range(rounds):
            for way, call in calls.items():
                if call is not training or number < rounds // 3:  # it takes seconds, not tenths
                    taken[way].append(seconds_of(call, folder))
    report.add_sizes("start-up", taken, EMPTY, "s")
    medians = {entry["name"]: entry["median"] for entry in report.tables[0]["entries"]}
    report.goal("attempt --help, seconds", medians["attempt --help"], at_most=0.3)
    report.goal("attempt registry list, seconds", medians["attempt registry list"], at_most=0.3)
    first = medians["a training of one step, from start to record"]
    report.goal("first training step from a warm cache, seconds (whole command)", first, at_most=10)
    report.finish(options.out)


if __name__ == "__main__":
    main()
