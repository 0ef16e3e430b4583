"""What a large registry costs, and what many processes at once do to each other.

    python -m benchmarks.registry_scale --page docs/results/registry.md

For each size: the processor time of an addition, and of `attempt registry` commands: the best of several calls, and
what they take above the start-up of the command (`attempt registry path`, which opens no database). Then processes that
add prompts at once, while others list, tag, remove and collect garbage: how many rows there are at the end, how many
calls failed, and the longest that one took. Needs a Unix: it asks the system for the processor time of its children.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from attempt_registry import Backbone, Registry, RegistryError

WIDTH = 16
ADDED = 200
COMMANDS = {
    "list (100 rows)": (["list", "--limit", "100"], None, 1000),
    "list, newest first (100 rows)": (["list", "--sort", "created", "--reverse", "--limit", "100"], None, 1000),
    "list, a task that is not there": (["list", "--task", "tsak-7"], None, None),
    "show": (["show", "prompt-500"], "start-up", 50),
    "search, one match": (["search", "note-7919"], "start-up", 200),
    "search, two words": (["search", "note-79191", "task-7"], "start-up", 200),
    "gc --dry-run": (["gc", "--dry-run"], None, None),
}


def add(registry: Registry, name: str, number: int, **fields: Any) -> str:
    """Adds a small prompt whose tensor no other has; returns its full name."""
    tensor = np.full((1, WIDTH), number, np.float32)
    given: dict[str, Any] = {"kind": "source", "method": "attempt", "backbone": "tiny", "fingerprint": "f" * 64}
    given |= {"task": "task", "task_version": 1, "embedding_scale": 1.0, "numbers": {"accuracy": 0.5}, "seed": number}
    settings = {"training": {f"setting_{n}": n for n in range(30)}}
    return registry.add_prompt(tensor, name=name, settings=settings, **given, **fields).ref


def filled(folder: Path, count: int) -> Registry:
    """Makes a registry of so many prompts; every tenth has a parent, and all share one tensor."""
    registry = Registry.open(folder)
    registry.remember_backbone(Backbone("tiny", "f" * 64, "decoder-only", WIDTH, 0.1, 1000, "made here"))
    add(registry, "first", 1)
    own = {"id", "name", "version", "task", "note", "tags", "parents"}
    database = registry._database
    columns = ", ".join(
        name for (name,) in database.rows("SELECT name FROM pragma_table_info('prompts')") if name not in own
    )
    with registry.transaction():
        database.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO prompts (name, version, task, note, tags, parents, {columns}) "
            "SELECT 'prompt-' || i, 1, 'task-' || (i % 1000), 'note-' || i, '[\"tag-' || (i % 50) || '\"]', "
            f"CASE WHEN i % 10 = 0 THEN '[\"prompt-' || (i / 10) || '@1\"]' ELSE '[]' END, {columns} "
            "FROM n, prompts WHERE prompts.name = 'first'",
            (count,),
        )
        database.execute("INSERT INTO names SELECT 'prompt', name, 1 FROM prompts WHERE name <> 'first'")
    return registry


def milliseconds(folder: Path, arguments: list[str], rounds: int) -> float:
    """Returns the processor time of one command, the least of several calls."""
    import resource

    best = float("inf")
    call = [sys.executable, "-m", "attempt_cli", "--registry", str(folder), "registry", *arguments]
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{shlex.join(call)} ended with {done.returncode}:\n{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return best * 1000


def scale(count: int, rounds: int) -> Iterator[str]:
    """Yields the lines of the table for one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "registry"
        began = time.perf_counter()
        registry = filled(folder, count)
        filling = time.perf_counter() - began
        began = time.process_time()
        for number in range(ADDED):
            add(registry, f"added-{number}", number)
        adding = time.process_time() - began
        registry.close()
        size = (folder / "registry.db").stat().st_size / 1e6
        yield f"## {count:,} prompts"
        yield ""
        yield f"registry.db is {size:,.0f} MB; one statement filled it in {filling:.0f} s. Adding one more prompt takes"
        yield f"{adding / ADDED * 1000:.1f} ms of processor time (mean of {ADDED})."
        yield ""
        yield "| command | processor time, ms | above start-up, ms | goal, ms |"
        yield "|---|---:|---:|---|"
        start = milliseconds(folder, ["path"], rounds)
        yield f"| start-up | {start:.0f} | | |"
        for label, (arguments, above, goal) in COMMANDS.items():
            taken = milliseconds(folder, arguments, rounds)
            goal_text = "" if goal is None else f"{goal}{' above start-up' if above else ''}"
            met = "" if goal is None else " (met)" if taken - (start if above else 0) <= goal else " (**not met**)"
            yield f"| {label} | {taken:.0f} | {taken - start:.0f} | {goal_text}{met} |"
        yield ""


