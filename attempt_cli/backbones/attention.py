"""The attention that decoder-only backbones run with: it can read keys and values that were computed before.

transformers calls it by the name `attempt`. Without `past` it is the library's causal attention. With `past` (keys and
values of what stands before several tails: an input before prompts, or a prompt before inputs) they are not computed
again, no key is repeated for grouped heads, and matrix products copy none for the tails that share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones.machine import machine_name, recall, remember, wait

NAME = "attempt"

# arguments of other architectures' attention that change its numbers; we do not compute them
_FOREIGN = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class Past:
    """Keys and values of what stands before tails, computed once: of inputs, without gradient, or of a prompt, with it.

    Args:
        keys, values: of each layer, [b, g, l, e]: g key heads of width e; pads on the right.
        lengths: real positions of each, [b].
        padded: whether any has pads.
        tails: how many tails stand behind each; row i's tails are rows i·tails … of the tails' batch.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    lengths: Tensor
    padded: bool
    tails: int = 1

    @property
    def width(self) -> int:
        """l, pads included."""
        return self.keys[0].shape[2]

    def of_layer(self, layer: int) -> Past:
        """What one layer looks back at: itself where it holds one layer only."""
        return self if len(self.keys) == 1 else replace(self, keys=[self.keys[layer]], values=[self.values[layer]])

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """0 at real tokens and the dtype's minimum at pads, [b, 1, 1, l]; None where there are no pads."""
        if not self.padded:
            return None
        pads = torch.arange(self.width, device=self.lengths.device) >= self.lengths[:, None]
        mask = torch.zeros(pads.shape, dtype=dtype, device=pads.device)
        return mask.masked_fill(pads, torch.finfo(dtype).min)[:, None, None]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    past: Past | None = None,
    past_mask: Tensor | None = None,
    keep: list[tuple[Tensor, Tensor]] | None = None,
    kernel: str = "plain",
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(q·k · scaling + mask)·v in the shape that transformers expects.

    Args:
        query: [n, h, s, e], n = b · tails.
        key, value: [n, g, s, e].
        attention_mask: added to the scores of `key`, [n or 1, 1, s, s]; None where nothing is masked.
        past: what stands before; its own mask is `past_mask`, [b, 1, 1, l].
        keep: gets this layer's key and value appended.
        kernel: "plain" (matrix products) or "sdpa" (`torch.nn.functional.scaled_dot_product_attention`).

    Raises:
        ValueError: the architecture's attention has a part that is not computed here.
    """
    if any(others.get(name) is not None for name in _FOREIGN):
        raise ValueError("its attention has parts of its own")
    if keep is not None:
        keep.append((key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if past is not None and len(past.keys) > 1:  # a compiled layer is given its own: were its number read here, the
        past = past.of_layer(module.layer_idx)  # compiler would take every layer for another case
    # sdpa needs the past once for every tail; that pays where the tails are the longer part
    if kernel == "sdpa" and (past is None or past.tails == 1 or past.width <= query.shape[2]):
        output = _sdpa(query, key, value, attention_mask, scale, past, past_mask)
    else:
        output = _plain(query, key, value, attention_mask, scale, past, past_mask)
    return output.transpose(1, 2), None


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    past: Past | None,
    past_mask: Tensor | None,
) -> Tensor:
    n, h, s, e = query.shape
    g = key.shape[1]
    grouped = (query * scale).reshape(n, g, h // g * s, e)
    scores = grouped @ key.transpose(2, 3)  # [n, g, h/g · s, s]
    if mask is not None:
        scores = scores.add_(mask.repeat(1, 1, h // g, 1))  # in place: the product's backward does not read its result
    if past is None:
        return (scores.softmax(dim=-1) @ value).reshape(n, h, s, e)  # in bf16, too, its sums are in fp32
    keys, values = past.keys[0], past.values[0]  # [b, g, l, e]
    b, length = keys.shape[0], keys.shape[2]
    before = _shared(grouped, b) @ keys.transpose(2, 3)  # [b, g, tails · h/g · s, l]
    if past_mask is not None:
        before = before.add_(past_mask)
    weights = torch.cat([before, _shared(scores, b)], dim=-1).softmax(dim=-1)  # the past is the longer: it stays put
    # one split, not two slices: the backward of a slice fills a whole tensor with noughts
    on_past, own = weights.split_with_sizes([length, s], dim=-1)
    return (_apart(on_past @ values, n) + _apart(own, n) @ value).reshape(n, h, s, e)


def _shared(tails: Tensor, b: int) -> Tensor:
    """Puts an input's tails side by side: all meet its keys in one product. [b·k, g, q, e] → [b, g, k·q, e]."""
    n, g, q, e = tails.shape
    return tails if n == b else tails.view(b, n // b, g, q, e).transpose(1, 2).reshape(b, g, n // b * q, e)


def _apart(side_by_side: Tensor, n: int) -> Tensor:
    """The reverse of `_shared`."""
    b, g, _, e = side_by_side.shape
    return side_by_side if n == b else side_by_side.view(b, g, n // b, -1, e).transpose(1, 2).reshape(n, g, -1, e)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    past: Past | None,
    past_mask: Tensor | None,
) -> Tensor:
    if past is not None:
        keys, values = past.keys[0], past.values[0]
        if len(keys) < len(query):
            keys, values = (both.repeat_interleave(past.tails, dim=0) for both in (keys, values))
            past_mask = None if past_mask is None else past_mask.repeat_interleave(past.tails, dim=0)
        if mask is not None or past_mask is not None:
            s, length = query.shape[2], keys.shape[2]
            before = query.new_zeros(1, 1, 1, length) if past_mask is None else past_mask
            own = query.new_zeros(1, 1, s, s) if mask is None else mask
            b = max(len(before), len(own))  # one mask for all rows where they have it
            mask = torch.cat([before.expand(b, -1, s, -1), own.expand(b, -1, -1, -1)], dim=-1)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=key.shape[1] != query.shape[1]
    )


