"""Where a prompt is placed: before a row's input or after it."""

from __future__ import annotations

from typing import Literal, get_args

# "before" is the paper's [P ; X]: the input's own pass sees the prompt. "after" is [X ; P], for decoder-only backbones:
# the input's own pass sees no prompt and needs no gradient, so its keys and values are computed once. A prompt trained
# for one placement means nothing in the other.
Placement = Literal["before", "after"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
