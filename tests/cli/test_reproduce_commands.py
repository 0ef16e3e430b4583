"""`attempt reproduce` as users meet it: reports, failures, kills and workers, on a tiny random model."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.experiments.methods import ALONE
from attempt_cli.experiments.methods import METHODS as METHODS_TABLE
from attempt_cli.experiments.paper import experiments
from attempt_registry import Registry, Run
from tests.by_hand import holm
from tests.training.commands import Attempt
from tests.training.test_kill import slow_with_a_checkpoint_every_step

pytestmark = pytest.mark.slow

QUICK = "--steps 4 --limit 12 --batch-size 8 --prompt-length 4 --learning-rate 0.1 --dtype float32"
FEW = f"reproduce table3 --tasks support-chats -k 4,8 --seeds 2 {QUICK} --train-sources shop-reviews,message-topics"
METHODS = ["none", "source", "prompt-tuning", "spot", "attempt"]
SMALL = f"{FEW} --methods {','.join(METHODS)} --source-steps 3 --train-limit 20"


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def cell_runs(attempt: Attempt) -> list[Run]:
    return [run for run in opened(attempt).runs() if "cell" in run.settings]


def results(document: Any) -> list[Any]:
    """What must not depend on interruptions and workers."""
    kept = ("task", "k", "method", "seed", "score", "interval", "n", "steps", "key")
    return [{name: cell[name] for name in kept} for cell in document["cells"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Attempt, Any]:
    """The grid of SMALL, filled in one go, with its JSON."""
    attempt = Attempt(tmp_path_factory.mktemp("whole"), llama)
    return attempt, attempt.json(f"{SMALL} --output out")


@pytest.mark.parametrize(("command", "methods"), [("reproduce", list(METHODS_TABLE)), ("fewshot", ALONE)])
def test_help_names_every_method_with_its_description(attempt: Attempt, command: str, methods: list[str]) -> None:
    # click breaks lines at spaces and behind hyphens
    shown = re.sub(r"\s+", "", attempt.succeed(f"{command} --help").out)
    for name in methods:
        assert f"{name}: {METHODS_TABLE[name].description}".replace(" ", "") in shown


def test_a_report_in_every_form(whole: tuple[Attempt, Any]) -> None:
    attempt, document = whole
    out = attempt.folder / "out"
    assert (document["experiment"], document["failures"]) == ("table3", [])
    assert [(row["k"], row["method"], len(row["scores"])) for row in document["rows"]] == [
        (k, method, 2) for k in (4, 8) for method in METHODS
    ]
    for row in document["rows"]:
        of = [cell for cell in document["cells"] if (cell["k"], cell["method"]) == (row["k"], row["method"])]
        assert row["mean"] == pytest.approx(sum(cell["score"] for cell in of) / 2)
        assert {cell["steps"] for cell in of} == {4 if row["method"] in METHODS[2:] else 0}
        assert (row["difference"] is None) == (row["method"] == "prompt-tuning")
    tested = [row for row in document["rows"] if row["p"] is not None]
    assert len(tested) > 1
    assert [row["p_holm"] for row in tested] == pytest.approx(holm([row["p"] for row in tested]))
    written = (out / "table3.md").read_text("utf-8")
    assert all(f"{row['p']:.2g} ({row['p_holm']:.2g})" in written for row in tested)
    assert "in brackets adjusted for all comparisons of the table (Holm)" in written
    with (out / "table3.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["k"], line["method"], line["seeds"]) for line in lines] == [
        (str(k), method, "2") for k in (4, 8) for method in METHODS
    ]
    markdown = (out / "table3.md").read_text("utf-8")
    assert markdown.startswith("# table3: Few-shot\n\n    attempt --format json reproduce table3 ")
    assert "| method | k | support-chats |" in markdown
    assert "Budget: 4 optimiser steps for every trained method." in markdown
    (machine,) = {cell["machine"] for cell in document["cells"]}
    assert f"torch {torch.__version__}" in machine
    (dtype,) = {cell["dtype"] for cell in document["cells"]}
    assert dtype in ("float32", "bfloat16")
    assert f"Computed in {dtype} on {machine}." in markdown
    assert (out / "table3.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table3.json").read_text("utf-8").startswith('{\n  "version": 1,')


def test_resumed_nothing_is_done_again(whole: tuple[Attempt, Any]) -> None:
    attempt, document = whole
    before = len(opened(attempt).runs())
    again = attempt.json(f"{SMALL} --resume")
    assert results(again) == results(document)
    assert len(opened(attempt).runs()) == before
    more = attempt.json(
        f"{SMALL.replace('--seeds 2', '--seeds 3')} --resume"
    )  # a larger grid has the smaller one in it
    assert len(more["cells"]) == 30
    seeds = [run.seed for run in opened(attempt).runs()[before:]]
    assert set(seeds) == {2}


def test_seeds_are_added_on_another_machine(attempt: Attempt, whole: tuple[Attempt, Any]) -> None:
    added = attempt.json(SMALL.replace("--seeds 2", "--seeds 1 --first-seed 1"))
    wanted = [cell for cell in results(whole[1]) if cell["seed"] == 1]
    assert results(added) == wanted
    assert len(wanted) == 10
    refused = attempt(f"{SMALL} --first-seed -1")
    assert refused.code == 2
    assert "-1 is not in the range x>=0" in refused.err


def test_a_killed_grid_goes_on_where_it_was(attempt: Attempt, whole: tuple[Attempt, Any]) -> None:
    checkpoints = attempt.folder / attempt.registry / "checkpoints"
    alone = f"{SMALL} --bank 1"  # cells end one by one; what is left of a bank, tests/training/test_bank.py kills
    running = attempt.start(alone, prepare=slow_with_a_checkpoint_every_step)
    running.until(lambda: running.err.count("support-chats") >= 4 and any(checkpoints.glob("*.safetensors")))
    assert running.process.pid is not None
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.result().code == -signal.SIGKILL
    done = {run.settings["cell"] for run in cell_runs(attempt)}
    assert len(done) >= 4
    resumed = attempt.json(f"{alone} --resume")
    assert results(resumed) == results(whole[1])
    keys = [run.settings["cell"] for run in cell_runs(attempt)]
    assert len(keys) == len(set(keys))  # no cell was made twice
    assert list(checkpoints.glob("*")) == []  # the unfinished training found its own


def test_two_workers_give_the_same_numbers(attempt: Attempt, whole: tuple[Attempt, Any]) -> None:
    document = attempt.json(f"{SMALL} --workers 2")
    assert results(document) == results(whole[1])


def test_workers_end_with_their_parent(attempt: Attempt) -> None:
    running = attempt.start(f"{SMALL.replace('--steps 4', '--steps 4000')} --source-steps 2 --workers 2")
    running.until(lambda: "[2/2]" in running.err)  # the sources are there, targets are trained
    pid = running.process.pid
    assert pid is not None

    def children() -> list[int]:
        # every worker is a child of the thread that feeds it
        return [
            int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]

    workers: list[int] = []

    def started() -> bool:
        workers[:] = children()
        return len(workers) >= 2

    running.until(started)
    os.kill(pid, signal.SIGKILL)
    running.result()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)


def test_ctrl_c_stops_the_workers_and_the_grid_goes_on(attempt: Attempt, whole: tuple[Attempt, Any]) -> None:
    running = attempt.start(f"{SMALL} --workers 2")
    running.until(lambda: "[2/20]" in running.err)
    assert running.process.pid is not None
    os.kill(running.process.pid, signal.SIGINT)
    stopped = running.result()
    assert stopped.code == 130
    assert stopped.err.splitlines()[-2:] == [
        "stopped; what was finished is in the registry",
        "Continue with the same command and --resume.",
    ]
    assert results(attempt.json(f"{SMALL} --resume")) == results(whole[1])


def test_a_later_paper_s_settings_leave_the_prompt_where_it_was_and_tuned_ones_move_it(attempt: Attempt) -> None:
    sizes = "--tasks support-chats --seeds 1 --steps 4 --limit 12 --train-limit 16 --prompt-length 4 --max-length 64"
    command = f"reproduce peft-bench {sizes} --methods none,prompt-tuning,lora --dtype float32 --eval-rows 8"
    published = attempt.json(command)
    _, prompt, lora = published["rows"]
    assert 0 < prompt["moved"] < 0.01  # 4 steps of 5e-5, on embeddings near 0.02
    assert (prompt["swept"], lora["swept"]) == (None, None)
    run = next(run for run in reversed(cell_runs(attempt)) if run.settings["method"] == "lora")
    assert run.settings["training"]["weight_learning_rate"] == 5e-5
    tuned = attempt.json(f"{command} --tuned --output out")
    none, prompt, lora = tuned["rows"]
    assert none["swept"] is None
    assert (list(prompt["swept"]), list(lora["swept"])) == (["learning_rate"], ["weight_learning_rate"])
    assert len(tuned["tried"]) == 1 + 3 + 3
    assert len(tuned["cells"]) == 3
    assert prompt["moved"] > 10 * published["rows"][1]["moved"]
    text = (attempt.folder / "out" / "peft-bench.md").read_text("utf-8")
    assert "were chosen by the validation rows, for each task and method of 3 tries" in text
    assert "Published (unchecked): soft prompts" in text
    assert len(attempt.json(f"{command} --tuned --resume")["tried"]) == 7
    assert len(cell_runs(attempt)) == 3 + 7  # resumed, nothing was done again


def test_numbers_of_another_paper_stand_beside_ours_and_prompts_are_like_the_sources(attempt: Attempt) -> None:
    attempt("train-source shop-reviews --steps 2 --prompt-length 5 --placement before --train-limit 16")
    sizes = "--seeds 1 --steps 2 --limit 8 --train-limit 16 --eval-every 0 --max-length 64"
    command = f"reproduce pt-moe --tasks support-chats --methods prompt-tuning,attempt,pt-moe {sizes}"
    shown = attempt.succeed(command)
    assert re.search(r"^QA average +attempt +.*56\.2(?! \(\?\))", shown.out, flags=re.M)
    assert "Published (Llama-3.2-1B-Instruct): " in shown.err
    for run in cell_runs(attempt):
        training = run.settings["training"]
        assert (training["prompt_length"], training["placement"]) == (5, "before")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--learning-rate 0.1", "--learning-rate does not go with --tuned, which tries rates"),
        ("--eval-every 0", "--tuned chooses by validation rows, and does not go with --eval-every 0"),
        ("-k 4", "--tuned chooses by validation rows, and does not go with -k"),
        ("--rates prompt-tuning=0.1", "--rates does not go with --tuned, which tries rates"),
        ("--methods none", "--tuned says nothing here: no method of the grid is trained"),
    ],
)
def test_what_does_not_go_with_tuned(attempt: Attempt, more: str, said: str) -> None:
    failed = attempt(f"reproduce peft-bench --tasks support-chats --tuned {more}")
    assert failed.code in (1, 2)
    assert said in failed.err


@pytest.mark.slow
def test_two_actors_of_a_local_ray(attempt: Attempt) -> None:
    pytest.importorskip("ray")
    command = f"reproduce table3 --tasks support-chats -k 4,8 --seeds 1 {QUICK} --methods prompt-tuning"
    document = attempt.json(f"{command} --ray --workers 2", PYTHONPATH=str(Path(__file__).parents[2]))
    assert [cell["k"] for cell in document["cells"]] == [4, 8]
    assert results(document) == results(attempt.json(command))


def test_a_cell_that_fails_is_shown_and_the_others_go_on(attempt: Attempt) -> None:
    command = f"{SMALL.replace('-k 4,8', '-k 4,4000').replace('--seeds 2', '--seeds 1')} --output out"
    failed = attempt(command)
    assert failed.code == 1
    assert re.search(r"^support-chats +4 +attempt +\d", failed.out, flags=re.M)
    assert re.search(r"^support-chats +4,000 +attempt .*1 failed: class '\w+' has \d+ rows", failed.out, flags=re.M)
    assert "5 cells failed; the same command with --resume tries again." in failed.err
    kept = [run for run in opened(attempt).runs() if "failed" in run.settings]
    assert [run.settings["failed"]["k"] for run in kept] == [4000] * 5
    assert kept[0].numbers["failed"].startswith("class ")
    assert "1 failed: class" in (attempt.folder / "out" / "table3.md").read_text("utf-8")
    assert len(cell_runs(attempt)) == 7  # two sources and five methods


def test_every_method_has_a_cell(attempt: Attempt) -> None:
    command = (
        f"reproduce table1 --tasks support-chats,shop-reviews --seeds 1 {QUICK} --prompt-length 12 --train-limit 16 "
        "--eval-every 2 --train-sources message-topics,shop-reviews --methods prompt-tuning,spot-g,attempt-prior,"
        "attempt-m,attempt-balanced,attempt-no-target,attempt-constant,attempt-single,attempt-token,mpt,mpt-mean,dept,lora,ia3,adapter,bitfit,"
        "fine-tuning"
    )
    document = attempt.json(command)
    assert document["failures"] == []
    cells = {(cell["task"], cell["method"]): cell for cell in document["cells"]}
    assert len(cells) == 34
    assert {cell["steps"] for cell in cells.values()} == {4}
    registry = opened(attempt)
    # for support-chats both are sources, for shop-reviews the other one: two priors, each made once
    assert registry.versions("prior", kind="attention") == [1, 2]
    # SPoT-g's prompt of all sources and MPT's
    assert registry.versions("all-sources") == [1, 2, 3, 4]
    assert [registry.prompt(f"all-sources@{n}").method for n in (1, 2, 3, 4)] == ["prompt-tuning"] * 2 + ["mpt"] * 2
    started = {cells[task, "mpt"]["task"]: registry.prompt(cells[task, "mpt"]["prompt"]) for task, _ in cells}
    assert {prompt.settings["init_from"] for prompt in started.values()} == {"all-sources@3", "all-sources@4"}
    width, length, rank = 24, 12, 12
    sizes = {method: cells["support-chats", method]["trained_parameters"] for _, method in cells}
    assert sizes["prompt-tuning"] == length * width
    assert sizes["attempt-single"] == length * width + 2 * rank * width + 2 * width
    assert sizes["attempt-m"] == length * width + (2 * rank * width + 2 * width) // 2
    assert set(cells["support-chats", "attempt-m"]["attention"]) == {"message-topics@1", "target"}
    single = cells["support-chats", "attempt-single"]["attention"]
    assert len(single) == 2
    again = attempt.json(f"{command} --resume")
    assert results(again) == results(document)


def test_the_number_of_sources_and_of_backbones(attempt: Attempt) -> None:
    sources = f"{QUICK} --seeds 1 --train-limit 12 --eval-every 0 --train-sources shop-reviews,message-topics"
    five = attempt.json(f"reproduce fig5 --tasks support-chats {sources} --png five.png")
    assert [(row["method"], row["sources"]) for row in five["rows"]] == [
        ("prompt-tuning", None),
        ("attempt", 1),
        ("attempt", 2),
    ]
    assert (attempt.folder / "five.png").read_bytes().startswith(b"\x89PNG")
    nine = attempt.json(f"reproduce table9 --tasks support-chats --methods prompt-tuning,attempt {sources} --resume")
    assert all(row["peak_memory"] > 1e6 for row in nine["rows"])


@pytest.mark.parametrize(
    ("name", "methods"),
    [("table2", "spot,mpt-mean"), ("table4", ""), ("fig3", "prompt-tuning,lora"), ("fig4", "prompt-tuning,adapter")],
)
def test_the_other_tables_and_figures(attempt: Attempt, name: str, methods: str) -> None:
    """With the paper's own methods where none are named."""
    sources = f"{QUICK} --seeds 1 --train-limit 12 --eval-every 0 --train-sources shop-reviews,message-topics"
    chosen = f"--methods {methods}" if methods else ""
    report = attempt.json(f"reproduce {name} --tasks support-chats {chosen} {sources} --output out")
    assert report["failures"] == []
    wanted = methods.split(",") if methods else list(experiments()[name].methods)
    assert [row["method"] for row in report["rows"]] == wanted
    assert {cell["steps"] for cell in report["cells"]} == {4}
    for ending in ("csv", "json", "md", "png"):
        assert (attempt.folder / "out" / f"{name}.{ending}").stat().st_size > 100


