"""Trains one task's prompt under many settings at once, and chooses the best by validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from attempt_cli.data.task import Task
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.evaluation.statistics import mean_interval
from attempt_cli.experiments.cells import Cell, CellSpec, banks
from attempt_cli.experiments.methods import ALONE, METHODS, check_methods, check_weight_methods, unread_settings
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.report import with_width
from attempt_cli.experiments.report_table import ReportTable
from attempt_cli.experiments.run import chosen_sources
from attempt_cli.experiments.runner import Runner, record_failure
from attempt_cli.experiments.tuning import best_cell, rank, setting_of
from attempt_cli.session import Session
from attempt_cli.training.config import make_config
from attempt_cli.training.methods import READERS
from attempt_registry import Registry
from attempt_registry.references import check_name

TRAINED = [name for name in ALONE if METHODS[name].trains]
# settings that differ from cell to cell; the others also choose rows or what the whole grid reads
SWEEPABLE = (
    "learning_rate",
    "attention_learning_rate",
    "weight_learning_rate",
    "batch_size",
    "steps",
    "weight_decay",
    "warmup_steps",
    "clip_norm",
    "temperature",
    "attention_rank",
    "prompt_length",
)
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3)  # tried where nothing is named: the default rate, and those around it


@dataclass(frozen=True)
class SweepRow:
    """What one setting gave over seeds.

    Args:
        method: a name in `methods.METHODS`.
        swept: the settings that were tried, by name.
        validation, validation_width: mean score on the validation rows, and the half width of its 95 % interval over
            seeds (None for one seed); None where no seed has a result.
        score, score_width: the same on the test rows.
        seeds: how many have a result.
        n: test rows.
        steps: optimiser steps.
        failed: one line for each seed that failed.
        best: whether this setting was chosen, by its validation score (equal ones by the log-likelihood).
    """

    method: str
    swept: Mapping[str, Any]
    validation: float | None
    validation_width: float | None
    score: float | None
    score_width: float | None
    seeds: int
    n: int
    steps: int
    failed: Sequence[str] = ()
    best: bool = False


@dataclass(frozen=True)
class SweepResult:
    """One task's prompt under many settings.

    Args:
        task: the task's name.
        cells: one for each setting and seed.
        failures: why a cell failed, by its specification.
        specs: all cells that were asked for.
        arguments: of `train_target`, which trains the best again.
        prompt: the full name of the best prompt, of its best seed; None where the method keeps none.
        kept: its copy under the name that was asked for.
        command: as it was typed.
    """

    task: str
    cells: Sequence[Cell]
    failures: Mapping[CellSpec, str]
    specs: Sequence[CellSpec]
    arguments: Mapping[str, Any]
    prompt: str | None = None
    kept: str | None = None
    command: str = ""

    @property
    def rows(self) -> list[SweepRow]:
        """Every setting with its means over seeds, in the order in which they were named."""
        best = best_cell(self.cells, self.failures)
        found = []
        for method, swept in dict.fromkeys((spec.method, spec.swept) for spec in self.specs):
            cells = [cell for cell in self.cells if setting_of(cell) == (method, swept)]
            failed = [text for spec, text in self.failures.items() if (spec.method, spec.swept) == (method, swept)]
            validation, width = _mean([rank(cell)[0] for cell in cells])
            score, score_width = _mean([cell.score for cell in cells])
            found.append(
                SweepRow(
                    method,
                    dict(swept),
                    validation,
                    width,
                    score,
                    score_width,
                    seeds=len(cells),
                    n=max((cell.n for cell in cells), default=0),
                    steps=max((cell.steps for cell in cells), default=0),
                    failed=failed,
                    best=setting_of(best) == (method, swept),
                )
            )
        return found

    @property
    def best(self) -> SweepRow:
        """The setting that the validation rows chose."""
        return next(row for row in self.rows if row.best)

    def table(self) -> ReportTable:
        """Returns the result in written form."""
        rows = self.rows
        tried = list(dict.fromkeys(name for row in rows for name in row.swept))
        lines = [
            {
                "method": row.method,
                **{name: row.swept.get(name) for name in tried},
                "validation": None if row.validation is None else with_width(row.validation, row.validation_width),
                "test": None if row.score is None else with_width(row.score, row.score_width),
                "seeds": row.seeds,
                "n": row.n,
                "steps": row.steps,
                "best": "*" if row.best else "",
                "failed": f"{len(row.failed)} failed: {row.failed[0]}" if row.failed else None,
            }
            for row in rows
        ]
        several = len({row.seeds for row in rows} | {1}) > 1
        notes = [
            "Scores in percent"
            + ("; ± is the half width of the 95 % interval over seeds." if several else ", of one seed: no interval."),
            "The best is chosen by the validation rows, whose score of it is flattering; the test rows chose nothing.",
        ]
        return ReportTable(
            name="sweep",
            title=f"sweep of {self.task}",
            command=self.command,
            columns=["method", *tried, "validation", "test", "seeds", "n", "steps", "best", "failed"],
            lines=lines,
            document=self.document(),
            notes=notes,
        )

    def document(self) -> dict[str, Any]:
        """Returns the JSON document, without its version."""
        return {
            "task": self.task,
            "best": {**asdict(self.best), "prompt": self.prompt, "kept": self.kept, "arguments": dict(self.arguments)},
            "rows": [asdict(row) for row in self.rows],
            "cells": [asdict(cell) for cell in self.cells],
            "failures": [
                {"method": spec.method, "seed": spec.seed, "swept": dict(spec.swept), "error": text}
                for spec, text in self.failures.items()
            ],
        }


def run_sweep(
    session: Session,
    task: Task,
    *,
    methods: Sequence[str],
    seeds: int,
    sources: str | Sequence[str],
    init_from: str | None,
    limit: int | None,
    train_limit: int | None,
    name: str | None,
    resume: bool,
    tags: tuple[str, ...],
    bank: int,
    settings: Mapping[str, Any],
) -> SweepResult:
    """Fills the cells of a sweep, those of prompts together; see `api.experiments.sweep`."""
    check_methods(methods, TRAINED)
    check_weight_methods(methods, session.quantize, session.device)
    store = session.store
    for option, said in (("--sources", sources != "all"), ("--init-from", init_from is not None)):
        if said and not any(METHODS[method].uses_sources for method in methods):
            using = [method for method in TRAINED if METHODS[method].uses_sources]
            hint = f"Methods that use sources: {', '.join(using)}."
            raise ArgumentsError(f"{option} says nothing to {' or '.join(methods)}", hint)
    if name is not None:
        _check_kept(name, methods)
    given = {field: value for field, value in settings.items() if value is not None}
    tried = _tried(given, methods)
    start = store.prompt(init_from) if init_from else None
    chosen, used = chosen_sources(session, [task], methods, sources, start, given.get("prompt_length"))
    if "prompt_length" not in given and "prompt_length" not in tried and used:
        given["prompt_length"] = used[0].length
    backbone = session.backbone or "the session's"
    specs = _specs(task, methods, seeds, backbone, tried)
    for spec in specs:
        make_config(None, **{**given, **dict(spec.swept), **METHODS[spec.method].settings})
    plan = Plan(
        registry=store.folder,
        data_dir=session.rows_folder,
        tasks={task.name: task},
        sources={(backbone, task.name): tuple(prompt.ref for prompt in chosen[task.name])},
        init_from=init_from,
        settings=given,
        limit=limit,
        train_limit=train_limit,
        resume=resume,
        command=session.command,
        tags=tags,
        bank=bank,
    )
    runner = Runner(plan)
    runner.choices.test_rows(task)
    if runner.choices.rows(specs[0])[0].validation is None:
        raise AttemptError(
            f"there are no validation rows of '{task.name}' to choose by",
            "Give --validation-file, or a task whose validation rows can be found (`attempt tasks check`).",
        )
    runner.use_backbone(backbone, session.load_backbone(used, chat_template=bool(given.get("chat_template"))))
    cells, failures = _filled(runner, specs, bank, session)
    best = best_cell(cells, failures)
    method = METHODS[best.method]
    spec = next(one for one in specs if (*setting_of(best), best.seed) == (one.method, one.swept, one.seed))
    request, search = runner.request(spec, session.listener)
    arguments: dict[str, Any] = {**method.settings, **(best.swept or {}), "seed": best.seed}
    if search is not None:  # which has had its part of the steps
        arguments["steps"] = request.config.steps
    if request.sources:
        arguments["sources"] = [prompt.ref for prompt in request.sources]
    if any(request.init_from):
        arguments["init_from"] = next(prompt.ref for prompt in request.init_from if prompt is not None)
    prompt = best.prompt if method.keeps else None
    kept = _kept(store, prompt, name) if name and prompt else None
    return SweepResult(task.name, cells, failures, specs, arguments, prompt, kept, session.command)


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    return mean_interval(values) if values else (None, None)


def _tried(given: dict[str, Any], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Takes the settings with several values out of those that were given; learning rates where there are none.

    Raises:
        ArgumentsError: a setting that cannot be swept, that no method reads, or a value that is named twice.
    """
    several = {field: list(values) for field, values in given.items() if isinstance(values, list | tuple)}
    tried = {field: several[field] for field in sorted(several, key=(*SWEEPABLE, *several).index)}
    for field, values in tried.items():
        del given[field]
        option = f"--{field.replace('_', '-')}"
        if field not in SWEEPABLE:
            raise ArgumentsError(
                f"{option} has one value for the whole sweep, not {len(values)}", f"Swept are {', '.join(SWEEPABLE)}."
            )
        if not values or len(set(map(repr, values))) < len(values):
            raise ArgumentsError(f"{option} names {'no value' if not values else 'a value twice'}", "Name each once.")
        if not any(METHODS[method].reads(field) for method in methods):
            raise ArgumentsError(
                f"{option} says nothing to {' or '.join(methods)}", f"It goes with {', '.join(READERS[field])}."
            )
    if unread := unread_settings(given, methods):
        raise ArgumentsError(unread[0], "Leave it out.")
    if not tried and "learning_rate" not in given and any(METHODS[name].reads("learning_rate") for name in methods):
        tried["learning_rate"] = list(LEARNING_RATES)
    return tried


