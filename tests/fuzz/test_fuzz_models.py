"""Changed bytes in files of tensors and models: each is taken, or refused with a clear error."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from attempt_cli.backbones.load import load_backbone
from attempt_cli.checked_files import DamagedFileError, read_checked, write_checked
from attempt_cli.errors import AttemptError
from attempt_registry import RegistryError
from attempt_registry.tensor_files import read_tensor
from tests.models import save_gguf, save_llama

COUNT = int(os.environ.get("ATTEMPT_FUZZ", "0"))  # inputs of all tests here together; 0 is the short run
SECONDS, BYTES = 10, 1 << 30
WORDS = (
    b"0",
    b"-1",
    b"99999999999999999999",
    b"null",
    b"[",
    b"{",
    b'"',
    b"..",
    b"/",
    b"\0",
    b"\xff\xff\xff\xff",
    b"1e999",
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes with a few of them flipped, cut, doubled or replaced, most of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not changed:
            break
        size = len(changed)
        at = draw.randrange(min(size, 400)) if draw.random() < 0.7 else draw.randrange(size)
        how = draw.randrange(5)
        if how == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            del changed[at:]
        elif how == 2:
            changed[at:at] = draw.choice(WORDS)
        elif how == 3:
            changed[at : at + draw.randrange(1, 9)] = draw.choice(WORDS)
        else:
            changed[at : at + 8] = draw.randbytes(8)
    return bytes(changed)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes too long or too much memory."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inherited = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, inherited)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


def safetensors(folder: Path) -> tuple[Path, Callable[[], object]]:
    save_file({"prompt": np.ones((4, 3), np.float32)}, folder / "x.safetensors")
    return folder / "x.safetensors", lambda: read_tensor(folder / "x.safetensors")


def npy(folder: Path) -> tuple[Path, Callable[[], object]]:
    np.save(folder / "x.npy", np.ones((4, 3), np.float32))
    return folder / "x.npy", lambda: read_tensor(folder / "x.npy")


def npz(folder: Path) -> tuple[Path, Callable[[], object]]:
    np.savez(folder / "x.npz", prompt=np.ones((4, 3), np.float32))
    return folder / "x.npz", lambda: read_tensor(folder / "x.npz")


def peft(folder: Path) -> tuple[Path, Callable[[], object]]:
    save_file({"prompt_embeddings": np.ones((4, 3), np.float32)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_config.json", lambda: read_tensor(folder / "adapter_model.safetensors")


def kept(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_checked(folder / "x.kv", {"a": torch.ones(4, 3, dtype=torch.bfloat16)}, "state")

    def read() -> None:
        with suppress(DamagedFileError):
            tensors, texts = read_checked(folder / "x.kv")
            assert torch.equal(tensors["a"].float(), torch.ones(4, 3))
            assert texts["state"] == "state"

    return folder / "x.kv", read


SMALL = [safetensors, npy, npz, peft, kept]


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_files_of_tensors(kind: Callable[[Path], tuple[Path, Callable[[], object]]], tmp_path: Path) -> None:
    file, read = kind(tmp_path)
    data = file.read_bytes()
    read_whole = suppress(RegistryError) if kind is npz else bounded()
    with read_whole:
        read()
    draw = random.Random(kind.__name__)
    for _ in range(COUNT // 10 or 60):
        changed = mutated(data, draw)
        file.write_bytes(changed)
        try:
            with bounded():
                read()
        except RegistryError:
            pass
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} of {changed!r}")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.gguf"]
)
def test_backbones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: object) -> str:
        raise AssertionError(f"a question: {words}")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    folder = save_llama(tmp_path / "llama")
    file = save_gguf(tmp_path / name, folder) if name.endswith(".gguf") else folder / name
    data = file.read_bytes()
    draw = random.Random(name)
    for _ in range(COUNT // 10 or 8):
        changed = mutated(data, draw)
        file.write_bytes(changed)
        try:
            with bounded():
                load_backbone(str(file if name.endswith(".gguf") else folder), device="cpu", dtype="float32")
        except AttemptError:
            pass
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} of {changed[:2000]!r}")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
