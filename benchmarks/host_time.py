"""The time that a training step takes the host of a GPU where every kernel is launched by itself, before and now.

    git worktree add --detach ../before 77478b5    # the last commit without the fast path
    python -m benchmarks.host_time --before ../before

Both run the code of a GPU on tensors of a CPU: models as narrow as in `host_cost`, in fp32, prompts of 2 tokens and
inputs of 1 to 3, so that nearly all of the time is Python's and torch's way to a kernel, forth and back. What a CPU has
no kernel for is another one: RMS norms are its layer norms, attention in one kernel makes tensors of the right shapes.
A launch by the driver, which comes on top for each kernel, and what pinned memory costs are not in the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

HERE = Path(__file__).parents[1]
STEPS = 20  # of a case in a round
Case = tuple[str, str, int, bool]


class _Attention(torch.autograd.Function):
    """Attention in one kernel each way: without a computation, which on a CPU costs many launches."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return torch.empty_like(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors)


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Any:
    return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


def _norm(x: Tensor, shape: list[int], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, _, root = torch.native_layer_norm(x, shape, weight, None, eps)
    return out, root


def _norm_back(g: Tensor, x: Tensor, shape: list[int], root: Tensor, weight: Tensor, _: list[bool]) -> tuple[Tensor]:
    wanted = [True, False, False]
    back: Tensor = torch.ops.aten.native_layer_norm_backward(g, x, shape, root, root, weight, None, wanted)[0]
    return (back,)


@contextlib.contextmanager
def as_on_gpu(now: bool) -> Iterator[None]:
    """Lets the code take a GPU's way with tensors of the CPU.

    Args:
        now: this code; else that of before, with its own attention and the library's norms and optimiser.
    """
    from attempt_cli.backbones.base import FrozenBackbone

    move, zeros = nn.Module.to, torch.zeros

    def stay(module: nn.Module, device: Any, *dtype: Any) -> nn.Module:
        return module if device == "cuda" else move(module, device, *dtype)

    replaced: list[tuple[Any, str, Any]] = [
        (Tensor, "is_cuda", True),
        (Tensor, "pin_memory", lambda tensor: tensor),
        (torch, "zeros", lambda *sizes, pin_memory=False, **more: zeros(*sizes, **more)),
        (nn.Module, "to", stay),
        (FrozenBackbone, "on_gpu", True),
    ]
    if now:
        decoder, norms = (importlib.import_module(f"attempt_cli.backbones.{one}") for one in ("decoder_only", "norms"))
        replaced += [
            (torch.ops.aten, "_fused_rms_norm", _norm),
            (torch.ops.aten, "_fused_rms_norm_backward", _norm_back),
            (torch.nn.functional, "scaled_dot_product_attention", _attention),
            (decoder, "choose_kernel", lambda shape: "sdpa"),
            (importlib.import_module("attempt_cli.backbones.encoder_decoder"), "choose_kernel", lambda shape: "sdpa"),
            (FrozenBackbone, "_gradients_agree", lambda backbone: True),  # numbers mean nothing here
            (norms, "_same", lambda *_: True),
        ]
    else:  # a GPU's default there, where a CPU updates tensor by tensor
        adam = importlib.import_module("torch.optim.adam")
        replaced.append((adam, "_default_to_fused_or_foreach", lambda *_, **__: (False, True)))
    with contextlib.ExitStack() as stack:
        for where, name, what in replaced:
            stack.enter_context(patch.object(where, name, what))
        yield


def time_cases(now: bool, count: int) -> None:
    """Prints the milliseconds of each case's fastest step as a JSON list.

    Args:
        count: rows of a step.
    """
    import time

    from attempt_cli.backbones.rows import EncodedRow
    from benchmarks import host_cost

    torch.set_num_threads(1)
    host_cost.PROMPT = 2
    draw = random.Random(0)
    lengths = [draw.randrange(1, 4) for _ in range(count)]
    rows = [EncodedRow([draw.randrange(5, 90) for _ in range(n)], [7, 8, 1][draw.randrange(3) :]) for n in lengths]
    found = []
    with as_on_gpu(now):
        for case in host_cost.CASES:
            step: Any = host_cost.step_of(*case, rows, *([] if now else ["cpu"]))  # type: ignore[arg-type]
            times = []
            for _ in range(STEPS):
                began = time.process_time()
                step()
                times.append(1e3 * (time.process_time() - began))
            found.append(min(times))
    print(json.dumps(found))


def fastest(checkout: Path, rows: int) -> list[float]:
    """Returns `time_cases` of a checkout, in a process of its own."""
    code = f"import runpy; runpy.run_path({__file__!r})['time_cases']({checkout == HERE}, {rows})"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    """Prints a line for each case."""
    from benchmarks.host_cost import CASES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of 77478b5 to compare with")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each, in turns (default 3)")
    options = parser.parse_args()
    checkouts = [*([options.before.resolve()] if options.before else []), HERE]
    best = [[float("inf")] * len(CASES) for _ in checkouts]
    for _ in range(options.rounds):
        for place, checkout in enumerate(checkouts):
            best[place] = list(map(min, best[place], fastest(checkout, options.rows)))
    head = ("model", "prompt", "sources", "inputs kept", *(["before, ms"] if options.before else []), "now, ms")
    print("| " + " | ".join([*head, *(["ratio"] if options.before else [])]) + " |")
    for place, (kind, placement, sources, kept) in enumerate(CASES):
        times = [one[place] for one in best]
        told = [kind, placement, str(sources), "yes" if kept else "no", *(f"{one:.1f}" for one in times)]
        told += [f"{times[1] / times[0]:.2f}"] if options.before else []
        print("| " + " | ".join(told) + " |")


if __name__ == "__main__":
    main()
