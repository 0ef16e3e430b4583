"""Weights that are quantised at loading: by bitsandbytes, which runs on CPUs, too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.quantized import quantized_modules
from attempt_cli.errors import AttemptError
from tests.models import save_gguf

pytest.importorskip("bitsandbytes")
from bitsandbytes.functional import dequantize_4bit

QUANTISATIONS = ("nf4", "int8")


@pytest.fixture(params=["llama", "t5", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(folder: Path, quantize: str | None = None, dtype: str = "float32") -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype=dtype, quantize=quantize)


def weight_bytes(backbone: FrozenBackbone) -> int:
    return sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters())


@pytest.mark.parametrize("quantize", QUANTISATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_model_is_the_same_backbone_in_less_memory(
    kind: str, dtype: str, quantize: str, folders: dict[str, Path]
) -> None:
    full, small = loaded(folders[kind], None, dtype), loaded(folders[kind], quantize, dtype)
    assert small.fingerprint == full.fingerprint
    assert small.parameter_count == full.parameter_count
    assert small.embedding_rms == full.embedding_rms
    assert weight_bytes(small) < weight_bytes(full)
    assert (small.quantization, full.quantization) == (quantize, None)
    assert small.precision == f"{quantize} {full.precision}" == f"{quantize} torch.{dtype}"


def test_another_checkpoint_is_another_backbone_quantised_too(folders: dict[str, Path], tmp_path: Path) -> None:
    full = loaded(folders["llama"])
    full.model.model.layers[1].mlp.down_proj.weight[0, 0] += 0.5  # one entry, of those that are looked at
    full.model.save_pretrained(tmp_path)
    full.tokenizer.save_pretrained(tmp_path)
    assert loaded(tmp_path, "nf4").fingerprint == loaded(tmp_path).fingerprint
    assert loaded(tmp_path, "nf4").fingerprint != loaded(folders["llama"], "nf4").fingerprint


@pytest.mark.parametrize("quantize", QUANTISATIONS)
def test_scores_and_gradients_are_those_of_the_weights_that_are_kept(
    kind: str, quantize: str, folders: dict[str, Path]
) -> None:
    backbones = [loaded(folders[kind]), loaded(folders[kind], quantize)]
    if quantize == "nf4":  # the full model gets the rounded weights; int8 rounds what goes in, too, and is only near
        for name, module in quantized_modules(backbones[1].model).items():
            weight: Any = module.weight
            rounded = dequantize_4bit(weight, weight.quant_state)
            plain = backbones[0].model.get_submodule(name)
            plain.weight.data.copy_(rounded.T if kind == "gpt2" else rounded)
    gradients, scores = [], []
    for backbone in backbones:
        batch = backbone.collate(backbone.encode(["it was good: label", "two three"], [[10, 11], [12]], 64))
        with torch.no_grad():  # a pass without a gradient must not spoil those with one
            backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)
        prompts = backbone.embed(batch.input_ids[:, :2]).detach().requires_grad_()
        likelihood = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts)
        gradients.append(torch.autograd.grad(likelihood.sum(), prompts)[0])
        scores.append(likelihood.detach())
    for one, other in (gradients, scores):
        if quantize == "nf4":
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        else:
            assert 0 < float((one - other).norm() / one.norm()) < 0.2


def test_a_gguf_file_is_unpacked_and_quantised(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    gguf = save_gguf(tmp_path / "a.gguf", folders["llama"])
    assert loaded(gguf, "nf4").fingerprint == loaded(folders["llama"]).fingerprint


def test_a_quantisation_that_there_is_not(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    with pytest.raises(AttemptError, match="no quantisation named 'fp2'"):
        loaded(folders["llama"], "fp2")
    with monkeypatch.context() as patch:
        patch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
        with pytest.raises(AttemptError, match=r"bitsandbytes .* quantises nothing on cpu"):
            loaded(folders["llama"], "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(AttemptError, match="needs bitsandbytes, which is not installed") as caught:
        loaded(folders["llama"], "nf4")
    assert caught.value.hint == "pip install 'attempt-cli[quantize]'"


def test_what_is_quantised_already_is_not_quantised_again(folders: dict[str, Path], tmp_path: Path) -> None:
    small = loaded(folders["llama"], "nf4")
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    with pytest.raises(AttemptError, match="its weights are quantised already"):
        loaded(tmp_path, "int8")
    assert loaded(tmp_path).quantization is None  # as it was saved, it loads without the option
