"""Measures how much of the code one cell of `attempt reproduce` passes through.

    python -m benchmarks.cell_path
    python -m benchmarks.cell_path --names

Fills one cell (ATTEMPT with two sources, few rows and steps) on a tiny random Llama and counts the files and functions
of this project that run between `Runner.run` and its result, by folder. Fewer are easier to follow. Comprehensions and
lambdas count as the function they stand in. Takes seconds, and needs neither real rows nor weights.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from attempt_cli.data.catalogue import load_task
from attempt_cli.experiments.cells import CellSpec
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.runner import Runner
from tests.models import save_llama

ROOT = Path(__file__).parents[1]
SOURCES, TARGET = ("shop-reviews", "message-topics"), "support-chats"
MAKING = ("experiments", "training", "evaluation", "artefacts")  # how a cell is made; the rest serves every command


def visited(call: Callable[[], object]) -> set[tuple[str, str]]:
    """Returns file and qualified name of every function of this project that runs during a call."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    found = set()
    for code in codes:
        file = Path(code.co_filename).resolve()
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")  # else a class's body
        if is_function and file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ("attempt_cli", "registry"):
            found.add((str(file.relative_to(ROOT)), code.co_qualname))  # type: ignore[attr-defined]  # Python 3.11
    return found


def place_of(file: str) -> str:
    """Returns the folder of a file within attempt_cli, the stem of a file that lies in none, or "registry"."""
    first, second, *_ = Path(file).parts
    return first if first == "registry" else Path(second).stem


def fill_cell(folder: Path) -> set[tuple[str, str]]:
    """Trains the sources and one cell, then returns what a second cell of the same kind passes through.

    Args:
        folder: for the model and the registry.
    """
    llama = str(save_llama(folder / "tiny"))
    plan = Plan(
        registry=folder / "kept",
        tasks={name: load_task(name) for name in (*SOURCES, TARGET)},
        settings={"steps": 4, "prompt_length": 4, "batch_size": 8},
        limit=12,
        train_limit=20,
        device="cpu",
        dtype="float32",
    )
    first = Runner(plan)
    refs = [first.run(CellSpec((name,), "prompt-tuning", 0, llama, kind="source")).artefact for name in SOURCES]
    first.close()
    plan = Plan(**{**vars(plan), "sources": {(llama, TARGET): tuple(ref for ref in refs if ref)}})
    for seed in (0, 1):  # the first imports what is imported late
        runner = Runner(plan)
        found = visited(lambda runner=runner, seed=seed: runner.run(CellSpec((TARGET,), "attempt", seed, llama)))  # type: ignore[misc]
        runner.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="list the functions, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = sorted(fill_cell(Path(name)))
    if options.names:
        print("\n".join(f"{file}  {function}" for file, function in found) + "\n")
    places = {file: place_of(file) for file, _ in found}
    files, functions = Counter(places.values()), Counter(places[file] for file, _ in found)
    sums = {"all": list(files), "of these, how a cell is made": [place for place in files if place in MAKING]}
    print(f"{'':28}  files  functions")
    for place in files:
        print(f"{place:28}  {files[place]:5}  {functions[place]:9}")
    for name, places_in in sums.items():
        print(f"{name:28}  {sum(files[p] for p in places_in):5}  {sum(functions[p] for p in places_in):9}")


if __name__ == "__main__":
    main()
