"""Unpacks GGUF files into the cache, as folders that the library loads fast."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from attempt_cli.backbones.machine import cache_folder
from attempt_cli.backbones.spread import TooLargeError
from attempt_cli.backbones.strangers import WITHOUT_ADAPTER, check_gguf, raise_foreign
from attempt_cli.backbones.weight_sizes import check_memory
from attempt_cli.checked_files import remove_stale_partials
from attempt_cli.errors import AttemptError, first_line


def unpacked_gguf(file: Path) -> Path:
    """Returns a bf16 safetensors copy of a GGUF file in the cache, written at the first load: later loads are fast.

    A copy that was changed since, or is not whole, is written again.

    Raises:
        AttemptError: the file cannot be read, or the copy cannot be written.
    """
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    cache = cache_folder() / "gguf"
    folder = cache / f"{file.stem}-{key}"
    if _is_whole(folder):
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    remove_stale_partials(cache)
    partial = cache / f"{folder.name}.{os.getpid()}.partial"
    try:
        with _alone(file) as alone:
            shapes = check_gguf(alone)
            # unpacked, it is in the host's memory whole
            check_memory(file.stem, shapes, None, torch.device("cpu"), torch.bfloat16)
            reading: dict[str, Any] = {"gguf_file": alone.name, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(
                str(alone.parent),
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                **WITHOUT_ADAPTER,
                **reading,
            )
            tokenizer = AutoTokenizer.from_pretrained(str(alone.parent), **reading)
    except TooLargeError:
        raise
    except BaseException as error:  # a damaged file makes the reader raise many types of errors
        raise_foreign(error)
        raise AttemptError(
            f"the GGUF file {file} cannot be read: {first_line(error)}",
            "Download it again, or name a folder or a hub id.",
        ) from error
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for written in partial.iterdir():
            with written.open("rb+") as opened:
                os.fsync(opened.fileno())
        (partial / WHOLE).write_text(json.dumps(_sizes_and_times(partial)), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:  # of the disk, told by several libraries
        if not _is_whole(folder):  # otherwise another process was faster, and its copy is used
            raise AttemptError(
                f"the weights of {file} cannot be unpacked into {cache}: {first_line(error)}",
                "Free some space, or name another folder in $ATTEMPT_CACHE, then run the command again.",
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Yields a link to the file in a folder of its own: the library reads a tokenizer.json beside a file before it."""
    with tempfile.TemporaryDirectory(prefix="attempt-gguf-") as folder:
        link = Path(folder) / file.name
        try:
            link.symlink_to(file.resolve())
        except OSError:  # Windows allows links to few users
            yield file
        else:
            yield link


WHOLE = "unpacked.json"  # of an unpacked GGUF file: the sizes and times of the files beside it


def _sizes_and_times(folder: Path) -> dict[str, list[int]]:
    stats = {file.name: file.stat() for file in folder.iterdir() if file.name != WHOLE}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / WHOLE).read_text("utf-8")) == _sizes_and_times(folder))
    except (OSError, ValueError, RecursionError):
        return False
