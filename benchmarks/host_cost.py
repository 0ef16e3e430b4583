"""What a training step costs the host of a GPU: kernels it launches, times it waits, and its own time.

    python -m benchmarks.host_cost

Small models are bound by the host on a GPU, whatever the card. The models here have the layers and heads of
SmolLM2-135M and T5-base, but vectors so narrow that computing them costs next to nothing. Kernels and waits are counted
on the pretend GPU of the tests, launched one by one and as a CUDA graph. No time is a card's: that with a graph is the
host's share on the pretend GPU, whose own work in Python is part of it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptAttention, PromptMixture
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.graphs import StepGraphs
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from tests.models import unigram_tokenizer
from tests.pretend_cuda import PretendGraph, pretend_cuda

# kind, placement, sources, whether inputs are kept
CASES = (
    ("llama", "before", 0, False),
    ("llama", "before", 6, False),
    ("llama", "after", 0, False),
    ("llama", "after", 0, True),
    ("t5", "before", 0, False),
    ("t5", "before", 6, False),
)
PROMPT, RANK = 20, 4


def narrow(kind: str) -> FrozenBackbone:
    """A model of random weights with the layers and heads of SmolLM2-135M or T5-base, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    model: Any
    if kind == "t5":
        config = T5Config(vocab_size=200, d_model=24, d_ff=24, num_layers=12, num_heads=12, d_kv=2, pad_token_id=0)
        config.eos_token_id, config.decoder_start_token_id = 1, 0
        model = T5ForConditionalGeneration(config)
        t5 = EncoderDecoderBackbone(model.to("cuda", torch.bfloat16), tokenizer, name=kind, source="random")
        t5.use_own_layers(True)
        return t5
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, hidden_size=36, intermediate_size=36, pad_token_id=0, **heads))
    backbone = DecoderOnlyBackbone(model.to("cuda", torch.bfloat16), tokenizer, name=kind, source="random")
    backbone.use_own_attention(True)
    return backbone


def step_of(
    kind: str,
    placement: str,
    sources: int,
    kept: bool,
    rows: list[EncodedRow],
    as_graph: bool = False,
) -> Callable[[], None]:
    """A function that takes one optimiser step."""
    backbone = narrow(kind)
    if kept:
        backbone.input_cache = InputCache(1 << 30)
        backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(1 + sources, PROMPT, backbone.width, generator=generator)
    mixture = PromptMixture(prompts[:1])
    if sources:
        mixture = PromptMixture(
            prompts[:1], prompts[1:], PromptAttention(backbone.width, RANK, 10.0, generator=generator)
        )
    model = PromptedModel(backbone, mixture.to("cuda"), 1.0, placement)  # type: ignore[arg-type]
    config = make_config(None, prompt_length=PROMPT, batch_size=len(rows))
    optimizer = make_optimizer(model.trained, config)
    graphs = StepGraphs(model, print) if as_graph else None

    def step() -> None:
        gradient_step(model, rows, config, Processes(), graphs=graphs)
        torch.nn.utils.clip_grad_norm_(model.trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--rounds", type=int, default=9, help="steps that are timed; the fastest counts (default 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(0)
    lengths = [draw.randrange(10, 40) for _ in range(options.rows)]  # up to 64 positions no kernel is measured
    rows = [EncodedRow([draw.randrange(5, 90) for _ in range(n)], [7, 8, 1][draw.randrange(3) :]) for n in lengths]
    head = ("model", "prompt", "sources", "inputs kept", "waits", "kernels", "with a graph")
    head = (*head, "host with a graph, ms")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for case in CASES:
        with pretend_cuda() as gpu:
            step = step_of(*case, rows)
            step()
            gpu.clear()
            step()
            kernels, waits = sum(gpu.kernels.values()), sum(gpu.waits.values())
            step = step_of(*case, rows, as_graph=True)
            for _ in range(3):  # as it is, captured, launched
                gpu.clear()
                step()
            launched, waits = sum(gpu.kernels.values()), waits + sum(gpu.waits.values())
            with patch.object(PretendGraph, "replay", lambda graph: None):  # the device's work, not the host's
                as_graph = fastest(step, options.rounds)
        kind, placement, sources, kept = case
        told = (kind, placement, sources, "yes" if kept else "no", waits, kernels, launched, f"{as_graph:.1f}")
        print("| " + " | ".join(map(str, told)) + " |", flush=True)


def fastest(step: Callable[[], None], rounds: int) -> float:
    """Returns the processor's milliseconds of the fastest step."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
