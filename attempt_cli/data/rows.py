"""Loads the rows of a task's splits as examples: from a data folder, files or the hub, split by the rule, rendered."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.data.example import Example
from attempt_cli.data.hub_rows import load_hub_table
from attempt_cli.data.readers import FileRows, check_columns, python_rows, read_file, read_parquet_table
from attempt_cli.data.splits import SPLITS, official_split, split_part
from attempt_cli.data.task import HubDataset, Task
from attempt_cli.errors import AttemptError, unknown_name

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Rows:
    """Examples and where they come from.

    Args:
        examples: the rows as text pairs.
        origin: the place, the split rule and the limit in words, for people and for records.
        sha256: of the examples (input, target, references, group), whichever file they came from.
    """

    examples: list[Example]
    origin: str
    sha256: str


def load_examples(
    task: Task, split: str, *, data_dir: Path | None = None, limit: int | None = None, seed: int = 0
) -> Rows:
    """Loads the rows of a split.

    Args:
        task: says where the rows are and how they are split.
        split: train | validation | test.
        data_dir: a folder in the hub's layout, `<hub path>/<config>/<split>.parquet`; what is not there comes from the
            Hugging Face hub.
        limit: take a random sample of at most this many rows, in their order, after the split rule. Where rows belong
            together (MultiRC's answers to a question), take whole groups until the limit is reached.
        seed: chooses the sample.

    Raises:
        AttemptError: an unknown split, rows that cannot be found, an empty split, or a row that cannot be rendered.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS, f"attempt tasks show {task.name}")
    if limit is not None and limit < 1:
        raise AttemptError(f"a limit of {limit} rows", "Choose a limit of at least 1, or none.")
    official = official_split(task.split_rule, task.splits, split)
    found = find_split(task, official, data_dir)
    part = split_part(task.split_rule, split, len(found.numbers))
    grouped = task.group is not None and limit is not None  # a question with half its answers would be scored wrongly
    chosen = part.numbers if grouped else _sample(part.numbers, limit, seed)
    if not chosen:
        raise AttemptError(
            f"no rows for '{split}' of task '{task.name}': {found.place} has {len(found.numbers)} rows",
            "Give more rows, or a file of its own for this split.",
        )
    examples = list(found.render(task, chosen))
    if grouped:
        examples = _whole_groups(examples, limit or 0, seed)
    sampled = "" if len(examples) == len(part.numbers) else f", {len(examples):,} of these by seed {seed}"
    return Rows(examples, f"{found.place}: {part.words}{sampled}", examples_sha256(examples))


def _whole_groups(examples: list[Example], limit: int, seed: int) -> list[Example]:
    """Draws whole groups at random until they hold `limit` rows or more; returns their rows in order."""
    groups = list(dict.fromkeys(example.group for example in examples))
    random.Random(seed).shuffle(groups)
    sizes = Counter(example.group for example in examples)
    taken: set[str | None] = set()
    rows = 0
    for group in groups:
        if rows >= limit:
            break
        taken.add(group)
        rows += sizes[group]
    return [example for example in examples if example.group in taken]


