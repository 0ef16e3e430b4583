"""Kept files: tokens and measurements that are damaged are made again; nothing half-written takes a file's place."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones import kernels, machine
from attempt_cli.backbones.tokens import Tokens, kept_tokens
from attempt_cli.checked_files import DamagedFileError, read_checked, replacing, write_checked

ROWS: Tokens = [([5, 6, 7], 0), ([], 2), ([9], 1)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def must_not_tokenise() -> Tokens:
    raise AssertionError("the tokens were kept")


def test_tokens_are_kept(cache: Path) -> None:
    assert kept_tokens("name", lambda: ROWS) == ROWS
    assert kept_tokens("name", must_not_tokenise) == ROWS
    assert kept_tokens("none", list) == kept_tokens("none", must_not_tokenise) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "a flipped bit", "another's", "a folder"])
def test_damaged_tokens_are_made_again(cache: Path, damage: str) -> None:
    kept_tokens("name", lambda: ROWS)
    (file,) = (cache / "tokens").iterdir()
    data = file.read_bytes()
    kept_tokens("other", lambda: ROWS[:1])
    (other,) = (path for path in (cache / "tokens").iterdir() if path != file)
    damaged = {
        "empty": b"",
        "cut": data[:-3],
        "zeros": bytes(len(data)),
        "a flipped bit": data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        "another's": other.read_bytes(),
    }
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damaged[damage])
    assert kept_tokens("name", lambda: ROWS) == ROWS
    if damage != "a folder":
        assert kept_tokens("name", must_not_tokenise) == ROWS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": ["sdpa"]}', "[" * 100_000, "\0" * 50, '"sdpa"'])
def test_damaged_measurements_are_made_again(cache: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / f"{kernels.MEASUREMENTS}.json").write_text(content)
    kernels._kept_kernel.cache_clear()
    monkeypatch.setattr(kernels, "_measured_kernel", lambda shape: "sdpa")
    monkeypatch.setattr(kernels, "machine_name", lambda device: "a")
    shape = kernels.Shape(torch.device("cpu"), torch.float32, 2, 1, 8, 100, False)
    assert kernels.choose_kernel(shape) == "sdpa"
    kernels._kept_kernel.cache_clear()
    monkeypatch.setattr(kernels, "_measured_kernel", lambda shape: "plain")
    assert kernels.choose_kernel(shape) == "sdpa"  # it was kept
    kernels._kept_kernel.cache_clear()


def test_a_kernel_of_the_wrong_type_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._kept_kernel.cache_clear()
    monkeypatch.setattr(kernels, "_measured_kernel", lambda shape: "sdpa")
    monkeypatch.setattr(kernels, "recall", lambda kind, name: ["sdpa"])
    shape = kernels.Shape(torch.device("cpu"), torch.float32, 2, 1, 8, 100, False)
    assert kernels.choose_kernel(shape) == "sdpa"
    kernels._kept_kernel.cache_clear()


def fill_the_disk(file: Path) -> None:
    with replacing(file) as partial:
        partial.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    write_checked(file, {"a": torch.arange(3)}, "one")
    with pytest.raises(OSError, match="No space left"):
        fill_the_disk(file)
    tensors, texts = read_checked(file)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert texts["state"] == "one"
    assert list(file.parent.iterdir()) == [file]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    monkeypatch.setattr("os.fsync", lambda number: steps.append(file.exists()))
    steps: list[bool] = []
    machine.remember("kind", "name", 1)
    write_checked(file, {"a": torch.zeros(2, 2, dtype=torch.bfloat16)}, "")
    assert steps == [False, False]
    assert read_checked(file)[0]["a"].dtype == torch.bfloat16


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="there is no file"):
        read_checked(tmp_path / "none")
