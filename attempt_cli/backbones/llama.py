"""Llama's layers with their own backward pass: they compute and keep only what a frozen model needs.

The library's layers are some sixty small operations, each of which reads and writes whole tensors; on processors that
multiply bf16 matrices fast these cost more than the products do, and on a GPU launching them does. Here a layer is two
functions around its attention, each with its gradient written out: weights get no gradient, nothing is kept that other
kept tensors determine, and sums are made in place. The numbers are the library's up to the rounding of the dtype.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attempt_cli.backbones import attention
from attempt_cli.backbones.attention import Past, causal_mask
from attempt_cli.backbones.norms import FrozenNorm, norm_backward, rms_norm
from attempt_cli.backbones.own_layers import apply, joined, unmapped


class LlamaLayers:
    """The layers of a frozen Llama, and its last norm.

    Query, key and value are one product, and so are the feed-forward's gate and up projections: their weights move into
    one tensor, and the model's own become views of it. No weight is kept twice. From then on the model must keep its
    device and dtype.

    Args:
        model: the whole causal model; `fits` tells whether its base has such layers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.base_model
        config = model.config
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.layers = [_Weights(layer) for layer in self.model.layers]
        unmapped(model, [weights for layer in self.layers for weights in (layer.heads, layer.gate_up)])

    @staticmethod
    def fits(model: Any) -> bool:
        """Tells whether a base model is a Llama without biases and quantised weights, on a CPU or one NVIDIA GPU."""
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        layers = getattr(model, "layers", None)
        return (
            isinstance(layers, nn.ModuleList)
            and len(layers) > 0
            and all(type(layer) is LlamaDecoderLayer for layer in layers)
            and model.config.hidden_act == "silu"
            and all(type(module) is nn.Linear for name, module in layers.named_modules() if name.endswith("_proj"))
            and not any(name.endswith(".bias") for name, _ in layers.named_parameters())
            and len(devices := {parameter.device for parameter in model.parameters()}) == 1
            and devices.pop().type in ("cpu", "cuda")
        )

    def __call__(
        self,
        sequence: Tensor,
        kernel: str,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past: Past | None = None,
        past_mask: Tensor | None = None,
        keep: MutableSequence[tuple[Tensor, Tensor]] | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Returns hidden states, [n, s, d], of embeddings [n, s, d]; for other arguments see `attention.attention`.

        Args:
            at: k rows and positions: the result is [k, d], and the last layer's feed-forward runs for these only.
        """
        s = sequence.shape[1]
        if position_ids is None:
            position_ids = torch.arange(s, device=sequence.device)[None]
        if attention_mask is None and not causal:
            attention_mask = causal_mask(s, sequence.dtype, sequence.device)
        cos, sin = self.model.rotary_emb(sequence, position_ids=position_ids)
        if sequence.is_cuda:
            sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], dim=-1)
        heads = _HeadsOnGpu if sequence.is_cuda else _Heads
        hidden = sequence
        for weights in self.layers:
            query, key, value = apply(heads, hidden, weights, cos, sin, self.heads)
            mixed, _ = attention.attention(
                weights.attention,
                query,
                key,
                value,
                attention_mask,
                scaling=weights.attention.scaling,
                past=past,
                past_mask=past_mask,
                keep=keep,
                kernel=kernel,
                causal=causal,
            )
            mixed = mixed.flatten(2)
            if at is not None and weights is self.layers[-1]:
                mixed, hidden = mixed[at], hidden[at]
            hidden = apply(_Rest, mixed, hidden, weights)
        last = self.model.norm
        normed: Tensor = apply(FrozenNorm, hidden, last.weight, last.variance_epsilon)
        return normed


class _Weights:
    """A layer's weights; those with the same input are joined."""

    def __init__(self, layer: Any) -> None:
        self.attention, mlp = layer.self_attn, layer.mlp
        self.heads = joined(self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        self.out = self.attention.o_proj.weight
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj)
        self.down = mlp.down_proj.weight
        first, second = layer.input_layernorm, layer.post_attention_layernorm
        self.first, self.second, self.eps = first.weight, second.weight, first.variance_epsilon


def _product(hidden: Tensor, weights: _Weights, heads: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the flat input, [n·s, d], the roots of its norm, and query, key and value, [n, s, h + 2g, e]."""
    n, s, d = hidden.shape
    x = hidden.reshape(-1, d)
    normed, root = rms_norm(x, weights.first, weights.eps)
    return x, root, torch.mm(normed, weights.heads.t()).view(n, s, heads[0] + 2 * heads[1], -1)


class _Heads(torch.autograd.Function):
    """Norm, the product for query, key and value, and the rotary embedding: [n, s, d] → [n, h | g | g, s, e]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: _Weights, cos: Tensor, sin: Tensor, heads: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        (n, s, _), (h, g) = hidden.shape, heads
        x, root, both = _product(hidden, weights, heads)
        e = both.shape[-1]
        cos, sin = cos[:, :, None, : e // 2], sin[:, :, None, : e // 2]  # their two halves are equal
        query, key = both.new_empty(n, h, s, e), both.new_empty(n, g, s, e)
        _turn(both[:, :, :h], cos, sin, query.transpose(1, 2))
        _turn(both[:, :, h : h + g], cos, sin, key.transpose(1, 2))
        ctx.save_for_backward(x, root, cos, sin)
        ctx.weights, ctx.heads = weights, heads
        # three separate tensors: keeping one of them (the input cache does) keeps nothing else
        return query, key, both[:, :, h + g :].transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, root, cos, sin = ctx.saved_tensors
        h, g = ctx.heads
        query, key, value = (gradient.transpose(1, 2) for gradient in gradients)
        n, s, _, e = query.shape
        both = query.new_empty(n, s, h + 2 * g, e)
        _turn(query, cos, -sin, both[:, :, :h])  # turned back
        _turn(key, cos, -sin, both[:, :, h : h + g])
        both[:, :, h + g :] = value
        product = torch.mm(both.view(n * s, -1), ctx.weights.heads)
        return norm_backward(product, x, ctx.weights.first, root).view(n, s, -1), None, None, None, None


class _HeadsOnGpu(torch.autograd.Function):
    """What `_Heads` is, in few kernels: all heads are rotated at once, in the tensor that the product has made."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: _Weights, cos: Tensor, sin: Tensor, heads: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, g = heads
        x, root, both = _product(hidden, weights, heads)
        _turn_in_place(both[:, :, : h + g], cos[:, :, None], sin[:, :, None], 1)
        ctx.save_for_backward(x, root, cos, sin)
        ctx.weights, ctx.heads = weights, heads
        query, key, value = both.transpose(1, 2).split_with_sizes([h, g, g], dim=1)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, root, cos, sin = ctx.saved_tensors
        h, g = ctx.heads
        both = torch.cat([gradient.transpose(1, 2) for gradient in gradients], dim=2)
        n, s = both.shape[:2]
        _turn_in_place(both[:, :, : h + g], cos[:, :, None], sin[:, :, None], -1)
        product = torch.mm(both.view(n * s, -1), ctx.weights.heads)
        return norm_backward(product, x, ctx.weights.first, root).view(n, s, -1), None, None, None, None


def _turn_in_place(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    """Rotates the pairs (i, i + e/2) of [n, s, heads, e], forth (1) or back (-1).

    Args:
        cos, sin: [n or 1, s, 1, e]; the sines of the first half with their sign changed.
    """
    other = x.roll(x.shape[-1] // 2, dims=-1)
    x.mul_(cos).addcmul_(other, sin, value=direction)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotates the pairs (i, i + e/2) of [n, s, heads, e] by the angles of [n or 1, s, 1, e/2]."""
    (a, b), (to_a, to_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=to_a)
    to_a.addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=to_b)
    to_b.addcmul_(a, sin)


class _Rest(torch.autograd.Function):
    """The rest of a layer after attention, at any positions: output product, residual, norm, feed-forward, residual."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, residual: Tensor, weights: _Weights) -> Tensor:
        d = residual.shape[-1]
        x = torch.addmm(residual.reshape(-1, d), mixed.reshape(-1, mixed.shape[-1]), weights.out.t())
        normed, root = rms_norm(x, weights.second, weights.eps)
        gate_up = torch.mm(normed, weights.gate_up.t())
        gate, up = gate_up.chunk(2, dim=-1)
        ctx.save_for_backward(x, root, gate_up)
        ctx.weights = weights
        return torch.addmm(x, functional.silu(gate).mul_(up), weights.down.t()).view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, root, gate_up = ctx.saved_tensors
        weights = ctx.weights
        gradient = gradients[0]
        above = gradient.reshape(-1, gradient.shape[-1])
        inner = torch.mm(above, weights.down)
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        of_gate, of_up = both.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), inner, out=of_up)
        torch.ops.aten.silu_backward.grad_input(inner.mul_(up), gate, grad_input=of_gate)
        x_gradient = norm_backward(torch.mm(both, weights.gate_up), x, weights.second, root).add_(above)
        mixed = torch.mm(x_gradient, weights.out)
        return mixed.view(*gradient.shape[:-1], -1), x_gradient.view(gradient.shape), None
