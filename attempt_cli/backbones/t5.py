"""T5's layers with their own backward pass: they compute and keep only what a frozen model needs.

As in `llama`, a sublayer is a function with its gradient written out, of which a frozen model keeps no more than it
must. The numbers are the library's up to the rounding of the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attempt_cli.backbones import attention
from attempt_cli.backbones.attention import causal_mask
from attempt_cli.backbones.norms import FrozenNorm, norm_backward, rms_norm
from attempt_cli.backbones.own_layers import apply, joined, unmapped


class T5Layers:
    """The layers of a frozen T5's encoder and decoder, and their last norms.

    Query, key and value are one product, and so are a gated feed-forward's two and the key and value of attention on
    the encoder's states: their weights move into one tensor, and the model's own become views of it.

    Args:
        model: the whole model; `fits` tells whether it has such layers.
    """

    def __init__(self, model: Any) -> None:
        self.encoder, self.decoder = _Stack(model.get_encoder()), _Stack(model.get_decoder())
        unmapped(model, [part for stack in (self.encoder, self.decoder) for one in stack.layers for part in one.joined])

    @staticmethod
    def fits(model: Any) -> bool:
        """Tells whether a model is a T5 of one dtype, without quantised weights, on a CPU or one NVIDIA GPU."""
        from transformers.models.t5 import modeling_t5 as library

        stacks = [getattr(model, name, None) for name in ("encoder", "decoder")]
        blocks = [getattr(stack, "block", None) for stack in stacks]
        if not all(isinstance(one, nn.ModuleList) and len(one) > 0 for one in blocks):
            return False
        # T5 1.0; T5 1.1 and Flan-T5, whose feed-forward is gated
        kinds = {"relu": library.T5DenseActDense, "gelu_new": library.T5DenseGatedActDense}
        kind = kinds.get(str(model.config.dense_act_fn))
        layers = [block for one in blocks if one is not None for block in one]
        placed = {(parameter.device, parameter.dtype) for parameter in model.parameters()}
        return (
            all(type(layer) is library.T5Block for layer in layers)
            and all(type(layer.layer[-1].DenseReluDense) is kind for layer in layers)
            and all(type(part) is nn.Linear for layer in layers for part in _products(layer))
            and not any(name.endswith(".bias") for layer in layers for name, _ in layer.named_parameters())
            and len(placed) == 1
            and (where := placed.pop())[0].type in ("cpu", "cuda")
            and where[1] in (torch.float32, torch.bfloat16)  # in float16 the library clamps what is not finite
        )

    def encode(self, sequence: Tensor, mask: Tensor | None, kernel: str) -> Tensor:
        """Returns the encoder's states, [b, l, d].

        Args:
            sequence: embeddings, [b, l, d].
            mask: added to the scores, [b, 1, 1, l]; None where all positions are real.
            kernel: of attention.
        """
        stack = self.encoder
        bias, hidden = _added(stack.bias(sequence.shape[1]), mask), sequence
        for weights in stack.layers:
            hidden = apply(_FeedForward, _attended(hidden, weights, bias, kernel), hidden, weights)
        return stack.normed(hidden)

    def decode(self, sequence: Tensor, states: Tensor, mask: Tensor | None, kernel: str) -> Tensor:
        """Returns the decoder's hidden states, [n, c, d].

        Args:
            sequence: embeddings of what is read, [n, c, d].
            states: the encoder's, [b, l, d]; n / b sequences that follow each other read the same.
            mask, kernel: of attention on the states; see `encode`.
        """
        stack, (n, c, _), b = self.decoder, sequence.shape, len(states)
        bias, hidden = stack.bias(c) + causal_mask(c, sequence.dtype, sequence.device), sequence
        flat = states.reshape(-1, states.shape[-1])
        for weights in stack.layers:
            mixed = _attended(hidden, weights, bias, "sdpa" if sequence.is_cuda else "plain")
            own = torch.addmm(hidden.reshape(n * c, -1), mixed.reshape(n * c, -1), weights.out.t()).view(hidden.shape)
            (query,) = apply(_Heads, own, weights.on_states, weights.query, weights.eps, (weights.heads, 1))
            _, h, _, e = query.shape
            key, value = torch.mm(flat, weights.key_value.t()).view(b, -1, 2, h, e).unbind(2)
            # sequences that read the same stand in one row of queries: no key is computed or copied for each
            query = query.transpose(1, 2).reshape(b, n // b * c, h, e).transpose(1, 2)
            seen, _ = attention.attention(
                weights.attention, query, key.transpose(1, 2), value.transpose(1, 2), mask, scaling=1.0, kernel=kernel
            )
            hidden = apply(_FeedForward, seen.reshape(n, c, -1), own, weights)
        return stack.normed(hidden)


def _products(layer: Any) -> list[Any]:
    """Returns the modules that a layer multiplies with: quantised and adapted ones are of other types."""
    names = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
    return [part for name, part in layer.named_modules() if name.rpartition(".")[2] in names]


def _added(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Adds a mask to the bias; on a GPU rows begin at a multiple of 16 bytes, else each layer would copy them."""
    if mask is None:
        return bias
    if not bias.is_cuda:
        return bias + mask
    keys = bias.shape[-1]
    both = bias.new_zeros(len(mask), *bias.shape[1:3], -(-keys // 8) * 8)[..., :keys]
    return torch.add(bias, mask, out=both)


def _attended(hidden: Tensor, weights: _Weights, bias: Tensor, kernel: str) -> Tensor:
    """Returns what a layer's positions see of each other, [n, s, h · e]."""
    query, key, value = apply(_Heads, hidden, weights.first, weights.product, weights.eps, (weights.heads, 3))
    mixed, _ = attention.attention(weights.attention, query, key, value, bias, scaling=1.0, kernel=kernel)
    return mixed.flatten(2)


class _Stack:
    """The encoder's layers or the decoder's, with the bias that all of them add to their scores."""

    def __init__(self, stack: Any) -> None:
        self.layers = [_Weights(block) for block in stack.block]
        self.last = stack.final_layer_norm
        self._attention = stack.block[0].layer[0].SelfAttention
        self._by_distance: Tensor | None = None

    def normed(self, hidden: Tensor) -> Tensor:
        """Returns the last norm's output."""
        normed: Tensor = apply(FrozenNorm, hidden, self.last.weight, self.last.variance_epsilon)
        return normed

    def bias(self, length: int) -> Tensor:
        """Returns the bias of each distance between two of so many positions, [1, h, length, length].

        It depends on the distance alone, and is computed once for all that were asked for.
        """
        known = 0 if self._by_distance is None else (self._by_distance.shape[1] + 1) // 2
        if self._by_distance is None or length > known:
            own, known = self._attention, max(2 * known, length, 64)
            table = own.relative_attention_bias.weight
            buckets = own._relative_position_bucket(
                torch.arange(1 - known, known, device=table.device),
                bidirectional=not own.is_decoder,
                num_buckets=own.relative_attention_num_buckets,
                max_distance=own.relative_attention_max_distance,
            )
            self._by_distance = table[buckets].t().contiguous()
        # row i looks at distances -i …: a window that begins one place earlier for each row
        windows = self._by_distance[:, known - length : known + length - 1].unfold(1, length, 1)
        return windows.flip(1)[None]


class _Weights:
    """A layer's weights; those with the same input are joined."""

    def __init__(self, block: Any) -> None:
        first, last = block.layer[0], block.layer[-1]
        self.attention = first.SelfAttention
        self.heads, self.eps = self.attention.n_heads, first.layer_norm.variance_epsilon
        self.first, self.second = first.layer_norm.weight, last.layer_norm.weight
        self.product = joined(self.attention.q, self.attention.k, self.attention.v)
        self.out = self.last_out = self.attention.o.weight
        dense = last.DenseReluDense
        self.gated = hasattr(dense, "wi_0")
        self.up = joined(dense.wi_0, dense.wi_1) if self.gated else dense.wi.weight
        self.down = dense.wo.weight
        self.joined = [self.product, *([self.up] if self.gated else [])]
        if len(block.layer) == 3:
            across = block.layer[1].EncDecAttention
            self.on_states, self.query = block.layer[1].layer_norm.weight, across.q.weight
            self.key_value = joined(across.k, across.v)
            self.last_out = across.o.weight
            self.joined.append(self.key_value)


class _Heads(torch.autograd.Function):
    """Norm and the product of some heads: [n, s, d] → so many times [n, h, s, e]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, norm: Tensor, weight: Tensor, eps: float, heads: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        (n, s, d), (h, parts) = hidden.shape, heads
        x = hidden.reshape(-1, d)
        normed, root = rms_norm(x, norm, eps)
        ctx.save_for_backward(x, root)
        ctx.weights = norm, weight
        both = torch.mm(normed, weight.t()).view(n, s, parts, h, -1)
        return tuple(part.transpose(1, 2) for part in both.unbind(2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, root = ctx.saved_tensors
        norm, weight = ctx.weights
        n, _, s, _ = gradients[0].shape
        both = torch.stack([one.transpose(1, 2) for one in gradients], dim=2).view(n * s, -1)
        gradient = norm_backward(torch.mm(both, weight), x, norm, root)
        return gradient.view(n, s, -1), None, None, None, None


class _FeedForward(torch.autograd.Function):
    """A layer after its last attention: output product, residual, norm, feed-forward, residual."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, residual: Tensor, weights: _Weights) -> Tensor:
        d = residual.shape[-1]
        x = torch.addmm(residual.reshape(-1, d), mixed.reshape(-1, mixed.shape[-1]), weights.last_out.t())
        normed, root = rms_norm(x, weights.second, weights.eps)
        up = torch.mm(normed, weights.up.t())
        if weights.gated:
            gate, linear = up.chunk(2, dim=-1)
            active = functional.gelu(gate, approximate="tanh").mul_(linear)
        else:
            active = up.relu_()
        ctx.save_for_backward(x, root, up)
        ctx.weights = weights
        return torch.addmm(x, active, weights.down.t()).view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, root, up = ctx.saved_tensors
        weights, gradient = ctx.weights, gradients[0]
        above = gradient.reshape(-1, gradient.shape[-1])
        inner = torch.mm(above, weights.down)
        if weights.gated:
            gate, linear = up.chunk(2, dim=-1)
            both = torch.empty_like(up)
            of_gate, of_linear = both.chunk(2, dim=-1)
            torch.mul(functional.gelu(gate, approximate="tanh"), inner, out=of_linear)
            torch.ops.aten.gelu_backward.grad_input(inner.mul_(linear), gate, approximate="tanh", grad_input=of_gate)
        else:
            both = torch.ops.aten.threshold_backward(inner, up, 0)
        x_gradient = norm_backward(torch.mm(both, weights.up), x, weights.second, root).add_(above)
        mixed = torch.mm(x_gradient, weights.last_out)
        return mixed.view(*gradient.shape[:-1], -1), x_gradient.view(gradient.shape), None
