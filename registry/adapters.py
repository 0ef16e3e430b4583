"""Reads the prompts of PEFT's adapter folders; `adapter_config.json` alone tells the kinds apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_registry.database import file_failure
from attempt_registry.errors import RegistryError
from attempt_registry.objects import decode, safetensors_entries

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PLAIN, MULTITASK = "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"
_LARGEST_CONFIG = 1 << 20
_LARGEST = 1 << 30  # bytes of a file, and of the prompts that it makes
# kinds that put something else than prompts before the input; all others change weights
_NO_PROMPT = {
    "PREFIX_TUNING": "keys and values for every layer",
    "CARTRIDGE": "keys and values for every layer",
    "CPT": "examples whose places have weights of their own",
    "ADAPTION_PROMPT": "prompts inside the layers",
}


@dataclass(frozen=True)
class Adapter:
    """The prompts of an adapter.

    Args:
        kind: its `peft_type`.
        prompts: one a task, float32 [length, width], as they enter the model.
        backbone: the model's name as the adapter has it, or None.
        revision: the model's revision as the adapter has it, or None.
    """

    kind: str
    prompts: tuple[Array, ...]
    backbone: str | None
    revision: str | None


def is_adapter(folder: Path) -> bool:
    """Tells whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """Reads an adapter's config, of which the kind and the length are checked.

    Raises:
        RegistryError: it is missing, damaged, or has no kind.
    """
    file = folder / CONFIG
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"it has more than {_LARGEST_CONFIG} bytes")
        config = json.loads(file.read_text("utf-8"))
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("it names no peft_type")
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryError(f"{file} cannot be read ({error!r})"[:500], "Copy the adapter's folder again.") from error
    return config


def read_adapter(folder: Path, tensors_file: str = TENSORS, tensors: dict[str, Array] | None = None) -> Adapter:
    """Reads an adapter of prompt tuning, of P-tuning, or of multitask prompt tuning with a prompt for each task.

    An adapter for encoder-decoders has a second half, for the decoder: of plain prompts PEFT never uses it. Multitask
    prompt tuning does, so that no prompt before the input says the same.

    Args:
        folder: the adapter's folder.
        tensors_file: the name of its tensors' file.
        tensors: what is in that file, if it is read already.

    Raises:
        RegistryError: another kind, a damaged file, or a prompt for the decoder.
    """
    config = adapter_config(folder)
    kind, length = config["peft_type"], config.get("num_virtual_tokens")
    if kind not in (PLAIN, "P_TUNING", MULTITASK):
        raise _other_kind(folder, kind)
    if type(length) is not int or length < 1:
        raise RegistryError(
            f"{folder / CONFIG} says num_virtual_tokens {str(length)[:20]}", "Copy the adapter's folder again."
        )
    file = folder / tensors_file
    tensors = _tensors(file) if tensors is None else tensors
    table = tensors.get("prompt_embeddings")
    if table is None or table.ndim != 2:
        raise RegistryError(f"{file} does not hold the prompt of a {kind} adapter", "Copy the adapter's folder again.")
    if kind != MULTITASK and any("prefix_task" in name for name in tensors):
        raise RegistryError(
            f"{file} holds factors of tasks, which is no plain prompt, but its {CONFIG} says {kind}",
            "Copy the adapter's folder again.",
        )
    if len(table) not in (length, 2 * length):
        raise RegistryError(
            f"{file} holds {len(table)} rows, but its {CONFIG} says num_virtual_tokens {length}",
            "Copy the adapter's folder again.",
        )
    prompts = (table[:length],) if kind != MULTITASK else _task_prompts(file, tensors, length)
    names = [config.get(name) for name in ("base_model_name_or_path", "revision")]
    backbone, revision = (name if isinstance(name, str) and name else None for name in names)
    return Adapter(kind, prompts, backbone, revision)


def _tensors(file: Path) -> dict[str, Array]:
    if not file.is_file():
        others = sorted(path.name for path in file.parent.glob("adapter_model.*"))
        raise RegistryError(
            f"{file.parent} holds no {file.name}" + (f", but {', '.join(others)}" if others else ""),
            "Load the adapter with peft and save it again: pickles are not opened here."
            if others
            else "Copy the adapter's folder again.",
        )
    try:
        if file.stat().st_size > _LARGEST:
            raise RegistryError(f"{file} is too large for prompts", "Look whether it is the right file.")
        data = file.read_bytes()
    except OSError as error:
        raise file_failure(error, file) from error
    return {name: decode(entry, name) for name, entry in safetensors_entries(data, file).items()}


def _task_prompts(file: Path, tensors: dict[str, Array], length: int) -> tuple[Array, ...]:
    """Returns P_t = P * (cols_t @ rows_t) of every task t."""
    import numpy as np

    table = tensors["prompt_embeddings"]
    cols, rows = tensors.get("prefix_task_cols"), tensors.get("prefix_task_rows")
    if (
        cols is None
        or rows is None
        or cols.ndim != 3
        or rows.ndim != 3
        or len(cols) < 1
        or cols.shape != (len(rows), len(table), rows.shape[1])
        or rows.shape[2] != table.shape[1]
    ):
        raise RegistryError(
            f"{file} lacks factors that fit its prompt: prefix_task_cols [T, N, r] and prefix_task_rows [T, r, d]",
            "Copy the adapter's folder again.",
        )
    if len(table) != length:
        raise RegistryError(
            f"{file} has a prompt for the decoder, too: no prompt before the input says the same",
            "Train it with num_transformer_submodules=1.",
        )
    if len(cols) * table.size * 4 > _LARGEST:
        raise RegistryError(f"{file} makes {len(cols)} prompts, too many to read", "Look whether it is damaged.")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is added
        return tuple(table * (left @ right) for left, right in zip(cols, rows, strict=True))


def _other_kind(folder: Path, kind: Any) -> RegistryError:
    holds = _NO_PROMPT.get(kind) if isinstance(kind, str) else None
    return RegistryError(
        f"{folder} holds a {str(kind)[:40]!r} adapter, which is no plain prompt: "
        + (f"it is {holds}" if holds else "it changes the model's weights"),
        "Adapters of PROMPT_TUNING, P_TUNING and MULTITASK_PROMPT_TUNING hold prompts."
        if holds
        else "Merge it into the model with peft (`merge_and_unload`), save that, and name the folder with --backbone.",
    )
