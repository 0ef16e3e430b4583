"""Between records in the registry and tensors on the device: what is trained goes in, what predicts comes out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attempt_cli import __version__
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import ChatFrame
from attempt_cli.backbones.load import describe
from attempt_cli.backbones.names import listed_as, recorded_backbone
from attempt_cli.changes import TARGET
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptAttention, PromptMixture, PromptModule
from attempt_cli.method.parts import from_parts
from attempt_cli.prompted import PromptedModel
from attempt_registry import Attention, Backbone, Composition, Prompt, Registry
from attempt_registry.add import check_plain


@dataclass(frozen=True)
class Loaded:
    """A model ready to predict, and what it is made of.

    Args:
        model: the backbone with its prompts.
        kind: "none", "prompt" or "composition".
        name: the full name of the prompt or composition, "no prompt" for the bare model.
        sources: the sources' names, in the order of the attention's weights.
        targets: the task of each target prompt -> its index in the mixture.
        inputs: full names with kinds, as a run records them.
    """

    model: PromptedModel
    kind: str
    name: str
    sources: tuple[str, ...] = ()
    targets: dict[str, int] | None = None
    inputs: tuple[str, ...] = ()

    def task_index(self, task: str) -> int:
        """Returns the index of the target prompt that serves a task; a single target serves any (zero-shot transfer).

        Raises:
            AttemptError: the composition has several targets and none of them is the task's.
        """
        if not self.targets or len(self.targets) == 1:
            return 0
        if task not in self.targets:
            raise AttemptError(
                f"the composition '{self.name}' has no target prompt for the task '{task}'",
                f"It has: {', '.join(self.targets)}.",
            )
        return self.targets[task]


def bare(backbone: FrozenBackbone, *, chat_template: bool = False) -> Loaded:
    """Returns the backbone without a prompt, and with `chat_template` inside its tokenizer's chat template."""
    if not chat_template:
        return Loaded(PromptedModel(backbone), "none", "no prompt")
    return Loaded(PromptedModel(backbone, frame=backbone.chat_frame), "none", "no prompt, in the chat template")


def load_prompt(registry: Registry, backbone: FrozenBackbone, prompt: Prompt) -> Loaded:
    """Loads a prompt, to stand before or after the input as it was trained, with what its method keeps beside it."""
    # parts have the unit of the training, which stays theirs
    scale = prompt.embedding_scale if prompt.parts else 1.0
    tensor = prompt_in_units(registry, backbone, prompt, scale)
    mixture: PromptModule
    if prompt.parts:
        parts = {name: torch.from_numpy(np.array(part)) for name, part in registry.prompt_parts(prompt).items()}
        try:
            mixture = from_parts(prompt.method, tensor, parts)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:  # of an import, or of a newer version
            raise AttemptError(
                f"'{prompt.ref}' keeps {', '.join(prompt.parts)}, which are not what {prompt.method} keeps here",
                "Use the version of attempt that made it, or train it again.",
            ) from error
    else:
        mixture = PromptMixture(tensor[None])
    return Loaded(
        _prompted(backbone, mixture, scale, prompt),
        "prompt",
        prompt.ref,
        targets={prompt.task: 0},
        inputs=(f"prompt:{prompt.ref}",),
    )


