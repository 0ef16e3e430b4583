"""How many rows a second a T5 is prompted and trained on: ours against the arrangement of the paper's released code.

    python -m benchmarks.t5_training_speed --full

The models have random weights and published sizes, the rows random tokens and the lengths of real ones. Theirs pads
every row to 256 tokens, computes with T5's dropout on and lays the prompts out as [b, t + 1, m, d]; released for
float32, it counts here in the faster of bf16 and fp32. Ours takes rows of like length together, and bf16 where the
processor has it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from attempt_cli.backbones.load import load_backbone
from benchmarks import authors, ours
from benchmarks.harness import Report, arguments, device_wait, race, rounds_of
from benchmarks.peers import DTYPES
from benchmarks.rows import BATCH, bucketed_batches, drawn_rows, real_rows

SOURCES = 6
AUTHORS = "released arrangement, ATTEMPT"


def compare(
    report: Report, options: argparse.Namespace, size: str, lengths: dict[str, list[int]], prompt_lengths: list[int]
) -> None:
    """Adds the tables of one model's size."""
    rounds = rounds_of(options)
    with tempfile.TemporaryDirectory() as name:
        folder = authors.save_random_t5(Path(name) / size, size)
        fast = authors.load_t5(folder, options.device, None)
        exact = authors.load_t5(folder, options.device, "float32")
        theirs = {label: authors.plain_t5(folder, fast.device, dtype) for label, dtype in DTYPES.items()}
        bare = authors.plain_t5(folder, fast.device, fast.dtype)
        kind = str(fast.dtype).removeprefix("torch.")
        for task, row_lengths in lengths.items():
            rows = drawn_rows(row_lengths, fast.vocabulary_size)
            for m in prompt_lengths:
                contenders = [
                    *(
                        authors.authors_training(f"{AUTHORS}, {label}", theirs[label], rows, m, SOURCES)
                        for label in DTYPES
                    ),
                    authors.authors_training("released arrangement, prompt tuning, fp32", theirs["fp32"], rows, m, 0),
                    authors.bare_t5_training(f"bare pass, {kind}", bare, bucketed_batches(rows), m),
                    ours.training(f"prompt tuning, {kind}", ours.prompted(fast, m), rows),
                    ours.training(f"ATTEMPT, {kind}", ours.prompted(fast, m, sources=SOURCES), rows),
                    ours.training("ATTEMPT, float32", ours.prompted(exact, m, sources=SOURCES), rows),
                ]
                if kind == "float32":
                    contenders.pop()
                times = race(contenders, rounds, wait=device_wait(fast.device))
                report.add_race(f"{size}, {task}, m = {m}, t = {SOURCES}", times, times.faster(AUTHORS))
                ratio = times.ratio(f"ATTEMPT, {kind}", times.faster(AUTHORS))
                report.goal(f"{size}, {task}, m = {m}: ATTEMPT against the released arrangement", ratio, at_least=4)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", help=f"of {', '.join(authors.SIZES)} (full: both, short: T5-small)")
    parser.add_argument("--tasks", help="whose rows' lengths are taken (full: sst2,rte, short: rte)")
    parser.add_argument("--lengths", help="m, parted by commas (full: 20,100, short: 100)")
    options = parser.parse_args()
    sizes = (options.sizes or ("T5-small,T5-base" if options.full else "T5-small")).split(",")
    tasks = (options.tasks or ("sst2,rte" if options.full else "rte")).split(",")
    prompt_lengths = [int(m) for m in (options.lengths or ("20,100" if options.full else "100")).split(",")]
    count = options.rows or (32 if options.full else 16)
    tokenized = load_backbone(options.backbone, device="cpu")
    lengths = {
        task: [len(row.input_ids) for row in real_rows(task, count, tokenized, options.data_dir)] for task in tasks
    }
    del tokenized
    setting = {"rows": count, "batch": BATCH, "rounds": rounds_of(options), "lengths by": options.backbone}
    report = Report("t5_training_speed", setting)
    for size in sizes:
        compare(report, options, size, lengths, prompt_lengths)
    report.finish(options.out)


if __name__ == "__main__":
    main()
