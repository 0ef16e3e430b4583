"""The paper's tables and figures, as data: which tasks and methods each has, and what varies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from attempt_cli.experiments.grid import Ask
from attempt_cli.experiments.methods import METHODS


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Args:
        name: "table1".
        title: what it shows.
        tasks: the tasks it runs on.
        groups: those that are averaged together, by name.
        methods: names in METHODS.
        columns: of the table in the terminal.
        seeds: how many, where the user does not say.
        k: numbers of training rows that are drawn; empty for whole training splits.
        vary_sources: run with 1, 2, … of the source prompts.
        fresh: each training in a process of its own.
        counted: modules are counted, nothing is trained.
        plot: how its picture is drawn.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 1
    k: tuple[int, ...] = ()
    vary_sources: bool = False
    fresh: bool = False
    counted: bool = False
    plot: Mapping[str, Any] = field(default_factory=dict)

    def trained_together(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """The tasks in the groups that a method of many targets trains at once; those of no group are one, too.

        A task whose inputs are much longer than the others' is a group of its own (appendix C.7 of the paper).
        """
        apart = _table()["apart"]
        groups = [
            tuple(task for task in group if task in tasks and task not in apart) for group in self.groups.values()
        ]
        groups += [(task,) for task in tasks if task in apart]
        in_groups = {task for group in groups for task in group}
        groups.append(tuple(task for task in tasks if task not in in_groups))
        return [group for group in groups if group]

    def asks(
        self,
        *,
        tasks: Sequence[str],
        methods: Sequence[str],
        seeds: int,
        backbones: Sequence[str],
        ks: Sequence[int],
        sources: Mapping[tuple[str, str], Sequence[str]],
    ) -> list[Ask]:
        """The cells of the grid, those of one backbone and task next to each other.

        Args:
            ks: numbers of training rows; empty for the whole training split.
            sources: the source prompts of a backbone and a task.
        """
        alone = [method for method in methods if not METHODS[method].together]
        together = [method for method in methods if METHODS[method].together]
        draws: list[int | None] = [*ks] or [None]
        asks = []
        for backbone in backbones:
            for task in tasks:
                count = len(sources.get((backbone, task), ()))
                for k in draws:
                    for seed in range(seeds):
                        for method in alone:
                            varies = self.vary_sources and METHODS[method].mixes == "all"
                            numbers: list[int | None] = [*range(1, count + 1)] if varies else [None]
                            asks += [Ask((task,), method, seed, backbone, k, number) for number in numbers]
            asks += [
                Ask(group, method, seed, backbone, k)
                for group in self.trained_together(tasks)
                for k in draws
                for seed in range(seeds)
                for method in together
            ]
        return asks


@cache
def experiments() -> dict[str, Experiment]:
    """All of them, by name."""
    table = _table()
    groups = {name: tuple(tasks) for name, tasks in table["groups"].items()}
    found = {}
    for name, entry in table["experiments"].items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        own = {group: groups[group] for group in fields.pop("groups", ())}
        tasks = fields.pop("tasks", tuple(task for group in own.values() for task in group))
        found[name] = Experiment(name=name, tasks=tasks, groups=own, **fields)
    return found


def paper_sources() -> tuple[str, ...]:
    """The paper's six source tasks."""
    return tuple(_table()["sources"])


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text("utf-8"))
    return table
