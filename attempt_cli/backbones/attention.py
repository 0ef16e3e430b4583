"""The attention of decoder-only backbones, which can read keys and values that were computed before.

transformers calls it by the name `attempt`. Without `past` it is the library's causal attention. `past` holds the keys
and values of a prefix that several suffixes share: an input before prompts, or a prompt before inputs. They are not
computed again, no key is repeated for grouped heads, and matrix products copy none for the suffixes that share it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NAME = "attempt"

# arguments of other architectures' attention that change its result; this one does not compute them
_FOREIGN = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class Past:
    """Keys and values of prefixes, computed once: of inputs, without gradient, or of a prompt, with gradient.

    Args:
        keys, values: one tensor per layer, [b, g, l, e]: g key heads of width e; pads on the right.
        lengths: real positions of each prefix, [b].
        padded: whether any prefix has pads.
        suffixes: the number of suffixes of each prefix; those of prefix i are rows i·suffixes … of the suffix batch.
        states: the last hidden states of each prefix, [b, 2, d] (`FrozenBackbone.states`), where they are asked for.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    lengths: Tensor
    padded: bool
    suffixes: int = 1
    states: Tensor | None = None

    @property
    def width(self) -> int:
        """l, pads included."""
        return self.keys[0].shape[2]

    def of_layer(self, layer: int) -> Past:
        """Returns the keys and values of one layer; itself if it holds one layer only."""
        return self if len(self.keys) == 1 else replace(self, keys=[self.keys[layer]], values=[self.values[layer]])

    def beside(self, device: torch.device) -> Past:
        """Returns itself with keys and values on a device, where layers that are spread over several look for them."""
        if self.keys[0].device == device:
            return self
        keys, values = ([one.to(device) for one in both] for both in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def of_rows(self, numbers: Sequence[int], at: Tensor) -> Past:
        """Returns some of the prefixes, by number (`at` has them on the device); copies nothing where all are meant."""
        if list(numbers) == list(range(len(self.lengths))):
            return self
        keys, values = [key[at] for key in self.keys], [value[at] for value in self.values]
        states = None if self.states is None else self.states[at]
        return replace(self, keys=keys, values=values, lengths=self.lengths[at], states=states)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Returns the additive mask of real tokens, [b, 1, 1, l]; None if there are no pads."""
        if not self.padded:
            return None
        real = torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]
        return additive_mask(real[:, None], dtype)


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
    keep: MutableSequence[tuple[Tensor, Tensor]] | None = None,
    kernel: str = "plain",
    causal: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """Computes softmax(q·k · scaling + mask)·v, in the shape that transformers expects.

    Args:
        query: [n, h, s, e], n = b · suffixes.
        key, value: [n, g, s, e].
        attention_mask: added to the scores of `key`, [n or 1, 1, s, s]; None masks nothing. One of the past's scores,
            too, is [n or 1, 1, s, l + s].
        past: keys and values of the prefixes; `past_mask` is their own mask, [b, 1, 1, l].
        keep: a sequence that this layer's key and value are appended to.
        kernel: a name in `KERNELS`.
        causal: every position sees those before it, and no past: kernels that keep no scores need no mask for that.

    Raises:
        ValueError: the architecture's attention has a part that is not computed here.
    """
    if any(others.get(name) is not None for name in _FOREIGN):
        raise ValueError("its attention has parts that ours does not compute")
    if keep is not None:
        keep.append((key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if past is not None and len(past.keys) > 1:  # a compiled layer is handed its own past: if its number were read
        past = past.of_layer(module.layer_idx)  # here, the compiler would treat every layer as another case
    past = past.beside(query.device) if past is not None else None
    # sdpa needs a copy of the past for every suffix; that pays only if the suffixes are the longer part
    if past is not None and past.suffixes > 1 and past.width > query.shape[2]:
        kernel = "plain"
    if causal and kernel == "sdpa":
        return _fused(query, key, value, None, scale).transpose(1, 2), None
    return KERNELS[kernel](query, key, value, attention_mask, scale, past, past_mask).transpose(1, 2), None


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
        whole = mask if g == h else mask.repeat(1, 1, h // g, 1)
        scores = scores.add_(whole)  # in place: the backward pass does not read the product
    if past is None:
        return (scores.softmax(dim=-1) @ value).reshape(n, h, s, e)  # sums in fp32, in bf16 too
    keys, values = past.keys[0], past.values[0]  # [b, g, l, e]
    b, length = keys.shape[0], keys.shape[2]
    before = _shared(grouped, b) @ keys.transpose(2, 3)  # [b, g, suffixes · h/g · s, l]
    if past_mask is not None:
        before = before.add_(past_mask)
    weights = torch.cat([before, _shared(scores, b)], dim=-1).softmax(dim=-1)  # the longer past is not moved
    # one split, not two slices: the backward of a slice fills a whole tensor with zeros
    on_past, own = weights.split_with_sizes([length, s], dim=-1)
    return (_apart(on_past @ values, n) + _apart(own, n) @ value).reshape(n, h, s, e)


def _shared(suffixes: Tensor, b: int) -> Tensor:
    """Puts a prefix's suffixes side by side, so that one product takes its keys: [b·k, g, q, e] → [b, g, k·q, e]."""
    n, g, q, e = suffixes.shape
    return suffixes if n == b else suffixes.view(b, n // b, g, q, e).transpose(1, 2).reshape(b, g, n // b * q, e)


def _apart(side_by_side: Tensor, n: int) -> Tensor:
    """Reverses `_shared`."""
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
        whole = mask is not None and mask.shape[-1] > query.shape[2]
        if len(keys) < len(query):
            keys, values = (both.repeat_interleave(past.suffixes, dim=0) for both in (keys, values))
            past_mask = None if past_mask is None else past_mask.repeat_interleave(past.suffixes, dim=0)
        if not whole and (mask is not None or past_mask is not None):
            s, length = query.shape[2], keys.shape[2]
            before = query.new_zeros(1, 1, 1, length) if past_mask is None else past_mask
            own = query.new_zeros(1, 1, s, s) if mask is None else mask
            b = max(len(before), len(own))  # one mask for all rows if it is the same
            mask = torch.cat([before.expand(b, -1, s, -1), own.expand(b, -1, -1, -1)], dim=-1)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    return _fused(query, key, value, mask, scale, causal=False)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool = True) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.is_cuda and (mask is not None or query.dtype == torch.float32):
        # no kernel that keeps no scores takes grouped heads with a mask, or in fp32
        key, value = (both.repeat_interleave(groups, dim=1) for both in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=key.shape[1] != query.shape[1]
    )


# matrix products, and `torch.nn.functional.scaled_dot_product_attention`
KERNELS: dict[str, Callable[..., Tensor]] = {"plain": _plain, "sdpa": _sdpa}


def register() -> None:
    """Registers the attention with transformers under `NAME`; its masks are those of eager attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the additive mask of causal attention, [1, 1, length, length]."""
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu(1)[None, None]


def joined_mask(own: Tensor, past_mask: Tensor | None, length: int) -> Tensor:
    """Returns the mask of suffixes over their past and themselves, [n or 1, 1, s, l + s].

    Args:
        own: between the suffix's positions, [n or 1, 1, s, s].
        past_mask: of the past's real positions, [n, 1, 1, l]; None where all are real.
        length: l.
    """
    s = own.shape[-1]
    n = max(len(own), 1 if past_mask is None else len(past_mask))
    # rows that begin at a multiple of 16 bytes are read as they are; others each layer would copy
    joined = own.new_zeros(n, 1, s, -(-(length + s) // 8) * 8)[..., : length + s]
    if past_mask is not None:
        joined[..., :length] = past_mask
    joined[..., length:] = own
    return joined


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a mask of what may be seen, [b, s, s], into one that is added to scores, [b, 1, s, s].

    It is 0 where a position may look and the dtype's minimum where it may not.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