def examples_sha256(examples: Iterable[Example]) -> str:
    """Hashes what the model reads and writes: equal text pairs have equal digests."""
    digest = hashlib.sha256()
    for example in examples:
        pair = [example.input, example.target, list(example.references), example.group]
        digest.update(json.dumps(pair, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class SplitRows:
    """The rows of one official split, wherever they come from.

    Args:
        place: the file or the hub's data set, for messages.
        columns: the names of all columns.
        numbers: the numbers of the rows that belong to the task: all, or those that `hub.where` keeps.
        table: the columns that the task needs, all rows; None for rows that are already Python values.
        rows: the rows as Python values, where there is no table.
        lines: the line of each row in its text file, where there are lines.
    """

    place: str
    columns: tuple[str, ...]
    numbers: Sequence[int]
    table: pyarrow.Table | None = None
    rows: Sequence[dict[str, Any]] = ()
    lines: Sequence[int] = ()

    def render(self, task: Task, positions: Sequence[int]) -> Iterable[Example]:
        """Renders the rows at these positions of `numbers`."""
        for number, row in self.values(positions):
            yield task.render(row, number, place=self.place_of(number))

    def values(self, positions: Sequence[int]) -> Iterable[tuple[int, dict[str, Any]]]:
        """Yields the number and the columns of each row at these positions of `numbers`."""
        numbers = [self.numbers[position] for position in positions]
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            taken = numbers[start : start + ROWS_AT_ONCE]
            rows = (
                python_rows(self.table.take(taken), self.place)
                if self.table is not None
                else [self.rows[number] for number in taken]
            )
            yield from zip(taken, rows, strict=True)

    def place_of(self, number: int) -> str:
        """Returns the place of a row, with its line where that differs from the row's number."""
        line = self.lines[number] if self.lines else None
        return self.place if line is None or line == number + 1 else f"{self.place}, line {line}"


def find_split(task: Task, official: str, data_dir: Path | None) -> SplitRows:
    """Finds the rows of an official split: in the task's own file, else in the data folder, else on the hub.

    Args:
        task: whose rows.
        official: the official split's name, e.g. "validation_matched".
        data_dir: a folder in the hub's layout.

    Raises:
        AttemptError: says where it looked and what else to try.
    """
    found = local_split(task, official, data_dir)
    if found is not None and found.numbers:
        return found
    if task.hub is not None:
        return _hub_split(task, task.hub, official, _not_here(task.hub, official, data_dir, found))
    if found is not None:
        return found
    raise AttemptError(
        f"task '{task.name}' has no file for '{official}' (it has: {', '.join(task.files) or 'none'})",
        f"Give --{official}-file, or name it in the task's YAML under files.",
    )


def local_split(task: Task, official: str, data_dir: Path | None) -> SplitRows | None:
    """Finds the rows of an official split on this machine: in the task's own file or the data folder.

    Raises:
        AttemptError: a file that is named but missing or unreadable, or that lacks a column of the task.
    """
    if task.hub is None:
        path = task.files.get(official)
        return _own_split(task, path) if path is not None else None
    paths = local_paths(task.hub, official, data_dir)
    return _parquet_split(task, task.hub, paths) if paths else None


def local_paths(hub: HubDataset, official: str, data_dir: Path | None) -> list[Path]:
    """Lists the parquet files of an official split in a data folder: one file, shards named as on the hub, or none."""
    if data_dir is None:
        return []
    folder = data_dir / hub.path / (hub.config or "default")
    whole = folder / f"{official}.parquet"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{official}-*-of-*.parquet"))


def _own_split(task: Task, path: Path | str) -> SplitRows:
    content = read_file(path, task.encoding)
    check_columns(task, content, str(path))
    return SplitRows(str(path), content.columns, range(len(content.rows)), None, content.rows, content.lines)


def _parquet_split(task: Task, hub: HubDataset, paths: list[Path]) -> SplitRows:
    place = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    needed = [column.split(".")[0] for column in task.columns()] + [*task.columns(), *hub.where]
    return _table_split(task, hub, *read_parquet_table(paths, needed), place)


def _table_split(task: Task, hub: HubDataset, columns: tuple[str, ...], table: pyarrow.Table, place: str) -> SplitRows:
    check_columns(task, FileRows([], columns), place)
    return SplitRows(place, columns, _kept(table, hub, columns, place), table)


def _not_here(hub: HubDataset, official: str, data_dir: Path | None, local: SplitRows | None) -> str:
    """Says what the data folder lacks, for messages: "no file '…', and "."""
    if local:
        wanted = " and ".join(f"{column} '{value}'" for column, value in hub.where.items())
        return f"no rows with {wanted or 'anything'} in '{local.place}', and "
    return f"no file '{data_dir / hub.path / (hub.config or 'default') / official}.parquet', and " if data_dir else ""


def _hub_split(task: Task, hub: HubDataset, official: str, looked_in: str) -> SplitRows:
    table = load_hub_table(task.name, hub, official, looked_in)
    place = f"hub {hub.path}{f' ({hub.config})' if hub.config else ''}, {official}"
    return _table_split(task, hub, tuple(table.column_names), table, place)


def _kept(table: pyarrow.Table, hub: HubDataset, columns: tuple[str, ...], place: str) -> Sequence[int]:
    """Returns the numbers of the rows that `where` keeps."""
    if not hub.where:
        return range(table.num_rows)
    import pyarrow.compute as compute

    keep = None
    for column, value in hub.where.items():
        if column not in columns:
            raise AttemptError(f"{place}: no column '{column}'", f"The columns there are: {', '.join(columns)}.")
        same = compute.equal(table[column], value)
        keep = same if keep is None else compute.and_(keep, same)
    numbers: list[int] = compute.indices_nonzero(keep).to_pylist()
    return numbers


def _sample(numbers: Sequence[int], limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= len(numbers):
        return numbers
    return [numbers[place] for place in sorted(random.Random(seed).sample(range(len(numbers)), limit))]
