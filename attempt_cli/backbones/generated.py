"""Adapters whose weights a network generates: HyperFormer from tasks and layers, HyperDecoder from the input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import Batch
from attempt_cli.backbones.shapes import BackboneShape
from attempt_cli.backbones.tuned import REDUCTION, TunedWeights, layer_outputs, stack_depths

# HyperFormer: entries of the embeddings of tasks, layers and places, of the projection's hidden layer, of what it gives
EMBEDDING, HIDDEN, PROJECTED = 64, 128, 64
# HyperDecoder: an adapter's bottleneck, the hypernetwork's, and entries of a layer's embedding
BOTTLENECK, HYPER_BOTTLENECK, LAYER_EMBEDDING = 64, 128, 10


class TaskGenerated(TunedWeights):
    """HyperFormer++ (Karimi Mahabadi et al., ACL 2021): a generator a stack makes the adapters of all tasks and layers.

    For each task τ, layer l and place p (behind the attention, behind the feed-forward) I = LN(h([z_τ ; l ; p])), and
    linear functions of I give the adapter D, U, their biases, and a layer norm's γ and β:
    x + LN_{γ,β}(U · GELU(D x + b_D) + b_U). Trained are the generators, the embeddings and the model's own layer norms.
    A stack is T5's encoder, its decoder, or the layers of a decoder-only model. As in the authors' code all matrices of
    the generators start from N(0, 0.01²), biases from zero, embeddings from N(0, 1), and the GELU is the tanh form.

    Args:
        backbone: the backbone.
        tasks: n; a row's task says which adapters are its own.
        generator: draws the start.
    """

    def __init__(self, backbone: FrozenBackbone, tasks: int, generator: torch.Generator) -> None:
        super().__init__(backbone)
        places = layer_outputs(backbone.model)
        width = next(iter(places.values())).width
        self.task_embeddings = nn.Parameter(torch.empty(tasks, EMBEDDING).normal_(generator=generator))  # z, [n, e]
        self.generators = nn.ModuleDict(
            {
                stack.replace(".", "/"): AdapterGenerator(layers, width, generator)
                for stack, layers in stack_depths(places).items()
            }
        )
        self._norms: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for path, module in backbone.model.named_modules():
            if type(module).__name__.endswith("Norm"):
                for name, weight in module.named_parameters(recurse=False):
                    copy = nn.Parameter(weight.detach().float().clone())
                    self._hold(f"{path}.{name}", copy)
                    self._norms.append((module, name, weight, copy))
        self.to(backbone.device)
        self._made: dict[str, list[Tensor]] = {}  # of each stack, what its generator made for the pass
        self._tasks: Tensor | None = None
        layers = dict(backbone.model.named_modules())
        self._hooks = [
            layers[name].register_forward_hook(
                lambda _layer, _inputs, output, at=(place.stack, place.number, int(not place.feed_forward)): (
                    self._adapted(output, *at)
                )
            )
            for name, place in places.items()
        ]
        backbone.tuned = self

    def refresh(self, batch: Batch | None = None) -> None:
        """Generates the adapters of all tasks, and puts the layer norms into the model."""
        for module, name, original, copy in self._norms:
            weight: Any = copy.to(original.dtype)
            module._parameters[name] = weight
        if batch is not None:
            self._tasks = batch.task_ids
        self._made = {stack: generator(self.task_embeddings) for stack, generator in self.generators.items()}

    def _adapted(self, output: Tensor, stack: str, layer: int, place: int) -> Tensor:
        if self._tasks is None:
            return output
        made = [one[layer, place][self._tasks] for one in self._made[stack.replace(".", "/")]]  # of each row's task
        return output + adapted(output, *made).to(output.dtype)

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module, name, original, _ in self._norms:
            module._parameters[name] = original


class AdapterGenerator(nn.Module):
    """Generates the adapters of a stack's layers from embeddings of task, layer and place.

    Args:
        layers: L.
        width: d.
        generator: draws the start.
    """

    def __init__(self, layers: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = max(1, width // REDUCTION)
        self.layer_embeddings = nn.Parameter(torch.empty(layers, EMBEDDING).normal_(generator=generator))
        # of the feed-forward and of the attention
        self.place_embeddings = nn.Parameter(torch.empty(2, EMBEDDING).normal_(generator=generator))
        self.first, self.second = nn.Linear(3 * EMBEDDING, HIDDEN), nn.Linear(HIDDEN, PROJECTED)
        self.norm = nn.LayerNorm(PROJECTED, eps=1e-6)
        self.down, self.down_bias = nn.Linear(PROJECTED, inner * width), nn.Linear(PROJECTED, inner)
        self.up, self.up_bias = nn.Linear(PROJECTED, width * inner), nn.Linear(PROJECTED, width)
        self.scale, self.shift = nn.Linear(PROJECTED, width), nn.Linear(PROJECTED, width)
        self.sizes = inner, width
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, task_embeddings: Tensor) -> list[Tensor]:
        """Returns D [L, 2, n, r, d], b_D [.., r], U [.., d, r], b_U [.., d], γ [.., d] and β [.., d].

        Args:
            task_embeddings: z, [n, e].
        """
        layers, places, tasks = self.layer_embeddings, self.place_embeddings, task_embeddings
        shape = (len(layers), len(places), len(tasks), EMBEDDING)
        told = torch.cat(
            [
                tasks[None, None].expand(shape),
                layers[:, None, None].expand(shape),
                places[None, :, None].expand(shape),
            ],
            dim=-1,
        )
        said = self.norm(self.second(torch.relu(self.first(told))))  # I, [L, 2, n, e']
        inner, width = self.sizes
        return [
            self.down(said).unflatten(-1, (inner, width)),
            self.down_bias(said),
            self.up(said).unflatten(-1, (width, inner)),
            self.up_bias(said),
            self.scale(said),
            self.shift(said),
        ]


def adapted(
    output: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Returns LN_{γ,β}(U · GELU(D x + b_D) + b_U) of a layer's output with each row's own adapter.

    Args:
        output: x, [b · c, l, d]: c sequences of each row follow each other.
        down, down_bias, up, up_bias, scale, shift: of each row, [b, …].
    """
    x = output.reshape(len(down), -1, output.shape[-1])  # rows that follow each other are one
    inner = gelu(_each(x, down, down_bias), approximate="tanh")
    changed = _each(inner, up, up_bias)
    changed = changed.to(torch.promote_types(changed.dtype, torch.float32))
    normed = layer_norm(changed, changed.shape[-1:]) * scale[:, None] + shift[:, None]
    return normed.view(output.shape)


