"""A grid's results as a table: means, intervals and differences, published numbers beside them, and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attempt_cli.experiments.cells import Cell, CellSpec
from attempt_cli.experiments.methods import METHODS, unknown_names
from attempt_cli.experiments.paper import Experiment
from attempt_cli.experiments.published import Published, published_backbone, published_memory, published_scores
from attempt_cli.experiments.report_table import ReportTable
from attempt_cli.experiments.summary import Row, averages, overall, summarise
from attempt_cli.experiments.tuning import TRIED

GIGABYTE = 1e9
PAIRED_P = "p: Student's paired t-test over seeds; in brackets adjusted for all comparisons of the table (Holm)."
MOVED = "moved: the way from the start to what was kept, in percent of the norm of the start."
TUNED = (
    "Learning rates (rates: of prompts / of G or factors, or of weights) were chosen by the validation rows, for each "
    f"task and method of {len(TRIED)} tries; prompts are in units of the embedding RMS."
)

# what a table can show, in the order of the CSV
COLUMNS = (
    "task",
    "backbone",
    "backbone_parameters",
    "k",
    "sources",
    "method",
    "score",
    "against_prompt_tuning",
    "p",
    "published",
    "seeds",
    "n",
    "steps",
    "rates",
    "moved",
    "trained_parameters",
    "extra_tokens",
    "training_seconds",
    "orders",
    "memory",
    "attention",
    "failed",
)


@dataclass(frozen=True)
class Report:
    """The results of an experiment.

    Args:
        experiment: its tasks, methods and columns.
        command: as it was typed.
        cells: the results.
        failures: one line for each cell that failed.
        backbone_parameters: the number of frozen weights, by backbone.
        tried: where learning rates were searched, the cells of all that were tried; `cells` are those that were chosen.
        rates: learning rates that were given to single methods.
    """

    experiment: Experiment
    command: str
    cells: Sequence[Cell]
    failures: Mapping[CellSpec, str]
    backbone_parameters: Mapping[str, int]
    tried: Sequence[Cell] = ()
    rates: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Means over seeds of every task, then of every group of tasks."""
        return summarise([*self.cells, *averages(self.cells, self.experiment.groups)])

    @property
    def overall(self) -> list[Row]:
        """Means over all settings; empty where the experiment shows means of groups of tasks."""
        alike = not self.experiment.groups and not self.experiment.vary_sources
        return overall(self.cells) if alike and "score" in self.experiment.columns else []

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The table's lines: results, failures, then published numbers of methods without a result."""
        published = self._published()
        lines = [self._line(row, published) for row in self.rows]
        failed: dict[tuple[Any, ...], list[str]] = {}
        for spec, error in self.failures.items():
            failed.setdefault((spec.task, spec.backbone, spec.k, spec.sources, spec.method), []).append(error)
        for (task, backbone, k, sources, method), errors in failed.items():
            text = f"{len(errors)} failed: {errors[0]}"
            line = {"task": task, "backbone": backbone, "k": k, "sources": sources, "method": method}
            same = [one for one in lines if all(one[name] == line[name] for name in ("task", "k", "method"))]
            if len(same) == 1 and len({cell.backbone for cell in self.cells}) == 1:
                same[0]["failed"] = text  # some seeds have a result
            else:
                lines.append({**dict.fromkeys(COLUMNS), **line, "failed": text})
        there = {(line["task"], line["method"]) for line in lines}
        if "published" in self.experiment.columns and self.experiment.groups:
            lines += self._published_lines(published, there)
        return lines

    def _published_lines(
        self, published: Mapping[tuple[str, str], Published], there: set[tuple[Any, Any]]
    ) -> list[dict[str, Any]]:
        """Returns a line for each published mean over a group of tasks for which there is no number of ours."""
        tasks = [f"{group} average" for group in self.experiment.groups]
        numbers = {key: _published_text(number) for key, number in published.items() if key[0] in tasks}
        return [
            {**dict.fromkeys(COLUMNS), "task": task, "method": method, "published": number}
            for (task, method), number in numbers.items()
            if (task, method) not in there
        ]

    def _published(self) -> dict[tuple[str, str], Published]:
        if "memory" in self.experiment.columns:
            return published_memory()
        return published_scores(self.experiment.paper)

    def _line(self, row: Row, published: Mapping[tuple[str, str], Published]) -> dict[str, Any]:
        memory = "memory" in self.experiment.columns
        number = published.get((row.backbone if memory else row.task, row.method))
        return {
            **dict.fromkeys(COLUMNS),
            **result_line(row),
            **({"rates": f"{self.rates[row.method]:g}"} if row.method in self.rates else {}),
            "backbone": row.backbone,
            "backbone_parameters": self.backbone_parameters.get(row.backbone),
            "k": row.k,
            "sources": row.sources,
            "published": number and _published_text(number, percent=not memory),
            "memory": row.peak_memory and f"{row.peak_memory / GIGABYTE:.2f} GB",
        }

    def table(self, columns: Sequence[str] = ()) -> ReportTable:
        """Returns the report in written form; `columns` replaces the experiment's own."""
        failed = ["failed"] if self.failures else []
        return ReportTable(
            name=self.experiment.name,
            title=f"{self.experiment.name}: {self.experiment.title}",
            command=self.command,
            columns=columns or [*self.experiment.columns, *failed],
            lines=self.lines,
            document=self.document(),
            notes=self.notes(),
            matrix=self.matrix() if "score" in self.experiment.columns else [],
        )

    def matrix(self) -> list[dict[str, Any]]:
        """Returns lines with methods down and tasks across, a block for each backbone and number of rows or sources."""
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        many = {name: len({getattr(cell, name) for cell in self.cells}) > 1 for name in ("backbone", "k")}
        for row in self.rows:
            varied = row.sources if self.experiment.vary_sources else None
            head: dict[str, Any] = {"method": row.method}
            head |= {name: getattr(row, name) for name, differ in many.items() if differ}
            head |= {"sources": varied} if self.experiment.vary_sources else {}
            line = lines.setdefault(tuple(head.values()), head)
            line[row.task] = with_width(row.mean, row.width)
        tasks = dict.fromkeys(row.task for row in self.rows)
        return [{**line, **{task: line.get(task) for task in tasks}} for line in lines.values()]

    def document(self) -> dict[str, Any]:
        """Returns the JSON document, without its version."""
        published = self._published()
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "command": self.command,
            "rows": [
                {**asdict(row), "backbone_parameters": self.backbone_parameters.get(row.backbone)} for row in self.rows
            ],
            "overall": [asdict(row) for row in self.overall],
            "published": [
                {"of": of, "method": method, **asdict(number)}
                for (of, method), number in published.items()
                if of in self._published_keys()
            ],
            "failures": [{**asdict(spec), "error": error} for spec, error in self.failures.items()],
            "cells": [asdict(cell) for cell in self.cells],
            **({"tried": [asdict(cell) for cell in self.tried]} if self.tried else {}),
        }

    def notes(self) -> list[str]:
        """Returns what a reader of the table has to know."""
        cells = [cell for cell in self.cells if METHODS[cell.method].trains]
        steps = sorted({cell.steps for cell in cells})
        seeds = len({cell.seed for cell in self.cells})
        notes = [
            f"Scores in percent; ± is the half width of the 95 % interval over {seeds} seeds."
            if seeds > 1
            else "Scores in percent, of one seed: no interval over seeds.",
        ]
        if any(row.difference is not None for row in self.rows):
            notes.append("Differences are paired by seed against prompt tuning on the same rows with the same steps.")
        if any(row.p is not None for row in self.rows):
            notes.append(PAIRED_P)
        if means := self.overall:
            settings = len({(cell.task, cell.k) for cell in self.cells})
            several = len({row.backbone for row in means}) > 1
            texts = []
            for row in means:
                text = f"{row.method}{f' ({row.backbone})' if several else ''} {100 * row.mean:.1f}"
                if row.difference is not None:
                    text += f" ({with_width(row.difference, row.difference_width, signed=True)})"
                texts.append(text)
            notes.append(f"Mean over all {settings} settings, in brackets the difference: {', '.join(texts)}.")
        if steps:
            budget = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
            notes.append(f"Budget: {budget} optimiser steps for every trained method.")
        shown = [number for key, number in self._published().items() if key[0] in self._published_keys()]
        if shown and "published" in self.experiment.columns:
            of = published_backbone(self.experiment.paper)
            notes.append(f"Published ({of}): " + "; ".join(dict.fromkeys(number.source for number in shown)) + ".")
            if any(number.unchecked for number in shown):
                notes.append("Numbers marked (?) are quoted without the paper's table at hand.")
        if any(row.moved is not None for row in self.rows) and "moved" in self.experiment.columns:
            notes.append(MOVED)
        if self.tried:
            notes.append(TUNED)
        if computed := self._computed():
            notes.append(computed)
        return [*notes, *self.experiment.notes]

    def _computed(self) -> str | None:
        """Says in which dtype and on what machine the cells were computed; None where no cell says it."""
        counts = Counter(f"{cell.dtype} on {cell.machine}" if cell.machine else "" for cell in self.cells)
        unknown = counts.pop("", 0)
        if not counts:
            return None
        if len(counts) == 1 and not unknown:
            return f"Computed in {next(iter(counts))}."
        known = {**counts, **({"an unknown dtype and place": unknown} if unknown else {})}
        parts = [f"{where} ({number} of {len(self.cells)} cells)" for where, number in known.items()]
        rest = "Compare seconds within one of them only; scores can differ by rounding."
        return f"Computed in {', '.join(parts)}. {rest}"

    def _published_keys(self) -> set[str]:
        tasks = {cell.task for cell in self.cells}
        return tasks | {f"{group} average" for group in self.experiment.groups} | set(self.backbone_parameters)