def _specs(
    task: Task, methods: Sequence[str], seeds: int, backbone: str, tried: Mapping[str, Sequence[Any]]
) -> list[CellSpec]:
    """Returns the cells, those of a seed together: they take the same rows in the same order, which are read once."""
    specs = []
    for seed, method in product(range(seeds), methods):
        fields = [field for field in tried if METHODS[method].reads(field)]
        for values in product(*(tried[field] for field in fields)):
            swept = tuple(zip(fields, values, strict=True))
            specs.append(CellSpec((task.name,), method, seed, backbone, swept=swept))
    return specs


def _filled(
    runner: Runner, specs: Sequence[CellSpec], bank: int, session: Session
) -> tuple[list[Cell], dict[CellSpec, str]]:
    """Fills the cells; a rate at which the loss is no number is a result, too.

    Raises:
        AttemptError: all cells failed; the first one's reason.
    """
    cells: dict[CellSpec, Cell] = {}
    failures: dict[CellSpec, str] = {}
    errors = []
    for together in banks(specs, bank):
        for spec, result in zip(together, runner.run_many(together, session.listener), strict=True):
            if isinstance(result, AttemptError):
                failures[spec] = result.message
                errors.append(result)
                record_failure(session.store, session.command, spec, result.message, 0.0)
            else:
                (cells[spec],) = result.cells
    if not cells:
        raise errors[0]
    return [cells[spec] for spec in specs if spec in cells], failures


