"""What N tasks on one input cost: with the prompt after the input it is read once, and each task is a short tail.

    python -m benchmarks.many_tasks --full

The peer is a PEFT model a task, its own pass over every input, in the faster of bf16 and fp32. Answers a second count
one a task and input.
"""

from __future__ import annotations

from collections.abc import Sequence

from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from benchmarks import ours, peers
from benchmarks.harness import Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import label_tokens, real_rows

COUNTS = (1, 5, 20)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows and label words (default rte)")
    parser.add_argument("--length", type=int, default=20, help="m (default 20)")
    parser.add_argument("--sizes", default="1,16", help="inputs at once, parted by commas (default 1,16)")
    options = parser.parse_args()
    rounds = rounds_of(options)
    backbone = load_backbone(options.backbone, device=options.device)
    labels, m = label_tokens(options.task, backbone), options.length
    models = [ours.prompted(backbone, m, placement="after") for _ in range(max(COUNTS))]
    peft = {
        label: peers.peft_model(peers.fresh_model(options.backbone, backbone.device, dtype), m)
        for label, dtype in peers.DTYPES.items()
    }
    sizes = [int(size) for size in options.sizes.split(",")]
    count = options.rows or (4 if options.full else 2)
    rows = sorted(
        real_rows(options.task, count * max(sizes), backbone, options.data_dir), key=lambda row: len(row.input_ids)
    )
    setting = {"backbone": options.backbone, "m": m, "rounds": rounds, "batches": count, "task": options.task}
    report = Report("many_tasks", setting)
    for size in sizes:
        # rows of middling and like length
        middle = (len(rows) - count * size) // 2
        batches = [rows[middle + size * i : middle + size * (i + 1)] for i in range(count)]
        contenders = []
        for n in COUNTS:
            contenders.append(ours.many_tasks(f"{n} tasks, one reading", models[:n], batches, labels))
            # the same weights under n names: what a pass costs does not depend on the prompt's values
            contenders += [
                peers.pass_per_task(f"{n} tasks, PEFT, {label}", [model] * n, batches, backbone.pad_id, labels)
                for label, model in peft.items()
            ]
        times = race(contenders, rounds, wait=device_wait(backbone.device))
        report.add_race(f"b = {size}, inputs of {_lengths(batches)} tokens", times, "1 tasks, one reading", "inputs/s")
        cost = times.ratio("1 tasks, one reading", f"{COUNTS[-1]} tasks, one reading")
        report.goal(f"b = {size}: {COUNTS[-1]} tasks, in times of one", cost, at_most=4)
        theirs = times.faster(f"{COUNTS[-1]} tasks, PEFT")
        saved = times.ratio(f"{COUNTS[-1]} tasks, one reading", theirs)
        report.goal(f"b = {size}: {COUNTS[-1]} tasks against a pass a task", saved, at_least=1)
    report.finish(options.out)


def _lengths(batches: Sequence[Sequence[EncodedRow]]) -> str:
    found = [len(row.input_ids) for batch in batches for row in batch]
    return f"{min(found)} to {max(found)}"


if __name__ == "__main__":
    main()