def test_rates_and_temperature_are_those_of_the_trainings(attempt: Attempt) -> None:
    rates = "--attention-learning-rate 0.02 --weight-learning-rate 0.001 --temperature 3 --attention-rank 2"
    shown = attempt.succeed(
        f"reproduce table4 --tasks support-chats {QUICK} {rates} --seeds 1 --train-limit 12 --eval-every 0 "
        "--train-sources shop-reviews --methods attempt,prompt-tuning,lora --rates attempt=0.05,lora=0.002 "
        "--columns method,rates"
    ).out
    for method, rate in (("attempt", "0.05"), ("lora", "0.002"), ("prompt-tuning", "")):
        assert re.search(rf"^{method} +{rate}-?$", shown, flags=re.M), shown
    for run in cell_runs(attempt):
        if run.numbers["method"] in ("attempt", "lora"):
            used = run.settings["training"]
            assert [used[name] for name in ("attention_learning_rate", "temperature", "attention_rank")] == [
                0.02,
                3.0,
                2,
            ]
        method = run.numbers["method"]
        found = [run.settings["training"][name] for name in ("learning_rate", "weight_learning_rate")]
        assert found == [0.05 if method == "attempt" else 0.1, 0.002 if method == "lora" else 0.001]


def test_parameters_need_no_registry(attempt: Attempt) -> None:
    shown = attempt.succeed("reproduce fig7 --backbone t5-base --methods attempt,prompt-tuning --output out").out
    assert shown == (
        "backbone  backbone_parameters  method         formula  counted  share\n"
        "t5-base   222,903,552          attempt        231,936  231,936  0.104 %\n"
        "t5-base   222,903,552          prompt-tuning  76,800   76,800   0.0345 %\n"
    )
    assert {path.name for path in (attempt.folder / "out").iterdir()} == {
        f"fig7.{ending}" for ending in ("csv", "json", "md", "png")
    }
    assert not (attempt.folder / attempt.registry / "registry.db").exists()


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("reproduce tabel1", "no experiment named 'tabel1'", "Did you mean table1"),
        ("reproduce table1 --tasks rtee", "no task named 'rtee'", "attempt tasks list"),
        ("reproduce table1 --methods atempt", "no method named 'atempt' (did you mean attempt", "Methods: none"),
        ("reproduce table1 --columns scroe", "no column named 'scroe' (did you mean score", "Methods"),
        ("reproduce table3 -k 4,x", "-k: 'x' is not a number of rows", "Methods"),
        ("reproduce table1 --preset papr", "no preset named 'papr'", "Methods"),
        ("reproduce table1 --temperature 0", "--temperature: ", "Methods"),
        ("reproduce table1 --rates atempt=0.1", "--rates: the grid has no method 'atempt'", "Methods"),
        ("reproduce table1 --methods none --rates none=0.1", "--rates: none trains nothing", "Methods"),
        ("reproduce table1 --rates lora=-1", "--rates, lora: ", "Methods"),
        ("reproduce table1 --rates lora", "--rates: 'lora' is not a name and a number", "--help"),
        ("reproduce table1 --rates lora=1e-3,lora=1", "--rates: 'lora' has two numbers", "--help"),
        ("reproduce table1 --methods none,lora --learning-rate 1", "--learning-rate says nothing to lora", "Methods"),
        ("reproduce table1 --methods spot --attention-rank 4", "--attention-rank says nothing to spot", "Methods"),
        ("reproduce table1 --steps 3 --epochs 2", "give --steps or --epochs, not both", "Methods"),
        ("reproduce table3 --tasks cb", "there is no source prompt", "attempt train-source"),
        ("reproduce fig7 --steps 3 --limit 4", "--steps and --limit say nothing to fig7", "--help"),
        ("reproduce table1 --sources a --train-sources paper", "--sources says nothing", "--help"),
        ("reproduce table1 --per-class --tasks cb --methods none", "--per-class says nothing", "--help"),
        ("reproduce fig7 --backbone t6-base", "no shape of a backbone named 't6-base'", "t5-base"),
    ],
)
def test_what_cannot_be_run_is_said_before(attempt: Attempt, command: str, message: str, hint: str) -> None:
    failed = attempt(command)
    assert failed.code == (2 if hint == "--help" else 1)
    assert message in failed.err
    assert hint in failed.err
    assert failed.out == ""


