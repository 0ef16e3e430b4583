"""How the cost of a training step grows with sources, prompt length, input length and the backbone's size.

    python -m benchmarks.growth --full

Backbones are Llamas of random weights, so that each of the four can be varied alone; rows are random tokens of one
length. A sweep's points take turns. For each the exponent k of cost = c · x^k is fitted (least squares on logarithms),
and for the sources also the straight line: what one source more adds, as a share of a step without any.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from benchmarks import ours
from benchmarks.harness import Contender, Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import drawn_rows
from tests.models import byte_level_tokenizer

# width, layers: 64 wide heads, three queries a key, inner width 8/3 of the width, as in SmolLM2
BACKBONES = {"tiny": (192, 6), "small": (384, 12), "medium": (576, 20), "135M-like": (576, 30)}


@dataclass(frozen=True)
class Point:
    """What is trained: t sources, m prompt tokens, l input tokens, one of the backbones."""

    t: int = 0
    m: int = 20
    l: int = 64  # noqa: E741 (the paper's letter)
    backbone: str = "small"


SWEEPS: dict[str, list[Point]] = {
    "t": [replace(Point(), t=t) for t in (1, 2, 4, 8, 16, 32, 64)],
    "m": [replace(Point(), m=m) for m in (5, 10, 20, 50, 100, 200)],
    "l": [replace(Point(), l=length) for length in (16, 32, 64, 128, 256, 512)],
    "backbone": [replace(Point(), backbone=name) for name in BACKBONES],
}


def save_random_llama(folder: Path, width: int, layers: int) -> Path:
    """A Llama of random weights in bf16 with SmolLM2's proportions, a small tokenizer and 49,152 embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_tokenizer(start="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 192,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exponent(sizes: list[float], costs: list[float]) -> float:
    """k of cost = c · size^k, by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def contender(name: str, backbone: FrozenBackbone, point: Point, placement: str, batch: int) -> Contender:
    """One batch of a point's rows, trained on over and over."""
    rows = drawn_rows([point.l] * batch, backbone.vocabulary_size, target_tokens=1)
    model = ours.prompted(backbone, point.m, sources=point.t, placement=placement)
    cache: ours.Cache = "kept" if placement == "after" else "none"
    one = ours.training(name, model, rows, cache=cache)
    return replace(one, steps=[*one.steps] * 2, rows=2 * batch, warm=1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sweeps", help=f"of {', '.join(SWEEPS)} (full: all, short: t)")
    options = parser.parse_args()
    sweeps = (options.sweeps or (",".join(SWEEPS) if options.full else "t")).split(",")
    rounds, batch = rounds_of(options), options.rows or 16
    report = Report("growth", {"batch": batch, "rounds": rounds, "otherwise": "t = 0, m = 20, l = 64, small"})
    with tempfile.TemporaryDirectory() as folder:
        backbones: dict[str, FrozenBackbone] = {}
        for sweep in sweeps:
            for name in {point.backbone for point in SWEEPS[sweep]} - set(backbones):
                saved = save_random_llama(Path(folder) / name, *BACKBONES[name])
                backbones[name] = load_backbone(str(saved), device=options.device)
            for placement in ("before", "after"):
                add_sweep(report, sweep, placement, backbones, batch, rounds)
    report.finish(options.out)


def add_sweep(
    report: Report, sweep: str, placement: str, backbones: dict[str, FrozenBackbone], batch: int, rounds: int
) -> None:
    """Adds a sweep's table and its fit."""
    points = SWEEPS[sweep]
    names = [f"{sweep} = {getattr(point, sweep)}" for point in points]
    backbone = backbones[points[0].backbone]
    contenders = [
        contender(name, backbones[point.backbone], point, placement, batch)
        for name, point in zip(names, points, strict=True)
    ]
    if sweep == "t":
        contenders.insert(0, contender("t = 0", backbone, Point(), placement, batch))
    times = race(contenders, rounds, wait=device_wait(backbone.device))
    costs = [1 / times.ratio(name, names[0]) for name in names]
    if sweep == "backbone":  # in numbers of weights that are computed with: all but the table that is looked up
        used = [backbones[point.backbone] for point in points]
        sizes = [float(one.parameter_count - one.vocabulary_size * one.width) for one in used]
    else:
        sizes = [float(getattr(point, sweep)) for point in points]
    fit = f"cost of a step ~ {'weights' if sweep == 'backbone' else sweep}^{exponent(sizes, costs):.2f}"
    if sweep == "t":
        shares = [1 / times.ratio(name, "t = 0") for name in names]
        slope, start = np.polyfit(sizes, shares, 1)
        fit = f"cost of a step = {start:.3f} + {slope:.5f} t steps of prompt tuning"
    way = "after, cached" if placement == "after" else "before"
    report.add_race(f"{sweep}, {way}", times, contenders[0].name, note=fit)


if __name__ == "__main__":
    main()
