"""Folders of strangers: nothing of theirs is run or asked about, and nothing outside them is read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_cli.session import Session
from tests.models import save_adapter


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["llama"], tmp_path / "llama"))


def load(folder: Path) -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype="float32")


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Notes(Listener):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def never_asked(*words: object) -> str:
    raise AssertionError(f"a question: {words}")


@pytest.mark.parametrize("model_type", ["a-model-of-its-own", "llama"])
def test_code_in_the_folder_is_not_run_and_not_asked_about(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model_type: str
) -> None:
    monkeypatch.setattr("builtins.input", never_asked)
    (copy / "own.py").write_text(f"open({str(copy / 'RUN')!r}, 'w')")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    changed(copy / "config.json", model_type=model_type, auto_map=auto_map)
    changed(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})
    if model_type == "llama":  # the library has code of its own for it
        assert load(copy).architecture == "decoder-only"
    else:
        with pytest.raises(AttemptError, match=r"is code of its own \(auto_map\), which is not run here"):
            load(copy)
    assert not (copy / "RUN").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_the_attention_that_a_config_names_is_not_followed(copy: Path, name: str) -> None:
    expected = load(copy).fingerprint
    changed(copy / "config.json", **{name: "somebody/kernels-of-theirs"})
    backbone = load(copy)
    assert backbone.model.config._attn_implementation == "attempt"
    assert backbone.fingerprint == expected


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "gone.safetensors"])
def test_weights_outside_the_folder_are_not_read(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AttemptError, match=r"names a file (outside the folder|that is not there)"):
        load(copy)


def test_an_adapter_beside_the_weights_is_left_out_and_said(copy: Path) -> None:
    alone = load(copy)
    save_adapter(copy)
    notes = Notes()
    session = Session(backbone=str(copy), device="cpu", dtype="float32", input_cache=0, listener=notes)
    backbone = session.load_backbone()
    assert {name for name, _ in backbone.model.named_parameters()} == {
        name for name, _ in alone.model.named_parameters()
    }
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(backbone.model(input_ids=ids).logits, alone.model(input_ids=ids).logits)
    assert "llama is loaded without the adapter that lies beside its weights (adapter_config.json)" in notes.notes[-1]


def test_weights_elsewhere_that_a_config_names_are_not_read(copy: Path) -> None:
    shutil.copy(copy / "model.safetensors", copy / "other.safetensors")
    expected = load(copy).fingerprint
    (copy / "other.safetensors").write_bytes(b"damaged")
    changed(copy / "config.json", transformers_weights="other.safetensors")
    assert load(copy).fingerprint == expected


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"])
def test_a_config_that_promises_more_than_the_files_hold_is_refused_at_once(copy: Path, name: str) -> None:
    changed(copy / "config.json", **{name: 1_000_000_000})
    began = time.monotonic()
    with pytest.raises(AttemptError, match=f"its config says {name} 1000000000, but its files hold"):
        load(copy)
    assert time.monotonic() - began < 5


def test_pickled_weights_are_not_read_whatever_is_in_them(copy: Path) -> None:
    model = load(copy).model
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(AttemptError, match=r"has no model\.safetensors"):
        load(copy)


def unknown_pad(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", pad_token="<never-seen>")


def test_a_pad_token_without_an_embedding_is_the_end_token(copy: Path) -> None:
    unknown_pad(copy)
    backbone = load(copy)
    assert backbone.pad_id == backbone.end_id
    batch = backbone.collate(backbone.encode(["one two three", "it"], [[9], [8, 7]], 20))
    assert backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None).isfinite().all()


def test_an_end_token_without_an_embedding_is_refused(copy: Path) -> None:
    changed(copy / "tokenizer_config.json", eos_token="<never-seen>")
    with pytest.raises(AttemptError, match="its end token '<never-seen>' is number"):
        load(copy)


def test_a_token_without_an_embedding_is_told_with_its_row(copy: Path) -> None:
    backbone = load(copy)
    backbone.tokenizer.add_tokens(["zebra"])
    with pytest.raises(AttemptError, match=r"input 2 has the token 'zebra' \(number \d+\), but llama has \d+"):
        backbone.encode(["it was", "a zebra"], None, 50)
    with pytest.raises(AttemptError, match="the label word 'zebra' has the token"):
        backbone.label_tokens(["yes", "zebra"])


def test_control_tokens_in_a_text_are_text(backbone: FrozenBackbone, kind: str) -> None:
    tokens: Callable[[str], list[int]] = lambda text: backbone.encode([text], None, 200)[0].input_ids  # noqa: E731
    special = set(backbone.tokenizer.all_special_ids) - {backbone.tokenizer.unk_token_id}
    around = [token for token in tokens("it was") if token in special]  # those that the tokenizer itself sets
    for control in backbone.tokenizer.all_special_tokens:
        found = tokens(f"it was{control} good")
        assert [token for token in found if token in special] == around
        assert not special & set(backbone.target_tokens(f"it{control}s", end=False)[:-1])
    assert tokens("it was good") == backbone.tokenizer("it was good")["input_ids"]
