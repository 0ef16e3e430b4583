"""Keys and values of inputs, kept across epochs and trainings.

If the prompt is placed after the input, nothing that is trained enters the input's own pass: on one backbone its keys
and values are the same in every epoch and for every prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.byte_sizes import size_text
from attempt_cli.checked_files import DamagedFileError, read_checked, write_checked
from attempt_cli.errors import AttemptError, first_line

# Bounds of a group, whose rows are computed together. Groups depend on the set of rows alone: a resumed training
# computes the same bits again, though its cache starts empty.
GROUP_ROWS = 16
GROUP_TOKENS = 8192
GROUP_LEAST = 512  # positions; a group that has them takes no row that is much shorter

SPARE_STATES = 64  # groups whose states may stay without their keys

KEPT = "keys and values"  # the name of a file's one tensor


@dataclass(frozen=True)
class Group:
    """Rows whose keys and values are computed and kept together.

    Args:
        name: a hash of its rows, the same in every process.
        rows: the inputs' tokens.
    """

    name: str
    rows: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return max(map(len, self.rows))


def row_key(ids: Sequence[int]) -> bytes:
    """Returns the key that identifies a row: its tokens."""
    return array("i", ids).tobytes()


class InputCache:
    """A store of keys and values under a budget of bytes.

    Args:
        budget: the largest number of bytes; whole rows are dropped, never parts of one.
        folder: keeps them in files here, not in memory; later trainings on the same rows find them. All files there
            together stay within the budget: those that were read longest ago go first.
        made_by: names all that computes them, for the files' names: folders serve several backbones and dtypes.
        on_host: keeps them in the host's memory, not where they are computed: that of a GPU is too small for all.
        on_device: so many bytes of them stay on the GPU all the same, the first that are read.
    """

    def __init__(
        self,
        budget: int,
        *,
        folder: Path | None = None,
        made_by: str = "",
        on_host: bool = False,
        on_device: int = 0,
    ) -> None:
        self.budget = budget
        self.folder = folder
        self.made_by = made_by
        self.on_host = on_host
        self.on_device = on_device
        self.hits = 0
        self.misses = 0
        self.failure: str | None = None  # why nothing more is kept
        self._pinned: tuple[str, Sequence[EncodedRow]] = ("", ())
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._planned: dict[bytes, tuple[Group, int]] = {}
        self._wanted: set[str] = set()
        self._states: dict[str, Tensor] = {}  # of groups that were computed here; a row's are less than a token's keys
        self._earlier: dict[Path, int] | None = None  # files of other trainings and their sizes, the oldest first

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return sum(_size(tensor) for tensor in self._kept.values())

    def pin(self, name: str, rows: Callable[[], Sequence[EncodedRow]], bytes_per_token: int) -> None:
        """Adds rows to every plan from now on, after its own: test rows that many models are scored on.

        Args:
            name: the set's name; rows of a name that is pinned already are not encoded again.
            rows: returns the rows.
            bytes_per_token: of keys and values over all layers.
        """
        if self._pinned[0] != name:
            self._pinned = (name, rows())
            self.plan([], bytes_per_token)

    def plan(self, sets: Sequence[Sequence[EncodedRow]], bytes_per_token: int) -> None:
        """Sets which rows will be read more than once; rows of an earlier plan are dropped when space is needed.

        Args:
            sets: sets of rows, the most often read first; rows are kept as far as the budget allows.
            bytes_per_token: of keys and values over all layers.

        Raises:
            AttemptError: the budget does not hold one row.
        """
        self._wanted.clear()
        self._planned.clear()
        left = self.budget
        sets = [*sets, self._pinned[1]]
        for rows in sets:
            unique = {row_key(row.input_ids): tuple(row.input_ids) for row in rows}
            for group in _groups(list(unique.values())):
                need = len(group.rows) * group.width * bytes_per_token
                if need > left:
                    continue
                left -= need
                self._wanted.add(group.name)
                for place, ids in enumerate(group.rows):
                    self._planned.setdefault(row_key(ids), (group, place))
        shortest = min((len(row.input_ids) for rows in sets for row in rows), default=0)
        if shortest and shortest * bytes_per_token > self.budget:
            raise AttemptError(
                f"the input cache of {size_text(self.budget)} does not hold one row "
                f"({size_text(shortest * bytes_per_token)} for {shortest} tokens)",
                "Give a larger --input-cache, or 0 to train without it.",
            )

    def group_of(self, ids: Sequence[int]) -> tuple[Group, int] | None:
        """Returns the planned group of a row and its place there; None if the row is not kept."""
        return None if self.failure else self._planned.get(row_key(ids))

    def row_on_host(self, ids: Sequence[int]) -> Tensor | None:
        """Returns a row's keys and values, [layers, 2, g, l, e], if the host's memory has them now; else None."""
        planned = self.group_of(ids)
        kept = None if planned is None else self._kept.get(planned[0].name)
        if planned is None or kept is None or kept.device.type != "cpu":
            return None
        return kept[planned[1], ..., : len(ids), :]

    def get(self, group: Group, compute: Callable[[Group], Tensor]) -> Tensor:
        """Returns keys and values of a group, [rows, layers, 2, g, l, e]; computes and keeps them at the first call."""
        kept = self._kept.get(group.name)
        if kept is not None:
            self.hits += 1
            self._kept.move_to_end(group.name)
            return kept
        self.misses += len(group.rows)
        file = self._file(group.name)
        kept = None
        if file is not None:
            with contextlib.suppress(DamagedFileError):  # it is computed again
                kept = self._read(file)
        if kept is None:
            kept = self._keep(compute(group), file)
        if self.failure is None:
            self._kept[group.name] = kept
        return kept

    def add_states(self, name: str, states: Tensor) -> None:
        """Keeps the last hidden states of a group's rows, [rows, 2, d], as long as its keys and values."""
        if len(self._states) > 2 * len(self._kept) + SPARE_STATES:
            self._states = {name: own for name, own in self._states.items() if name in self._kept}
        self._states[name] = states

    def states_of(self, name: str) -> Tensor | None:
        """Returns what `add_states` kept of a group; None where its keys and values came from a file."""
        return self._states.get(name)

    def offer(self, rows: Sequence[Sequence[int]], computed: Tensor, states: Tensor) -> None:
        """Receives keys, values and states of rows that it did not have: of no use to a plan."""

    def _keep(self, tensor: Tensor, file: Path | None) -> Tensor:
        need = _size(tensor)
        used = self.bytes
        for name in [name for name in self._kept if name not in self._wanted]:  # least recently used first
            if used + need <= self.budget:
                break
            used -= _size(self._kept.pop(name))
            dropped = self._file(name)
            if dropped is not None:
                dropped.unlink(missing_ok=True)
        try:
            if file is not None:
                self._drop_earlier(need)
                write_checked(file, {KEPT: tensor}, self._made(file, tensor))
                return self._read(file)  # the system pages it in and out
            there = sum(_size(kept) for kept in self._kept.values() if kept.device.type != "cpu")
            return tensor.cpu() if self.on_host and there + need > self.on_device else tensor
        except Exception as error:  # of the disk or the memory, told by several libraries
            # a cache is a convenience: the training continues without what did not fit
            self.failure = first_line(error)
            return tensor

    def _drop_earlier(self, need: int) -> None:
        """Removes files that other trainings have left until one of `need` bytes has room."""
        if self._earlier is None:
            self._earlier = {}
            wanted = {self._file(name) for name in (*self._wanted, *self._kept)}
            with contextlib.suppress(OSError):
                stats = [(file, file.stat()) for file in (self.folder or Path()).glob("*.kv") if file not in wanted]
                self._earlier = {f: stat.st_size for f, stat in sorted(stats, key=lambda one: one[1].st_mtime_ns)}
        used = self.bytes + sum(self._earlier.values())
        for file in list(self._earlier):
            if used + need <= self.budget:
                break
            used -= self._earlier.pop(file)
            if file not in {self._file(name) for name in self._kept}:
                with contextlib.suppress(OSError):  # another process may hold it open, or have removed it
                    file.unlink()

    def _file(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{name}-{hashlib.sha256(self.made_by.encode()).hexdigest()[:12]}.kv"

    def _read(self, file: Path) -> Tensor:
        """Returns a file's tensor, mapped.

        Raises:
            DamagedFileError: it is missing, or is not what was written under this name.
        """
        tensors, whose = read_checked(file)
        with contextlib.suppress(OSError):
            os.utime(file)  # read just now: it goes last
        if KEPT not in tensors or whose["state"] != self._made(file, tensors[KEPT]):
            raise DamagedFileError("it holds something else")
        return tensors[KEPT]

    def _made(self, file: Path, tensor: Tensor) -> str:
        """Returns the text that a file is kept with: a checksum of bytes alone would let a file stand for another."""
        return f"{file.name} {self.made_by} {tensor.dtype} {list(tensor.shape)}"


class RecentInputs(InputCache):
    """Keeps the inputs that were read last, whatever they are: what a server can know of those to come.

    Args:
        budget: the largest number of bytes.
        on_host: as in `InputCache`.
    """

    def __init__(self, budget: int, *, on_host: bool = False) -> None:
        super().__init__(budget, on_host=on_host)
        self._used = 0

    @property
    def bytes(self) -> int:
        return self._used

    def group_of(self, ids: Sequence[int]) -> tuple[Group, int] | None:
        name = row_key(ids).hex()
        return (Group(name, (tuple(ids),)), 0) if name in self._kept else None

    def offer(self, rows: Sequence[Sequence[int]], computed: Tensor, states: Tensor) -> None:
        for place, ids in enumerate(rows):
            self.misses += 1
            own = computed[place : place + 1, ..., : len(ids), :]
            name, need = row_key(ids).hex(), _size(own)
            if name in self._kept or need > self.budget:
                continue
            kept = own.cpu() if self.on_host else own.clone()  # a view would keep the whole group
            while self._used + need > self.budget:
                _, dropped = self._kept.popitem(last=False)
                self._used -= _size(dropped)
            self._kept[name] = kept
            self._used += need
            self.add_states(name, states[place : place + 1].clone())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _groups(rows: list[tuple[int, ...]]) -> list[Group]:
    """Groups rows of similar length; the result depends on the set of rows alone."""
    rows = sorted(rows, key=lambda ids: (len(ids), ids))
    groups = []
    for batch in by_length([len(ids) for ids in rows], 0, GROUP_TOKENS, GROUP_ROWS, least=GROUP_LEAST):
        part = tuple(rows[i] for i in batch)
        groups.append(Group(hashlib.sha256(b"|".join(map(row_key, part))).hexdigest()[:24], part))
    return groups[::-1]  # the shortest first: more of these fit
