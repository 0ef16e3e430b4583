"""The reference for backbones: plain transformers, one unpadded row, full logits, no code of ours.

The model is loaded apart, with its own attention implementation, and the prompt is put before the embeddings by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM


@cache
def plain_model(folder: Path) -> Any:
    """A model of the folder, shared by all tests."""
    return fresh_model(folder)


def fresh_model(folder: Path) -> Any:
    """A model of the folder to change at will."""
    auto = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval().requires_grad_(False)


def plain_log_likelihood(
    folder: Path, input_ids: Sequence[int], target_ids: Sequence[int], prompt: Tensor | None
) -> Tensor:
    """Returns log p(y | [P ; X]) of one row, a scalar; the prompt is [m, d]."""
    model = plain_model(folder)
    table = model.get_input_embeddings().weight
    prefix = table[list(input_ids)]
    if prompt is not None:
        prefix = torch.cat([prompt, prefix])
    target = torch.tensor(list(target_ids), dtype=torch.long)
    if model.config.is_encoder_decoder:
        logits = model(inputs_embeds=prefix[None], labels=target[None]).logits[0]  # [c, vocabulary]
    else:
        logits = model(inputs_embeds=torch.cat([prefix, table[target]])[None]).logits[0]  # [m + l + c, vocabulary]
        logits = logits[len(prefix) - 1 : -1]
    return torch.stack(
        [logits[step].log_softmax(dim=-1)[token] for step, token in enumerate(target.tolist())]
        or [prefix.new_zeros(())]
    ).sum()


def plain_greedy(folder: Path, input_ids: Sequence[int], prompt: Tensor | None, end_id: int, most: int) -> list[int]:
    """Returns the most likely tokens, each from a whole forward pass, without the end token."""
    return greedy(plain_model(folder), input_ids, prompt, end_id, most)


@torch.no_grad()
def greedy(model: Any, input_ids: Sequence[int], prompt: Tensor | None, end_id: int, most: int) -> list[int]:
    """Does the same with a loaded model."""
    table = model.get_input_embeddings().weight
    prefix = table[list(input_ids)]
    if prompt is not None:
        prefix = torch.cat([prompt, prefix])
    written: list[int] = []
    while len(written) < most:
        if model.config.is_encoder_decoder:
            read = torch.tensor([[model.config.decoder_start_token_id, *written]])
            logits = model(inputs_embeds=prefix[None], decoder_input_ids=read).logits
        else:
            logits = model(inputs_embeds=torch.cat([prefix, table[written]])[None]).logits
        token = int(logits[0, -1].argmax())
        if token == end_id:
            break
        written.append(token)
    return written
