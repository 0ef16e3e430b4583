"""Looks at a backbone's files before a model is built from them: they may be anybody's."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from attempt_cli.errors import AttemptError

ADAPTER = "adapter_config.json"  # of PEFT
# The library loads a PEFT adapter that lies beside the weights without a word, if PEFT is installed, and may fetch its
# base model instead. No folder has this name, so that it finds none.
WITHOUT_ADAPTER: dict[str, Any] = {"adapter_kwargs": {"subfolder": "no-adapter"}}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# what a config calls a stack's layers; each has at least one tensor in the files
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers")
# and sizes of tensors: none has more rows than all files have entries
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "d_model", "d_ff", "d_kv", "n_embd", "n_inner", "num_heads"),
    *("n_head", "n_heads", "num_attention_heads", "num_key_value_heads", "head_dim", "ffn_dim", "num_experts"),
    *("num_local_experts", "n_positions", "relative_attention_num_buckets"),
)


def check_config(config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuses a config that only code of its own could load.

    Args:
        config: the content of config.json.
        known: the library's own architectures.

    Raises:
        AttemptError: the library does not know the architecture, and the config names code.
    """
    if "auto_map" in config and config.get("model_type") not in known:
        raise AttemptError(
            f"its architecture '{config.get('model_type')}' is code of its own (auto_map), which is not run here"
        )


def check_tokenizer(config: Mapping[str, Any]) -> None:
    """Refuses a config whose tokenizer would be some other class of the library: it looks up any of its names.

    Args:
        config: the content of tokenizer_config.json, or of config.json, which may name a tokenizer, too.

    Raises:
        AttemptError: the library knows the class, and it is no tokenizer.
    """
    import transformers

    name = config.get("tokenizer_class")
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if found is not None and not (isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)):
        raise AttemptError(f"its tokenizer_class '{name}' is no tokenizer")


def check_weights(find: Callable[[str], Path | None], config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Refuses weights that lie elsewhere, or a config that describes another model than the files hold.

    Args:
        find: returns the file of a name in the folder or the repository, None where there is none.
        config: the content of config.json.

    Returns:
        The shape of each tensor in the files.

    Raises:
        AttemptError: says what is wrong.
    """
    shapes = {name: shape for file in weight_files(find) for name, shape in _shapes(file)}
    check_sizes(config, shapes)
    return shapes


def shapes_on_hub(repository: str) -> dict[str, list[int]] | None:
    """Returns the shape of each tensor in a repository's weights, of which the headers alone are fetched.

    Returns:
        None where all files are in the cache, or their headers cannot be had: fetching the files tells why.
    """
    from huggingface_hub import get_safetensors_metadata

    with suppress(AttemptError):
        weight_files(in_repository(repository, cached_only=True))
        return None
    try:
        files = get_safetensors_metadata(repository).files_metadata.values()
    except Exception:  # of huggingface_hub, httpx or a damaged index
        return None
    return {name: tensor.shape for file in files for name, tensor in file.tensors.items()}


def check_gguf(file: Path) -> dict[str, list[int]]:
    """Refuses a GGUF file whose settings describe another model than it holds; returns its tensors' shapes.

    Raises:
        AttemptError: says what is wrong; damaged files make the reader raise many types of errors, too.
    """
    from gguf import GGUFReader
    from transformers import AutoConfig

    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_settings(data)
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in GGUFReader(file).tensors}
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    check_sizes(config.to_dict(), shapes)  # what the file does not say is the library's default, of large models
    return shapes


# bytes of a setting's value in a GGUF file, by the number of its type; texts (8) and lists (9) say theirs
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


def _check_settings(data: mmap.mmap) -> None:
    """Refuses settings that are longer than their GGUF file.

    The library's reader goes on behind the end of the file for as many values as a list claims to have.

    Raises:
        AttemptError: the file ends before they do, or has a type of value that is none.
    """
    order: Literal["little", "big"] = "little" if int.from_bytes(data[4:8], "little") & 0xFFFF else "big"
    at = 16  # behind mark, version and number of tensors

    def number(size: int) -> int:
        nonlocal at
        skip(size)
        return int.from_bytes(data[at - size : at], order)

    def skip(size: int) -> None:
        nonlocal at
        at += size
        if at > len(data):
            raise AttemptError("it ends in the middle of its settings")

    def value(kind: int, depth: int = 0) -> None:
        if kind == _TEXT:
            skip(number(8))
        elif kind == _LIST and depth < 4:
            inner, count = number(4), number(8)
            if inner in _BYTES:
                skip(count * _BYTES[inner])
            else:
                for _ in range(count):
                    value(inner, depth + 1)
        elif kind in _BYTES:
            skip(_BYTES[kind])
        else:
            raise AttemptError(f"a setting has the type {kind}, which is none")

    for _ in range(number(8)):
        skip(number(8))  # its name
        value(number(4))


def check_sizes(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Refuses a config that describes another model than its tensors.

    Raises:
        AttemptError: says what is wrong.
    """
    entries = sum(math.prod(shape) for shape in shapes.values())
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for names, most, what in ((LAYERS, len(shapes), "tensors"), (SIZES, entries, "numbers")):
            for name in names:
                value = part.get(name)
                if isinstance(value, int) and value > max(most, 1):
                    raise AttemptError(f"its config says {name} {value}, but its files hold {most} {what}")


def in_folder(folder: Path) -> Callable[[str], Path | None]:
    """Returns what finds files in a folder."""
    return lambda name: folder / name if (folder / name).is_file() else None


def in_repository(repository: str, *, cached_only: bool) -> Callable[[str], Path | None]:
    """Returns what finds files in a repository of the hub, through the cache that the library uses, too."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        found = cached_file(repository, name, local_files_only=cached_only, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    return find


def weight_files(find: Callable[[str], Path | None]) -> list[Path]:
    """Returns the files of the weights, all of them inside the folder or the repository.

    Raises:
        AttemptError: one is missing, or the index is damaged or names others.
    """
    single = find(SINGLE)
    if single is not None:
        return [single]
    index = find(INDEX)
    if index is None:
        raise AttemptError(f"it has no {SINGLE} (weights in other formats are not read)")
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise AttemptError(f"its {INDEX} names no files")
    names = sorted(set(named.values()))
    for name in names:  # all, before the first is looked for: the library's cache follows ".."
        if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
            raise AttemptError(f"its {INDEX} names a file outside the folder: {name!r}")
    files = []
    for name in names:
        file = find(name)
        if file is None:
            raise AttemptError(f"its {INDEX} names a file that is not there: {name!r}")
        files.append(file)
    return files


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:  # reads the header alone, and compares it with the file's size
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            yield name, opened.get_slice(name).get_shape()


def raise_foreign(error: BaseException) -> None:
    """Raises again what is not about a file: Ctrl-C and the like. A panic of the tokenizers' Rust code is about one."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        AttemptError: it cannot be read, or is none.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AttemptError(f"its {file.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AttemptError(f"its {file.name} is no object of names and values")
    return content
