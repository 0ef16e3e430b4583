"""How much memory training takes at its peak, each way in a process of its own.

    python -m benchmarks.memory --full

The peak is the process's largest resident set (Linux's VmHWM) during the steps: it is reset after one step, when
weights and code are there. The limit is the bare pass: the same weights, a forward, and a backward through activations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Report, arguments, rounds_of

BARE = "bare pass, before"
WAYS = (
    BARE,
    "bare pass, after",
    "prompt tuning, before",
    "prompt tuning, after",
    "prompt tuning, after, cached",
    "ATTEMPT t = 6, before",
    "ATTEMPT t = 64, before",
    "PEFT prompt tuning, bf16",
    "PEFT prompt tuning, fp32",
)


def peak(way: str, task: str, length: int, count: int, backbone_name: str, data_dir: Path | None) -> dict[str, float]:
    """Runs one way's steps in this process; MiB at the peak, and of the input cache."""
    import torch

    from attempt_cli.backbones.load import load_backbone
    from benchmarks import ours, peers
    from benchmarks.rows import real_rows

    backbone = load_backbone(backbone_name, device="cpu")
    rows, pad = real_rows(task, count, backbone, data_dir), backbone.pad_id
    method, _, placement = way.partition(", ")
    if way.startswith(("bare", "PEFT")):
        # the bare pass in attempt's own choice
        dtype = peers.DTYPES[placement] if method.startswith("PEFT") else backbone.dtype
        del backbone  # one copy of the weights, as in ours
        eager = way.startswith("bare") and dtype == torch.bfloat16
        plain = peers.fresh_model(backbone_name, torch.device("cpu"), dtype, "eager" if eager else None)
        plain.requires_grad_(False)
        if way.startswith("bare"):
            contender = peers.bare_training(way, plain, rows, length, placement)
        else:
            contender = peers.peft_training(way, peers.peft_model(plain, length), rows, pad)
    else:
        sources = int(method.rpartition(" ")[2]) if method.startswith("ATTEMPT") else 0
        kept = placement == "after, cached"
        model = ours.prompted(backbone, length, sources=sources, placement=placement.partition(",")[0])
        contender = ours.training(way, model, rows, cache="kept" if kept else "none")
    for step in contender.steps if placement == "after, cached" else contender.steps[:1]:
        step()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM begins again
    for step in contender.steps:
        step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
    cache = 0
    if placement == "after, cached" and backbone.input_cache is not None:
        cache = backbone.input_cache.bytes
    return {"peak": int(status["VmHWM"].split()[0]) / 1024, "cache": cache / 2**20}


def in_a_process(
    way: str, task: str, length: int, count: int, backbone: str, data_dir: Path | None
) -> dict[str, float]:
    """`peak` in a fresh process, so that nothing of the others counts."""
    call = [sys.executable, "-m", "benchmarks.memory", "--way", way, "--task", task, "--length", str(length)]
    call += ["--rows", str(count), "--backbone", backbone, *(["--data-dir", str(data_dir)] if data_dir else [])]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows (default rte)")
    parser.add_argument("--length", type=int, help="m (full: 20 and 100, short: 20)")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process and print its peak")
    options = parser.parse_args()
    count = options.rows or (64 if options.full else 32)
    if options.way:
        found = peak(options.way, options.task, options.length, count, options.backbone, options.data_dir)
        print(json.dumps(found))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("Peak memory is read from /proc, which this system does not have.")
    rounds = min(rounds_of(options), 3) if options.full else 1  # it hardly differs from run to run
    setting = {"backbone": options.backbone, "rows": count, "batch": 16, "rounds": rounds, "task": options.task}
    report = Report("memory", setting)
    for m in [options.length] if options.length else [20, 100] if options.full else [20]:
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}
        cache = 0.0
        for _ in range(rounds):
            for way in WAYS:
                found = in_a_process(way, options.task, m, count, options.backbone, options.data_dir)
                peaks[way].append(found["peak"])
                cache = max(cache, found["cache"])
        cached = f"prompt tuning, after, cached ({cache:.0f} MiB of it the cache)"
        named = {cached if way == "prompt tuning, after, cached" else way: found for way, found in peaks.items()}
        report.add_sizes(f"{options.task}, m = {m}", named, BARE, "MiB at the peak")
        ratios = {entry["name"]: entry["ratio"] for entry in report.tables[-1]["entries"]}
        for way in ("prompt tuning, before", "prompt tuning, after", "ATTEMPT t = 6, before", "ATTEMPT t = 64, before"):
            report.goal(f"m = {m}: {way}, of weights and bare pass", ratios[way], at_most=1.15)
    report.finish(options.out)


if __name__ == "__main__":
    main()
