"""Trained weights inside a backbone (fine-tuning, BitFit, adapters, LoRA, (IA)³), which `release` takes out again.

All trainings of a grid share a backbone. One object holds what a method changes in it and can undo the change: after
`release` the model has exactly the tensors, modules and hooks that it had before.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import Batch
from attempt_cli.backbones.shapes import BackboneShape
from attempt_cli.errors import AttemptError

# The last linear layers of attention and feed-forward, whose output an adapter reads (Houlsby et al., 2019): of Llama
# and similar models, of T5, of GPT-2. An adapter behind T5's cross-attention is not usual.
LAYER_OUTPUTS = (
    "self_attn.o_proj",
    "mlp.down_proj",
    "SelfAttention.o",
    "DenseReluDense.wo",
    "attn.c_proj",
    "mlp.c_proj",
)
FEED_FORWARDS = ("mlp.down_proj", "DenseReluDense.wo", "mlp.c_proj")  # those of them that end a feed-forward
REDUCTION = 32  # an adapter's bottleneck is the width divided by this (the paper's)
DROPPED = (5, 12)  # AdapterDrop: no adapters in the first 5 of 12 layers of a stack (Rücklé et al., 2021)
LORA_RANK, LORA_SCALE = 8, 16  # r, and α of the factor α/r of the update


class TunedWeights(nn.Module, ABC):
    """The fp32 tensors that a weight method trains, put into the backbone; all parameters are trained.

    Args:
        backbone: the backbone that they are put into at once.

    Raises:
        RuntimeError: another training's weights are in the backbone, or its layers are compiled.
        AttemptError: the method does not know the architecture.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        if backbone.tuned is not None:
            raise RuntimeError(f"{backbone.name} holds the weights of another training; release them first")
        if backbone.compiled:
            raise RuntimeError(f"the layers of {backbone.name} are compiled: their weights cannot change")
        _ = backbone.fingerprint, backbone.embedding_rms  # cached now: they are the frozen model's
        self._backbone = backbone

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: all under `weights`."""
        return {"weights": list(self.parameters())}

    def refresh(self, batch: Batch | None = None) -> None:
        """Makes the next pass use the current values of the tensors; a method that looks at rows gets the pass's."""

    def in_step(self, step: int, total: int) -> AbstractContextManager[None]:
        """Surrounds the gradient of an optimiser step; see `method.PromptModule.in_step`."""
        return nullcontext()

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """Returns the place of a step, and the steps in all, that its learning rate is computed for."""
        return step, total

    def penalty(self) -> Tensor | None:
        """Returns what the rows of the last pass add to the loss, as a mean over them; None for nothing."""
        return None

    def release(self) -> None:
        """Takes the weights out of the backbone; a second call does nothing."""
        if self._backbone.tuned is self:
            self._take_out()
            self._backbone.tuned = None

    @abstractmethod
    def _take_out(self) -> None:
        """Restores the backbone's model."""

    def _hold(self, name: str, parameter: nn.Parameter) -> None:
        """Registers a parameter under its name in the model, which a checkpoint then shows."""
        self.register_parameter(name.replace(".", "/"), parameter)


class FullWeights(TunedWeights):
    """Fine-tuning: an fp32 copy of every weight of the model, cast to the model's dtype in every pass."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__(backbone)
        # a tied weight is one tensor in several places
        self._places: list[tuple[nn.Parameter, nn.Parameter, list[tuple[nn.Module, str]]]] = []
        by_weight: dict[int, list[tuple[nn.Module, str]]] = {}
        for path, module in backbone.model.named_modules():
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if id(weight) not in by_weight:
                    copy = nn.Parameter(weight.detach().float().clone())
                    self._hold(f"{path}.{name}", copy)
                    by_weight[id(weight)] = []
                    self._places.append((copy, weight, by_weight[id(weight)]))
                by_weight[id(weight)].append((module, name))
        backbone.tuned = self
        self.refresh()

    def refresh(self, batch: Batch | None = None) -> None:
        for copy, original, places in self._places:
            weight: Any = copy.to(original.dtype)  # the copy itself if the model is in fp32
            for module, name in places:
                module._parameters[name] = weight

    def _take_out(self) -> None:
        for _, original, places in self._places:
            for module, name in places:
                module._parameters[name] = original


class AddedParts(TunedWeights):
    """Small modules behind layers of the model, which change the layers' outputs.

    Args:
        parts: the module behind each layer, by the layer's name in the model.
    """

    def __init__(self, backbone: FrozenBackbone, parts: dict[str, nn.Module]) -> None:
        super().__init__(backbone)
        self.parts = nn.ModuleDict({name.replace(".", "/"): part for name, part in parts.items()}).to(backbone.device)
        layers = dict(backbone.model.named_modules())
        self._hooks = [layers[name].register_forward_hook(_behind(part)) for name, part in parts.items()]
        backbone.tuned = self

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Bias(nn.Module):
    """Adds a bias, zero at the start, to a linear layer's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, output: Tensor) -> Tensor:
        return output + self.bias.to(output.dtype)


