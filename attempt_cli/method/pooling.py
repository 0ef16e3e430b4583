"""Max-pooling: one vector for an input, one for a prompt (section 3.2 of the paper)."""

from __future__ import annotations

from torch import Tensor


def pool_input(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Pools an input to x̂: the maximum of each dimension over the row's real tokens.

    Padding takes no part: otherwise x̂, and with it the mixture, would depend on the lengths of the other rows in the
    batch.

    Args:
        embeddings: X, [b, l, d].
        mask: true at real tokens, [b, l]; every row has at least one.

    Returns:
        x̂, [b, d].
    """
    return embeddings.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def pool_prompts(prompts: Tensor) -> Tensor:
    """Pools prompts to p̂: the maximum of each dimension over a prompt's m rows.

    Args:
        prompts: [..., m, d].

    Returns:
        p̂, [..., d].
    """
    return prompts.amax(dim=-2)
