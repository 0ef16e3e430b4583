"""Where a prompt starts: embeddings of frequent words, never noise."""

from __future__ import annotations

import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone

FREQUENT = 5000  # Lester et al. (2021) sample from the 5,000 most frequent pieces


def frequent_words(backbone: FrozenBackbone) -> list[int]:
    """Returns the ids of the most frequent whole words of the vocabulary.

    Subword vocabularies number their pieces by frequency, so the first ones that begin a word and consist of letters
    are the frequent words. A vocabulary without such marks gives its first pieces that are not special.
    """
    tokenizer = backbone.tokenizer
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), backbone.vocabulary_size)))
    words = [i for i, piece in enumerate(pieces) if piece and piece[0] in "▁Ġ" and piece[1:].isalpha()]
    return (words or [i for i in range(len(pieces)) if i not in special])[:FREQUENT]


def vocabulary_prompt(backbone: FrozenBackbone, length: int, generator: torch.Generator) -> Tensor:
    """Makes a prompt of sampled word embeddings.

    Args:
        length: m.
        generator: chooses the words, with repetition only where there are fewer than m.

    Returns:
        [m, d], float32, as they enter the model.
    """
    words = torch.tensor(frequent_words(backbone))
    if len(words) >= length:
        chosen = words[torch.randperm(len(words), generator=generator)[:length]]
    else:
        chosen = words[torch.randint(len(words), (length,), generator=generator)]
    with torch.no_grad():
        return backbone.embed(chosen.to(backbone.device)).float().cpu()
