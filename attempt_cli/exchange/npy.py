"""NumPy's files: one matrix [length, width] as it enters the model; Google's prompt-tuning has them, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError
from attempt_cli.exchange import provenance
from attempt_cli.exchange.content import Content, PromptDraft
from attempt_registry.tensor_files import read_tensor

if TYPE_CHECKING:
    from attempt_cli.exchange.exporting import Selection
    from attempt_cli.exchange.importing import Options


def write(selection: Selection, folder: Path) -> None:
    """Writes one prompt, as `NAME.npy`."""
    import numpy as np

    (prompt,) = selection.prompts
    np.save(folder / f"{prompt.name}.npy", selection.entering(prompt))


def recognises(path: Path) -> bool:
    """Tells whether a path is a .npy file, or a folder with some."""
    if path.is_dir():
        return any(path.glob("*.npy"))
    return path.is_file() and path.suffix.casefold() == ".npy"


def read(path: Path, options: Options) -> Content:
    """Reads one matrix, with what stands beside it if it was exported here.

    Raises:
        AttemptError: the folder holds several, or the file is damaged.
    """
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if len(files) > 1:
        raise AttemptError(f"{path} holds {len(files)} .npy files", "Name one of them.")
    tensor = read_tensor(files[0])
    said = provenance.read(files[0].parent, "npy")
    if said is None or files[0].name not in said["files"]:
        return Content((PromptDraft(tensor),), origin={"file": files[0].name})
    return provenance.content(said, (tensor,), files[0].parent)
