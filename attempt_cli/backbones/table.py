"""A backbone's embedding table and tokenizer, without its layers: enough to compute what enters the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import location_of
from attempt_cli.backbones.names import find_backbone
from attempt_cli.backbones.strangers import check_config
from attempt_cli.errors import AttemptError, first_line
from attempt_registry import Backbone


class EmbeddingTable(DecoderOnlyBackbone):
    """A decoder-only backbone that embeds and tokenises, and computes nothing else: another process has the layers."""

    own_attention = True  # where a prompt may stand, the process with the layers does not mind
    has_layers = False


class _TableOnly(nn.Module):
    """What `FrozenBackbone` asks of a model, without layers."""

    def __init__(self, config: Any, weight: Tensor) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> None:
        return None


def load_table(name: str, known: Backbone) -> EmbeddingTable:
    """Loads the input embeddings alone, in float32 on the CPU; of a model in several files one file is read.

    A fingerprint needs all weights. The table is known by its width and the root mean square of its entries, and takes
    the fingerprint of the record.

    Args:
        name: an alias, a hub id, a folder or a GGUF file (unpacked whole at its first use).
        known: the backbone as the registry recorded it.

    Raises:
        AttemptError: it is no decoder-only model, its inputs are not rows of a table, or it is another table.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

    place = find_backbone(name)
    location, _, reading = location_of(place)
    try:
        raw, _ = PreTrainedConfig.get_config_dict(location, local_files_only=reading["local_files_only"])
        check_config(raw, CONFIG_MAPPING)
        config = AutoConfig.from_pretrained(location, **reading)
        if config.is_encoder_decoder:
            raise AttemptError("it is an encoder-decoder", "Servers that take embeddings serve decoder-only models.")
        auto: Any = AutoModelForCausalLM
        with torch.device("meta"):
            shape = auto.from_config(config, trust_remote_code=False)
        module = shape.get_input_embeddings()
        if type(module) is not nn.Embedding:
            raise AttemptError(f"its inputs pass through {type(module).__name__}, not a plain table")
        parameter = next(name for name, weight in shape.named_parameters() if weight is module.weight)
        weight = _read(location, parameter, bool(reading["local_files_only"]))
        tokenizer = AutoTokenizer.from_pretrained(location, **reading)
    except Exception as error:  # damaged files make the readers raise many types of errors
        hint = getattr(error, "hint", None) or "Name the folder or hub id of the model that the prompts belong to."
        raise AttemptError(f"the embeddings of {name} cannot be loaded: {first_line(error)}", hint) from error
    table = EmbeddingTable(_TableOnly(config, weight.float()), tokenizer, name=place.name, source=place.location)
    if table.width != known.width or abs(table.embedding_rms - known.embedding_rms) > 1e-4 * known.embedding_rms:
        raise AttemptError(
            f"the embeddings of {name} are others than those that the prompts were trained for "
            f"(width {table.width}, RMS {table.embedding_rms:.5g}; recorded are {known.width} and "
            f"{known.embedding_rms:.5g})",
            "Name their own model with --backbone.",
        )
    vars(table)["fingerprint"] = known.fingerprint
    return table


def _read(location: str, parameter: str, local: bool) -> Tensor:
    """Reads one tensor of a checkpoint; its name may lack the base model's prefix, as GPT-2's does."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    def found(file: str) -> str | None:
        path: str | None = cached_file(
            location,
            file,
            local_files_only=local,
            _raise_exceptions_for_missing_entries=False,
        )
        return path

    names = (parameter, parameter.partition(".")[2])
    file = "model.safetensors"
    if index := found("model.safetensors.index.json"):
        files: dict[str, str] = json.loads(Path(index).read_text("utf-8"))["weight_map"]
        file = next(files[name] for name in names if name in files)
        if Path(file).name != file:
            raise ValueError(f"its index names {file[:60]!r}, which is outside it")
    path = found(file)
    if path is None:
        raise ValueError(f"it has no {file}")
    with safe_open(path, "pt") as opened:
        keys = set(opened.keys())
        tensor: Tensor = opened.get_tensor(next(name for name in names if name in keys))
    return tensor