class _Bottleneck(nn.Module):
    """An adapter: x + W_up · GELU(W_down · x + b_down) + b_up.

    Both matrices start from N(0, 0.01²) and both biases from zero, so that it starts near the identity.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = max(1, width // REDUCTION)
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, output: Tensor) -> Tensor:
        dtype = output.dtype
        inner = nn.functional.linear(output, self.down.weight.to(dtype), self.down.bias.to(dtype))
        inner = nn.functional.gelu(inner)
        return output + nn.functional.linear(inner, self.up.weight.to(dtype), self.up.bias.to(dtype))


def bias_parts(model: Any) -> dict[str, nn.Module]:
    """Makes BitFit's parts (Ben Zaken et al., 2022): a bias for every linear layer, by the layer's name.

    T5 and Llama have no biases: each linear layer's output gets one that starts at zero and is trained. If a layer has
    a bias of its own, BitFit trains the sum of both. The vocabulary projection does not change.
    """
    head = model.get_output_embeddings()
    return {
        name: _Bias(outputs)
        for name, module in model.named_modules()
        if module is not head and (outputs := _outputs(module))
    }


def adapter_parts(model: Any, generator: torch.Generator, *, drop: bool = False) -> dict[str, nn.Module]:
    """Makes adapters (Houlsby et al., 2019) for the attention and the feed-forward of every layer, by its name.

    Args:
        model: the transformers model.
        generator: draws their matrices.
        drop: AdapterDrop: none in the first five twelfths of each stack of layers, rounded to whole layers (the first
            5 of T5-base's 12, in encoder and decoder).

    Raises:
        AttemptError: the architecture's layers have other names.
    """
    places = layer_outputs(model)
    part, whole = DROPPED
    first = {stack: round(part * layers / whole) if drop else 0 for stack, layers in stack_depths(places).items()}
    return {
        name: _Bottleneck(place.width, generator)
        for name, place in places.items()
        if place.number >= first[place.stack]
    }


@dataclass(frozen=True)
class LayerOutput:
    """Where an adapter belongs: behind the last linear layer of an attention or a feed-forward.

    Args:
        stack: the name of the list of layers that it is in.
        number: of its layer in the stack.
        width: of its output.
        feed_forward: whether it is a feed-forward's, not an attention's.
    """

    stack: str
    number: int
    width: int
    feed_forward: bool


def layer_outputs(model: Any) -> dict[str, LayerOutput]:
    """Finds the places of adapters, by the linear layer's name in the model.

    Raises:
        AttemptError: the architecture's layers have other names.
    """
    found: dict[str, LayerOutput] = {}
    for name, module in model.named_modules():
        place = re.match(r"(.*?)\.(\d+)\.", name)
        if place and name.endswith(LAYER_OUTPUTS) and (outputs := _outputs(module)):
            found[name] = LayerOutput(place[1], int(place[2]), outputs, name.endswith(FEED_FORWARDS))
    if not found:
        raise AttemptError(
            f"attempt does not know where adapters belong in the architecture {model.config.model_type}",
            "Use a backbone of the T5, Llama or GPT-2 families, or --method lora.",
        )
    return found


def stack_depths(places: Mapping[str, LayerOutput]) -> dict[str, int]:
    """Returns the number of layers of each stack."""
    depths: dict[str, int] = {}
    for place in places.values():
        depths[place.stack] = max(depths.get(place.stack, 0), place.number + 1)
    return depths


class LibraryWeights(TunedWeights):
    """LoRA or (IA)³ from peft, at the layers that peft chooses for the architecture.

    Args:
        kind: "lora" or "ia3".
        seed: seed of the initial values.
    """

    def __init__(self, backbone: FrozenBackbone, kind: str, seed: int) -> None:
        super().__init__(backbone)
        try:
            from peft import IA3Config, LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise AttemptError(
                f"--method {kind} needs the peft library", "Install it: `pip install 'attempt-cli[peft]'`."
            ) from error
        model = backbone.model
        # peft replaces the model's modules by its own
        self._children = [(module, dict(module._modules)) for module in model.modules()]
        self._attributes = set(vars(model))
        before = {id(parameter) for parameter in model.parameters()}
        config: Any = LoraConfig(r=LORA_RANK, lora_alpha=LORA_SCALE) if kind == "lora" else IA3Config()
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2's layers; peft sets it itself
                torch.manual_seed(seed)
                inject_adapter_in_model(config, model)
        except Exception as error:
            self._take_out()
            if not isinstance(error, ValueError):
                raise
            raise AttemptError(
                f"peft does not know where {kind} belongs in the architecture {model.config.model_type}: {error}",
                "Use a backbone of the T5 or Llama families.",
            ) from error
        model.eval()
        for name, parameter in model.named_parameters():
            if id(parameter) not in before:
                parameter.data = parameter.data.float()
                self._hold(name, parameter)
        backbone.tuned = self

    def _take_out(self) -> None:
        for module, children in self._children:
            module._modules.clear()
            module._modules.update(children)
        for name in set(vars(self._backbone.model)) - self._attributes:
            delattr(self._backbone.model, name)


def fine_tuning(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts a trainable copy of every weight into the backbone."""
    return FullWeights(backbone)


def bitfit(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts trainable biases into the backbone."""
    return AddedParts(backbone, bias_parts(backbone.model))


def adapter(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts adapters into every layer of the backbone."""
    return AddedParts(backbone, adapter_parts(backbone.model, torch.Generator().manual_seed(seed)))


def adapterdrop(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts adapters into the upper layers of the backbone."""
    return AddedParts(backbone, adapter_parts(backbone.model, torch.Generator().manual_seed(seed), drop=True))


def lora(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts LoRA's low-rank updates into the backbone, by the peft library."""
    return LibraryWeights(backbone, "lora", seed)


def ia3(backbone: FrozenBackbone, seed: int) -> TunedWeights:
    """Puts (IA)³'s scales into the backbone, by the peft library."""
    return LibraryWeights(backbone, "ia3", seed)


def fine_tuning_parameters(shape: BackboneShape) -> int:
    """Counts all weights of the backbone."""
    return shape.parameters


def bitfit_parameters(shape: BackboneShape) -> int:
    """Counts a bias for each output of every linear layer but the vocabulary projection."""
    return sum(outputs for _, _, outputs in shape.projections)


def adapter_parameters(shape: BackboneShape, dropped: int = 0) -> int:
    """Counts two adapters a layer, d → d / 32 → d with biases, in all but the first `dropped` layers of each stack."""
    inner = shape.width // REDUCTION
    adapter = 2 * shape.width * inner + inner + shape.width
    return 2 * adapter * (shape.layers - dropped) * (2 if shape.is_t5 else 1)


def adapterdrop_parameters(shape: BackboneShape) -> int:
    """Counts the adapters of the upper layers."""
    part, whole = DROPPED
    return adapter_parameters(shape, round(part * shape.layers / whole))


def lora_parameters(shape: BackboneShape) -> int:
    """Counts r · (inputs + outputs) for every projection to queries or values, where peft puts LoRA."""
    return sum(
        LORA_RANK * (inputs + outputs)
        for name, inputs, outputs in shape.projections
        if name in ("q", "v", "q_proj", "v_proj")
    )


def ia3_parameters(shape: BackboneShape) -> int:
    """Counts a scale for each key and value, and for each input of the feed-forward's last layer."""
    return sum(
        inputs if name in ("wo", "down_proj") else outputs
        for name, inputs, outputs in shape.projections
        if name in ("k", "v", "k_proj", "v_proj", "wo", "down_proj")
    )


def _behind(part: nn.Module) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Returns a hook that sends a layer's output through the part."""

    def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        changed: Tensor = part(output)
        return changed

    return hook


def _outputs(module: nn.Module) -> int:
    """Returns the output width of a linear layer; 0 for other modules. (GPT-2 has a transposed class of its own.)"""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else 0
