"""Looks at a backbone's files before a model is built from them: they may be anybody's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attempt_cli.errors import AttemptError

ADAPTER = "adapter_config.json"  # of PEFT
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


def check_weights(find: Callable[[str], Path | None], config: Mapping[str, Any]) -> None:
    """Refuses weights that lie elsewhere, or a config that describes another model than the files hold.

    Args:
        find: returns the file of a name in the folder or the repository, None where there is none.
        config: the content of config.json.

    Raises:
        AttemptError: says what is wrong.
    """
    shapes = {name: shape for file in _weight_files(find) for name, shape in _shapes(file)}
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


def _weight_files(find: Callable[[str], Path | None]) -> list[Path]:
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