def load_composition(registry: Registry, backbone: FrozenBackbone, composition: Composition) -> Loaded:
    """Loads a composition: sources, G and target prompts, in the units that G was trained in.

    Of its settings some say how it mixes: `embedding_scale`; `weights`, by full name and with "target", which stand in
    the place of G's; `with_target`, false where the target takes no part in the mixture; `prior`, what is added to G's
    scores, by full name of the target and then as weights are; `source_norm`, the norm that sources are scaled to.

    Args:
        composition: a record of the registry, or what `changes.changed` made of one.

    Raises:
        AttemptError: it has no target prompt, nothing mixes its sources, or it belongs to another backbone.
    """
    if not composition.targets and not composition.sources:
        raise AttemptError(
            f"the composition '{composition.ref}' has no target prompt",
            "Train one: `attempt train-target TASK --sources …`, or name one: `attempt compose NAME --target …`.",
        )
    scale = float(composition.settings.get("embedding_scale", 1.0))
    targets = [registry.prompt(ref) for ref in composition.targets]
    sources = [registry.prompt(ref) for ref in composition.sources]
    check_plain([*targets, *sources])
    forced = composition.settings.get("weights")
    mixer = None if composition.attention is None or forced else registry.attention(composition.attention)
    if sources and mixer is None and not forced:
        raise AttemptError(
            f"the composition '{composition.ref}' has sources but no attention to mix them",
            "Name a trained one: `attempt compose NAME --sources … --target … --attention …`.",
        )

    def tensors(prompts: list[Prompt]) -> Tensor:
        return torch.stack([prompt_in_units(registry, backbone, prompt, scale) for prompt in prompts])

    # without target prompts the sources alone are mixed: how an attention prior serves a task that has no rows
    own = tensors(targets) if targets else torch.zeros_like(tensors(sources)[:1])
    mixture = PromptMixture(own)
    if sources:
        mixture = PromptMixture(
            own,
            tensors(sources),
            None if mixer is None else load_attention(registry, mixer),
            level="token" if mixer is not None and mixer.level == "token" else "instance",
            with_target=bool(targets) and composition.settings.get("with_target", True),
            fixed_weights=torch.tensor([forced[ref] for ref in (*composition.sources, TARGET)]) if forced else None,
            prior=None if mixer is None else _prior(composition),
            source_norm=composition.settings.get("source_norm"),
        )
    model = _prompted(backbone, mixture, scale, composition)
    if model.reads_states and not backbone.has_layers:
        raise AttemptError(
            f"G of '{composition.ref}' reads the model's hidden states, and the layers are in another process",
            "Use it where the model is: `attempt serve` without --upstream, `attempt predict`.",
        )
    inputs = [f"composition:{composition.ref}", *(f"prompt:{ref}" for ref in composition.targets + composition.sources)]
    if mixer is not None:
        inputs.append(f"attention:{mixer.ref}")
    return Loaded(
        model,
        "composition",
        composition.ref,
        sources=composition.sources,
        targets={prompt.task: index for index, prompt in enumerate(targets)},
        inputs=tuple(inputs),
    )


def _prior(composition: Composition) -> Tensor | None:
    """Returns what is added to G's scores, [n, t + 1]: nothing to those of a target that was trained without one."""
    priors = composition.settings.get("prior")
    if not priors:
        return None
    names, nothing = (*composition.sources, TARGET), dict.fromkeys((*composition.sources, TARGET), 0.0)
    owns = [priors.get(ref, nothing) for ref in composition.targets] or [nothing]
    return torch.tensor([[own[name] for name in names] for own in owns])


