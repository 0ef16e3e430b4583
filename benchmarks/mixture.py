"""What ATTEMPT's mixture adds to a step of prompt tuning, with 6 and with 64 sources.

    python -m benchmarks.mixture --full

A few hundredths are looked for where single steps scatter by tenths: only these take turns, a step of each a round,
for ten times the usual number of rounds.

A prompt that stands before all rows of a batch has one pass for all of them, which ATTEMPT's prompts, each row's own,
cannot have. "Rows of two tasks" is prompt tuning without that gain: the difference to it is the mixture's.
"""

from __future__ import annotations

from dataclasses import replace

from attempt_cli.backbones.load import load_backbone
from benchmarks import ours
from benchmarks.harness import Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import BATCH, real_rows

PLAIN = "prompt tuning"
ROW_BY_ROW = "prompt tuning, rows of two tasks"
MOST = {6: 1.03, 64: 1.10}  # steps of prompt tuning that are aimed at, by the number of sources
WAYS: dict[str, tuple[str, ours.Cache]] = {"before": ("before", "none"), "after, cached": ("after", "kept")}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows (default rte)")
    parser.add_argument("--lengths", help="m, parted by commas (full: 20,100, short: 20)")
    options = parser.parse_args()
    lengths = [int(m) for m in (options.lengths or ("20,100" if options.full else "20")).split(",")]
    rounds = 10 * rounds_of(options)
    backbone = load_backbone(options.backbone, device=options.device)
    rows = real_rows(options.task, options.rows or BATCH, backbone, options.data_dir)
    setting = {"backbone": options.backbone, "rows": len(rows), "batch": BATCH, "rounds": rounds, "task": options.task}
    report = Report("mixture", setting)
    for m in lengths:
        for way, (placement, cache) in WAYS.items():
            contenders = []
            peers = {PLAIN: "prompt tuning"}
            if placement == "before":
                peers[ROW_BY_ROW] = "prompt tuning with a prompt a row"
                model = ours.prompted(backbone, m, placement=placement, tasks=2)
                mixed = [replace(row, task=number % 2) for number, row in enumerate(rows)]
                contenders.append(ours.training(ROW_BY_ROW, model, mixed, cache=cache))
            for t in (0, *MOST):
                model = ours.prompted(backbone, m, sources=t, placement=placement)
                contenders.append(ours.training(f"ATTEMPT t = {t}" if t else PLAIN, model, rows, cache=cache))
            times = race(contenders, rounds, wait=device_wait(backbone.device))
            report.add_race(f"m = {m}, {way}", times, PLAIN)
            for peer, steps in peers.items():
                for t, most in MOST.items():
                    text = f"m = {m}, {way}: a step with {t} sources, in steps of {steps}"
                    report.goal(text, times.ratio(peer, f"ATTEMPT t = {t}"), at_most=most)
            report.save(options.out)
    report.finish(options.out)


if __name__ == "__main__":
    main()
