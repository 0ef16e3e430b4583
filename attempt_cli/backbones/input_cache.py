"""Keys and values of inputs, kept across epochs and trainings.

With the prompt placed after the input nothing that is trained enters the input's own pass, so its keys and values are
the same in every epoch, for every prompt, on the same backbone.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError

# Rows that are computed together. Which rows these are depends on the set of rows alone: a resumed training computes
# the same bits again, though its cache starts empty.
GROUP_ROWS = 16
GROUP_TOKENS = 8192
GROUP_LEAST = 512  # positions; a group that has them takes no much shorter row


@dataclass(frozen=True)
class Group:
    """Rows whose keys and values are computed and kept together.

    Args:
        name: the hash of its rows, the same in every process.
        rows: the inputs' tokens.
    """

    name: str
    rows: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return max(map(len, self.rows))


def row_key(ids: Sequence[int]) -> bytes:
    """What tells a row from others: its tokens."""
    return array("i", ids).tobytes()


class InputCache:
    """A store of keys and values under a budget of bytes.

    Args:
        budget: bytes at the most; whole rows are dropped, never parts of one.
        folder: keep them in files here rather than in memory; later trainings on the same rows find them.
        pin: memory that a GPU can copy from while it computes.
    """

    def __init__(self, budget: int, *, folder: Path | None = None, pin: bool = False) -> None:
        self.budget = budget
        self.folder = folder
        self.pin = pin
        self.hits = 0
        self.misses = 0
        self.failure: str | None = None  # why nothing more is kept
        self._standing: tuple[str, Sequence[EncodedRow]] = ("", ())
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._planned: dict[bytes, tuple[Group, int]] = {}
        self._wanted: set[str] = set()

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return sum(_size(tensor) for tensor in self._kept.values())

    def stand(self, name: str, rows: Callable[[], Sequence[EncodedRow]], bytes_per_token: int) -> None:
        """Rows that every plan holds from now on, after its own: test rows that one model after another is scored on.

        Args:
            name: of the set; rows of the same name are not asked for again.
            rows: gives them.
        """
        if self._standing[0] != name:
            self._standing = (name, rows())
            self.plan([], bytes_per_token)

    def plan(self, sets: Sequence[Sequence[EncodedRow]], bytes_per_token: int) -> None:
        """Says which rows will be read again and again; those of an earlier plan make room where it is needed.

        Args:
            sets: sets of rows, the most often read first; as many rows as fit the budget are kept.
            bytes_per_token: of keys and values over all layers.

        Raises:
            AttemptError: the budget is below one row.
        """
        self._wanted.clear()
        self._planned.clear()
        room = self.budget
        sets = [*sets, self._standing[1]]
        for rows in sets:
            unique = {row_key(row.input_ids): tuple(row.input_ids) for row in rows}
            for group in _groups(list(unique.values())):
                need = len(group.rows) * group.width * bytes_per_token
                if need > room:
                    continue
                room -= need
                self._wanted.add(group.name)
                for place, ids in enumerate(group.rows):
                    self._planned.setdefault(row_key(ids), (group, place))
        shortest = min((len(row.input_ids) for rows in sets for row in rows), default=0)
        if shortest and shortest * bytes_per_token > self.budget:
            raise AttemptError(
                f"the input cache of {size_text(self.budget)} is below one row "
                f"({size_text(shortest * bytes_per_token)} for {shortest} tokens)",
                "Give --input-cache more, or 0 to train without it.",
            )

    def group_of(self, ids: Sequence[int]) -> tuple[Group, int] | None:
        """The planned group of a row and its place there; None where the row is not kept."""
        return None if self.failure else self._planned.get(row_key(ids))

    def get(self, group: Group, compute: Callable[[Group], Tensor]) -> Tensor:
        """Keys and values of a group, [rows, layers, 2, g, l, e]; computed and kept where they are not there yet."""
        kept = self._kept.get(group.name)
        if kept is not None:
            self.hits += 1
            self._kept.move_to_end(group.name)
            return kept
        self.misses += len(group.rows)
        file = self.folder / f"{group.name}.kv" if self.folder is not None else None
        try:
            kept = _from_file(file, self._shape_file(file)) if file is not None else None
        except (OSError, RuntimeError, ValueError):
            kept = None  # a damaged file is computed again
        if kept is None:
            kept = self._keep(group, compute(group), file)
        if self.failure is None:
            self._kept[group.name] = kept
        return kept

    def _keep(self, group: Group, tensor: Tensor, file: Path | None) -> Tensor:
        need = _size(tensor)
        used = self.bytes
        for name in [name for name in self._kept if name not in self._wanted]:  # least recently used first
            if used + need <= self.budget:
                break
            used -= _size(self._kept.pop(name))
            if self.folder is not None:
                (self.folder / f"{name}.kv").unlink(missing_ok=True)
        try:
            if file is not None:
                return _to_file(file, tensor)
            return tensor.cpu().pin_memory() if self.pin else tensor
        except (OSError, RuntimeError, MemoryError) as error:
            # a cache is a convenience: the training goes on without what did not fit
            self.failure = str(error).splitlines()[0]
            return tensor

    @staticmethod
    def _shape_file(file: Path) -> Path:
        return file.with_suffix(".shape")


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _groups(rows: list[tuple[int, ...]]) -> list[Group]:
    """Rows of like length together; a function of the set of rows alone."""
    rows = sorted(rows, key=lambda ids: (len(ids), ids))
    groups = []
    for batch in by_length([len(ids) for ids in rows], 0, GROUP_TOKENS, GROUP_ROWS, least=GROUP_LEAST):
        part = tuple(rows[i] for i in batch)
        groups.append(Group(hashlib.sha256(b"|".join(map(row_key, part))).hexdigest()[:24], part))
    return groups[::-1]  # the shortest first: of these the most fit


def _to_file(file: Path, tensor: Tensor) -> Tensor:
    """Writes the tensor whole or not at all, and maps it back: the system pages it in and out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            out.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        shape = file.with_suffix(".shape")
        shape.write_text(f"{str(tensor.dtype).removeprefix('torch.')} {' '.join(map(str, tensor.shape))}", "utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    mapped = _from_file(file, file.with_suffix(".shape"))
    return tensor if mapped is None else mapped


def _from_file(file: Path, shape_file: Path) -> Tensor | None:
    if not file.exists():
        return None
    dtype_name, *numbers = shape_file.read_text("utf-8").split()
    dtype, shape = getattr(torch, dtype_name), [int(number) for number in numbers]
    count = 1
    for number in shape:
        count *= number
    if file.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{file} is not whole")
    return torch.from_file(str(file), shared=False, size=count, dtype=dtype).view(shape)


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of "4GiB", "500M", "0".

    Raises:
        AttemptError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise AttemptError(f"'{text}' is not a size", "Write it like 4GiB or 500MiB, or 0 for none.")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(size: int) -> str:
    """A size as people read it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"
