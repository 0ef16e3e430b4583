"""Damaged files of tensors, models and trainings: each is taken, or refused with an error that says what to do."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors
from transformers import CONFIG_MAPPING

from attempt_cli.backbones.input_cache import Group, InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.checked_files import _digest
from attempt_cli.errors import AttemptError
from attempt_registry.tensor_files import read_tensor
from tests.fuzz.damage import (
    VALUES,
    damaged,
    damaged_document,
    damaged_json,
    damaged_safetensors,
    inputs,
    tried,
)
from tests.models import save_gguf, save_llama, save_t5
from tests.training import tiny

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Kind:
    """A file that is damaged, how, and what reads it."""

    file: Path
    read: Callable[[], object]
    damage: Damage = damaged


def safetensors(folder: Path) -> Kind:
    file = folder / "x.safetensors"
    save_file({"prompt": np.ones((4, 3), np.float32)}, file)
    return Kind(file, lambda: read_tensor(file), damaged_safetensors)


def npy(folder: Path) -> Kind:
    np.save(folder / "x.npy", np.ones((4, 3), np.float32))
    return Kind(folder / "x.npy", lambda: read_tensor(folder / "x.npy"))


def npz(folder: Path) -> Kind:
    np.savez(folder / "x.npz", prompt=np.ones((4, 3), np.float32))
    return Kind(folder / "x.npz", lambda: read_tensor(folder / "x.npz"))


def adapter(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({"prompt_embeddings": np.ones((4, 3), np.float32)}, file)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return file


def peft_config(folder: Path) -> Kind:
    file = adapter(folder)
    return Kind(folder / "adapter_config.json", lambda: read_tensor(file), damaged_json)


def peft_weights(folder: Path) -> Kind:
    file = adapter(folder)
    return Kind(file, lambda: read_tensor(file), damaged_safetensors)


def input_cache(folder: Path) -> Kind:
    """Keys and values in a `.kv` file: what was damaged is computed again, and never used."""
    group, right = Group("rows", ((1, 2), (3, 4))), torch.arange(8.0).reshape(2, 1, 2, 1, 2, 1).bfloat16()

    def read() -> None:
        cache = InputCache(1 << 20, folder=folder, made_by="us")
        assert torch.equal(cache.get(group, lambda _: right), right)
        assert cache.failure is None

    read()
    (file,) = folder.glob("*.kv")
    return Kind(file, read, damaged_safetensors)


def checkpoint(folder: Path) -> Kind:
    """A training that goes on from it to its end; its texts are damaged with their checksum made right again."""
    backbone = load_backbone(str(save_llama(folder / "llama")), device="cpu", dtype="float32")
    rows, file = tiny.encoded(backbone, 6), folder / "state"

    def read(steps: int = 3) -> None:
        ended = tiny.run(
            tiny.model(backbone, sources=1),
            rows,
            file,
            evaluate=lambda model: ({"accuracy": 0.5}, -1.0),
            resume=True,
            steps=steps,
            eval_every=1,
            batch_size=2,
        )
        assert json.dumps(ended.numbers)

    def damage(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 1 / 4:
            return damaged_safetensors(data, draw)
        length = 8 + int.from_bytes(data[:8], "little")
        texts = json.loads(data[8:length])["__metadata__"]
        file.write_bytes(data)
        tensors = load_file(file)
        if draw.random() < 1 / 2:
            texts["state"] = json.dumps(damaged_document(json.loads(texts["state"]), draw))
        else:
            name = draw.choice(sorted(tensors))
            tensor = tensors.pop(name)
            others = (tensor[None], tensor.flatten(), tensor.long(), tensor / 0, tensor.new_zeros(0), None)
            if (other := draw.choice(others)) is not None:
                tensors[draw.choice((name, name, f"{name}.x", "optimizer.9.exp_avg"))] = other.contiguous()
        save_tensors(tensors, file, texts | {"sha256": _digest(texts["state"], tensors)})
        return file.read_bytes()

    read(2)
    return Kind(file, read, damage)


def damaged_gguf(data: bytes, draw: random.Random) -> bytes:
    """Damages all of the header, most often the names of the settings and what follows them."""
    names = [at for at in range(0, 4000) if data[at : at + 6] in (b"llama.", b"tokeni", b"genera")]
    words = [struct.pack("<IQ", kind, number) for kind in (4, 8, 9, 10, 99) for number in (1, 1 << 33, 1 << 62)]
    if draw.random() < 1 / 2:
        at = draw.choice(names) + draw.randrange(8, 48)
        return data[:at] + damaged(data[at : at + 40], draw, words) + data[at + 40 :]
    return damaged(data, draw, near=4000)


def backbone_file(name: str) -> Callable[[Path], Kind]:
    """Makes a folder of a tiny model of which one file is damaged."""

    def make(folder: Path) -> Kind:
        model = (save_t5 if name.startswith("t5 ") else save_llama)(folder / "model")
        (model / "own.py").write_text("raise SystemExit('run')")
        file = (folder if name.endswith(".gguf") else model) / name.removeprefix("t5 ")
        types = ("llama", "t5", "gpt2", "mistral", "no-such-type", *sorted(CONFIG_MAPPING)[::20])

        def read() -> None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            load_backbone(str(file if name.endswith(".gguf") else model), device="cpu", dtype="float32")

        if name.endswith(".gguf"):
            return Kind(save_gguf(file, model), read, damaged_gguf)
        if name.endswith(".safetensors"):
            return Kind(file, read, damaged_safetensors)
        return Kind(file, read, lambda data, draw: damaged_json(data, draw, (*VALUES, *types)))

    make.__name__ = name
    return make


BACKBONE_FILES = ("config.json", "t5 config.json", "tokenizer.json", "t5 tokenizer.json", "tokenizer_config.json")
KINDS = [safetensors, npy, npz, peft_config, peft_weights, input_cache, checkpoint]
KINDS += [backbone_file(name) for name in (*BACKBONE_FILES, "model.safetensors", "model.gguf")]


def never_asked(*words: object) -> str:
    raise AssertionError(f"a question: {words}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_taken_or_refused(
    kind: Callable[[Path], Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", never_asked)
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    made = kind(tmp_path)
    data = made.file.read_bytes()
    assert tried(made.read, tmp_path, (AttemptError,), "the whole file") == (kind is not npz)
    for number in range(inputs(len(KINDS), 60 if kind in KINDS[:6] else 8)):
        changed = made.damage(data, random.Random(f"{kind.__name__} {number}"))
        made.file.write_bytes(changed)
        tried(made.read, tmp_path, (AttemptError,), changed)
