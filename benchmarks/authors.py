"""The arrangement of the paper's released code, written anew from its description, and T5 models to run it on.

What makes it what it is: every row padded to 256 tokens, float32, T5's dropout on, the prompts of a batch laid out as
[b, t + 1, m, d] before they are weighed, logits over the whole vocabulary at every target position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from benchmarks.harness import Contender
from benchmarks.rows import padded, random_batches
from tests.models import unigram_tokenizer

WIDTH = 256  # every row is padded to so many tokens

# d_model, d_ff, layers of each half, heads; one head is 64 wide
SIZES = {"T5-small": (512, 2048, 6, 8), "T5-base": (768, 3072, 12, 12)}


def save_random_t5(folder: Path, size: str) -> Path:
    """A T5 of a published size (1.0, tied) with random weights and a small tokenizer, in bf16."""
    from transformers import T5Config, T5ForConditionalGeneration

    width, inner, layers, heads = SIZES[size]
    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    config: Any = T5Config(  # type: ignore[call-arg]
        vocab_size=32128,
        d_model=width,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model: Any = T5ForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_t5(folder: Path, device: str | None, dtype: str | None) -> FrozenBackbone:
    """The saved model as our commands load it."""
    return load_backbone(str(folder), device=device, dtype=dtype)


def plain_t5(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The saved model as transformers loads it, frozen."""
    from transformers import T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model.to(device).requires_grad_(False)


class AuthorsMixture(nn.Module):
    """The mixture of equations 3 and 4 over prompts that are laid out for every row.

    Args:
        sources: [t, m, d].
        target: [m, d].
        rank: r.
    """

    sources: Tensor

    def __init__(self, sources: Tensor, target: Tensor, rank: int = 100) -> None:
        super().__init__()
        width = target.shape[1]
        self.register_buffer("sources", sources)
        self.target = nn.Parameter(target.clone())
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.temperature = width * math.e

    def forward(self, embeddings: Tensor) -> Tensor:
        """P_instance, [b, m, d], of padded embeddings [b, l, d]."""
        b = len(embeddings)
        prompts = torch.cat([self.sources, self.target[None]])  # [t + 1, m, d]
        every = prompts[None].repeat(b, 1, 1, 1)  # [b, t + 1, m, d]
        keys = every.max(dim=2).values  # [b, t + 1, d]
        pooled = embeddings.max(dim=1).values  # [b, d], pads included
        query = self.norm(self.up(nn.functional.silu(self.down(pooled))))
        weights = (torch.einsum("bjd,bd->bj", keys, query) / self.temperature).softmax(dim=1)
        return (weights[..., None, None] * every).sum(dim=1) + self.target


def authors_training(
    name: str, model: Any, rows: Sequence[EncodedRow], length: int, sources: int, width: int = WIDTH
) -> Contender:
    """An epoch of the released code's steps on a frozen T5.

    Args:
        model: of `plain_t5`; the released code computes in float32.
        rows: random tokens.
        length: m.
        sources: t; 0 is its prompt tuning.
        width: what every input is padded to.
    """
    table = model.get_input_embeddings()
    device = table.weight.device
    torch.manual_seed(0)
    drawn = table.weight[torch.randint(len(table.weight), (sources + 1, length), device=device)].float()
    mixture = AuthorsMixture(drawn[:-1], drawn[-1]).to(device)
    trained = list(mixture.parameters()) if sources else [mixture.target]
    optimizer = torch.optim.AdamW(trained, lr=0.3)
    pad = model.config.pad_token_id

    def step(batch: Sequence[EncodedRow]) -> float:
        model.train()  # the dropout of the frozen model stays on
        ids = padded([row.input_ids for row in batch], pad, width=width).to(device)
        mask = padded([[1] * len(row.input_ids) for row in batch], 0, width=width).to(device)
        labels = padded([row.target_ids for row in batch], -100).to(device)
        embeddings = table(ids)
        prompts = mixture(embeddings.float()) if sources else mixture.target.expand(len(batch), -1, -1)
        loss = model(
            inputs_embeds=torch.cat([prompts.to(embeddings.dtype), embeddings], dim=1),
            attention_mask=torch.cat([mask.new_ones(len(batch), length), mask], dim=1),
            labels=labels,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value: float = loss.item()
        return value

    return Contender(name, [partial(step, batch) for batch in random_batches(rows)], len(rows))


def bare_t5_training(name: str, model: Any, batches: Sequence[Sequence[EncodedRow]], length: int) -> Contender:
    """The frozen T5 alone over m + l positions: a forward, and a backward through activations to the embeddings.

    Args:
        model: of `plain_t5`; put in evaluation mode.
        batches: rows of like length together.
        length: how many positions stand before a row's own.
    """
    table = model.get_input_embeddings()
    device, pad = table.weight.device, model.config.pad_token_id
    drawn = table.weight[torch.randint(len(table.weight), (length,), device=device)]

    def step(batch: Sequence[EncodedRow]) -> None:
        model.eval()
        ids = padded([row.input_ids for row in batch], pad).to(device)
        mask = padded([[1] * (length + len(row.input_ids)) for row in batch], 0).to(device)
        leaf = torch.cat([drawn.expand(len(batch), -1, -1), table(ids)], dim=1).detach().requires_grad_()
        labels = padded([row.target_ids for row in batch], -100).to(device)
        model(inputs_embeds=leaf, attention_mask=mask, labels=labels).loss.backward()

    return Contender(name, [partial(step, batch) for batch in batches], sum(map(len, batches)))
