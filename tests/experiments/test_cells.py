"""A comparison's cells: the same rows and steps for every method, and differences computed by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attempt_cli.artefacts import bare, load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.comparison import compare_runs
from attempt_cli.evaluation.evaluate import evaluate
from attempt_cli.evaluation.prediction import encode_examples, predict_many, text_likelihoods
from attempt_cli.evaluation.record import evaluation_of_run
from attempt_cli.experiments.cells import Cell, CellSpec
from attempt_cli.experiments.methods import ALONE, check_methods
from attempt_cli.experiments.methods import METHODS as COMPARISONS
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.runner import Runner
from attempt_cli.experiments.summary import summarise
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.request import TaskRows
from attempt_registry import Registry
from tests.training.requests import request_for, trained
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    train = write_csv(tmp_path / "train.csv", toy_rows(30))
    test = write_csv(tmp_path / "test.csv", toy_rows(14, 2))
    return task_from_files(train=train, test=test, input="{text} label:", label="mood", name="toy").model_copy(
        update={"split_rule": "own"}
    )


@dataclass
class Few:
    """Eight rows of the toy task, two sources, the tiny backbone."""

    plan: Plan
    registry: Registry
    backbone: FrozenBackbone

    def runner(self, **changes: Any) -> Runner:
        runner = Runner(replace(self.plan, **changes))
        runner.use_backbone("tiny", self.backbone)
        return runner

    def spec(self, method: str, seed: int = 0) -> CellSpec:
        return CellSpec(("toy",), method, seed, "tiny", 8)

    def cells(self, methods: list[str], seed: int = 0, **changes: Any) -> list[Cell]:
        runner = self.runner(**changes)
        return [cell for method in methods for cell in runner.run(self.spec(method, seed)).cells]

    def rows(self, seed: int) -> Rows:
        return self.runner().choices.rows(self.spec("attempt", seed))[0].train

    @property
    def sources(self) -> tuple[Any, ...]:
        return self.registry.prompt("bad"), self.registry.prompt("good")


@pytest.fixture
def few(tmp_path: Path, backbone: FrozenBackbone, task: Task) -> Few:
    registry = Registry.open(tmp_path / "kept")
    given: dict[str, Any] = {"prompt_length": 4, "steps": 4, "batch_size": 8, "learning_rate": 0.1, "eval_every": 0}
    for seed, name in enumerate(("bad", "good")):
        config = TrainingConfig(**{**given, "seed": seed, "steps": 25 if name == "good" else 1})
        trained(registry, backbone, request_for(task, kind="source", name=name, config=config))
    plan = Plan(
        registry=registry.folder,
        tasks={"toy": task},
        sources={("tiny", "toy"): ("bad@1", "good@1")},
        settings=given,
        command="attempt fewshot",
        tags=("fewshot",),
    )
    return Few(plan, registry, backbone)


def cells_of(found: list[Any]) -> list[Cell]:
    assert not [one for one in found if isinstance(one, AttemptError)]
    return [cell for one in found for cell in one.cells]


# what differs between a cell of a bank and the same cell alone
OWN: dict[str, Any] = {"seconds": 0, "training_seconds": 0, "prompt": "", "attention": None, "peak_memory": None}
METHODS = ["none", "source", "prompt-tuning", "spot", "attempt"]


def test_every_method_has_the_same_rows_and_steps(few: Few, task: Task) -> None:
    registry, cells = few.registry, list[Cell]()
    before = len(registry.runs())
    runner = few.runner()
    for seed in (0, 1):
        cells += [cell for method in METHODS for cell in runner.run(few.spec(method, seed)).cells]
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
        rows = [example.row for example in few.rows(seed).examples]
        trainings = [run for run in runs if run.artefacts and run.seed == seed]
        assert len(trainings) == 3
        for run in trainings:
            assert run.rows["train"]["rows"] == rows
            assert run.rows["train"]["sha256"] == few.rows(seed).sha256
            assert (run.budget["steps"], run.budget["training_rows"]) == (4, 8)
    scored = {run.numbers["prompt"]: run for run in runs if "score" in run.numbers}
    test = load_examples(task, "test")
    for cell in cells:  # every score is on record, those that depend on no seed once
        assert scored[cell.prompt].numbers["score"] == pytest.approx(cell.score)
        assert scored[cell.prompt].rows["test"]["sha256"] == test.sha256
    assert len([run for run in runs if "score" in run.numbers]) == 8


def test_under_a_preset_all_methods_train_on_the_rows_that_are_recorded(
    tmp_path: Path, backbone: FrozenBackbone, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset takes 10 of 30 rows: so do the methods that train several targets, or start from a prior."""
    files = {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(30, seed)) for seed, name in enumerate(("left", "right"))
    }
    tasks = {
        name: task_from_files(train=file, validation=file, test=file, input="{text} label:", label="mood", name=name)
        for name, file in files.items()
    }
    rule = {"tasks": list(tasks), "train_limit": 10}
    monkeypatch.setattr("attempt_cli.training.presets._rules", lambda preset: [rule])
    sources = {("tiny", name): ("bad@1", "good@1") for name in tasks}
    # the sources' own task stands among the sources of these targets: the prior is trained on it
    prior = trained(
        few.registry,
        backbone,
        replace(
            request_for(
                few.plan.tasks["toy"], name="prior", config=TrainingConfig(**{**few.plan.settings, "method": "attempt"})
            ),
            keep="attention",
            sources=few.sources,
        ),
    ).attention
    settings = {**few.plan.settings, "eval_every": 2, "attention_rank": 3}
    runner = few.runner(
        tasks=tasks,
        sources=sources,
        settings=settings,
        preset="paper",
        prepared={
            ("tiny", name, kind): ref
            for name in tasks
            for kind, ref in (("attention", prior), ("shared", "good@1"), ("factored", "good@1"))
        },
    )
    before = len(few.registry.runs())
    table2 = [
        "prompt-tuning",
        "spot",
        "spot-g",
        "attempt",
        "attempt-prior",
        "attempt-m",
        "mpt",
        "fine-tuning",
        "fine-tuning-m",
        "adapter-m",
        "hyperformer",
        "hyperdecoder",
        "adapterfusion",
        "bitfit",
        "lora",
    ]
    expected: dict[str, Any] = {}
    for method in table2:
        together = COMPARISONS[method].together
        for names in [tuple(tasks)] if together else [("left",), ("right",)]:
            spec = CellSpec(names, method, 3, "tiny")
            for name, rows in zip(names, runner.choices.rows(spec), strict=True):
                assert rows.validation is not None
                found = ([example.row for example in rows.train.examples], rows.validation.sha256)
                assert expected.setdefault(name, found) == found
                assert len(found[0]) == 10
            assert [cell.task for cell in runner.run(spec).cells] == list(names)
    trainings = [run for run in few.registry.runs()[before:] if "last_loss" in run.numbers]
    assert len(trainings) == 6 + 2 * (len(table2) - 6)
    for run in trainings:
        if "train" in run.rows:
            recorded = {run.settings["task"]["name"]: {**run.rows["train"], "validation": run.rows["validation"]}}
        else:
            recorded = run.rows
        for name, rows in recorded.items():
            assert (rows["rows"], rows["validation"]["sha256"]) == expected[name]
            assert rows["n"] == 10
        assert run.budget["training_rows"] == 10 * len(recorded)


