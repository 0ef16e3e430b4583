"""`attempt sweep` as users meet it, on a tiny random model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attempt_cli
from attempt_cli.evaluation.statistics import mean_interval
from attempt_registry import Registry
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

FILES = f"--train-file train.csv --validation-file validation.csv --test-file test.csv {READ}"
QUICK = f"{FILES} --dtype float32 --steps 4 --batch-size 8 --prompt-length 4"
RATES = (0.001, 0.1, 0.5)
SWEEP = f"sweep {QUICK} --learning-rate {','.join(map(str, RATES))} --seeds 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    return folder


@pytest.fixture(scope="module")
def attempt(folder: Path, llama: Path) -> Attempt:
    return Attempt(folder, llama)


@pytest.fixture(scope="module")
def document(attempt: Attempt) -> Any:
    return attempt.json(f"{SWEEP} --name best --output out")


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def test_every_combination_is_trained_and_the_validation_rows_choose(document: Any, attempt: Attempt) -> None:
    cells, rows = document["cells"], document["rows"]
    assert [(cell["swept"], cell["seed"]) for cell in cells] == [
        ({"learning_rate": rate, "batch_size": 8}, seed) for seed in (0, 1) for rate in RATES
    ]
    assert {(cell["n"], cell["steps"], cell["bank"]) for cell in cells} == {(24, 4, 6)}
    assert [row["swept"]["learning_rate"] for row in rows] == list(RATES)
    for row in rows:
        of = [cell for cell in cells if cell["swept"] == row["swept"]]
        for score, names in (("validation_score", ("validation", "validation_width")), ("score", ("score",) * 2)):
            mean, width = mean_interval([cell[score] for cell in of])
            assert row[names[0]] == pytest.approx(mean)
            assert score == "score" or row[names[1]] == pytest.approx(width)
        assert (row["score_width"], row["seeds"]) == (pytest.approx(mean_interval([c["score"] for c in of])[1]), 2)

    def rank(rate: float) -> tuple[float, float]:
        of = [cell for cell in cells if cell["swept"]["learning_rate"] == rate]
        return tuple(sum(cell[name] for cell in of) / 2 for name in ("validation_score", "validation_log_likelihood"))

    best = document["best"]
    assert best["swept"]["learning_rate"] == max(RATES, key=rank)
    assert [row["best"] for row in rows] == [row["swept"] == best["swept"] for row in rows]
    assert best["arguments"]["learning_rate"] == best["swept"]["learning_rate"]
    # a cell's validation score is that of the step that was kept
    registry = opened(attempt)
    for cell in cells:
        prompt = registry.prompt(cell["prompt"])
        assert next(iter(prompt.numbers["validation"].values())) == cell["validation_score"]
        assert (prompt.tags, prompt.settings["training"]["learning_rate"]) == (
            ("sweep",),
            cell["swept"]["learning_rate"],
        )


def test_the_best_is_kept_and_its_command_trains_it_again(document: Any, attempt: Attempt) -> None:
    best, registry = document["best"], opened(attempt)
    kept = registry.prompt("best")
    assert (best["kept"], kept.tags) == ("best@1", ())
    tensor = registry.prompt_tensor(kept)
    assert np.array_equal(tensor, registry.prompt_tensor(registry.prompt(best["prompt"])))
    told = attempt.succeed(f"{SWEEP} --resume")
    (command,) = re.findall("Train the best again: `attempt (.*)`", told.err)
    assert "--prompt-length 4" in command
    attempt.succeed(f"{command} --name again")
    again = registry.prompt_tensor(registry.prompt("again"))
    assert np.linalg.norm(again - tensor) <= 1e-4 * np.linalg.norm(tensor)
    # and from Python
    session = attempt_cli.Session(attempt.folder / attempt.registry, backbone=str(attempt.backbone), dtype="float32")
    files: dict[str, Any] = {name: str(attempt.folder / f"{name}.csv") for name in ("train", "validation")}
    task = attempt_cli.task_from_files(**files, input="{text} label:", label="mood", name="again")
    outcome = attempt_cli.train_target(task, steps=4, prompt_length=4, session=session, **best["arguments"])
    assert outcome is not None
    found = registry.prompt_tensor(registry.prompt(str(outcome.prompt)))
    assert np.linalg.norm(found - tensor) <= 1e-4 * np.linalg.norm(tensor)


def test_the_table_and_its_files(document: Any, attempt: Attempt) -> None:
    before = len(opened(attempt).runs())
    result = attempt.succeed(f"{SWEEP} --resume")
    assert len(opened(attempt).runs()) == before  # all of them were finished
    header, *lines = result.out.splitlines()
    assert header.split() == [
        "method",
        "learning_rate",
        "batch_size",
        "validation",
        "test",
        "seeds",
        "n",
        "steps",
        "best",
    ]
    number = r"\d+\.\d ± \d+\.\d"
    for line, row in zip(lines, document["rows"], strict=True):
        mark = r"\*" if row["best"] else "-"
        pattern = rf"prompt-tuning +{row['swept']['learning_rate']} +8 +{number} +{number} +2 +24 +4 +{mark}"
        assert re.fullmatch(pattern, line), line
    assert json.loads((attempt.folder / "out" / "sweep.json").read_text("utf-8")) == document
    written = list(csv.DictReader((attempt.folder / "out" / "sweep.csv").open(encoding="utf-8")))
    assert [line["learning_rate"] for line in written] == [str(rate) for rate in RATES]
    assert (attempt.folder / "out" / "sweep.md").exists()
    again = attempt.json(f"{SWEEP} --resume")
    assert again["cells"] == document["cells"]


def test_a_rate_at_which_the_loss_is_no_number_is_a_result_too(attempt: Attempt) -> None:
    command = f"sweep {QUICK} --learning-rate 1e30,0.1 --seeds 1"
    found = attempt.json(command)
    (failed, fine), (failure,) = found["rows"], found["failures"]
    assert (failed["seeds"], failed["validation"], failed["score"], failed["best"]) == (0, None, None, False)
    assert (fine["best"], fine["validation_width"], fine["failed"]) == (True, None, [])
    assert "the loss is not a number" in failure["error"]
    assert "1 failed: the loss is not a number" in attempt.succeed(f"{command} --resume").out
    nothing = attempt(f"sweep {QUICK} --learning-rate 1e30 --seeds 1")
    assert (nothing.code, nothing.out) == (1, "")
    assert "the loss is not a number" in nothing.err


def test_warnings_say_of_which_setting(attempt: Attempt) -> None:
    told = attempt.succeed(f"sweep {QUICK} --learning-rate 1e-9,2e-9 --seeds 1").err
    warnings = [line for line in told.splitlines() if line.startswith("Warning: ")]
    assert len(set(warnings)) == len(warnings)
    for rate in ("1e-09", "2e-09"):
        assert any(f"learning_rate={rate} " in line for line in warnings)


def test_methods_are_tried_under_the_settings_that_they_read(attempt: Attempt) -> None:
    attempt.succeed(f"train-source source {QUICK.replace('--test-file test.csv', '')} --eval-every 0 --steps 1")
    sources = "--sources source --methods prompt-tuning,attempt,lora"
    rates = "--learning-rate 0.1 --attention-learning-rate 0.01,0.02 --weight-learning-rate 0.001"
    found = attempt.json(f"sweep {QUICK} {sources} {rates} --seeds 1 --train-limit 20")
    size = {"batch_size": 8}
    assert [(cell["method"], cell["swept"], cell["bank"]) for cell in found["cells"]] == [
        ("prompt-tuning", {"learning_rate": 0.1, **size}, 3),
        ("attempt", {"learning_rate": 0.1, "attention_learning_rate": 0.01, **size}, 3),
        ("attempt", {"learning_rate": 0.1, "attention_learning_rate": 0.02, **size}, 3),
        ("lora", {"weight_learning_rate": 0.001, **size}, 1),
    ]
    mixed = attempt.json(f"sweep {QUICK} --methods attempt --sources source --learning-rate 0.1 --seeds 1 --name mixed")
    assert mixed["best"]["arguments"]["sources"] == ["source@1"]
    assert mixed["best"]["arguments"]["init_from"] == "source@1"
    composition = opened(attempt).composition("mixed")
    assert (composition.ref, composition.targets) == (mixed["best"]["kept"], ("mixed@1",))
    shown = attempt.json("eval --composition mixed --test-file test.csv --dtype float32")["evaluations"]
    assert shown[0]["metrics"]["accuracy"] == pytest.approx(mixed["cells"][0]["score"])


@pytest.mark.parametrize("method", ["smop", "attempt-evidence", "spot-t"])
def test_what_is_kept_and_what_is_trained_again_score_as_the_best_did(attempt: Attempt, method: str) -> None:
    """A router beside the prompt, a prior by the target's name, and a search that takes a part of the steps."""
    for name in ("alone", "other"):
        attempt.succeed(f"train-source {name} {QUICK.replace('--test-file test.csv', '')} --eval-every 0 --seed 3")
    sources = "" if method == "smop" else "--sources alone,other"
    swept = f"sweep {QUICK} {sources} --methods {method} --learning-rate 0.1,0.2 --seeds 1 --name of-{method}"
    found = attempt.json(swept)
    best, registry = found["best"], opened(attempt)
    kind = "composition" if method == "attempt-evidence" else "prompt"
    (shown,) = attempt.json(f"eval --{kind} of-{method} --test-file test.csv --dtype float32")["evaluations"]
    cell = next(one for one in found["cells"] if one["prompt"] == best["prompt"])
    assert shown["metrics"]["accuracy"] == pytest.approx(cell["score"])
    kept, whole = registry.prompt(f"of-{method}"), registry.prompt(best["prompt"].split(" of ")[-1])
    assert kept.sha256 == whole.sha256
    if method == "attempt-evidence":
        priors = [registry.composition(ref).settings["prior"] for ref in (best["prompt"], best["kept"])]
        assert list(priors[0].values()) == list(priors[1].values())
        assert list(priors[1]) == [kept.ref]
    (command,) = re.findall("Train the best again: `attempt (.*)`", attempt.succeed(f"{swept} --resume").err)
    attempt.succeed(f"{command} --name again-{method}")
    first, second = (registry.prompt_tensor(registry.prompt(ref)) for ref in (kept.ref, f"again-{method}"))
    assert np.linalg.norm(first - second) <= 1e-4 * np.linalg.norm(first)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--learning-rate 0.1,high", 2, "'0.1,high' is no comma list of numbers"),
        ("--learning-rate 0.1,0.1", 2, "--learning-rate names a value twice"),
        ("--learning-rate 0.1,-1", 1, "--learning-rate"),
        ("--temperature 1,2", 2, "--temperature says nothing to prompt-tuning"),
        ("--methods source", 1, "'source' trains nothing"),
        ("--methods attempt --sources nobody", 1, "no prompt named 'nobody'"),
        ("--sources one", 2, "--sources says nothing to prompt-tuning"),
        ("--init-from one --methods ulpt", 2, "--init-from says nothing to ulpt"),
        ("--eval-every 0", 1, "there are no validation rows of"),
        ("--methods prompt-tuning,lora --name mine", 2, "lora keeps none"),
        ("--name a@b", 1, "a@b"),
        ("--bank 0", 2, "--bank"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_it_is_trained(
    document: Any, attempt: Attempt, options: str, code: int, message: str
) -> None:
    before = len(opened(attempt).runs())
    result = attempt(f"sweep {QUICK} --seeds 1 {options}")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "loading" not in result.err
    assert len(opened(attempt).runs()) == before


def test_missing_test_rows_are_refused(attempt: Attempt) -> None:
    result = attempt(f"sweep {QUICK.replace('--test-file test.csv', '')} --seeds 1")
    assert result.code == 1
    assert "Give --test-file" in result.err


def test_a_stopped_sweep_continues(folder: Path, llama: Path, tmp_path: Path) -> None:
    class Stopping(attempt_cli.Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            self.stopped = step == 3

    class Counting(attempt_cli.Listener):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            self.steps.append(step)

    files: dict[str, Any] = {name: str(folder / f"{name}.csv") for name in ("train", "validation", "test")}
    task = attempt_cli.task_from_files(**files, input="{text} label:", label="mood", name="toy")
    given: dict[str, Any] = {"learning_rate": [0.1, 0.2], "seeds": 2, "steps": 4, "prompt_length": 4, "bank": 2}

    def swept(registry: str, listener: attempt_cli.Listener, **more: Any) -> attempt_cli.SweepResult:
        where = attempt_cli.Session(tmp_path / registry, backbone=str(llama), dtype="float32", listener=listener)
        return attempt_cli.sweep(task, session=where, **given, **more)

    with pytest.raises(attempt_cli.TrainingStoppedError, match="2 trainings"):
        swept("one", Stopping())
    counting = Counting()
    resumed = swept("one", counting, resume=True)
    assert counting.steps == [4, 1, 2, 3, 4]
    whole = swept("other", attempt_cli.Listener())
    numbers = [[(cell.score, cell.validation_score, cell.key) for cell in one.cells] for one in (resumed, whole)]
    assert numbers[0] == numbers[1]
    assert resumed.best == whole.best
    with pytest.raises(attempt_cli.AttemptError, match="has one value for the whole sweep"):
        swept("one", attempt_cli.Listener(), placement=["before", "after"])
    with pytest.raises(attempt_cli.AttemptError, match="no setting named 'learning_rat'"):
        swept("one", attempt_cli.Listener(), learning_rat=0.1)
