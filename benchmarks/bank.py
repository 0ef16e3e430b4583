"""What N prompts cost that are trained in one pass, against trainings one after the other.

    python -m benchmarks.bank --full --grid --page docs/results/bank.md

A step is an optimiser step of every member, each with its own prompt, optimiser and clipping. "Own rows": every member
has others. "Same rows": all members have the same rows in the same order, as methods and learning rates that are
compared on k rows have. "Kept": keys and values of the inputs come from the input cache, as from the second epoch on.
"Apart" is four trainings one after the other, and rates are rows a second: more of them would take as long a row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attempt_cli
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.bank import PromptBank
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.loop import TrainingLoop
from attempt_cli.training.processes import Processes
from benchmarks import ours
from benchmarks.harness import Contender, Report, arguments, as_markdown, device_wait, race, rounds_of
from benchmarks.report import machine_line
from benchmarks.rows import real_rows

APART = 4
GOALS = {"own": 1.5, "same": 3.0}  # of 16 prompts after the input

PAGE = """# Many prompts in one pass

N trainings of a prompt whose rows go through the frozen model together (`training.bank`), against the same trainings
one after the other ("apart"). Rates are rows over all members a second of processor time: the machine was shared
with other work. They are medians over rounds, in which all took turns; ratios, which are what is claimed,
are the median of those within a round. "Kept": the inputs come from the cache, as from the second epoch on; else they
are read in every step. Every number: [bank.json](bank.json).

With kept inputs a member computes nothing but its own suffix. What a bank saves there is the poor use that matrix
products make of few rows; the passes over activations (norms, rotations, softmax, SiLU) remain, and where bf16 products
are as fast as AMX makes them, those are more than half of a step. Where inputs are read in the step, members of the
same rows share the reading: so do rates and methods whose inputs the cache does not hold, or in their first epoch.
Single rounds vary: of 4 prompts with the same kept rows one says 1.61 below, another 1.98.
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows (default rte)")
    parser.add_argument("--length", type=int, default=20, help="m (default 20)")
    parser.add_argument("--counts", help="prompts at once (full: 1,4,16,64, short: 1,16)")
    parser.add_argument("--sizes", default="4,16", help="rows of a step, parted by commas (default 4,16)")
    parser.add_argument("--most", type=int, default=256, help="rows of a step of all, at most (default 256)")
    parser.add_argument(
        "--placements", default="kept,after,before", help="parted by commas; '' for none (default all three)"
    )
    parser.add_argument("--methods", default="prompt tuning", help="parted by commas; also ATTEMPT, with 6 sources")
    parser.add_argument("--dtype", help="bfloat16 or float32; what attempt chooses without it")
    parser.add_argument("--grid", action="store_true", help="also a few-shot grid of 20 seeds, on SST-2")
    parser.add_argument("--page", type=Path, help="write the tables to this file, too, and their JSON beside it")
    options = parser.parse_args()
    rounds = rounds_of(options)
    counts = [int(text) for text in (options.counts or ("1,4,16,64" if options.full else "1,16")).split(",")]
    sizes = [int(text) for text in options.sizes.split(",")]
    backbone = load_backbone(options.backbone, device=options.device, dtype=options.dtype)
    setting = {"backbone": options.backbone, "dtype": str(backbone.dtype).removeprefix("torch.")}
    rows: list[EncodedRow] = []
    if options.placements:
        rows = real_rows(options.task, options.most, backbone, options.data_dir)
        length = round(sum(len(row.input_ids) for row in rows) / len(rows))
        setting |= {"m": options.length, "rounds": rounds, "task": options.task, "tokens of an input": length}
    report = Report("bank", setting)
    for placement in filter(None, options.placements.split(",")):
        backbone.input_cache = InputCache(ours.CACHE_BYTES) if placement == "kept" else None
        if backbone.input_cache is not None:
            backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        for method in options.methods.split(","):
            for size in sizes[:1] if placement == "before" else sizes:  # there nothing is read once
                compare(report, backbone, options, (placement, method, size), counts, rows)
                keep(report, options)
    if options.grid:
        grid(report, options)
        keep(report, options)
    report.finish(options.out)


def keep(report: Report, options: argparse.Namespace) -> None:
    """Writes what there is so far: a long run that is stopped has answered a part."""
    answer = json.loads(report.save(options.out).read_text("utf-8"))
    if options.page is not None:
        write_page(options.page, answer)