def test_a_grid_tells_once_that_its_sources_had_another_tokenizer(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    class Notes(Listener):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    monkeypatch.setitem(vars(few.backbone), "tokenizer_digest", "0123456789abcdef")
    runner = few.runner()
    for method in ("prompt-tuning", "source", "spot"):
        runner.run(few.spec(method), Notes())
    (note,) = [note for note in notes if "tokenizer" in note]
    assert note.startswith("bad@1, good@1: trained with another tokenizer")


@pytest.mark.parametrize("methods", [["attempt"], ["bitfit"], ["attempt", "spot"]])
def test_a_kill_while_cells_are_scored_repeats_no_step_and_leaves_no_double(
    few: Few, methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [few.spec(method) for method in methods]
    steps = list[int]()
    before = len(few.registry.runs())

    class Counter(Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            steps.append(step)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("attempt_cli.experiments.runner.evaluate_many", killed)
        with pytest.raises(KeyboardInterrupt):
            few.runner().run_many(specs, Counter())
    assert steps == [1, 2, 3, 4]
    assert len(few.registry.runs()) == before  # nothing half done is on record
    cells = cells_of(few.runner(resume=True).run_many(specs, Counter()))
    assert steps == [1, 2, 3, 4]
    trainings = [run for run in few.registry.runs()[before:] if "last_loss" in run.numbers]
    for cell, training in zip(cells, trainings, strict=True):
        assert cell.steps == 4
        assert cell.peak_memory == training.numbers["peak_memory"] > 0  # of the steps, which another process took
        assert training.numbers["padding"] >= 1
    assert len(few.registry.runs()) == before + 2 * len(specs)  # the training and its score
    assert list((few.registry.folder / "checkpoints").glob("*")) == []
    assert few.backbone.tuned is None


def test_a_cell_s_score_is_that_of_its_prompt(few: Few, task: Task) -> None:
    cells = {cell.method: cell for cell in few.cells(["source", "spot", "attempt"])}
    test = load_examples(task, "test")
    for method in ("source", "spot"):
        loaded = load_prompt(few.registry, few.backbone, few.registry.prompt(cells[method].prompt))
        result = evaluate(loaded.model, task, test.examples)
        assert (cells[method].score, cells[method].interval) == (result.score, result.interval)
        assert cells[method].attention is None
    attention = cells["attempt"].attention
    assert attention is not None
    assert list(attention) == ["bad@1", "good@1", "target"]
    assert sum(attention.values()) == pytest.approx(1, abs=1e-5)


def test_the_best_source_is_the_one_that_fits_the_training_rows(few: Few, task: Task) -> None:
    rows = few.rows(0)
    likelihoods = {}
    for prompt in few.sources:
        loaded = load_prompt(few.registry, few.backbone, prompt)
        predictions = evaluate(loaded.model, task, rows.examples).predictions.rows
        likelihoods[prompt.name] = sum(row.log_likelihood or 0.0 for row in predictions)
    assert likelihoods["good"] > likelihoods["bad"]
    choices = few.runner().choices
    for sources, best in ((few.sources, "good"), (few.sources[:1], "bad")):
        assert choices.best_source(few.backbone, TaskRows(task, rows), sources, None).name == best


def test_the_best_source_for_free_text_makes_its_answers_likeliest(
    few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is generated: that takes longer than a short training."""
    file = write_csv(tmp_path / "free.csv", toy_rows(12))
    free = task_from_files(train=file, input="{text} label:", answers="mood", name="free")
    rows = TaskRows(free, load_examples(free, "train"))
    expected = {}
    models = [load_prompt(few.registry, few.backbone, prompt).model for prompt in few.sources]
    models.append(bare(few.backbone).model)
    for prompt, model in zip([*few.sources, None], models, strict=True):
        with torch.no_grad():
            found = [model.log_likelihood([row]) for row in encode_examples(model, free, rows.train.examples)]
        expected[prompt.name if prompt else "none"] = float(sum(found))
    together = text_likelihoods(models, free, rows.train.examples)
    assert together == pytest.approx([*expected.values()], rel=1e-4)
    del expected["none"]
    monkeypatch.setattr(PromptedModel, "generate", lambda *_arguments: pytest.fail("it generates"))
    choices = few.runner().choices
    best = max(expected, key=expected.__getitem__)
    for sources in (few.sources, few.sources[::-1]):
        assert choices.best_source(few.backbone, rows, sources, None).name == best


def test_sources_are_compared_in_one_reading_of_the_rows(few: Few, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(prompted: list[Any], *arguments: Any, **options: Any) -> Any:
        asked.append(len(prompted))
        return predict_many(prompted, *arguments, **options)

    monkeypatch.setattr("attempt_cli.experiments.choices.predict_many", counted)
    choices = few.runner().choices
    for _ in range(2):  # and once for all cells of the same rows
        choices.best_source(few.backbone, TaskRows(task, few.rows(0)), few.sources, None)
    assert asked == [2]


def test_a_start_that_is_named_is_taken(few: Few) -> None:
    few.cells(["spot", "attempt"], init_from="bad")
    assert few.registry.prompt("toy-8-shot-spot").parents == ("bad@1",)
    assert few.registry.prompt("toy-8-shot-attempt").settings["init_from"] == "bad@1"


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


TOGETHER = ["none", "prompt-tuning", "spot", "attempt", "lora", "attempt-token", "mpt-mean"]


@pytest.mark.parametrize("placement", ["after", "before"])
def test_cells_that_are_trained_together_are_what_they_are_alone(few: Few, placement: str) -> None:
    settings = {**few.plan.settings, "placement": placement}
    if placement != "after":  # as the sources
        for seed, name in enumerate(("bad", "good")):
            config = TrainingConfig(**{**settings, "seed": seed, "steps": 2})
            request = request_for(few.plan.tasks["toy"], kind="source", name=f"{name}-before", config=config)
            trained(few.registry, few.backbone, request)
        few.plan = replace(few.plan, sources={("tiny", "toy"): ("bad-before@1", "good-before@1")})
    specs = [few.spec(method, seed) for seed in (0, 1) for method in TOGETHER]
    together = cells_of(few.runner(settings=settings).run_many(specs))
    alone = [cell for spec in specs for cell in few.runner(settings=settings).run(spec).cells]
    own = ["none", "lora"]
    assert [cell.bank for cell in together] == [1 if cell.method in own else 10 for cell in together]
    assert {cell.bank for cell in alone} == {1}
    for one, other in zip(together, alone, strict=True):
        assert replace(one, bank=1, **OWN) == replace(other, **OWN)
        if one.attention:
            assert list(one.attention.values()) == pytest.approx(list((other.attention or {}).values()), abs=1e-4)
        if one.prompt.partition("@")[0] in {f"toy-8-shot-{method}" for method in TOGETHER[1:4]}:
            first, second = (few.registry.prompt(cell.prompt) for cell in (one, other))
            ours, theirs = (few.registry.prompt_tensor(prompt) for prompt in (first, second))
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
            assert first.numbers["bank"] == 10
            assert "bank" not in second.numbers


def test_cells_that_were_trained_together_are_found_again(few: Few) -> None:
    specs = [few.spec(method) for method in ("prompt-tuning", "spot", "attempt")]
    together = cells_of(few.runner().run_many(specs))
    before = len(few.registry.runs())
    assert cells_of(few.runner(resume=True).run_many(specs)) == together
    assert few.runner(resume=True).run(specs[1]).cells == (together[1],)
    assert len(few.registry.runs()) == before
    assert not list((few.registry.folder / "checkpoints").iterdir())


def test_a_cell_that_does_not_fit_leaves_the_others_of_its_bank_alone(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [few.spec(method) for method in ("prompt-tuning", "attempt", "spot")]
    runner = few.runner(settings={**few.plan.settings, "attention_rank": 10_000})
    first, failed, last = runner.run_many(specs)
    assert isinstance(failed, AttemptError)
    assert "--attention-rank" in failed.message
    assert len(cells_of([first, last])) == 2


def test_a_stopped_bank_of_cells_continues(few: Few) -> None:
    class Stopping(Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            self.stopped = step == 2

    specs = [few.spec(method) for method in ("prompt-tuning", "attempt")]
    with pytest.raises(TrainingStoppedError, match="2 trainings"):
        few.runner().run_many(specs, Stopping())
    steps: list[int] = []

    class Counting(Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            steps.append(step)

    resumed = cells_of(few.runner(resume=True).run_many(specs, Counting()))
    assert steps == [3, 4]
    expected = [cell for spec in specs for cell in few.runner().run(spec).cells]
    assert [(cell.key, cell.score) for cell in resumed] == [(cell.key, cell.score) for cell in expected]


def test_a_bank_that_memory_does_not_hold_is_trained_cell_by_cell(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Noting(Listener):
        def note(self, text: str) -> None:
            notes.append(text)

    def full(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr("attempt_cli.training.bank.joint_gradient", full)
    specs = [few.spec(method) for method in ("prompt-tuning", "attempt")]
    cells = cells_of(few.runner().run_many(specs, Noting()))
    assert [(cell.method, cell.steps, cell.bank) for cell in cells] == [("prompt-tuning", 4, 1), ("attempt", 4, 1)]
    assert "MemoryError: no room: 2 cells are trained one by one." in notes


def test_what_users_do_instead_has_cells_like_the_others(few: Few) -> None:
    before = len(few.registry.runs())
    short = replace(few.plan, settings={**few.plan.settings, "max_length": 16})  # the context is 128 tokens
    toy = few.plan.tasks["toy"].model_copy(update={"instruction": "good is it?"})
    few = replace(few, plan=replace(short, tasks={"toy": toy}))
    cells = few.cells(["instruction", "icl", "probe"])
    told, shown, probe = cells
    assert [cell.steps for cell in cells] == [0, 0, 0]
    assert [cell.trained_parameters for cell in cells] == [0, 0, 24 * 2 + 2]
    assert told.extra_tokens > 0
    assert shown.extra_tokens > told.extra_tokens
    assert (probe.extra_tokens, probe.training_seconds >= 0) == (0, True)
    assert shown.orders is not None
    assert len(shown.orders) == 4
    assert shown.score == pytest.approx(sum(shown.orders) / 4)
    (row,) = summarise([shown])
    assert row.orders == (min(shown.orders), max(shown.orders))
    # an instruction depends on no seed; rows and orders do
    other = few.cells(["instruction", "icl", "probe"], seed=1, resume=True)
    assert [one.key == two.key for one, two in zip(cells, other, strict=True)] == [True, False, False]
    assert few.cells(["icl"], resume=True) == [shown]
    runs = few.registry.runs()[before:]
    orders = [evaluation_of_run(few.registry, run.id) for run in runs if run.numbers.get("prompt", "").count("order")]
    assert [one.model.partition(", order ")[2] for one in orders] == [f"{n} of 4" for n in (1, 2, 3, 4)] * 2
    assert compare_runs(orders[0], orders[3]).first.score == pytest.approx(shown.orders[0])


def test_a_prompt_s_tokens_and_time_are_on_its_cell(few: Few) -> None:
    none, tuned = few.cells(["none", "prompt-tuning"])
    assert (none.extra_tokens, tuned.extra_tokens) == (0, 4)
    assert 0 <= tuned.training_seconds <= tuned.seconds


def test_spot_as_published_starts_from_the_source_nearest_to_a_short_training(few: Few) -> None:
    registry = few.registry
    (cell,) = few.cells(["spot-t"], seed=1)
    trained_first, trained_then = (registry.prompt(f"toy-8-shot-spot-t{end}@1") for end in ("-search", ""))
    assert [one.settings["total_steps"] for one in (trained_first, trained_then)] == [1, 3]
    assert cell.steps == 4  # those of the search are counted
    assert trained_first.seed == few.sources[0].seed  # the words that sources started from
    cosines = {}
    own = registry.prompt_tensor(trained_first).astype(np.float64).mean(axis=0)
    for source in few.sources:
        mean = registry.prompt_tensor(source).astype(np.float64).mean(axis=0)
        cosines[source.ref] = mean @ own / np.sqrt((mean @ mean) * (own @ own))
    assert trained_then.parents == (max(cosines, key=cosines.__getitem__),)
    before = len(registry.runs())
    assert few.cells(["spot-t"], seed=1, resume=True) == [cell]
    assert len(registry.runs()) == before
    with pytest.raises(AttemptError, match="takes a part of the steps to search"):
        few.cells(["spot-t"], settings={**few.plan.settings, "steps": 1})


def test_a_guess_starts_from_a_source_that_the_seed_draws(few: Few) -> None:
    starts = {}
    for seed in range(4):
        spot, mixed, words = few.cells(["spot-random", "attempt-random", "attempt-words"], seed=seed)
        drawn = few.registry.prompt(spot.prompt).settings["init_from"]
        assert few.registry.prompt(mixed.prompt).settings["init_from"] == drawn
        assert few.registry.prompt(words.prompt).settings["init_from"] == "vocabulary"
        starts[seed] = drawn
    assert set(starts.values()) == {"bad@1", "good@1"}
