"""Means over seeds and over groups of tasks, computed by hand."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.experiments.cells import Cell
from attempt_cli.experiments.paper import experiments
from attempt_cli.experiments.report import Report
from attempt_cli.experiments.summary import Row, averages, overall, summarise


def cell(task: str, method: str, seed: int, score: float, **others: Any) -> Cell:
    fields = {"interval": (0.0, 1.0), "n": 50, "prompt": f"{task}-{method}@{seed + 1}", "steps": 4}
    return Cell(task=task, method=method, seed=seed, score=score, **(fields | others))  # type: ignore[arg-type]


def test_settings_are_kept_apart() -> None:
    cells = [
        cell("toy", method, seed, score + seed / 100, k=k, backbone=backbone)
        for backbone, k, shift in (("one", 4, 0.0), ("one", 8, 0.1), ("two", 4, 0.2))
        for method, score in (("prompt-tuning", 0.5 + shift), ("attempt", 0.6 + 2 * shift))
        for seed in (0, 1)
    ]
    rows = summarise(cells)
    assert [(row.backbone, row.k, row.method) for row in rows] == [
        (backbone, k, method)
        for backbone, k in (("one", 4), ("one", 8), ("two", 4))
        for method in ("prompt-tuning", "attempt")
    ]
    # each setting has its own prompt tuning: 0.1, 0.2 and 0.3
    assert [row.difference for row in rows] == pytest.approx([None, 0.1, None, 0.2, None, 0.3])


def test_numbers_of_sources_have_a_row_each() -> None:
    cells = [cell("toy", "prompt-tuning", 0, 0.5)]
    cells += [cell("toy", "attempt", 0, 0.5 + t / 10, sources=t) for t in (1, 2)]
    rows = summarise(cells)
    assert [(row.method, row.sources) for row in rows] == [("prompt-tuning", None), ("attempt", 1), ("attempt", 2)]
    assert [row.difference for row in rows[1:]] == pytest.approx([0.1, 0.2])


def test_a_group_s_mean_is_a_cell_a_seed() -> None:
    groups = {"Pair": ["a", "b"], "Trio": ["a", "b", "c"], "Other": ["d", "e"]}
    cells = [cell(task, "attempt", seed, score, steps=steps, trained_parameters=7) for task, seed, score, steps in (
        ("a", 0, 0.2, 4), ("b", 0, 0.4, 5), ("a", 1, 0.6, 4), ("b", 1, 0.8, 4), ("d", 0, 1.0, 4),
    )]  # fmt: skip
    made = averages(cells, groups)
    assert [(c.task, c.seed, c.steps, c.n) for c in made] == [
        ("Pair average", 0, 5, 100),
        ("Pair average", 1, 4, 100),
        ("Trio average (2 of 3)", 0, 5, 100),
        ("Trio average (2 of 3)", 1, 4, 100),
    ]
    assert [c.score for c in made] == pytest.approx([0.3, 0.7, 0.3, 0.7])
    (row, _) = summarise(made)
    assert (row.mean, row.trained_parameters) == (pytest.approx(0.5), 7)
    assert row.width == pytest.approx(12.7062 * 0.2, abs=1e-3)  # t(0.975, 1) · sqrt(0.08) / sqrt(2)


def test_a_seed_that_misses_a_task_has_no_mean() -> None:
    cells = [cell("a", "attempt", 0, 0.2), cell("b", "attempt", 0, 0.4), cell("a", "attempt", 1, 0.9)]
    assert [c.seed for c in averages(cells, {"Pair": ["a", "b"]})] == [0]


def test_the_mean_over_all_settings_is_paired_by_seed() -> None:
    settings = [("a", 4), ("a", 8), ("b", 4)]
    cells = [
        cell(task, method, seed, 0.1 * place + shift + 0.02 * seed * (method == "attempt"), k=k)
        for place, (task, k) in enumerate(settings)
        for method, shift in (("prompt-tuning", 0.5), ("attempt", 0.6))
        for seed in (0, 1)
    ]
    missing = cell("a", "spot", 0, 0.9, k=4)  # one setting of three
    plain, attempt = overall([*cells, missing])
    assert (plain.task, plain.k, plain.method, plain.n) == ("all", None, "prompt-tuning", 150)
    assert (plain.mean, attempt.mean) == (pytest.approx(0.6), pytest.approx(0.71))
    assert attempt.difference == pytest.approx(0.11)
    assert attempt.difference_width == pytest.approx(12.7062 * 0.01, abs=1e-4)  # t(0.975, 1) · 0.01414 / sqrt(2)
    assert overall([one for one in cells if (one.task, one.k) == ("a", 4)]) == []


def test_a_report_tells_machines_and_dtypes_apart() -> None:
    def last_note(*where: tuple[str, str]) -> str:
        cells = [
            cell("a", "attempt", seed, 0.5, dtype=dtype, machine=machine) for seed, (dtype, machine) in enumerate(where)
        ]
        return Report(experiments()["table3"], "attempt reproduce table3", cells, {}, {}).notes()[-1]

    one, other, unknown = ("float32", "this x2"), ("bfloat16", "that x8"), ("", "")
    assert last_note(one, one) == "Computed in float32 on this x2."
    assert last_note(one, other, one).startswith(
        "Computed in float32 on this x2 (2 of 3 cells), bfloat16 on that x8 (1 of 3 cells). Compare seconds within one"
    )
    assert "this x2 (1 of 2 cells), an unknown dtype and place (1 of 2 cells)" in last_note(one, unknown)
    assert "Computed" not in last_note(unknown, unknown)


def test_the_page_on_json_has_every_field_of_a_cell_and_of_a_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text("utf-8")
    examples = [json.loads(re.sub(r",\s*…", "", text)) for text in re.findall(r"```json\n(.+?)\n```", page, re.DOTALL)]
    grids = [one for one in examples if "cells" in one]
    assert len(grids) == 4  # fewshot, sweep, reproduce, demo
    for grid in grids:
        assert set(grid["cells"][0]) == {one.name for one in fields(Cell)}
        if "methods" in grid:
            assert set(grid["methods"][0]) == {one.name for one in fields(Row)}
