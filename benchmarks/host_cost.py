"""What a training step costs the host of a GPU: kernels it launches, times it waits, and its own time.

    python -m benchmarks.host_cost

Small models are bound by the host on a GPU, whatever the card. The models here have the layers and heads of
SmolLM2-135M and T5-base, but vectors so narrow that computing them costs next to nothing. Kernels and waits are counted
on the pretend GPU of the tests; the time is a CPU's, in the library's layers, as a GPU uses them.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

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
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from tests.models import unigram_tokenizer
from tests.pretend_cuda import pretend_cuda

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


def narrow(kind: str, device: str, reference: bool) -> FrozenBackbone:
    """A model of random weights with the layers and heads of SmolLM2-135M or T5-base, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    model: Any
    if kind == "t5":
        config = T5Config(vocab_size=200, d_model=24, d_ff=24, num_layers=12, num_heads=12, d_kv=2, pad_token_id=0)
        config.eos_token_id, config.decoder_start_token_id = 1, 0
        model = T5ForConditionalGeneration(config)
        return EncoderDecoderBackbone(model.to(device), tokenizer, name=kind, source="random")
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, hidden_size=36, intermediate_size=36, pad_token_id=0, **heads))
    backbone = DecoderOnlyBackbone(model.to(device, torch.bfloat16), tokenizer, name=kind, source="random")
    backbone.use_own_attention(True, layers=not reference)
    if reference:
        backbone.__dict__["_two_passes_pay"] = True
    return backbone


def step_of(kind: str, placement: str, sources: int, kept: bool, rows: list[EncodedRow], device: str) -> Any:
    """A function that takes one optimiser step."""
    backbone = narrow(kind, device)
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
    model = PromptedModel(backbone, mixture.to(device), 1.0, placement)  # type: ignore[arg-type]
    config = make_config(None, prompt_length=PROMPT, batch_size=len(rows))
    optimizer = make_optimizer(model.trained, config)

    def step() -> None:
        gradient_step(model, rows, config, Processes())
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
    print("| model | prompt | sources | inputs kept | kernels | waits | host, ms |\n|---|---|---|---|---|---|---|")
    for case in CASES:
        with pretend_cuda() as gpu:
            step = step_of(*case, rows, "cuda")
            step()
            gpu.clear()
            step()
            kernels, waits = sum(gpu.kernels.values()), sum(gpu.waits.values())
        step = step_of(*case, rows, "cpu")
        times = []
        for _ in range(options.rounds + 2):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        kind, placement, sources, kept = case
        told = (kind, placement, sources, "yes" if kept else "no", kernels, waits, f"{min(times[2:]):.0f}")
        print("| " + " | ".join(map(str, told)) + " |", flush=True)


if __name__ == "__main__":
    main()