def _each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns W x + b with each row's own W, [b, o, i], and b, [b, o]; x is [b, l, i]."""
    dtype = x.dtype
    return torch.baddbmm(bias.to(dtype)[:, None], x, weight.to(dtype).transpose(1, 2))


class InputGenerated(TunedWeights):
    """HyperDecoder (Ivison and Peters, EMNLP 2022 Findings): the encoded input generates the decoder's adapters.

    The encoder's states, mean over the input's tokens, go through two layers, and with an embedding of each layer
    through a hypernetwork, which gives an adapter beside the layer's feed-forward: FF(x) + U · ReLU(D x + b_D) + b_U,
    where x is the feed-forward's own (normed) input. The encoder's feed-forwards have adapters of that form, too, which
    are trained as they are. Sizes and starts are those of the authors' code for T5-base.

    A decoder-only model has no encoder: there the frozen model itself reads the input first, without gradient, its last
    states are what the adapters of all layers are generated from, and these read input and target.

    Args:
        backbone: the backbone.
        generator: draws the start.
    """

    def __init__(self, backbone: FrozenBackbone, generator: torch.Generator) -> None:
        super().__init__(backbone)
        model = backbone.model
        places = {name: place for name, place in layer_outputs(model).items() if place.feed_forward}
        width = next(iter(places.values())).width
        encodes = bool(model.config.is_encoder_decoder)
        layers = dict(model.named_modules())
        forwards = {name.rpartition(".")[0]: place for name, place in places.items()}
        self.encoder = nn.ModuleDict()
        generated = {}
        for name, place in forwards.items():
            if encodes and place.stack.startswith("encoder"):
                self.encoder[name.replace(".", "/")] = ParallelAdapter(width, generator)
            else:
                generated[name] = place.number
        self.hypernetwork = InputHypernetwork(max(generated.values()) + 1, width, generator)
        self.to(backbone.device)
        self._mask: Tensor | None = None
        self._read: Tensor | None = None  # of each row, what its adapters are generated from
        self._hooks = [layers[name].register_forward_hook(self._hook(number)) for name, number in generated.items()]
        self._hooks += [
            layers[name.replace("/", ".")].register_forward_hook(
                lambda _layer, inputs, output, part=part: output + part(inputs[0])
            )
            for name, part in self.encoder.items()
        ]
        if encodes:
            self._hooks.append(model.get_encoder().register_forward_hook(self._encoded))
        backbone.tuned = self

    def refresh(self, batch: Batch | None = None) -> None:
        """Reads the inputs of the pass where no encoder will."""
        self._read = None  # no adapters while the frozen model reads
        if batch is None:
            return
        self._mask = batch.input_mask
        backbone: Any = self._backbone
        if not backbone.model.config.is_encoder_decoder:
            self._read = self._pooled(backbone.input_states(batch))

    def _encoded(self, _encoder: nn.Module, _inputs: Any, output: Any) -> None:
        self._read = self._pooled(output.last_hidden_state)

    def _pooled(self, states: Tensor) -> Tensor:
        assert self._mask is not None
        real = self._mask[..., None].float()
        return self.hypernetwork.processed((states.float() * real).sum(dim=1) / real.sum(dim=1))

    def _hook(self, number: int) -> Any:
        def beside(_layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if self._read is None:
                return output
            down, down_bias, up, up_bias = self.hypernetwork(self._read, number)
            x = inputs[0].reshape(len(self._read), -1, output.shape[-1])
            inner = torch.relu(_each(x, down, down_bias))
            return output + _each(inner, up, up_bias).view(output.shape)

        return beside

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()


class ParallelAdapter(nn.Module):
    """An adapter beside a layer: U · ReLU(D x + b_D) + b_U."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, BOTTLENECK), nn.Linear(BOTTLENECK, width)
        for module in (self.down, self.up):
            nn.init.xavier_uniform_(module.weight, gain=1e-4, generator=generator)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        inner = torch.relu(linear(x, self.down.weight.to(dtype), self.down.bias.to(dtype)))
        return linear(inner, self.up.weight.to(dtype), self.up.bias.to(dtype))


class InputHypernetwork(nn.Module):
    """Generates each row's adapters from what was read of its input.

    Args:
        layers: L.
        width: d.
        generator: draws the start.
    """

    def __init__(self, layers: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.process = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.layer_embeddings = nn.Parameter(torch.empty(layers, LAYER_EMBEDDING).normal_(generator=generator))
        self.first = nn.Linear(width + LAYER_EMBEDDING, HYPER_BOTTLENECK)
        self.down, self.down_bias = (nn.Linear(HYPER_BOTTLENECK, n) for n in (BOTTLENECK * width, BOTTLENECK))
        self.up, self.up_bias = (nn.Linear(HYPER_BOTTLENECK, n) for n in (width * BOTTLENECK, width))
        for module in (*self.process, self.first):  # as torch starts a linear layer
            assert isinstance(module, nn.Linear)
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        # a thousandth of what gives the adapters' matrices the variance of a linear layer's
        for head, inputs in ((self.down, width), (self.up, BOTTLENECK), (self.down_bias, 1), (self.up_bias, 1)):
            bound = 1e-3 * math.sqrt(3 / (HYPER_BOTTLENECK * inputs))
            nn.init.uniform_(head.weight, -bound, bound, generator=generator)
            nn.init.zeros_(head.bias)

    def processed(self, pooled: Tensor) -> Tensor:
        """Returns the pooled states, [b, d], behind the two layers."""
        first, second = self.process
        found: Tensor = second(torch.relu(first(pooled)))
        return found

    def forward(self, read: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns D [b, r, d], b_D [b, r], U [b, d, r] and b_U [b, d] of a layer, for rows of which that was read."""
        told = torch.cat([read, self.layer_embeddings[layer].expand(len(read), -1)], dim=1)
        said = torch.relu(self.first(told))
        width = self.up_bias.out_features
        down, up = self.down(said).view(-1, BOTTLENECK, width), self.up(said).view(-1, width, BOTTLENECK)
        return down, self.down_bias(said), up, self.up_bias(said)


def hyperformer(backbone: FrozenBackbone, seed: int, tasks: int = 1) -> TunedWeights:
    """Puts adapters that are generated from tasks and layers into the backbone."""
    return TaskGenerated(backbone, tasks, torch.Generator("cpu").manual_seed(seed))


def hyperdecoder(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts adapters that are generated from each input into the backbone."""
    return InputGenerated(backbone, torch.Generator("cpu").manual_seed(seed))


def hyperformer_parameters(shape: BackboneShape, tasks: int = 1) -> float:
    """Counts a task's embedding, and its part of the generators and of the model's layer norms."""
    d, inner, stacks = shape.width, shape.width // REDUCTION, 2 if shape.is_t5 else 1
    embeddings = (shape.layers + 2) * EMBEDDING
    projection = (3 * EMBEDDING + 1) * HIDDEN + (HIDDEN + 1) * PROJECTED + 2 * PROJECTED
    heads = (PROJECTED + 1) * (2 * d * inner + inner + 3 * d)
    norms = (5 * shape.layers + 2) * d if shape.is_t5 else (2 * shape.layers + 1) * d
    return EMBEDDING + (stacks * (embeddings + projection + heads) + norms) / tasks


def hyperdecoder_parameters(shape: BackboneShape, tasks: int = 1) -> float:
    """Counts a task's part of the hypernetwork, which all share, and of the encoder's adapters."""
    d = shape.width
    process = 2 * (d + 1) * d
    first = (d + LAYER_EMBEDDING + 1) * HYPER_BOTTLENECK + shape.layers * LAYER_EMBEDDING
    heads = (HYPER_BOTTLENECK + 1) * (2 * d * BOTTLENECK + BOTTLENECK + d)
    encoder = shape.layers * (2 * d * BOTTLENECK + BOTTLENECK + d) if shape.is_t5 else 0
    return (process + first + heads + encoder) / tasks
