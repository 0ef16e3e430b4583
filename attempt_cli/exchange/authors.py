"""The files of the ATTEMPT authors' code: soft prompts and G, one `torch.save`d tensor a file.

A source prompt is a file of its own, `mnli.pt` or `mnli_prefix_embeddings.pt`. A saved run is a folder of
`prefix_embeddings.pt` (with a shared G one for each task, `prefix_embeddings_mnli.pt`), `attn_W_down.pt`,
`attn_W_up.pt` and the LayerNorm's two. Their units are the embedding table's own (scale 1), their temperature is the
paper's, and their pooling includes pads.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import ArgumentsError, AttemptError, first_line
from attempt_cli.exchange.content import AttentionDraft, CompositionDraft, Content, PromptDraft

if TYPE_CHECKING:
    from attempt_cli.exchange.content import Array
    from attempt_cli.exchange.importing import Options

LARGEST = 64 << 20  # bytes of a file, and of the tensor in it; a prompt of T5-11B has 400,000
MOST_FILES = 1000
PROMPT, DOWN, UP = "prefix_embeddings", "attn_W_down", "attn_W_up"
NORM = {"layer_norm_weight": "norm.weight", "layer_norm_bias": "norm.bias"}
OF_G = (DOWN, UP, *NORM)


def recognises(path: Path) -> bool:
    """Tells whether a path is a .pt file, or a folder with some."""
    return any(path.glob("*.pt")) if path.is_dir() else path.suffix.casefold() == ".pt"


def read(path: Path, options: Options) -> Content:
    """Reads one file, or all of a folder.

    Raises:
        AttemptError: a file is damaged, too large or holds more than a tensor; or G lacks a part.
    """
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(files) > MOST_FILES:
        raise AttemptError(f"{path} holds {len(files)} files", f"Import at most {MOST_FILES} at once.")
    tensors = {file.stem: read_tensor(file) for file in files}
    of_g = {name: tensors.pop(name) for name in OF_G if name in tensors}
    kind = "target" if of_g else "source"
    prompts = tuple(
        PromptDraft(
            tensor, task=_task(name), name=_task(name), kind=kind, method="attempt" if of_g else "imported", key=name
        )
        for name, tensor in tensors.items()
    )
    if not prompts:
        raise AttemptError(f"{path} holds no prompt", f"A run's folder has {PROMPT}.pt beside G's files.")
    content = Content(prompts)
    if not of_g:
        if options.sources:
            raise ArgumentsError(f"--sources goes with a saved run, and {path} has no {DOWN}.pt", "Leave it out.")
        return content
    notes = ["The authors' pooling includes pads, ours does not: weights differ a little on rows of several lengths."]
    if not options.sources:
        notes.append(
            "The run's sources are not in its folder. Import them, then join all in the run's order: `attempt compose "
            "NAME --sources a,b,c --target … --attention …`."
        )
    attention = _attention(of_g, prompts[0].tensor, path)
    compositions = (
        (CompositionDraft(None, tuple(options.sources), "attention", tuple(tensors), {"embedding_scale": 1.0}),)
        if options.sources
        else ()
    )
    return replace(content, attentions=(attention,), compositions=compositions, notes=tuple(notes))


def _task(name: str) -> str | None:
    """Returns the task in a file's name; None for a run's only prompt."""
    task = name.removeprefix(f"{PROMPT}_").removesuffix(f"_{PROMPT}")
    return None if task == PROMPT else re.sub(r"[^\w.+-]", "-", task) or None


def _attention(of_g: dict[str, Array], prompt: Array, path: Path) -> AttentionDraft:
    """Makes G of its files.

    Raises:
        AttemptError: one is missing, or their shapes do not fit.
    """
    import numpy as np

    from attempt_cli.method import paper_temperature

    if DOWN not in of_g or UP not in of_g:
        missing = next(name for name in (DOWN, UP) if name not in of_g)
        raise AttemptError(f"{path} has a part of G, but no {missing}.pt", "Copy the run's folder again.")
    rank, width = of_g[DOWN].shape if of_g[DOWN].ndim == 2 else (0, 0)
    ones = {"norm.weight": np.ones(width, np.float32), "norm.bias": np.zeros(width, np.float32)}
    norm = ones | {ours: of_g[theirs] for theirs, ours in NORM.items() if theirs in of_g}
    tensors = {"down.weight": of_g[DOWN], "up.weight": of_g[UP], **norm}
    if prompt.ndim != 2 or width != prompt.shape[1]:
        raise AttemptError(
            f"{path}: {DOWN}.pt is {list(of_g[DOWN].shape)} and the prompt {list(prompt.shape)}",
            "G is [r, d], a prompt [m, d], of one width d.",
        )
    return AttentionDraft(
        tensors,
        rank=rank,
        level="instance",
        temperature=paper_temperature(width),
        settings={"embedding_scale": 1.0},
        key="attention",
    )


def read_tensor(path: Path) -> Array:
    """Reads the one tensor of a file that `torch.save` wrote, in float32, without running what else may be in it.

    Raises:
        AttemptError: the file is too large, of an older torch, damaged, or holds anything but one dense tensor.
    """
    import torch

    hint = "A prompt is one float tensor [m, d], saved by torch.save(tensor, path)."
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes" if path.is_file() else "it is not a file")
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch 1.6 and later; older files say less of their size
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError(f"unpacked it has more than {LARGEST} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if type(found) not in (torch.Tensor, torch.nn.Parameter) or found.layout != torch.strided:
            raise ValueError(f"it holds {type(found).__name__}, not a tensor")
        # a small storage may be seen as a large tensor; and of a view of a shared storage only its own part is taken
        if found.device.type != "cpu" or not found.is_floating_point() or found.numel() * 4 > LARGEST:
            raise ValueError(f"it holds {list(found.shape)} of {found.dtype}")
        own: Array = found.detach().to(torch.float32).clone(memory_format=torch.contiguous_format).numpy()
    except Exception as error:  # the reader of damaged files raises many types
        text = str(error) if type(error) is ValueError else first_line(error)
        raise AttemptError(f"{path} cannot be read ({text[:300]})", hint) from None
    return own
