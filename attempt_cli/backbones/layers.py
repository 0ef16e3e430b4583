"""Switches how a backbone's layers run: as they were loaded, compiled, or with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attempt_cli.backbones.attention import Past
from attempt_cli.errors import AttemptError

# Forms of one layer that the compiler may make: with and without gradient, with and without a past, for one row …
COMPILED_FORMS = 64


class SwitchedLayers:
    """The layers of `model`, called `name`; compiled and checkpointed layers are the library's own."""

    model: Any
    name: str
    compiled = False
    checkpointed = False

    def checkpoint_gradients(self, on: bool) -> None:
        """Turns gradient checkpointing on or off: layers computed a second time for their gradient take less memory.

        Raises:
            AttemptError: the architecture does not support it.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise AttemptError(
                f"{self.name} does not support gradient checkpointing", "Train without --gradient-checkpointing."
            )
        # not set through the library's switch, which would make the embeddings require a gradient
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
            layer.training = on  # the layer asks whether it trains; its modules (dropout) stay in evaluation mode
        self.checkpointed = on

    @property
    def devices(self) -> list[torch.device]:
        """The devices that the layers are on."""
        found = dict.fromkeys(parameter.device for parameter in self.model.parameters())
        return list(found)

    @property
    def spread(self) -> bool:
        """Whether the layers are on several devices (`--device auto`)."""
        return len(self.devices) > 1

    @cached_property
    def _stacks(self) -> list[torch.nn.ModuleList]:
        """The model's lists of layers, without lists inside a layer."""
        lists = {name: m for name, m in self.model.named_modules() if isinstance(m, torch.nn.ModuleList)}
        outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
        return [m for m in outer if len(m) > 1]

    @property
    def can_compile(self) -> bool:
        """True if the model has a stack of layers, on one device."""
        return bool(self._stacks) and not self.spread

    @cached_property
    def _compiled_calls(self) -> list[tuple[Any, Any]]:
        """Every layer, and the function that is called in its place."""
        import torch._dynamo.config as dynamo

        # beyond its limit of eight the compiler would silently leave further forms uncompiled
        dynamo.cache_size_limit = max(dynamo.cache_size_limit, COMPILED_FORMS)
        compiled: Any = partial(torch.compile, dynamic=True)
        return [
            (layer, partial(_compiled_layer, number, compiled(layer._call_impl)))
            for stack in self._stacks
            for number, layer in enumerate(stack)
        ]

    def compile_layers(self, on: bool) -> None:
        """Turns torch.compile on or off for every layer; layers are alike, so one compilation serves them all.

        They are compiled at their first call, for any number and length of rows.

        Raises:
            AttemptError: the model has no stack of layers, or they are on several devices.
        """
        if on and self.spread:
            raise AttemptError(f"the layers of {self.name} are on several GPUs", "Train with --no-compile.")
        if on and not self.can_compile:
            raise AttemptError(f"{self.name} has no stack of layers to compile", "Train with --no-compile.")
        for layer, call in self._compiled_calls:
            layer._compiled_call_impl = call if on else None
        self.compiled = on

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """Runs layers neither compiled nor checkpointed inside the block, so that results do not depend on either."""
        compiled, checkpointed = self.compiled, self.checkpointed
        if checkpointed:  # with it, layers of transformers 5.0 read no cache while a text is written
            self.checkpoint_gradients(False)
        if compiled:
            self.compile_layers(False)
        try:
            yield
        finally:
            if checkpointed:
                self.checkpoint_gradients(True)
            if compiled:
                self.compile_layers(True)


def _compiled_layer(
    number: int,
    layer: Any,
    *inputs: Any,
    past: Past | None = None,
    keep: MutableSequence[tuple[Tensor, Tensor]] | None = None,
    **others: Any,
) -> Any:
    """Calls a compiled layer with its own part of the arguments only, so that all layers are one case."""
    if past is not None:
        others["past"] = past.of_layer(number)
    kept: list[tuple[Tensor, Tensor]] = []
    if keep is not None:
        others["keep"] = kept
    output = layer(*inputs, **others)
    if keep is not None:
        keep.extend(kept)
    return output
