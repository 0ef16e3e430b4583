"""A backbone's fingerprint, and the unit of its embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import describe, load_backbone
from tests.backbones.plain import plain_model
from tests.models import LAYERS, SAVERS, WIDTH, save_llama


def loaded(folder: Path, dtype: str = "float32") -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype=dtype)


def test_one_checkpoint_has_one_fingerprint_in_every_dtype(backbone: FrozenBackbone, folder: Path) -> None:
    assert loaded(folder, "bfloat16").fingerprint == loaded(folder).fingerprint == backbone.fingerprint
    assert len(backbone.fingerprint) == 16
    int(backbone.fingerprint, 16)


def test_a_copy_under_another_name_has_the_same_fingerprint(tmp_path: Path) -> None:
    one, two = loaded(save_llama(tmp_path / "one")), loaded(save_llama(tmp_path / "two"))
    assert one.name != two.name
    assert one.fingerprint == two.fingerprint


def test_backbones_of_one_width_have_different_fingerprints(backbones: dict[str, FrozenBackbone]) -> None:
    assert {backbone.width for backbone in backbones.values()} == {WIDTH}
    assert len({backbone.fingerprint for backbone in backbones.values()}) == len(backbones)


@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
def test_the_fingerprint_changes_with_the_embedding_table(saver: Callable[[Path], Path], tmp_path: Path) -> None:
    backbone = loaded(saver(tmp_path / "model"))
    before = backbone.fingerprint
    backbone.model.get_input_embeddings().weight[7, 3] += 0.5  # one number of thousands
    backbone.model.save_pretrained(tmp_path / "changed")
    backbone.tokenizer.save_pretrained(tmp_path / "changed")
    assert loaded(tmp_path / "changed").fingerprint != before


def test_the_fingerprint_changes_when_layers_are_trained_and_embeddings_frozen(
    backbone: FrozenBackbone, folder: Path, tmp_path: Path
) -> None:
    tuned = loaded(folder)
    table = tuned.model.get_input_embeddings().weight
    for name, weight in tuned.model.named_parameters():
        if "layer" in name or ".h." in name or "block" in name:
            weight.mul_(1.05)
    assert torch.equal(table, backbone.model.get_input_embeddings().weight)
    tuned.model.save_pretrained(tmp_path / "tuned")
    tuned.tokenizer.save_pretrained(tmp_path / "tuned")
    assert loaded(tmp_path / "tuned").fingerprint != backbone.fingerprint


def test_the_fingerprint_changes_with_the_number_of_layers(tmp_path: Path) -> None:
    two, three = (loaded(save_llama(tmp_path / str(n), num_hidden_layers=n)) for n in (LAYERS, LAYERS + 1))
    # the table is drawn first, so it is the same in both
    assert torch.equal(two.model.get_input_embeddings().weight, three.model.get_input_embeddings().weight)
    assert two.fingerprint != three.fingerprint


def test_the_rms_is_that_of_the_embedding_table(backbone: FrozenBackbone, folder: Path) -> None:
    table = plain_model(folder).get_input_embeddings().weight.double()
    assert backbone.embedding_rms == pytest.approx(math.sqrt(float((table**2).mean())), rel=1e-6)
    assert loaded(folder, "bfloat16").embedding_rms == pytest.approx(backbone.embedding_rms, rel=1e-3)


def test_the_rms_is_that_of_embeddings_as_they_enter_the_first_layer(tmp_path: Path) -> None:
    # Gemma multiplies embeddings with √d on their way in
    from transformers import GemmaConfig, GemmaForCausalLM

    from tests.models import byte_level_tokenizer, save

    tokenizer = byte_level_tokenizer(start="<s>")
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    backbone = loaded(save(GemmaForCausalLM(config), tokenizer, tmp_path / "gemma"))
    table = backbone.model.get_input_embeddings().weight
    assert backbone.embedding_rms == pytest.approx(4 * float(table.square().mean().sqrt()), rel=1e-5)


def test_what_the_registry_records(backbone: FrozenBackbone, folder: Path) -> None:
    model = plain_model(folder)
    assert describe(backbone) == {
        "name": folder.name,
        "fingerprint": backbone.fingerprint,
        "architecture": "encoder-decoder" if model.config.is_encoder_decoder else "decoder-only",
        "width": WIDTH,
        "embedding_rms": backbone.embedding_rms,
        "parameters": sum(p.numel() for p in model.parameters()),
        "source": str(folder),
    }


def test_positions(backbones: dict[str, FrozenBackbone]) -> None:
    assert {kind: backbone.max_positions for kind, backbone in backbones.items()} == {
        "t5": None,
        "t5-untied": None,
        "llama": 128,
        "gpt2": 128,
    }


def test_the_untied_t5_kept_its_own_output_layer(backbones: dict[str, FrozenBackbone]) -> None:
    tied, untied = backbones["t5"].model, backbones["t5-untied"].model
    assert torch.equal(tied.lm_head.weight, tied.shared.weight)
    assert not torch.allclose(untied.lm_head.weight, untied.shared.weight)
    assert tied.config.scale_decoder_outputs
    assert not untied.config.scale_decoder_outputs
    assert untied.config.is_gated_act
