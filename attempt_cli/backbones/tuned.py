"""Trained weights inside a backbone: fine-tuning, BitFit, adapters, LoRA and (IA)³, put in and taken out again whole.

A backbone is shared by all trainings of a grid. What a method changes in it is one object that knows the way back:
after `release` the model has the very tensors, modules and hooks that it had before.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.errors import AttemptError

# The linear layers that attention and feed-forward end in, whose output an adapter reads (Houlsby et al., 2019): of
# Llama and its kin, of T5, of GPT-2. An adapter behind T5's cross-attention is not usual.
LAYER_OUTPUTS = (
    "self_attn.o_proj",
    "mlp.down_proj",
    "SelfAttention.o",
    "DenseReluDense.wo",
    "attn.c_proj",
    "mlp.c_proj",
)
REDUCTION = 32  # an adapter's bottleneck is the width divided by this (the paper's)
DROPPED = (5, 12)  # AdapterDrop: no adapters in the first 5 of 12 layers of a stack (Rücklé et al., 2021)
LORA_RANK, LORA_SCALE = 8, 16  # r, and α of the α/r that the update is multiplied with


class TunedWeights(nn.Module, ABC):
    """What a weight method trains, in fp32, and its place in the backbone; its parameters are all trained.

    Args:
        backbone: what it is put into, at once.

    Raises:
        RuntimeError: another training's weights are in the backbone, or its layers are compiled.
        AttemptError: the method does not know the architecture.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        if backbone.tuned is not None:
            raise RuntimeError(f"{backbone.name} holds another training's weights; release them first")
        if backbone.compiled:
            raise RuntimeError(f"the layers of {backbone.name} are compiled, and no other weights can be put into them")
        _ = backbone.fingerprint, backbone.embedding_rms  # asked for later, they are those of the frozen model
        self._backbone = backbone

    def speed_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained tensors by learning rate: all under `weights`."""
        return {"weights": list(self.parameters())}

    def refresh(self) -> None:
        """Makes the next pass compute with the tensors as they are now."""

    def release(self) -> None:
        """Takes the weights out of the backbone; doing it twice does no harm."""
        if self._backbone.tuned is self:
            self._take_out()
            self._backbone.tuned = None

    @abstractmethod
    def _take_out(self) -> None:
        """Leaves the backbone's model as it was."""

    def _hold(self, name: str, parameter: nn.Parameter) -> None:
        """Registers a parameter under the name that it has in the model; a checkpoint shows it."""
        self.register_parameter(name.replace(".", "/"), parameter)


class FullWeights(TunedWeights):
    """Fine-tuning: every weight of the model, as an fp32 copy that is cast to the model's dtype in every pass."""

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

    def refresh(self) -> None:
        for copy, original, places in self._places:
            weight: Any = copy.to(original.dtype)  # the copy itself where the model is in fp32
            for module, name in places:
                module._parameters[name] = weight

    def _take_out(self) -> None:
        for _, original, places in self._places:
            for module, name in places:
                module._parameters[name] = original


class AddedParts(TunedWeights):
    """Small modules behind layers of the model: what a layer gives, they change.

    Args:
        parts: by the layer's name in the model, what is put behind it.
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
    """Adds a bias, nought at the start, to what a linear layer gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, output: Tensor) -> Tensor:
        return output + self.bias.to(output.dtype)


class _Bottleneck(nn.Module):
    """An adapter: x + W_up · GELU(W_down · x + b_down) + b_up.

    Both matrices start from N(0, 0.01²) and both biases from nought, so that it starts near the identity.
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
    """BitFit (Ben Zaken et al., 2022): a bias for every linear layer, by the layer's name.

    T5 and Llama have no biases: one that is nought is added to what each linear layer gives, and trained. Where a
    layer has a bias of its own, their sum is what BitFit trains. The vocabulary projection is left as it is.
    """
    head = model.get_output_embeddings()
    return {
        name: _Bias(outputs)
        for name, module in model.named_modules()
        if module is not head and (outputs := _outputs(module))
    }


def adapter_parts(model: Any, generator: torch.Generator, *, drop: bool = False) -> dict[str, nn.Module]:
    """Adapters (Houlsby et al., 2019) behind the attention and the feed-forward of every layer, by the layer's name.

    Args:
        model: the transformers model.
        generator: draws their matrices.
        drop: AdapterDrop: none in the first five twelfths of each stack of layers, rounded to whole layers (the first
            5 of T5-base's 12, in encoder and decoder).

    Raises:
        AttemptError: the architecture's layers have other names.
    """
    found: dict[str, tuple[str, int, int]] = {}
    for name, module in model.named_modules():
        place = re.match(r"(.*?)\.(\d+)\.", name)
        if place and name.endswith(LAYER_OUTPUTS) and (outputs := _outputs(module)):
            found[name] = (place[1], int(place[2]), outputs)
    if not found:
        raise AttemptError(
            f"where adapters belong in the architecture {model.config.model_type} is not known",
            "Use a backbone of the T5, Llama or GPT-2 families, or --method lora.",
        )
    depth: dict[str, int] = {}
    for stack, number, _ in found.values():
        depth[stack] = max(depth.get(stack, 0), number + 1)
    part, whole = DROPPED
    first = {stack: round(part * layers / whole) if drop else 0 for stack, layers in depth.items()}
    return {
        name: _Bottleneck(outputs, generator)
        for name, (stack, number, outputs) in found.items()
        if number >= first[stack]
    }


class LibraryWeights(TunedWeights):
    """LoRA or (IA)³ as peft has them, at the layers that peft chooses for the architecture.

    Args:
        kind: "lora" or "ia3".
        seed: of the first numbers.
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
        # peft puts its own modules in the places of the model's
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


def _behind(part: nn.Module) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that sends a layer's output through the part."""

    def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        changed: Tensor = part(output)
        return changed

    return hook


def _outputs(module: nn.Module) -> int:
    """The width of what a linear layer gives; 0 for other modules. (GPT-2's are transposed, under their own name.)"""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else 0
