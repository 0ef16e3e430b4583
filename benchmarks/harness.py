"""Contenders take turns, step by step, so that whatever else the machine does falls on all of them alike.

A *round* is the whole work of every contender, cut into steps: step 1 of each, then step 2 of each, and so on. What is
reported is the median over rounds, and the median of the ratios within a round: never a claim in seconds alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(".bench")  # where a run leaves its JSON, from the folder it was started in


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        name: how tables and ratios call it.
        steps: its work, cut; a step is timed as a whole.
        rows: rows (or whatever is counted) that all steps together do.
        warm: steps run before the first round, not timed; None for all of them (what fills caches or measures
            kernels at its first sight of a length).
    """

    name: str
    steps: Sequence[Callable[[], object]]
    rows: float
    warm: int | None = 1


@dataclass(frozen=True)
class Times:
    """What a race took.

    Args:
        rows: work of a round, by contender.
        seconds: one number a round, by contender.
    """

    rows: dict[str, float]
    seconds: dict[str, list[float]]

    def rates(self, name: str) -> list[float]:
        """Rows per second, one number a round."""
        return [self.rows[name] / seconds for seconds in self.seconds[name]]

    def ratio(self, name: str, against: str) -> float:
        """How many times the rate of another, the median over rounds."""
        pairs = zip(self.rates(name), self.rates(against), strict=True)
        return statistics.median(one / other for one, other in pairs)

    def faster(self, name: str) -> str:
        """The faster of a peer's contenders in the dtypes of `peers.DTYPES`: that one counts."""
        return max((f"{name}, {dtype}" for dtype in ("bf16", "fp32")), key=lambda way: self.ratio(way, f"{name}, bf16"))


def race(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times every contender's steps in turns.

    Args:
        contenders: names differ.
        rounds: at least 1.
        wait: returns when the device is idle (a GPU works on after a call has returned).
        clock: in seconds; `time.process_time` counts no time in which other processes had the processor.

    Raises:
        ValueError: two contenders of one name, none at all, or no round.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names) or not names or rounds < 1:
        raise ValueError(f"a race wants contenders of different names and a round at least: {names}, {rounds} rounds")
    for contender in contenders:
        for step in contender.steps[: contender.warm]:
            step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        taken = dict.fromkeys(names, 0.0)
        turns = max(len(contender.steps) for contender in contenders)
        for turn in range(turns):
            first = (number + turn) % len(contenders)  # nobody always follows the same neighbour
            for contender in [*contenders[first:], *contenders[:first]]:
                if turn < len(contender.steps):
                    wait()
                    began = clock()
                    contender.steps[turn]()
                    wait()
                    taken[contender.name] += clock() - began
        for name in names:
            seconds[name].append(taken[name])
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return Times({contender.name: contender.rows for contender in contenders}, seconds)


# what is reported


