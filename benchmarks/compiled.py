"""What torch.compile brings a training, and after how long it has paid back: layers compiled against the same plain.

    python -m benchmarks.compiled --full

SmolLM2 has our own layers on CPUs; "library's layers" is what other decoder-only architectures train with there. T5 has
random weights. Compiling begins with an empty cache of the compiler's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from benchmarks import authors, ours
from benchmarks.harness import Report, Times, arguments, device_wait, race, rounds_of
from benchmarks.rows import BATCH, drawn_rows, real_rows

PLAIN = "plain layers"
COMPILED = "compiled layers"
LIBRARY = "library's layers"
WAYS: dict[str, tuple[str, ours.Cache]] = {"before": ("before", "none"), "after, cached": ("after", "kept")}


def compare(
    report: Report, title: str, backbones: dict[str, FrozenBackbone], rows: Sequence[EncodedRow], m: int, way: str
) -> None:
    """Adds the table of one kind of training."""
    placement, cache = WAYS[way]
    contenders = {
        name: ours.training(name, ours.prompted(backbone, m, placement=placement), rows, cache=cache)
        for name, backbone in backbones.items()
    }
    wait = device_wait(backbones[COMPILED].device)
    for backbone in backbones.values():
        backbone.compile_layers(False)
    for contender in contenders.values():  # inputs are read and kernels measured before anything is timed
        for step in contender.steps:
            step()
    backbones[COMPILED].compile_layers(True)
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as empty, _environment("TORCHINDUCTOR_CACHE_DIR", empty):
        seconds = []
        for _ in range(2):  # to compile, and as it then goes on
            began = time.perf_counter()
            for step in contenders[COMPILED].steps:
                step()
            wait()
            seconds.append(time.perf_counter() - began)
        times = race(list(contenders.values()), report.setting["rounds"], wait=wait)
    took = max(0.0, seconds[0] - seconds[1])
    against = {PLAIN: "plain layers", LIBRARY: "the library's layers"}
    said = [f"against {text}, {_pays_back(times, name, took)}" for name, text in against.items() if name in contenders]
    note = f"{took:.0f} s to compile. Compiled layers, {'; '.join(said)}."
    report.add_race(title, times, PLAIN, note=note)


def _pays_back(times: Times, plain: str, took: float) -> str:
    speed = times.ratio(COMPILED, plain)
    if speed <= 1:
        return f"never pay back ({speed:.2f} times as fast)"
    minutes = took / (1 - 1 / speed) / 60
    return f"have paid back when the rest would have taken {minutes:.1f} minutes ({speed:.2f} times as fast)"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="rte", help="whose rows (default rte)")
    parser.add_argument("--lengths", help="m, parted by commas (full: 20,100, short: 20)")
    parser.add_argument("--sizes", help=f"T5s, of {', '.join(authors.SIZES)} (full: both, short: none)")
    options = parser.parse_args()
    lengths = [int(m) for m in (options.lengths or ("20,100" if options.full else "20")).split(",")]
    named = options.sizes if options.sizes is not None else "T5-small,T5-base" if options.full else ""
    count = options.rows or 2 * BATCH

    def loaded(layers: bool) -> FrozenBackbone:
        backbone = load_backbone(options.backbone, device=options.device)
        if isinstance(backbone, DecoderOnlyBackbone):
            backbone.use_own_attention(True, layers=layers)
        return backbone

    backbones = {PLAIN: loaded(True), LIBRARY: loaded(False), COMPILED: loaded(False)}
    rows = real_rows(options.task, count, backbones[PLAIN], options.data_dir)
    setting = {"backbone": options.backbone, "rows": len(rows), "batch": BATCH, "rounds": rounds_of(options)}
    report = Report("compiled", {**setting, "task": options.task})
    for m, way in itertools.product(lengths, WAYS):
        compare(report, f"{options.backbone}, m = {m}, {way}", backbones, rows, m, way)
        report.save(options.out)
    for size in filter(None, named.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            saved = authors.save_random_t5(Path(folder) / size, size)
            backbones = {name: authors.load_t5(saved, options.device, None) for name in (PLAIN, COMPILED)}
            drawn = drawn_rows([len(row.input_ids) for row in rows], backbones[PLAIN].vocabulary_size)
            for m in lengths:
                compare(report, f"{size}, m = {m}", backbones, drawn, m, "before")
                report.save(options.out)
    report.finish(options.out)


if __name__ == "__main__":
    main()
