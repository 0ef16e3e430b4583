"""What N prompts cost that are trained in one pass, against N trainings one after the other.

    python -m benchmarks.bank --full

A step is an optimiser step of every member, each with its own prompt, optimiser and clipping. "Own rows": every member
has others. "Same rows": all members have the same rows in the same order, as methods and learning rates that are
compared on k rows have. "Kept": keys and values of the inputs come from the input cache, as from the second epoch on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.listener import Listener
from attempt_cli.training.bank import PromptBank
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.loop import TrainingLoop
from attempt_cli.training.processes import Processes
from benchmarks import ours
from benchmarks.harness import Contender, Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import real_rows

ROWS = ("own", "same")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows (default rte)")
    parser.add_argument("--length", type=int, default=20, help="m (default 20)")
    parser.add_argument("--counts", default="1,4,16", help="prompts at once, parted by commas (default 1,4,16)")
    parser.add_argument("--sizes", default="4,16", help="rows of a step, parted by commas (default 4,16)")
    parser.add_argument("--placements", default="after,before", help="parted by commas (default both)")
    parser.add_argument("--methods", default="prompt tuning", help="parted by commas; also ATTEMPT, with 6 sources")
    caches = parser.add_mutually_exclusive_group()
    caches.add_argument("--cache", action="store_true", help="after the input with kept inputs only")
    caches.add_argument("--no-cache", action="store_true", help="after the input without kept inputs only")
    options = parser.parse_args()
    rounds, steps = rounds_of(options), 2
    counts = [int(count) for count in options.counts.split(",")]
    sizes = [int(size) for size in options.sizes.split(",")]
    backbone = load_backbone(options.backbone, device=options.device)
    rows = real_rows(options.task, steps * max(sizes) * max(counts), backbone, options.data_dir)
    setting = {"backbone": options.backbone, "m": options.length, "rounds": rounds, "steps": steps}
    report = Report("bank", {**setting, "task": options.task, "dtype": str(backbone.dtype)})
    for placement in options.placements.split(","):
        for kept in (True, False) if placement == "after" else (False,):
            if (kept and options.no_cache) or (not kept and placement == "after" and options.cache):
                continue
            backbone.input_cache = InputCache(ours.CACHE_BYTES) if kept else None
            if backbone.input_cache is not None:
                backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
            for method in options.methods.split(","):
                for size in sizes:
                    contenders = []
                    for count in counts:
                        for shared in ROWS[: None if count > 1 else 1]:
                            contenders += ours_of(
                                backbone, options.length, placement, method, rows, size, count, shared
                            )
                    times = race(contenders, rounds, wait=device_wait(backbone.device))
                    title = f"{method}, {placement} the input{', kept' if kept else ''}, b = {size}"
                    report.add_race(title, times, contenders[0].name, "rows/s")
                    for count in counts:
                        for shared in ROWS[: None if count > 1 else 1]:
                            ratio = times.ratio(f"{count} together, {shared} rows", f"{count} apart, {shared} rows")
                            least = {"own": 1.5, "same": 3.0}[shared] if (count, placement) == (16, "after") else 0.0
                            report.goal(f"{title}: {count} together, {shared} rows", ratio, at_least=least)
                    report.save(options.out)  # a run of hours that is stopped has answered a part
    report.finish(options.out)


def ours_of(
    backbone: FrozenBackbone,
    length: int,
    placement: str,
    method: str,
    rows: Sequence[EncodedRow],
    size: int,
    count: int,
    shared: str,
) -> list[Contender]:
    """Returns the ways to take steps of `count` trainings: apart, and together."""
    steps = 2

    def members() -> list[TrainingLoop]:
        folder = Path(tempfile.mkdtemp())
        made = []
        for number in range(count):
            own = (
                rows[: steps * size] if shared == "same" else rows[number * steps * size : (number + 1) * steps * size]
            )
            config = TrainingConfig(
                prompt_length=length, batch_size=size, steps=1_000_000, eval_every=0, compile=False, seed=0
            )
            model = ours.prompted(backbone, length, sources=6 if method == "ATTEMPT" else 0, placement=placement)
            loop = TrainingLoop(
                model, own, config, None, folder / f"{number}.safetensors", str(number), Listener(), Processes()
            )
            loop.begin(False)
            made.append(loop)
        return made

    alone, bank = members(), PromptBank(members(), Listener())

    def apart() -> None:
        for loop in alone:
            batch = loop.batch(loop.state.step)
            loop.update(gradient_step(loop.model, batch, loop.config, loop.processes, loop.positions))
            loop.after_step()

    def together() -> None:
        bank._take_step(range(count))

    work = float(steps * size * count)
    ways: list[tuple[str, Callable[[], None]]] = [("apart", apart), ("together", together)]
    return [Contender(f"{count} {name}, {shared} rows", [way] * steps, work, None) for name, way in ways]


if __name__ == "__main__":
    main()
