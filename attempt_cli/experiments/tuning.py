"""Tries learning rates: the same number for every method, of which the validation rows choose."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attempt_cli.experiments.cells import Cell, CellSpec
from attempt_cli.experiments.methods import METHODS
from attempt_cli.training.methods import RATES, find_method

# the default rates in the middle; all rates of a method go up and down together, so that every method has as many tries
TRIED: tuple[dict[str, float], ...] = (
    {"learning_rate": 0.01, "attention_learning_rate": 0.003, "weight_learning_rate": 1e-4},
    {"learning_rate": 0.03, "attention_learning_rate": 0.01, "weight_learning_rate": 3e-4},
    {"learning_rate": 0.1, "attention_learning_rate": 0.03, "weight_learning_rate": 1e-3},
)

Setting = tuple[str, tuple[tuple[str, Any], ...]]


def with_rates(specs: Sequence[CellSpec]) -> list[CellSpec]:
    """Returns each cell that trains once for each of the rates that are tried, the others as they are."""
    found = []
    for spec in specs:
        if not METHODS[spec.method].trains:
            found.append(spec)
            continue
        read = [RATES[group] for group in find_method(METHODS[spec.method].settings["method"]).rates]
        found += [replace(spec, swept=tuple((name, rates[name]) for name in read)) for rates in TRIED]
    return found


def best_of_each(cells: Sequence[Cell], failures: Mapping[CellSpec, str]) -> list[Cell]:
    """Returns the cells whose rates were best, for each backbone, task, number of rows or sources, and method."""
    lines: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.backbone, cell.task, cell.k, cell.sources, cell.method), []).append(cell)
    found: list[Cell] = []
    for line in lines.values():
        own = {spec: text for spec, text in failures.items() if line[0].task in spec.tasks}
        best = setting_of(best_cell(line, own))
        found += [cell for cell in line if setting_of(cell) == best]
    return found


def best_cell(cells: Sequence[Cell], failures: Mapping[CellSpec, str]) -> Cell:
    """Chooses a setting by its mean over seeds on the validation rows, and of its seeds the best.

    One with a failed seed is chosen only where all have some.
    """
    settings: dict[Setting, list[Cell]] = {}
    for cell in cells:
        settings.setdefault(setting_of(cell), []).append(cell)
    failed = {(spec.method, spec.swept) for spec in failures}
    whole = {setting: those for setting, those in settings.items() if setting not in failed} or settings

    def means(setting: Setting) -> tuple[float, float]:
        ranks = [rank(cell) for cell in whole[setting]]
        return sum(first for first, _ in ranks) / len(ranks), sum(second for _, second in ranks) / len(ranks)

    return max(whole[max(whole, key=means)], key=rank)


def rank(cell: Cell) -> tuple[float, float]:
    """Returns what a cell is chosen by: its score on the validation rows, and the log-likelihood between equal ones."""
    numbers = cell.validation_score, cell.validation_log_likelihood
    first, second = (float("-inf") if number is None else number for number in numbers)
    return first, second


def setting_of(cell: Cell) -> Setting:
    """Returns a cell's method and the settings that were tried for it."""
    return cell.method, tuple((cell.swept or {}).items())
