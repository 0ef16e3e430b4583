"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.exchange import provenance
from attempt_cli.exchange.content import Content, PromptDraft
from attempt_registry.adapters import CONFIG, TENSORS, is_adapter, read_adapter

if TYPE_CHECKING:
    from attempt_cli.exchange.exporting import Selection
    from attempt_cli.exchange.importing import Options
    from attempt_registry import Backbone

TASK_TYPES = {"decoder-only": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def write(selection: Selection, folder: Path) -> None:
    """Writes the adapter of one prompt. PEFT takes the numbers of layers and heads from the model itself."""
    from safetensors.numpy import save

    (prompt,) = selection.prompts
    backbone = selection.backbone
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING",
        "task_type": TASK_TYPES[backbone.architecture],  # without it PEFT loads the adapter and ignores the prompt
        "base_model_name_or_path": model_name(backbone),
        "revision": None,
        "inference_mode": True,
        "num_virtual_tokens": prompt.length,
        "num_transformer_submodules": 1,  # else PEFT makes a second half for a decoder, and never uses it
        "token_dim": prompt.width,
        "prompt_tuning_init": "RANDOM",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / TENSORS).write_bytes(save({"prompt_embeddings": selection.entering(prompt)}, {"format": "pt"}))


def model_name(backbone: Backbone) -> str:
    """Returns what transformers can load the backbone by: its hub id where it has one, else its folder."""
    from attempt_cli.backbones.names import aliases

    alias = aliases().get(backbone.name)
    if alias is not None:
        return str(alias["hub"])
    return backbone.source


def recognises(path: Path) -> bool:
    """Tells whether a folder holds an adapter, or a file lies in such a folder and is its tensors' file."""
    return is_adapter(path) if path.is_dir() else path.name == TENSORS and is_adapter(path.parent)


def read(path: Path, options: Options) -> Content:
    """Reads an adapter, with what stands beside it if it was exported here."""
    folder = path if path.is_dir() else path.parent
    adapter = read_adapter(folder)
    origin = {"peft_type": adapter.kind, "base_model": adapter.backbone, "base_model_revision": adapter.revision}
    said = provenance.read(folder, "peft")
    if said is None:
        return Content(tuple(map(PromptDraft, adapter.prompts)), origin=origin, backbone=adapter.backbone)
    return provenance.content(said, adapter.prompts, folder)
