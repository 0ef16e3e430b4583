"""Loading from folders and files, whole and damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.device import choose_device, choose_dtype
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from tests.models import byte_level_tokenizer, save_gguf


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A Llama's folder to damage."""
    return Path(shutil.copytree(folders["llama"], tmp_path / "llama"))


def load(folder: Path) -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype="float32")


def test_a_folder(backbone: FrozenBackbone, folder: Path, kind: str) -> None:
    assert isinstance(backbone, EncoderDecoderBackbone if kind.startswith("t5") else DecoderOnlyBackbone)
    assert backbone.name == folder.name
    assert backbone.source == str(folder)
    assert backbone.dtype == torch.float32
    assert backbone.device == torch.device("cpu")
    assert backbone.vocabulary_size == len(backbone.tokenizer)


def test_a_folder_named_from_where_one_stands(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    backbone = load_backbone(f"./{folder.name}", device="cpu", dtype="bf16")
    assert backbone.source == str(folder)
    assert backbone.dtype == torch.bfloat16


def test_loading_says_nothing_of_its_own(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert capfd.readouterr() == ("", "")


def truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def garbled_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor in sight" * 100)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    # a pickle that would run code when it is read
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "an-architecture-of-2031"}')


def config_of_an_image_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def config_of_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


DAMAGES = [
    truncated_weights,
    garbled_weights,
    no_weights,
    pickled_weights,
    broken_config,
    unknown_architecture,
    config_of_an_image_model,
    config_of_another_width,
    no_tokenizer,
    broken_tokenizer,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_named(
    damage: Callable[[Path], None], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(copy)
    with pytest.raises(AttemptError, match=r"the backbone at .* cannot be loaded: \S") as caught:
        load(copy)
    assert str(copy) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint == "The folder needs config.json, the weights as safetensors and the tokenizer's files."
    assert not list(tmp_path.rglob("PWNED"))


def test_weights_without_an_output_layer_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    # a headless checkpoint loads with a random output layer, and the library only warns
    model = load(folders["llama"]).model
    model.model.save_pretrained(tmp_path / "headless")
    byte_level_tokenizer(start="<s>").save_pretrained(tmp_path / "headless")
    with pytest.raises(AttemptError, match=r"cannot be loaded: .*lm_head\.weight"):
        load(tmp_path / "headless")


def test_a_tokenizer_without_an_end_token(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(AttemptError, match="cannot be loaded: its tokenizer has no end token"):
        load(copy)


@pytest.fixture
def gguf(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same Llama as one GGUF file, and an empty cache."""
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    return save_gguf(tmp_path / "Tiny.F32.gguf", folders["llama"])


def test_a_gguf_file_is_the_same_backbone(gguf: Path, folders: dict[str, Path]) -> None:
    ours, theirs = (
        load_backbone(str(gguf), device="cpu", dtype="bf16"),
        load_backbone(str(folders["llama"]), device="cpu", dtype="bf16"),
    )
    assert ours.name == "Tiny.F32"
    assert ours.source == str(gguf)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.end_id == theirs.end_id
    assert ours.target_tokens("entailment", end=True) == theirs.target_tokens("entailment", end=True)
    rows = theirs.encode(["it was good: label", "is"], [[10, 11], [12]], 64)
    batch = theirs.collate(rows)
    scores = [b.target_log_likelihood(batch, b.embed(batch.input_ids), None) for b in (ours, theirs)]
    torch.testing.assert_close(scores[0], scores[1])


def test_what_lies_beside_a_gguf_file_is_not_its_own(gguf: Path, folders: dict[str, Path]) -> None:
    # repositories of GGUF files often hold the original's settings, or those of another model, too
    (gguf.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', "utf-8")
    shutil.copy(folders["t5"] / "tokenizer.json", gguf.parent)
    (gguf.parent / "config.json").write_text('{"model_type": "t5"}', "utf-8")
    (gguf.parent / "generation_config.json").write_text('{"max_length": "many"}', "utf-8")
    ours = load_backbone(str(gguf), device="cpu", dtype="bf16")
    theirs = load_backbone(str(folders["llama"]), device="cpu", dtype="bf16")
    assert (ours.fingerprint, ours.end_id) == (theirs.fingerprint, theirs.end_id)


def test_a_gguf_file_is_converted_once(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_backbone(str(gguf), device="cpu", dtype="bf16")
    (copy,) = (tmp_path / "cache" / "gguf").iterdir()
    assert copy.name.startswith("Tiny.F32-")
    times = {file: file.stat().st_mtime_ns for file in copy.iterdir()}

    def converts(*args: object, **kwargs: object) -> None:
        raise AssertionError("the GGUF file was read again")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.GgufConfig, "__init__", converts)
        assert load_backbone(str(gguf), device="cpu", dtype="fp32").fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == times
    # a changed file is another file
    os.utime(gguf, ns=(0, 0))
    load_backbone(str(gguf), device="cpu", dtype="bf16")
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 2


def test_loading_writes_no_bar_to_a_log(gguf: Path) -> None:
    load = "load_backbone(sys.argv[1], device='cpu')"
    code = (
        f"import sys; from attempt_cli.backbones.load import load_backbone; {load}; {load}"  # converted; from its copy
    )
    done = subprocess.run([sys.executable, "-c", code, str(gguf)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_conversion_that_breaks_off_leaves_nothing(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cache"))

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(AttemptError, match=r"cannot be unpacked into .*No space left on device") as caught:
            load_backbone(str(gguf), device="cpu")
        assert "$ATTEMPT_CACHE" in (caught.value.hint or "")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
    assert load_backbone(str(gguf), device="cpu").name == "Tiny.F32"


def test_a_conversion_that_another_process_finished_first(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = transformers.PreTrainedTokenizerFast.save_pretrained

    def after_another(self: Any, folder: Path, **kwargs: Any) -> Any:
        saved = save(self, folder, **kwargs)
        partial = Path(folder)
        if partial.name.endswith(".partial"):  # another process renames its own copy at this moment
            shutil.copytree(partial, partial.with_name(partial.name.rsplit(".", 2)[0]))
        return saved

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", after_another)
    assert load_backbone(str(gguf), device="cpu").name == "Tiny.F32"
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(200), b"something else entirely" * 50])
def test_a_damaged_gguf_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(AttemptError, match=f"the GGUF file {file} cannot be read") as caught:
        load_backbone(str(file), device="cpu")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "Download it again, or name a folder or a hub id."
    assert not list(tmp_path.glob("cache/gguf/*"))


@pytest.mark.parametrize("device", ["quantum", "cpu:x", "", "cuda:99", "meta"])
def test_a_device_that_is_not_there(device: str, folders: dict[str, Path]) -> None:
    with pytest.raises(AttemptError, match=f"the device '{device}' is not available") as caught:
        load_backbone(str(folders["llama"]), device=device)
    assert caught.value.hint == "Use --device cuda, auto, mps or cpu, or leave it out."


def test_layers_are_not_spread_where_there_is_no_gpu(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(str(folders["llama"]), device="auto")
    assert not backbone.spread
    assert backbone.notes[-1] == f"--device auto: there is no GPU, so all layers are on {backbone.device}."
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AttemptError, match="this is one of several"):
        load_backbone(str(folders["llama"]), device="auto")


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", "int8", ""])
def test_a_dtype_that_is_not_offered(dtype: str, folders: dict[str, Path]) -> None:
    with pytest.raises(AttemptError, match=f"no dtype named '{dtype}'") as caught:
        load_backbone(str(folders["llama"]), device="cpu", dtype=dtype)
    assert caught.value.hint == "Use bfloat16 or float32 (T5 overflows in float16)."


def test_dtypes_and_devices_by_name_and_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_dtype("bf16", cpu) == choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("fp32", cpu) == choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype(None, torch.device("mps")) == torch.float32
    for amx, avx512, maker, expected in [
        (True, True, "GenuineIntel", torch.bfloat16),
        (False, True, "GenuineIntel", torch.float32),  # there it is slower than fp32
        (False, True, "AuthenticAMD", torch.bfloat16),
        (False, False, "AuthenticAMD", torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr("attempt_cli.backbones.device._processor", lambda maker=maker: f"vendor_id\t: {maker}")
        assert choose_dtype(None, cpu) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device(None) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device(None) == cpu


def test_an_unpacked_copy_that_was_damaged_is_unpacked_again(gguf: Path, tmp_path: Path) -> None:
    first = load_backbone(str(gguf), device="cpu", dtype="bf16")
    (copy,) = (tmp_path / "cache" / "gguf").iterdir()
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000] + bytes(4000))
    again = load_backbone(str(gguf), device="cpu", dtype="bf16")
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