@dataclass
class Report:
    """The answer to one question, as JSON and as tables.

    Args:
        question: the script's name.
        setting: what was run (rows, rounds, backbone …), for the reader.
    """

    question: str
    setting: Mapping[str, Any]
    tables: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)

    def add_race(self, title: str, times: Times, against: str, unit: str = "rows/s", note: str = "") -> None:
        """A table of rates, each with its ratio to one contender's; a note stands below it."""
        entries = []
        for name in times.seconds:
            rates = times.rates(name)
            entries.append(_entry(name, statistics.median(rates), min(rates), max(rates), times.ratio(name, against)))
        table = {"title": title, "unit": unit, "better": "higher", "against": against, "entries": entries}
        self.tables.append({**table, "note": note} if note else table)

    def add_sizes(self, title: str, values: Mapping[str, Sequence[float]], against: str, unit: str) -> None:
        """A table of what had better be small (seconds, MiB), each with its ratio to one entry's median."""
        base = statistics.median(values[against])
        entries = [
            _entry(name, statistics.median(found), min(found), max(found), statistics.median(found) / base)
            for name, found in values.items()
        ]
        self.tables.append({"title": title, "unit": unit, "better": "lower", "against": against, "entries": entries})

    def goal(self, text: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """A number that was aimed at, and whether it was reached."""
        bound = at_least if at_least is not None else at_most
        assert bound is not None, "a goal is at least or at most something"
        met = value >= bound if at_least is not None else value <= bound
        sense = "at least" if at_least is not None else "at most"
        self.goals.append({"text": text, "value": round(value, 4), "sense": sense, "bound": bound, "met": met})

    def finish(self, folder: Path) -> Path:
        """Writes the JSON and prints the tables; returns the file."""
        file = self.save(folder)
        print(as_markdown(json.loads(file.read_text("utf-8"))))
        return file

    def save(self, folder: Path) -> Path:
        """Writes what there is so far: a long run that is stopped has answered a part."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.question}.json"
        answer = {
            "question": self.question,
            "command": command(),
            "machine": machine(),
            "setting": dict(self.setting),
            "tables": self.tables,
            "goals": self.goals,
        }
        file.write_text(json.dumps(answer, indent=1) + "\n", "utf-8")
        return file


def _entry(name: str, median: float, low: float, high: float, ratio: float) -> dict[str, Any]:
    numbers = {"median": median, "low": low, "high": high, "ratio": ratio}
    return {"name": name, **{key: float(f"{value:.4g}") for key, value in numbers.items()}}


def as_markdown(answer: Mapping[str, Any]) -> str:
    """An answer's tables and goals: what the terminal shows and docs/results/speed.md holds."""
    lines: list[str] = []
    for table in answer["tables"]:
        lines += [f"**{table['title']}**", ""]
        lines += [f"| way | {table['unit']} | lowest to highest | × {table['against']} |", "|---|---:|---|---:|"]
        for entry in table["entries"]:
            spread = f"{entry['low']:.4g} to {entry['high']:.4g}"
            lines.append(f"| {entry['name']} | {entry['median']:.4g} | {spread} | {entry['ratio']:.2f} |")
        lines += ["", table["note"], ""] if table.get("note") else [""]
    if answer["goals"]:
        lines += ["| goal | wanted | measured | met |", "|---|---|---:|---|"]
        for goal in answer["goals"]:
            met = "yes" if goal["met"] else "**no**"
            lines.append(f"| {goal['text']} | {goal['sense']} {goal['bound']:g} | {goal['value']:.3g} | {met} |")
        lines.append("")
    return "\n".join(lines)


def command() -> str:
    """The command that was typed, as it can be typed again; no machine's own paths."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    script = f"python -m {module.name}" if module is not None else f"python {Path(sys.argv[0]).name}"
    named = {"--data-dir": "ROWS", "--out": "FOLDER"}
    words = [named.get(before, word) for before, word in zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)]
    return " ".join([script, *map(shlex.quote, words)])


def machine() -> dict[str, Any]:
    """The processor and the versions that the numbers belong to."""
    import torch

    from attempt_cli.backbones.machine import processor_name

    found: dict[str, Any] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": "AMX" if torch.cpu._is_amx_tile_supported() else _bf16_instructions(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "transformers", "peft"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _bf16_instructions() -> str:
    import torch

    from attempt_cli.backbones.device import choose_dtype

    if not torch.cpu._is_avx512_bf16_supported():
        return "emulated"
    fast = choose_dtype(None, torch.device("cpu")) == torch.bfloat16
    return "AVX512-BF16" if fast else "AVX512-BF16, slower than fp32"


def device_wait(device: Any) -> Callable[[], object]:
    """What `race` waits with on a device."""
    import torch

    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


# what can be set


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts share; a script adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the setting of the committed results; hours, not minutes")
    parser.add_argument("--rounds", type=int, help="rounds of turns (full: 5, short: $BENCH_ROUNDS or 2)")
    parser.add_argument("--rows", type=int, help="rows of a round")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the JSON (default {RESULTS})")
    parser.add_argument("--backbone", default="smollm2-135m", help="default smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda, …; the best there is without it")
    data = os.environ.get("ATTEMPT_DATA")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(data) if data else None,
        help="rows in the hub's layout (default $ATTEMPT_DATA, else the hub)",
    )
    return parser


def rounds_of(options: argparse.Namespace) -> int:
    """--rounds, else 5 in the full setting and $BENCH_ROUNDS or 2 in the short one."""
    if options.rounds is not None:
        return int(options.rounds)
    return 5 if options.full else int(os.environ.get("BENCH_ROUNDS", "2"))
