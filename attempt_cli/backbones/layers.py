"""How a backbone's layers run: as they were loaded, compiled, or computed twice for their gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attempt_cli.backbones.attention import Past
from attempt_cli.errors import AttemptError

# Forms of one layer that the compiler may make: with and without gradient, before and behind keys, for one row …
COMPILED_FORMS = 64


class SwitchedLayers:
    """The layers of `model`, called `name`; when they are compiled or computed twice, the library's own run."""

    model: Any
    name: str
    compiled = False
    checkpointed = False

    def checkpoint_gradients(self, on: bool) -> None:
        """Whether layers are computed a second time for their gradient, rather than kept: less memory, more time.

        Raises:
            AttemptError: the architecture has no such layers.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise AttemptError(
                f"the layers of {self.name} cannot be computed twice", "Train without --gradient-checkpointing."
            )
        # set here rather than by the library's switch, which would make the embeddings require a gradient
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
            layer.training = on  # the layer asks whether it trains; what is in it (dropout) stays in evaluation mode
        self.checkpointed = on

    @cached_property
    def _stacks(self) -> list[torch.nn.ModuleList]:
        """The model's lists of layers; lists within a layer are not among them."""
        lists = {name: m for name, m in self.model.named_modules() if isinstance(m, torch.nn.ModuleList)}
        outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
        return [m for m in outer if len(m) > 1]

    @property
    def can_compile(self) -> bool:
        """Whether there is a stack of layers."""
        return bool(self._stacks)

    @cached_property
    def _compiled_calls(self) -> list[tuple[Any, Any]]:
        """Every layer, and what is called in its place."""
        import torch._dynamo.config as dynamo

        # beyond its limit of eight the compiler would leave further forms as they are, without a word
        dynamo.cache_size_limit = max(dynamo.cache_size_limit, COMPILED_FORMS)
        compiled: Any = partial(torch.compile, dynamic=True)
        return [
            (layer, partial(_compiled_layer, number, compiled(layer._call_impl)))
            for stack in self._stacks
            for number, layer in enumerate(stack)
        ]

    def compile_layers(self, on: bool) -> None:
        """Whether every layer goes through torch.compile; layers are alike, so one compilation serves them all.

        They are compiled when they are first called, for rows of any number and length.

        Raises:
            AttemptError: there is no list of layers.
        """
        if on and not self.can_compile:
            raise AttemptError(f"{self.name} has no stack of layers to compile", "Train with --no-compile.")
        for layer, call in self._compiled_calls:
            layer._compiled_call_impl = call if on else None
        self.compiled = on

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """For so long layers are neither compiled nor computed twice: what is kept or scored is the same either way."""
        compiled, checkpointed = self.compiled, self.checkpointed
        self.checkpointed = False
        if compiled:
            self.compile_layers(False)
        try:
            yield
        finally:
            self.checkpointed = checkpointed
            if compiled:
                self.compile_layers(True)


def _compiled_layer(
    number: int,
    layer: Any,
    *inputs: Any,
    past: Past | None = None,
    keep: list[tuple[Tensor, Tensor]] | None = None,
    **others: Any,
) -> Any:
    """Calls a compiled layer with what is its own of the other layers' arguments: all layers are one case then."""
    if past is not None:
        others["past"] = past.of_layer(number)
    kept: list[tuple[Tensor, Tensor]] = []
    if keep is not None:
        others["keep"] = kept
    output = layer(*inputs, **others)
    if keep is not None:
        keep.extend(kept)
    return output
