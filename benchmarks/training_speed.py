"""How many rows a second are trained on: ours against PEFT's prompt tuning and against the bare frozen model.

    python -m benchmarks.training_speed --full

Every contender does the same rows of a task, 16 a step, in turns. "After, cached" is the steady state: all rows' keys
and values are kept, as from the second epoch on; "after, first epoch" fills an empty cache. The bare passes are plain
transformers in our dtype, which is attempt's own choice for the machine (with matrix-product attention, faster on CPUs
in bf16 than its default), over the same positions. PEFT counts in the faster of bf16 and fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from benchmarks import ours, peers
from benchmarks.harness import Contender, Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import BATCH, real_rows

PEFT = "PEFT prompt tuning"
# times the faster of PEFT's usual steps that are aimed at on RTE rows, by m
GOALS: dict[int, dict[str, float]] = {
    20: {"before": 4, "after": 6, "after, cached": 12},
    100: {"before": 3, "after": 4.5, "after, cached": 6},
}


def contenders(
    backbone: FrozenBackbone, options: argparse.Namespace, rows: Sequence[EncodedRow], length: int
) -> list[Contender]:
    """All ways to train a prompt of m = `length` tokens on these rows."""
    device, name = backbone.device, options.backbone
    eager = "eager" if device.type == "cpu" and backbone.dtype == torch.bfloat16 else None
    bare = peers.fresh_model(name, device, backbone.dtype, eager)
    found = [
        peers.peft_training(
            f"{PEFT}, {label}",
            peers.peft_model(peers.fresh_model(name, device, dtype), length),
            rows,
            backbone.pad_id,
        )
        for label, dtype in peers.DTYPES.items()
    ]
    found += [
        peers.bare_training("bare pass, rows alone", bare, rows, 0, "before"),
        peers.bare_training("bare pass, before", bare, rows, length, "before"),
        peers.bare_training("bare pass, after", bare, rows, length, "after"),
        peers.bare_training("bare pass, after, cached", bare, rows, length, "after", kept=True),
    ]
    ways: list[tuple[str, str, ours.Cache]] = [
        ("before", "before", "none"),
        ("after", "after", "none"),
        ("after, first epoch", "after", "first epoch"),
        ("after, cached", "after", "kept"),
    ]
    for sources in (0, 6, 64):
        method = f"ATTEMPT t = {sources}" if sources else "prompt tuning"
        for way, placement, cache in ways:
            if not sources or way in ("before", "after, cached"):
                model = ours.prompted(backbone, length, sources=sources, placement=placement)
                found.append(ours.training(f"{method}, {way}", model, rows, cache=cache))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", help="names of tasks, parted by commas (full: sst2,rte, short: rte)")
    parser.add_argument("--lengths", help="m, parted by commas (full: 20,100, short: 20)")
    options = parser.parse_args()
    tasks = (options.tasks or ("sst2,rte" if options.full else "rte")).split(",")
    lengths = [int(m) for m in (options.lengths or ("20,100" if options.full else "20")).split(",")]
    count, rounds = options.rows or (64 if options.full else 32), rounds_of(options)
    backbone = load_backbone(options.backbone, device=options.device)
    setting = {"backbone": options.backbone, "rows": count, "batch": BATCH, "rounds": rounds}
    report = Report("training_speed", setting)
    for task in tasks:
        rows = real_rows(task, count, backbone, options.data_dir)
        for length in lengths:
            times = race(contenders(backbone, options, rows, length), rounds, wait=device_wait(backbone.device))
            peft = times.faster(PEFT)
            report.add_race(f"{task}, m = {length}", times, peft)
            wanted = GOALS.get(length, {}) if task == "rte" else {}
            for way, times_peft in wanted.items():
                report.goal(
                    f"m = {length}: {way} against {peft}",
                    times.ratio(f"prompt tuning, {way}", peft),
                    at_least=times_peft,
                )
            for way in ("before", "after", "after, cached"):
                share = times.ratio(f"prompt tuning, {way}", f"bare pass, {way}")
                report.goal(f"{task}, m = {length}: {way} against the bare pass", share, at_least=0.95)
            report.save(options.out)
    report.finish(options.out)


if __name__ == "__main__":
    main()