def _adding(folder: Path, process: int, count: int) -> tuple[int, list[str], float]:
    registry, failed, longest, done = Registry.open(folder), [], 0.0, 0
    for number in range(count):
        began = time.perf_counter()
        try:
            add(registry, f"prompt-{process}", process * count + number)
            done += 1
        except RegistryError as error:
            failed.append(error.message)
        longest = max(longest, time.perf_counter() - began)
    return done, failed, longest


def _disturbing(folder: Path, what: str, stop: Any) -> tuple[str, int, list[str], float]:
    registry, failed, longest, calls = Registry.open(folder), [], 0.0, 0
    while not stop.is_set():
        began = time.perf_counter()
        try:
            if what == "list":
                registry.prompts(sort="created", reverse=True, limit=100)
            elif what == "tag":
                registry.tag("tagged", add=[f"t{calls % 50}"])
            elif what == "add and remove":
                registry.remove(add(registry, "removed", -1 - calls))
            else:
                registry.gc(grace=0)
            calls += 1
        except RegistryError as error:
            failed.append(error.message)
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.01)
    return what, calls, failed, longest


def concurrency(processes: int, adds: int) -> Iterator[str]:
    """Yields the lines of the section on many processes at once."""
    disturbing = ("list", "tag", "add and remove", "gc --grace 0")
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as name, context.Manager() as manager:
        folder, stop = Path(name) / "registry", manager.Event()
        with Registry.open(folder) as registry:
            add(registry, "tagged", -1)
        began = time.perf_counter()
        with context.Pool(processes + len(disturbing)) as pool:
            beside = [pool.apply_async(_disturbing, (folder, what, stop)) for what in disturbing]
            adding = [pool.apply_async(_adding, (folder, number, adds)) for number in range(processes)]
            added = [job.get() for job in adding]
            seconds = time.perf_counter() - began
            stop.set()
            disturbed = [job.get() for job in beside]
        with Registry.open(folder) as registry:
            rows = len(registry.prompts()) - 1
            problems = registry.verify()
    failures = [text for _, failed, _ in added for text in failed] + [
        text for _, _, failed, _ in disturbed for text in failed
    ]
    yield f"## {processes} processes add {adds:,} prompts each, while others list, tag, remove and collect garbage"
    yield ""
    yield (
        f"{sum(done for done, _, _ in added):,} additions in {seconds:.0f} s, {rows:,} rows, {len(failures)} failures, "
        f"{len(problems)} problems found by `verify`. The longest addition took "
        f"{max(longest for _, _, longest in added):.2f} s (goal: under 5 s on an idle machine with two cores)."
    )
    yield ""
    yield "| beside them, again and again | calls | failures | longest, s |"
    yield "|---|---:|---:|---:|"
    for what, calls, failed, longest in disturbed:
        yield f"| {what} | {calls:,} | {len(failed)} | {longest:.2f} |"
    yield ""
    for text in dict.fromkeys(failures):
        yield f"- {text.replace(str(folder), 'FOLDER')}"


def processor() -> str:
    """Names the processor by what it can do."""
    import os

    names = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    features = " and ".join(label for flag, label in names.items() if flag in flags)
    return f"{platform.machine()}{f' with {features}' if features else ''}, {os.cpu_count()} cores"


def main() -> None:
    import sqlite3

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000", help="Numbers of prompts, separated by commas; 0 for none.")
    parser.add_argument("--rounds", type=int, default=5, help="Calls of each command; the fastest counts.")
    parser.add_argument("--processes", type=int, default=8, help="Processes that add at once; 0 for none.")
    parser.add_argument("--adds", type=int, default=1000, help="Prompts that each of them adds.")
    parser.add_argument("--page", type=Path, help="Write the tables to this file, too.")
    options = parser.parse_args()
    lines = ["# A large registry, and many processes at once", "", "```console"]
    lines += [f"python -m benchmarks.registry_scale {shlex.join(sys.argv[1:])}".rstrip(), "```", ""]
    lines += [f"{processor()}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}.", ""]
    for count in map(int, options.sizes.split(",")):
        if count:
            lines += scale(count, options.rounds)
    if options.processes:
        lines += concurrency(options.processes, options.adds)
    text = "\n".join(lines).rstrip() + "\n"
    print(text, end="")
    if options.page:
        options.page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