def check_columns(names: Sequence[str]) -> list[str]:
    """Returns a message for each unknown name of a column."""
    return unknown_names("column", names, COLUMNS)


def result_line(row: Row) -> dict[str, Any]:
    """Returns a method's result as people read it, in percent."""
    gap, gap_width = row.difference, row.difference_width
    return {
        "task": row.task,
        "method": row.method,
        "score": with_width(row.mean, row.width),
        "against_prompt_tuning": None if gap is None else with_width(gap, gap_width, signed=True),
        "p": None if row.p is None or row.p_holm is None else f"{row.p:.2g} ({row.p_holm:.2g})",
        "seeds": len(row.scores),
        "n": row.n,
        "steps": row.steps,
        "trained_parameters": row.trained_parameters,
        "extra_tokens": round(row.extra_tokens),
        "training_seconds": row.training_seconds,
        "orders": row.orders and " to ".join(f"{100 * end:.1f}" for end in row.orders),
        "rates": " / ".join(f"{rate:g}" for rate in (row.swept or {}).values()),
        "moved": None if row.moved is None else f"{100 * row.moved:.3g} %",
        "attention": ", ".join(f"{name} {weight:.2f}" for name, weight in (row.attention or {}).items()),
    }


def with_width(mean: float, width: float | None, *, signed: bool = False) -> str:
    """Writes a mean and its interval in percent: "81.2 ± 1.4"."""
    text = f"{100 * mean:+.1f}" if signed else f"{100 * mean:.1f}"
    return text if width is None else f"{text} ± {100 * width:.1f}"


def _published_text(number: Published, percent: bool = True) -> str:
    text = f"{100 * number.value:.1f}" if percent else f"{number.value:g} GB"
    return text + (" (?)" if number.unchecked else "")
