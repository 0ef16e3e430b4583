"""What a prompt is bound to: a hash of the model whose embeddings and layers give it its meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# of every weight but the embeddings a fingerprint looks at about so many entries, evenly spread
ENTRIES = 16


@dataclass(frozen=True)
class Original:
    """A weight that is quantised in memory, as its file has it.

    Args:
        entries: those that a fingerprint looks at, bfloat16.
        count: how many it has.
    """

    entries: Tensor
    count: int


def fingerprint(model: Any, table: Tensor, originals: Mapping[str, Original]) -> str:
    """Computes 16 hexadecimal digits that two models share only if a prompt of one means the same to the other.

    They hash the architecture, the number of layers, the embedding table and a few entries of every other weight
    (a model fine-tuned with its embeddings frozen is another model), in bf16, so that a checkpoint has the same
    fingerprint in every dtype. Quantised weights are no parameters in some formats: what else a checkpoint holds
    is hashed, too. Weights that were quantised at loading count as they are in their files.

    Args:
        model: the transformers model.
        table: its embeddings.
        originals: its weights that were quantised at loading, by name.
    """
    layers = getattr(model.config, "num_hidden_layers", None)
    digest = hashlib.sha256(f"{model.config.model_type} {layers} {list(table.shape)}".encode())
    digest.update(_bf16_bytes(table))
    quantised = tuple(name.removesuffix("weight") for name in originals)
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    others = {
        name: one for name, one in model.state_dict().items() if name not in every and not name.startswith(quantised)
    }
    for name, weight in sorted({**_parameters(model), **others}.items()):
        if name in originals:
            digest.update(name.encode() + _bf16_bytes(originals[name].entries))
        elif isinstance(weight, Tensor) and weight.numel():
            flat = weight.detach().flatten()
            digest.update(name.encode() + _bf16_bytes(flat[:: max(1, len(flat) // ENTRIES)]))
    return digest.hexdigest()[:16]


def _parameters(model: Any) -> dict[str, Tensor]:
    """Returns the parameters by name; what is tied counts once, even where moving it to a device made copies of it."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    copies = {
        name
        for name, of in tied.items()
        if name in parameters and of in parameters and torch.equal(parameters[name], parameters[of])
    }
    return {name: weight for name, weight in parameters.items() if name not in copies}


def _bf16_bytes(weight: Tensor) -> bytes:
    if not weight.is_floating_point():
        return weight.detach().cpu().contiguous().numpy().tobytes()
    return weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
