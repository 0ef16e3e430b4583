"""The shapes of known backbones: enough to count parameters and to build a model without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BackboneShape:
    """The shape of a backbone.

    Args:
        name: its alias.
        config: its fields in shapes.yaml, named as in its published config.
    """

    name: str
    config: Mapping[str, Any]

    @property
    def is_t5(self) -> bool:
        """True for an encoder-decoder of the T5 family, False for a Llama."""
        return bool(self.config["type"] == "t5")

    @property
    def width(self) -> int:
        """d, the width of an embedding."""
        return int(self.config["d_model" if self.is_t5 else "hidden_size"])

    @property
    def layers(self) -> int:
        """Layers of a stack; a T5 has as many in its encoder as in its decoder."""
        return int(self.config["num_layers" if self.is_t5 else "num_hidden_layers"])

    @property
    def projections(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of every linear layer, layer by layer."""
        c, d = self.config, self.width
        if self.is_t5:
            inner, ff = c["d_kv"] * c["num_heads"], c["d_ff"]
            attention = [("q", d, inner), ("k", d, inner), ("v", d, inner), ("o", inner, d)]
            forward = [("wi", d, ff), ("wo", ff, d)]
            encoder, decoder = attention + forward, attention * 2 + forward
            return (encoder + decoder) * self.layers
        ff = c["intermediate_size"]
        keys = d // c["num_attention_heads"] * c["num_key_value_heads"]
        attention = [("q_proj", d, d), ("k_proj", d, keys), ("v_proj", d, keys), ("o_proj", d, d)]
        forward = [("gate_proj", d, ff), ("up_proj", d, ff), ("down_proj", ff, d)]
        return (attention + forward) * self.layers

    @property
    def parameters(self) -> int:
        """All weights, by formula: the embedding table (also the output layer), the linear layers, the norms."""
        d = self.width
        linear = sum(inputs * outputs for _, inputs, outputs in self.projections)
        table = self.config["vocab_size"] * d
        if self.is_t5:
            norms = (5 * self.layers + 2) * d  # encoder 2, decoder 3 a layer, and one at the end of each
            positions = 2 * 32 * self.config["num_heads"]  # relative, of the first layer of each
            return int(table + linear + norms + positions)
        return int(table + linear + (2 * self.layers + 1) * d)

    def build(self) -> PreTrainedModel:
        """Builds the model on torch's meta device: its modules and shapes, no weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

        fields = {name: value for name, value in self.config.items() if name != "type"}
        with torch.device("meta"):
            if self.is_t5:
                return T5ForConditionalGeneration(T5Config(**fields))
            return LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True))


@cache
def backbone_shapes() -> dict[str, BackboneShape]:
    """Loads the known shapes, by name."""
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text("utf-8"))
    return {name: BackboneShape(name, config) for name, config in table.items()}
