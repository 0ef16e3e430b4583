"""Looks inside prompts: the attention of rows on sources, and the vocabulary's tokens nearest to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.batches import by_length
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import MAX_TOKENS, encode_examples
from attempt_cli.prompted import PromptedModel

VOCABULARY_AT_ONCE = 8192


@torch.no_grad()
def row_attention(
    model: PromptedModel,
    task: Task,
    examples: Sequence[Example],
    *,
    task_index: int = 0,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Computes the mixture's weights for every row from embeddings alone: the backbone's layers do not run.

    Args:
        model: a model with sources in its mixture.
        task: renders and limits the rows.
        examples: the rows.
        task_index: the index of these rows' target prompt in the mixture.
        max_length: the longest input in tokens; None takes the task's own limit.
        max_tokens: the token budget of a batch.

    Returns:
        a of equation 3, [n, t + 1], float32; the target is the last, without the 1 that equation 4 adds.

    Raises:
        ValueError: the model has no sources.
    """
    encoded = encode_examples(model, task, examples, max_length)
    found: list[Tensor | None] = [None] * len(encoded)
    for indices in by_length([len(row.input_ids) for row in encoded], 0, max_tokens):
        batch = model.backbone.collate([encoded[i] for i in indices])
        task_ids = torch.full((len(indices),), task_index, device=model.backbone.device)
        _, weights = model.prompts(batch, model.backbone.embed(batch.input_ids), task_ids)
        if weights is None:
            raise ValueError("a model without sources attends to nothing")
        for index, row in zip(indices, weights.cpu(), strict=True):
            found[index] = row
    return torch.stack([row for row in found if row is not None])


@dataclass(frozen=True)
class NearToken:
    """A token of the vocabulary and the distance of its embedding to a prompt's row.

    Args:
        token: its text, a space before a word as "▁".
        cosine: the cosine of the two vectors.
        l2: the length of their difference, in the units of the embedding table.
    """

    token: str
    cosine: float
    l2: float


@torch.no_grad()
def nearest_tokens(backbone: FrozenBackbone, prompt: Tensor, count: int) -> list[list[NearToken]]:
    """Finds the tokens of the vocabulary that are nearest to each row of a prompt by cosine, nearest first.

    Args:
        backbone: has the vocabulary.
        prompt: [m, d], as it enters the model.
        count: the number of tokens for each row.
    """
    prompt = prompt.to(backbone.device).float()
    ids = torch.arange(min(len(backbone.tokenizer), backbone.vocabulary_size), device=backbone.device)
    unit = torch.nn.functional.normalize(prompt, dim=1)
    cosines = torch.cat(
        [
            unit @ torch.nn.functional.normalize(backbone.embed(part).float(), dim=1).T
            for part in torch.split(ids, VOCABULARY_AT_ONCE)
        ],
        dim=1,
    )  # [m, v]
    best = cosines.topk(min(count, len(ids)), dim=1)
    lengths = (backbone.embed(best.indices).float() - prompt[:, None]).norm(dim=2)  # [m, count]
    return [
        [NearToken(token_text(backbone.tokenizer, int(i)), float(c), float(d)) for i, c, d in zip(*row, strict=True)]
        for row in zip(best.indices, best.values, lengths, strict=True)
    ]


def token_text(tokenizer: Any, token_id: int) -> str:
    """Returns a readable token: a space before a word is "▁" in every vocabulary, a line break "\\n"."""
    piece: str = tokenizer.convert_ids_to_tokens(token_id)
    text = piece if piece.startswith("▁") else tokenizer.decode([token_id]).replace(" ", "▁")
    return text.replace("\n", "\\n") or piece


def prompt_cosines(prompt: Tensor, target: Tensor) -> tuple[float, float]:
    """Computes SPoT's two similarities of prompts (Vu et al. 2022): of their mean rows, and the mean over row pairs.

    Args:
        prompt, target: [m, d], in any units.

    Returns:
        The cosine of the two mean rows, and the mean cosine of all pairs of rows.
    """
    pooled = torch.nn.functional.cosine_similarity(prompt.mean(dim=0), target.mean(dim=0), dim=0)
    pairs = torch.nn.functional.normalize(prompt, dim=1) @ torch.nn.functional.normalize(target, dim=1).T
    return float(pooled), float(pairs.mean())