def _check_kept(name: str, methods: Sequence[str]) -> None:
    """Refuses a name for the best prompt that cannot be one, or methods that keep no prompt."""
    check_name(name)
    if without := [method for method in methods if not METHODS[method].keeps]:
        raise ArgumentsError(
            f"--name keeps the best prompt, and {' and '.join(without)} keeps none", "Leave --name or the method out."
        )


def _kept(registry: Registry, ref: str, name: str) -> str:
    """Records a prompt, or a composition with its target prompt, under another name, too; returns the new full name."""
    with registry.transaction():
        if "composition" not in registry.kinds_of(ref):
            return _copied(registry, ref, name)
        composition = registry.composition(ref)
        copies = {target: _copied(registry, target, name) for target in composition.targets}
        settings = dict(composition.settings)
        if "prior" in settings:
            settings["prior"] = {copies[target]: own for target, own in settings["prior"].items()}
        return registry.add_composition(
            name=name,
            backbone=composition.backbone,
            fingerprint=composition.fingerprint,
            sources=composition.sources,
            attention=composition.attention,
            targets=tuple(copies.values()),
            settings=settings,
        ).ref


def _copied(registry: Registry, ref: str, name: str) -> str:
    prompt = registry.prompt(ref)
    fields = ("kind", "method", "backbone", "fingerprint", "task", "task_version", "embedding_scale", "placement")
    more = {field: getattr(prompt, field) for field in (*fields, "settings", "numbers", "seed", "parents")}
    more["parts"] = registry.prompt_parts(prompt)
    note = f"the best of a sweep: {ref}"
    return registry.add_prompt(registry.prompt_tensor(prompt), name=name, note=note, **more).ref
