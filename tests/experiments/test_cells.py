"""A comparison's cells: the same rows and steps for every method, and differences computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.artefacts import load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.fewshot import few_shot
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import Rows, examples_sha256, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.evaluate import evaluate
from attempt_cli.experiments.cells import Cell, TaskContext, best_source
from attempt_cli.experiments.methods import ALONE, check_methods
from attempt_cli.experiments.summary import summarise
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.recipes import Request, _Silent, train_prompt
from attempt_registry import Registry
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    train = write_csv(tmp_path / "train.csv", toy_rows(30))
    test = write_csv(tmp_path / "test.csv", toy_rows(14, 2))
    return task_from_files(train=train, test=test, input="{text} label:", label="mood", name="toy").model_copy(
        update={"split_rule": "own"}
    )


@pytest.fixture
def context(tmp_path: Path, backbone: FrozenBackbone, task: Task) -> TaskContext:
    registry = Registry.open(tmp_path / "kept")
    config = TrainingConfig(prompt_length=4, steps=4, batch_size=8, learning_rate=0.1, eval_every=0)
    for seed, name in enumerate(("bad", "good")):
        learned = config.model_copy(update={"seed": seed, "steps": 25 if name == "good" else 1})
        train_prompt(registry, backbone, Request(task=task, kind="source", name=name, config=learned))
    return TaskContext(
        registry=registry,
        backbone=backbone,
        task=task,
        test=load_examples(task, "test"),
        config=config,
        sources=(registry.prompt("bad"), registry.prompt("good")),
        init_from=None,
        name="toy-8-shot",
        command="attempt fewshot",
        tags=("fewshot",),
        note=lambda text: None,
    )


def drawn(task: Task, seed: int) -> Rows:
    rows = few_shot(load_examples(task, "train").examples, 8, per_class=False, label_count=2, seed=seed)
    return Rows(rows, f"eight by seed {seed}", examples_sha256(rows))


METHODS = ["none", "source", "prompt-tuning", "spot", "attempt"]


def test_every_method_has_the_same_rows_and_steps(context: TaskContext, task: Task) -> None:
    registry, cells = context.registry, list[Cell]()
    before = len(registry.runs())
    for seed in (0, 1):
        cells += context.run(METHODS, drawn(task, seed), seed)
    assert [(cell.method, cell.seed) for cell in cells] == [(method, seed) for seed in (0, 1) for method in METHODS]
    assert [cell.steps for cell in cells] == [0, 0, 4, 4, 4] * 2
    assert {cell.n for cell in cells} == {14}
    assert [cell.prompt for cell in cells[:5]] == [
        "no prompt",
        "good@1",
        "toy-8-shot-prompt-tuning@1",
        "toy-8-shot-spot@1",
        "toy-8-shot-attempt@1",
    ]
    assert [cell.prompt for cell in cells[7:]] == [f"toy-8-shot-{method}@2" for method in METHODS[2:]]
    assert registry.prompt("toy-8-shot-spot@1").parents == ("good@1",)  # the source that fits the rows best
    assert registry.prompt("toy-8-shot-prompt-tuning@1").parents == ()
    assert registry.prompt("toy-8-shot-attempt@2").seed == 1
    assert registry.prompt("toy-8-shot-attempt@2").tags == ("fewshot",)
    runs = registry.runs()[before:]
    for seed in (0, 1):
        rows = [example.row for example in drawn(task, seed).examples]
        trainings = [run for run in runs if run.artefacts and run.seed == seed]
        assert len(trainings) == 3
        for run in trainings:
            assert run.rows["train"]["rows"] == rows
            assert run.rows["train"]["sha256"] == drawn(task, seed).sha256
            assert (run.budget["steps"], run.budget["training_rows"]) == (4, 8)
    scored = {run.numbers["prompt"]: run for run in runs if "score" in run.numbers}
    for cell in cells:  # every score is on record, those that depend on no seed once
        assert scored[cell.prompt].numbers["score"] == pytest.approx(cell.score)
        assert scored[cell.prompt].rows["test"]["sha256"] == context.test.sha256
    assert len([run for run in runs if "score" in run.numbers]) == 8


@pytest.mark.parametrize("method", ["attempt", "bitfit"])
def test_a_kill_while_a_cell_is_scored_repeats_no_step_and_leaves_no_double(
    context: TaskContext, task: Task, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, steps = drawn(task, 0), list[int]()
    before = len(context.registry.runs())

    class Counter(_Silent):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            steps.append(step)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("attempt_cli.experiments.cells.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            context.cell(method, train, 0, Counter())
    assert steps == [1, 2, 3, 4]
    assert len(context.registry.runs()) == before  # nothing half done is on record
    cell = replace(context, resume=True).cell(method, train, 0, Counter())
    assert steps == [1, 2, 3, 4]
    assert cell.steps == 4
    (training,) = (run for run in context.registry.runs()[before:] if "last_loss" in run.numbers)
    assert cell.peak_memory == training.numbers["peak_memory"] > 0  # of the steps, which another process took
    assert training.numbers["padding"] >= 1
    assert len(context.registry.runs()) == before + 2  # the training and its score
    assert list((context.registry.folder / "checkpoints").glob("*")) == []
    assert context.backbone.tuned is None


def test_a_cell_s_score_is_that_of_its_prompt(context: TaskContext, task: Task) -> None:
    cells = {cell.method: cell for cell in context.run(["source", "spot", "attempt"], drawn(task, 0), 0)}
    for method in ("source", "spot"):
        loaded = load_prompt(context.registry, context.backbone, context.registry.prompt(cells[method].prompt))
        result = evaluate(loaded.model, task, context.test.examples)
        assert (cells[method].score, cells[method].interval) == (result.score, result.interval)
        assert cells[method].attention is None
    attention = cells["attempt"].attention
    assert attention is not None
    assert list(attention) == ["bad@1", "good@1", "target"]
    assert sum(attention.values()) == pytest.approx(1, abs=1e-5)


def test_the_best_source_is_the_one_that_fits_the_training_rows(context: TaskContext, task: Task) -> None:
    rows = drawn(task, 0).examples
    likelihoods = {}
    for prompt in context.sources:
        said = evaluate(load_prompt(context.registry, context.backbone, prompt).model, task, rows).predictions.rows
        likelihoods[prompt.name] = sum(row.log_likelihood or 0.0 for row in said)
    assert likelihoods["good"] > likelihoods["bad"]
    best = best_source(context.registry, context.backbone, task, rows, context.sources, context.config)
    assert best.name == "good"
    assert best_source(context.registry, context.backbone, task, [], context.sources[:1], context.config).name == "bad"


def test_a_start_that_is_named_is_taken(context: TaskContext, task: Task) -> None:
    named = replace(context, init_from=context.sources[0])
    named.run(["spot", "attempt"], drawn(task, 0), 0)
    assert context.registry.prompt("toy-8-shot-spot").parents == ("bad@1",)
    assert context.registry.prompt("toy-8-shot-attempt").settings["init_from"] == "bad@1"


def test_an_unknown_method_names_the_nearest() -> None:
    check_methods(METHODS)
    with pytest.raises(AttemptError, match="no method named 'prompt-tunning'") as failure:
        check_methods(["attempt", "prompt-tunning"])
    assert "prompt-tuning" in str(failure.value.hint)
    # what only a grid can prepare is not called unknown
    with pytest.raises(AttemptError, match=r"'mpt' needs a training on several tasks.*no method named 'atempt'"):
        check_methods(["mpt", "atempt"], ALONE)


# --- the table


def cell(method: str, seed: int, score: float, **others: Any) -> Cell:
    fields = {"interval": (0.0, 1.0), "n": 50, "prompt": f"{method}@{seed + 1}", "steps": 4, "task": "toy"}
    return Cell(method=method, seed=seed, score=score, **(fields | others))  # type: ignore[arg-type]


def test_means_and_paired_differences_by_hand() -> None:
    cells = [
        *(cell("none", seed, 0.5, prompt="no prompt", steps=0) for seed in range(3)),
        *(cell("prompt-tuning", seed, score) for seed, score in enumerate((0.55, 0.66, 0.74))),
        # the other way round: pairs go by seed, not by place
        *(cell("attempt", seed, score) for seed, score in ((2, 0.80), (1, 0.70), (0, 0.60))),
    ]
    none, tuning, attempt = summarise(cells)
    assert (none.method, none.mean, none.width, none.steps) == ("none", 0.5, None, 0)
    assert none.scores == [0.5, 0.5, 0.5]
    assert tuning.mean == pytest.approx(0.65)
    assert (tuning.difference, tuning.difference_width) == (None, None)
    # t(0.975, 2) = 4.302653; the differences are 0.05, 0.04, 0.06, their deviation 0.01
    assert attempt.mean == pytest.approx(0.70)
    assert attempt.width == pytest.approx(4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert attempt.difference == pytest.approx(0.05)
    assert attempt.difference_width == pytest.approx(4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert none.difference == pytest.approx(-0.15)


def test_without_prompt_tuning_there_is_no_difference() -> None:
    (row,) = summarise([cell("spot", seed, 0.5 + seed / 10) for seed in range(2)])
    assert (row.difference, row.difference_width) == (None, None)
    missing = summarise([cell("spot", 0, 0.5), cell("spot", 1, 0.6), cell("prompt-tuning", 0, 0.4)])
    assert missing[0].difference is None  # a seed has no partner
    (single,) = summarise([cell("attempt", 0, 0.5)])
    assert (single.mean, single.width) == (0.5, None)


def test_tasks_are_kept_apart_and_attention_is_averaged() -> None:
    cells = [
        cell("attempt", 0, 0.5, attention={"one@1": 0.2, "target": 0.8}),
        cell("attempt", 1, 0.7, attention={"one@1": 0.4, "target": 0.6}),
        cell("attempt", 0, 0.9, task="other"),
    ]
    first, second = summarise(cells)
    assert (first.task, first.mean) == ("toy", pytest.approx(0.6))
    assert first.attention == pytest.approx({"one@1": 0.3, "target": 0.7})
    assert (second.task, second.mean, second.attention) == ("other", 0.9, None)
