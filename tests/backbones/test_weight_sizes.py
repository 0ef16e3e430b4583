"""What weights need is said before they are loaded: files of any size that hold nothing but a header."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from attempt_cli.backbones import load, weight_sizes
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.weight_sizes import weight_bytes
from attempt_cli.errors import AttemptError
from tests.backbones.test_quantized import loaded
from tests.backbones.test_quantized import weight_bytes as measured
from tests.models import byte_level_tokenizer
from tests.pretend_cuda import pretend_cuda

LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
T5_11B = {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_heads": 128, "num_layers": 24, "vocab_size": 32128}


def sparse(folder: Path, config: LlamaConfig | T5Config, model: type) -> Path:
    """A checkpoint whose file has a header and no data: the disk holds no more than that."""
    with torch.device("meta"):
        shapes = {name: list(weight.shape) for name, weight in model(config).named_parameters()}
    header, at = dict[str, object](), 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    config.save_pretrained(folder)
    byte_level_tokenizer(start="<s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse(tmp_path_factory.mktemp("huge") / "llama-70b", LlamaConfig(**LLAMA_70B), LlamaForCausalLM)


def test_weights_that_the_host_does_not_hold(huge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 << 30, total=128 << 30))
    with pytest.raises(AttemptError) as caught:
        load_backbone(str(huge), device="cpu", dtype="bfloat16")
    assert caught.value.message == "llama-70b needs 131 GiB in bfloat16, and cpu has 100 GiB free"
    hint = caught.value.hint or ""
    assert "--quantize nf4 (36.8 GiB)" in hint
    assert "--quantize int8 (67.7 GiB)" in hint
    assert "--device cpu" not in hint


def test_weights_that_the_gpu_does_not_hold(huge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_70B))
    monkeypatch.setattr(load, "_skeleton", lambda *_: model)  # the pretend GPU takes `meta` for itself
    with pretend_cuda() as gpu:
        gpu.free = 140 << 30
        with pytest.raises(AttemptError, match="llama-70b needs 263 GiB in float32, and cuda:0 has 140 GiB") as caught:
            load_backbone(str(huge), device="cuda", dtype="float32")
    hint = caught.value.hint or ""
    assert "--dtype bfloat16 (half)" in hint
    assert "--device cpu" in hint


def test_a_quantised_model_that_does_not_fit(huge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50 << 30, total=64 << 30))
    with pytest.raises(AttemptError, match=r"llama-70b needs 67\.7 GiB in int8") as caught:
        load_backbone(str(huge), device="cpu", dtype="bfloat16", quantize="int8")
    assert "--quantize nf4 (36.8 GiB)" in (caught.value.hint or "")
    assert "int8" not in (caught.value.hint or "")


def test_little_room_is_remarked_on(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = measured(load_backbone(str(folders["llama"]), device="cpu", dtype="float32"))
    monkeypatch.setattr(weight_sizes, "free_memory", lambda _: round(1.1 * size))
    (note,) = load_backbone(str(folders["llama"]), device="cpu", dtype="float32").notes
    assert "little room for a step" in note
    monkeypatch.setattr(weight_sizes, "free_memory", lambda _: 1 << 30)
    assert load_backbone(str(folders["llama"]), device="cpu", dtype="float32").notes == ()


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "t5", "gpt2"])
def test_what_is_said_is_what_weights_take(
    kind: str, dtype: str, quantize: str | None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def note(
        name: str, shapes: object, skeleton: object, device: object, dtype: object, quantize: object, *_: object
    ) -> None:
        said.append(weight_bytes(shapes, skeleton, dtype, quantize))  # type: ignore[arg-type]

    monkeypatch.setattr(load, "check_memory", note)
    backbone = loaded(folders[kind], quantize, dtype)
    scales = 0  # of int8 they are no parameters
    for name, one in backbone.model.state_dict().items():
        scales += one.numel() * one.element_size() if name.endswith((".SCB", ".absmax", ".nested_absmax")) else 0
    assert said[0] == pytest.approx(measured(backbone) + scales, rel=0.02)


def test_t5_11b_is_as_large_as_the_documents_say() -> None:
    config = T5Config(**T5_11B)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    sizes = [weight_bytes(shapes, lambda: model, torch.bfloat16, one) / 1e9 for one in (None, "nf4", "int8")]
    assert [round(size, 1) for size in sizes] == [22.6, 10.7, 14.6]