def register() -> None:
    """Makes the attention known to transformers under its name; masks are those of the eager attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a position may look, the dtype's minimum where it may not, [1, 1, length, length]."""
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu(1)[None, None]


# which kernel

# up to so many keys both take microseconds, and matrix products are taken unmeasured
UNMEASURED = 64
KERNELS = "attention-kernels"


@dataclass(frozen=True)
class Shape:
    """What a kernel's speed hangs on.

    Args:
        device, dtype: where and in what it computes.
        heads, key_heads, width: of the attention.
        keys: how many positions are looked at.
        backward: whether a gradient is wanted, too.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    width: int
    keys: int
    backward: bool


def choose_kernel(shape: Shape) -> str:
    """The faster of the two kernels, measured once on this machine for the next power of two of keys, and kept.

    It is kept in the cache's folder, so that a resumed training computes with the kernel it began with.
    """
    if shape.keys <= UNMEASURED:
        return "plain"
    return _kept_kernel(replace(shape, keys=1 << (shape.keys - 1).bit_length()))


@lru_cache(maxsize=256)
def _kept_kernel(shape: Shape) -> str:
    name = (
        f"{machine_name(shape.device)} {shape.dtype} heads {shape.heads}/{shape.key_heads}x{shape.width} "
        f"keys {shape.keys} {'and back' if shape.backward else 'forward'}"
    )
    kept: Any = recall(KERNELS, name)
    if kept in ("plain", "sdpa"):
        return str(kept)
    fastest = _measured_kernel(shape)
    remember(KERNELS, name, fastest)
    return fastest


def _measured_kernel(shape: Shape) -> str:
    """Causal attention over 4 rows, each kernel in turn, best of 5."""
    mask = causal_mask(shape.keys, shape.dtype, shape.device)
    heads = (shape.heads, shape.key_heads, shape.key_heads)
    query, key, value = (
        torch.randn(4, n, shape.keys, shape.width, dtype=shape.dtype, device=shape.device).requires_grad_(
            shape.backward
        )
        for n in heads
    )
    kernels: dict[str, Callable[..., Tensor]] = {"plain": _plain, "sdpa": _sdpa}
    best = dict.fromkeys(kernels, float("inf"))
    with torch.set_grad_enabled(shape.backward):
        for turn in range(6):
            for kernel, function in kernels.items():
                wait(shape.device)
                began = time.perf_counter()
                output = function(query, key, value, mask, shape.width**-0.5, None, None)
                if shape.backward:
                    output.sum().backward()  # type: ignore[no-untyped-call]
                wait(shape.device)
                if turn:  # the first call sets things up
                    best[kernel] = min(best[kernel], time.perf_counter() - began)
    return min(best, key=best.__getitem__)