def write_page(page: Path, answer: Mapping[str, Any]) -> None:
    """Writes an answer to the page and the JSON beside it, instead of one of the same command."""
    file = page.with_suffix(".json")
    answers = json.loads(file.read_text("utf-8")).get("answers", []) if file.exists() else []
    answers = [other for other in answers if other["command"] != answer["command"]] + [answer]
    file.write_text(json.dumps({"answers": answers}, indent=1) + "\n", "utf-8")
    parts = [PAGE]
    for one in answers:
        setting = ", ".join(f"{key} {value}" for key, value in one["setting"].items())
        parts += [f"```console\n{one['command']}\n```", f"{machine_line(one['machine'])} Setting: {setting}."]
        parts.append(as_markdown(one))
    page.write_text("\n\n".join(part.rstrip() for part in parts) + "\n", "utf-8")


def compare(
    report: Report,
    backbone: FrozenBackbone,
    options: argparse.Namespace,
    case: tuple[str, str, int],
    counts: Sequence[int],
    rows: Sequence[EncodedRow],
) -> None:
    """Adds the table of a placement, a method and a number of rows a step."""
    placement, method, size = case
    where = "before" if placement == "before" else "after"
    kinds = ("own",) if where == "before" else tuple(GOALS)  # before the input no two members share anything

    def members(count: int, shared: str) -> list[TrainingLoop]:
        made = []
        for number in range(count):
            model = ours.prompted(backbone, options.length, sources=6 if method == "ATTEMPT" else 0, placement=where)
            start = 0 if shared == "same" else number * size
            made.append(member(model, rows[start : start + size], number))
        return made

    warm = 1 if placement == "kept" else 0  # fills the cache
    contenders = [Contender("apart", [one_by_one(members(APART, "own"))], APART * size, warm)]
    for count in counts:
        for shared in kinds if count > 1 else ("own",):
            if count * size <= options.most:
                step = together(members(count, shared))
                contenders.append(Contender(f"{count} together, {shared} rows", [step], count * size, warm))
    times = race(contenders, rounds_of(options), wait=device_wait(backbone.device), clock=clock_of(backbone))
    title = f"{method}, {where} the input{', kept' if placement == 'kept' else ''}, b = {size}"
    report.add_race(title, times, "apart", "rows/s")
    for shared, least in GOALS.items():
        name = f"16 together, {shared} rows"
        if name in times.seconds and where == "after":
            report.goal(f"{title}: {name}", times.ratio(name, "apart"), at_least=least)


def clock_of(backbone: FrozenBackbone) -> Callable[[], float]:
    """Returns the processor's time on CPUs; a GPU's work is waited for."""
    return time.perf_counter if backbone.on_gpu else time.process_time


def member(model: PromptedModel, rows: Sequence[EncodedRow], number: int) -> TrainingLoop:
    """Returns a training that takes all of its rows in every step."""
    config = TrainingConfig(
        prompt_length=model.prompt_length,
        batch_size=len(rows),
        steps=1_000_000,
        eval_every=0,
        compile=False,
    )
    file = Path(tempfile.mkdtemp()) / "state.safetensors"
    loop = TrainingLoop(model, rows, config, None, file, str(number), Listener(), Processes())
    loop.begin(False)
    return loop


def one_by_one(loops: Sequence[TrainingLoop]) -> Callable[[], None]:
    """Returns a step of each, one after the other."""

    def step() -> None:
        for loop in loops:
            batch = loop.batch(loop.state.step)
            loop.update(gradient_step(loop.model, batch, loop.config, loop.processes, loop.positions))
            loop.after_step()

    return step


def together(loops: Sequence[TrainingLoop]) -> Callable[[], object]:
    """Returns a step of all in one pass."""
    bank = PromptBank(loops, Listener())
    return lambda: bank._take_step(range(len(loops)))


def grid(report: Report, options: argparse.Namespace) -> None:
    """Adds what `attempt fewshot` takes for 20 seeds, with and without a bank: training and scoring."""
    seeds, steps, limit = 20, 4, 20
    with tempfile.TemporaryDirectory() as folder:
        where = {"backbone": options.backbone, "device": options.device, "dtype": options.dtype}
        session = attempt_cli.Session(folder, options.data_dir, **where)
        backbone = session.load_backbone()

        def filled(bank: int) -> None:
            given = {"k": 16, "methods": "prompt-tuning", "steps": steps, "limit": limit}
            attempt_cli.fewshot("sst2", seeds=seeds, bank=bank, session=session, **given)

        contenders = [Contender(f"--bank {bank}", [partial(filled, bank)], seeds, warm=0) for bank in (1, seeds)]
        times = race(contenders, 1, clock=clock_of(backbone))  # each takes minutes
    command = f"attempt fewshot -k 16 --tasks sst2 --seeds {seeds} --methods prompt-tuning --steps {steps}"
    note = "Training and scoring, once each. Every seed draws rows of its own; all are scored on the same."
    report.add_race(f"`{command} --limit {limit}`", times, "--bank 1", "cells/s", note)
    report.goal("a few-shot grid of 20 seeds", times.ratio(f"--bank {seeds}", "--bank 1"), at_least=3.0)


if __name__ == "__main__":
    main()
