"""Methods of which the registry keeps more than a prompt, by name: what makes their modules again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attempt_cli.method.adaptive import AdaptivePrompt
from attempt_cli.method.decomposed import DecomposedPrompt
from attempt_cli.method.module import PromptModule
from attempt_cli.method.routed import RoutedPrompts

MODULES: dict[str, type[PromptModule]] = {
    "dept": DecomposedPrompt,
    "adept": AdaptivePrompt,
    "smop": RoutedPrompts,
    "pt-moe": RoutedPrompts,
}


def from_parts(method: str, prompt: Tensor, parts: Mapping[str, Tensor]) -> PromptModule:
    """Makes the module of one task from what the registry keeps.

    Args:
        method: the method's name.
        prompt: [m, d].
        parts: see `PromptModule.kept_parts`.
    """
    return MODULES[method].from_parts(prompt, parts)