def mixing_settings(
    mixture: PromptMixture, sources: Sequence[str], scale: float, targets: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns what a composition's settings say of how it mixes; `load_composition` reads it.

    Args:
        mixture: what was trained.
        sources: the sources' full names, in its order.
        scale: the unit of its prompts.
        targets: the targets' full names, in its order.
    """
    settings: dict[str, Any] = {"embedding_scale": scale}
    if not mixture.with_target:
        settings["with_target"] = False
    if mixture.fixed_weights is not None:
        settings["weights"] = dict(zip((*sources, TARGET), mixture.fixed_weights.tolist(), strict=True))
    if mixture.prior is not None:
        rows = [dict(zip((*sources, TARGET), own, strict=True)) for own in mixture.prior.tolist()]
        settings["prior"] = dict(zip(targets, rows, strict=True))
    if mixture.source_norm is not None:
        settings["source_norm"] = mixture.source_norm
    return settings


def _prompted(
    backbone: FrozenBackbone, mixture: PromptModule, scale: float, record: Prompt | Composition
) -> PromptedModel:
    """Places a record's prompts where they were trained; refuses a place that the backbone does not have."""
    frozen = mixture.to(backbone.device).requires_grad_(False)
    placement = backbone.check_placement(record.placement)
    return PromptedModel(backbone, frozen, scale, placement, frame=chat_frame_of(backbone, record))


def chat_frame_of(backbone: FrozenBackbone, record: Prompt | Attention | Composition) -> ChatFrame | None:
    """Returns the chat template that a record was trained in; None for none.

    Raises:
        AttemptError: the backbone's tokenizer has another one, or none.
    """
    if record.chat_template is None:
        return None
    frame = backbone.chat_frame
    if frame.text != record.chat_template:
        raise AttemptError(
            f"'{record.ref}' was trained in another chat template than that of {backbone.name}: "
            f"{record.chat_template!r}, now {frame.text!r}",
            "Use the tokenizer that it was trained with, or train it again.",
        )
    return frame


OF_G = ("reads", "top", "cosine")  # what an attention's settings say of G where it is not as in the paper


def load_attention(registry: Registry, attention: Attention) -> PromptAttention:
    """Loads G with its trained weights, and its temperature where that was trained, too."""
    tensors = registry.attention_tensors(attention)
    learned = "log_temperature" in tensors
    module = PromptAttention(
        attention.width,
        attention.rank,
        attention.temperature,
        learned_temperature=learned,
        **{name: attention.settings[name] for name in OF_G if name in attention.settings},
    )
    module.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
    return module


def prompt_in_units(registry: Registry, backbone: FrozenBackbone, prompt: Prompt, scale: float) -> Tensor:
    """Returns a prompt's tensor [m, d] such that tensor * scale is what enters the model.

    Raises:
        AttemptError: the prompt belongs to another backbone; equal width does not make it fit.
    """
    check_backbone(registry, backbone, prompt)
    tensor = torch.from_numpy(np.array(registry.prompt_tensor(prompt)))
    return tensor * (prompt.embedding_scale / scale)


def check_backbone(registry: Registry, backbone: FrozenBackbone, record: Prompt | Attention | Composition) -> None:
    """Refuses a record of another backbone.

    Raises:
        AttemptError: the fingerprints differ.
    """
    if record.fingerprint != backbone.fingerprint:
        raise AttemptError(
            f"'{record.ref}' was trained for {record.backbone} ({record.fingerprint}), "
            f"the backbone here is {backbone.name} ({backbone.fingerprint})",
            f"Name its own with --backbone {recorded_backbone(registry, record)}, or train one for {backbone.name}: "
            f"`attempt registry list --backbone {listed_as(registry, backbone.name, backbone.fingerprint)}` shows what "
            "fits.",
        )


def told_of(backbone: FrozenBackbone) -> dict[str, Any]:
    """Returns what a prompt's settings say of its backbone beside the fingerprint; `differences` reads it."""
    quantized = {"quantize": backbone.quantization} if backbone.quantization else {}
    return {"tokenizer": backbone.tokenizer_digest, **quantized}


def differences(
    registry: Registry, backbone: FrozenBackbone, records: Sequence[Prompt | Composition | Attention]
) -> dict[str, list[str]]:
    """Says in what a backbone differs from how it was when prompts were trained on it, though its weights are the same.

    Args:
        registry: finds the prompts of compositions.
        backbone: as it is loaded.
        records: what is used on it.

    Returns:
        Each difference as text, with the prompts that it is about.
    """
    prompts = {one.ref: one for one in records if isinstance(one, Prompt)}
    for composition in (one for one in records if isinstance(one, Composition)):
        prompts |= {ref: registry.prompt(ref) for ref in (*composition.targets, *composition.sources)}
    others: dict[str, list[str]] = {}
    for ref, prompt in prompts.items():
        settings = prompt.settings if isinstance(prompt.settings, dict) else {}
        if prompt.fingerprint != backbone.fingerprint or "tokenizer" not in settings:
            continue
        was, now = settings.get("quantize"), backbone.quantization
        if was != now:
            again = f"--quantize {was}" if was else "without --quantize"
            text = f"trained on {backbone.name} {_kept(was)}, which is loaded {_kept(now)}: scores may differ ({again})"
            others.setdefault(text, []).append(ref)
        if settings["tokenizer"] != backbone.tokenizer_digest:
            text = (
                f"trained with another tokenizer ({settings['tokenizer']}) than that of {backbone.name} here "
                f"({backbone.tokenizer_digest}): inputs or the ends of targets may be other tokens. Use the files and "
                "the version of transformers that they were trained with, or train again"
            )
            others.setdefault(text, []).append(ref)
    return others


def new_differences(
    registry: Registry,
    backbone: FrozenBackbone,
    records: Sequence[Prompt | Composition | Attention],
    told: set[tuple[str, str]],
) -> list[str]:
    """Returns the `differences` as remarks, each prompt's once: `told` has what was told before, and gets these."""
    remarks = []
    for text, refs in differences(registry, backbone, records).items():
        new = [ref for ref in refs if (ref, text) not in told]
        told.update((ref, text) for ref in new)
        if new:
            remarks.append(f"{', '.join(new)}: {text}.")
    return remarks


def _kept(quantization: str | None) -> str:
    return f"quantised as {quantization}" if quantization else "in full"


def remember_backbone(registry: Registry, backbone: FrozenBackbone) -> None:
    """Records the backbone, so that commands without torch know its width and fingerprint."""
    registry.remember_backbone(Backbone(**describe(backbone)))


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on besides its settings."""
    import transformers

    return {
        "attempt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