@pytest.mark.parametrize("command", ["fewshot --tasks", "sweep"])
def test_a_setting_that_no_method_reads_is_refused(attempt: Attempt, command: str) -> None:
    failed = attempt(f"{command} support-chats --methods lora --temperature 3 --weight-learning-rate 0.001")
    assert failed.code == 2
    assert "--temperature says nothing to lora" in failed.err


def test_all_rows_are_looked_for_before_the_first_cell(attempt: Attempt) -> None:
    (attempt.folder / "rows").mkdir()
    command = "--data-dir rows reproduce table1 --tasks support-chats,rte,cb --methods prompt-tuning --steps 1"
    failed = attempt(f"{command} --train-sources shop-reviews,mrpc --dtype float32")
    assert (failed.code, failed.out) == (1, "")
    assert "rows of this grid are missing" in failed.err
    for task in ("rte", "cb", "mrpc"):
        assert f"task '{task}'" in failed.err
    assert "support-chats" not in failed.err
    assert "--data-dir FOLDER" in failed.err
    assert not (attempt.folder / attempt.registry / "registry.db").exists()


def test_all_that_is_wrong_is_said_at_once(attempt: Attempt) -> None:
    failed = attempt("reproduce table1 --tasks rtee,cbb --methods atempt,lorra --columns scroe -k x --batch-size 0")
    assert failed.code == 1
    for name in ("'rtee'", "'cbb'", "'atempt'", "'lorra'", "'scroe'", "'x'", "--batch-size"):
        assert name in failed.err
