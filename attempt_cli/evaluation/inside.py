"""What a prompt looks like from inside: who attends to what, and which words a prompt is near to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.data.task import Example, Task
from attempt_cli.evaluation.prediction import MAX_TOKENS, encode_examples

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
    """The mixture's weights for every row; the backbone's layers do not run, only its embeddings are looked up.

    Args:
        model: with sources in its mixture.
        task_index: which of its target prompts these rows have.
        max_length: the longest input in tokens; the task's own limit without it.
        max_tokens: token positions at once.

    Returns:
        a of equation 3, [n, t + 1], float32; the target is the last, its own weight before it is added once more.

    Raises:
        ValueError: the model mixes nothing.
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
    """A token of the vocabulary and how near its embedding is to a prompt's row.

    Args:
        token: as people read it, a space before a word as "▁".
        cosine: of the two vectors.
        l2: the length of their difference, in the units of the embedding table.
    """

    token: str
    cosine: float
    l2: float


@torch.no_grad()
def nearest_tokens(backbone: FrozenBackbone, prompt: Tensor, count: int) -> list[list[NearToken]]:
    """The tokens of the vocabulary that are nearest to each row of a prompt by cosine, nearest first.

    Args:
        backbone: whose vocabulary.
        prompt: [m, d], as it enters the model.
        count: tokens for each row.
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
    """A token as people read it: a space before a word is "▁" in every vocabulary, a line break "\\n"."""
    piece: str = tokenizer.convert_ids_to_tokens(token_id)
    text = piece if piece.startswith("▁") else tokenizer.decode([token_id]).replace(" ", "▁")
    return text.replace("\n", "\\n") or piece


def prompt_cosines(prompt: Tensor, target: Tensor) -> tuple[float, float]:
    """How alike two prompts are, in SPoT's two ways (Vu et al. 2022): of their mean rows, and the mean over all rows.

    Args:
        prompt, target: [m, d], in any units.

    Returns:
        The cosine of the two mean rows, and the mean cosine of all pairs of rows.
    """
    pooled = torch.nn.functional.cosine_similarity(prompt.mean(dim=0), target.mean(dim=0), dim=0)
    pairs = torch.nn.functional.normalize(prompt, dim=1) @ torch.nn.functional.normalize(target, dim=1).T
    return float(pooled), float(pairs.mean())
