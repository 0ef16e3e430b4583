"""Reads the tables and figures of papers: the tasks and methods of each, and what varies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from attempt_cli.experiments.cells import CellSpec
from attempt_cli.experiments.methods import METHODS


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Args:
        name: "table1".
        title: its subject.
        tasks: the tasks it runs on.
        groups: tasks that are averaged together, by name.
        methods: names in METHODS.
        columns: the columns of the table in the terminal.
        seeds: the default number of seeds.
        k: numbers of training rows that are drawn; empty for whole training splits.
        vary_sources: runs with 1, 2, … of the source prompts.
        fresh: runs each training in a process of its own.
        counted: counts modules and trains nothing.
        plot: the kind of its picture, the quantity on its x axis, and whether that axis is logarithmic.
        paper: whose published numbers stand beside ours, a name in published.yaml.
        preset: the paper's settings; others can be named.
        backbone, limit, train_limit: at which size it runs where nothing else is said.
        notes: what a reader of its report has to know.
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
    paper: str = "asai"
    preset: str | None = None
    backbone: str | None = None
    limit: int | None = None
    train_limit: int | None = None
    notes: tuple[str, ...] = ()

    def trained_together(self, tasks: Sequence[str], least: int = 1) -> list[tuple[str, ...]]:
        """Splits tasks into the groups that a method of many targets trains at once; tasks without a group form one.

        A task whose inputs are much longer than the others' is alone in its group (appendix C.7 of the paper).

        Args:
            tasks: the tasks.
            least: a group of fewer tasks joins another one.
        """
        apart = _table()["apart"]
        groups = [
            tuple(task for task in group if task in tasks and task not in apart) for group in self.groups.values()
        ]
        groups += [(task,) for task in tasks if task in apart]
        in_groups = {task for group in groups for task in group}
        groups.append(tuple(task for task in tasks if task not in in_groups))
        groups = [group for group in groups if group]
        few = [group for group in groups if len(group) < least]
        if few and len(groups) > 1:
            first, *others = [group for group in groups if len(group) >= least] or [()]
            return [first + tuple(task for group in few for task in group), *others]
        return groups

    def specs(
        self,
        *,
        tasks: Sequence[str],
        methods: Sequence[str],
        seeds: Sequence[int],
        backbones: Sequence[str],
        ks: Sequence[int],
        sources: Mapping[tuple[str, str], Sequence[str]],
    ) -> list[CellSpec]:
        """Lists the cells of the grid; those of one backbone and task are next to each other.

        Args:
            seeds: each draws its rows.
            ks: numbers of training rows; empty for the whole training split.
            sources: the source prompts, by backbone and task.
        """
        alone = [method for method in methods if not METHODS[method].together]
        together = [method for method in methods if METHODS[method].together]
        draws: list[int | None] = [*ks] or [None]
        specs = []
        for backbone in backbones:
            for task in tasks:
                count = len(sources.get((backbone, task), ()))
                for k in draws:
                    for seed in seeds:
                        for method in alone:
                            varies = self.vary_sources and METHODS[method].mixes == "all"
                            numbers: list[int | None] = [*range(1, count + 1)] if varies else [None]
                            specs += [CellSpec((task,), method, seed, backbone, k, number) for number in numbers]
            specs += [
                CellSpec(group, method, seed, backbone, k)
                for least in sorted({METHODS[method].least_tasks for method in together})
                for group in self.trained_together(tasks, least)
                for k in draws
                for seed in seeds
                for method in together
                if METHODS[method].least_tasks == least
            ]
        return specs


@cache
def experiments() -> dict[str, Experiment]:
    """Loads all experiments, by name."""
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
    """Returns the paper's six source tasks."""
    return tuple(_table()["sources"])


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text("utf-8"))
    return table
