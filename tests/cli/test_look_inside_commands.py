"""`attempt compare`, `inspect`, `rank-sources`, and compositions with changes, on a tiny random model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from attempt_cli.evaluation.statistics import mcnemar
from attempt_registry import Registry
from tests.by_hand import holm
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

FLOAT = "--dtype float32"
QUICK = f"{FLOAT} --steps 3 --batch-size 8 --learning-rate 0.1 --eval-every 0"
TASK = """name: aim
input: '{text} label:'
label: mood
labels: {'no': 'no', 'yes': 'yes'}
metrics: [accuracy, f1]
files: {train: train.csv, validation: validation.csv, test: test.csv}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """The sources one and two, and for the task aim a target by ATTEMPT (with its composition) and one by SPoT."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 16), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    (folder / "aim.yaml").write_text(TASK)
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source {name} --train-file train.csv {READ} {QUICK} --prompt-length 4 --seed {seed}")
    attempt.succeed(f"train-target aim.yaml {QUICK} --sources one,two --attention-rank 4")
    attempt.succeed(f"train-target aim.yaml {QUICK} --method spot --init-from two")
    attempt.succeed("compose alone --target aim-spot")
    return attempt


@pytest.fixture(scope="module")
def evaluated(trained: Attempt) -> Attempt:
    """Both targets, scored on the test rows."""
    trained.succeed(f"eval --tasks aim.yaml --composition aim-attempt --prompt aim-spot --prompt none {FLOAT}")
    return trained


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


# --- compare


def test_two_names_are_compared_row_by_row(evaluated: Attempt) -> None:
    found = evaluated.json("compare aim-attempt aim-spot")["comparison"]
    with opened(evaluated) as registry:
        runs = [registry.run(found[place]["run"]) for place in ("first", "second")]
    assert [run.numbers["model"] for run in runs] == ["aim-attempt@1", "aim-spot@1"]
    rights = [run.numbers["per_row"]["scores"]["accuracy"] for run in runs]
    assert runs[0].rows["test"]["rows"] == list(range(24))
    only = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in (rights, rights[::-1])]
    assert (found["counts"]["first"], found["counts"]["second"]) == tuple(only)
    assert sum(found["counts"].values()) == found["n"] == 24
    test = mcnemar(only[0], only[1], 24)
    assert found["p"] == pytest.approx(test.p, rel=1e-3)
    assert found["interval"] == pytest.approx(test.interval, abs=1e-6)
    assert found["difference"] == pytest.approx(found["first"]["score"] - found["second"]["score"], abs=2e-6)
    by_number = evaluated.json(f"compare {runs[0].id} {runs[1].id}")["comparison"]
    assert by_number == found
    assert evaluated.json("compare none aim-spot --task aim")["comparison"]["first"]["model"] == "no prompt"


def test_a_comparison_for_people(evaluated: Attempt) -> None:
    lines = evaluated.succeed("compare aim-attempt aim-spot --metric f1").out.splitlines()
    fields = [line.split()[0] for line in lines]
    assert fields == ["task", "metric", "first", "second", "difference", "test", "counts", "rows", "power"]
    assert re.fullmatch(r"first +aim-attempt@1 \(run \d+\): \d+\.\d", lines[2])
    assert re.fullmatch(r"difference +[+-]\d+\.\d \([+-]\d+\.\d to [+-]\d+\.\d\), p \d\S*", lines[4])
    assert re.fullmatch(r"test +paired bootstrap, 1,000 resamples", lines[5])
    assert re.fullmatch(r"counts +of 24 rows \d+ different predictions, \d+ equal", lines[6])


def test_what_cannot_be_compared(evaluated: Attempt) -> None:
    evaluated.succeed(f"eval --tasks aim.yaml --prompt one --limit 10 {FLOAT}")
    evaluated.succeed(f"eval --prompt two --test-file test.csv {FLOAT}")
    with opened(evaluated) as registry:
        training = next(run.id for run in registry.runs() if "train-source" in run.command)
        ten = registry.runs(uses="prompt:one@1", reverse=True)[0].id
    for command, code, *texts in (
        ("compare 999 1", 1, "no run 999", "--what runs"),
        (f"compare {training} aim-spot", 1, f"run {training} is no evaluation", "attempt eval"),
        ("compare nobody aim-spot", 1, "no prompt or composition named 'nobody'", "attempt registry list"),
        ("compare alone aim-spot", 1, "there is no evaluation of 'alone'", "attempt eval --composition alone"),
        (f"compare {ten} aim-spot", 1, "on different rows", "test, 10 rows", "test, 24 rows", "attempt eval --tasks"),
        ("compare aim-attempt aim-spot --metric f2", 1, "named 'f2'", "f1"),
        ("compare aim-attempt two", 1, "'aim-attempt' was evaluated on aim, 'two' on two", "attempt eval --tasks TASK"),
        (
            "compare aim-attempt aim-spot --task rte",
            1,
            "was not evaluated on the task 'rte', but on aim",
            "--tasks rte",
        ),
    ):
        result = evaluated(command)
        assert (result.code, result.out) == (code, ""), command
        for text in texts:
            assert text in result.err, command


def test_cells_of_a_few_shot_comparison_are_compared_by_their_runs(trained: Attempt) -> None:
    few = "--methods none,prompt-tuning --seeds 1 --steps 1"
    trained.succeed(f"fewshot -k 4 --tasks aim.yaml {few} {FLOAT}")
    with opened(trained) as registry:
        cells = {run.numbers["method"]: run.id for run in registry.runs() if "cell" in run.settings}
    found = trained.json(f"compare {cells['prompt-tuning']} {cells['none']}")["comparison"]
    assert (found["task"], found["split"], found["n"]) == ("aim", "test", 24)
    assert found["second"]["model"] == "no prompt"


# --- changes


def test_a_composition_is_scored_as_it_is_and_as_changed(trained: Attempt) -> None:
    document = trained.json(f"eval --tasks aim.yaml --composition aim-attempt --drop one {FLOAT}")
    whole, fewer = document["evaluations"]
    assert (whole["model"], fewer["model"]) == ("aim-attempt@1", "aim-attempt@1 drop one")
    assert list(fewer["attention"]) == ["two@1", "target"]
    assert sum(fewer["attention"].values()) == pytest.approx(1, abs=1e-3)
    assert "change" not in whole
    assert fewer["change"]["difference"] == pytest.approx(fewer["score"] - whole["score"], abs=2e-6)
    with opened(trained) as registry:
        inputs = registry.run(fewer["run"]).inputs
    assert "prompt:one@1" not in inputs
    table = trained.succeed(f"eval --tasks aim.yaml --composition aim-attempt --only two {FLOAT}").out.splitlines()
    assert table[0].endswith("change")
    assert re.search(r"[+-]\d+\.\d \(.* to .*\), p \S+$", table[2])
    compared = trained.json("compare aim-attempt aim-attempt")["comparison"]
    assert compared["first"]["run"] == whole["run"] + 2
    assert "p_holm" not in compared  # one comparison stands alone, and so does the one change above
    assert "p_holm" not in fewer["change"]
    two = "--composition aim-attempt --composition aim-attempt"
    evaluations = trained.json(f"eval --tasks aim.yaml {two} --drop one {FLOAT}")["evaluations"]
    changes = [evaluation["change"] for evaluation in evaluations if "change" in evaluation]
    assert len(changes) == 2
    assert [change["p_holm"] for change in changes] == pytest.approx(
        holm([change["p"] for change in changes]), rel=1e-3
    )


def test_forced_weights_are_what_is_mixed(trained: Attempt) -> None:
    """A weight of 0 for all but one source, and the target's own: that is a sum, seen in the probabilities."""
    weights = "--weights one=0,two=0"  # leaves the target alone: (1 + 0) P_target
    forced = trained.succeed(f"predict aim-attempt test.csv {weights} {FLOAT}").lines
    alone = trained.succeed(f"predict prompt:aim-attempt test.csv {FLOAT}").lines
    for mixed, plain in zip(forced, alone, strict=True):
        assert mixed["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-4)
        assert mixed["attention"] == {"one@1": 0, "two@1": 0, "target": 0}
    other = trained.succeed(f"predict aim-attempt test.csv --weights one=2 {FLOAT}").lines
    assert any(
        abs(a["probabilities"]["yes"] - b["probabilities"]["yes"]) > 1e-3 for a, b in zip(other, alone, strict=True)
    )


def test_compose_keeps_what_eval_tries(trained: Attempt) -> None:
    kept = trained.json("compose kept --from aim-attempt --only two --weights two=.5,target=.25")["composition"]
    assert kept["sources"] == ["two@1"]
    assert kept["settings"]["weights"] == {"two@1": 0.5, "target": 0.25}
    assert kept["settings"]["from"] == "aim-attempt@1"
    tried = trained.succeed(f"predict aim-attempt test.csv --only two --weights two=.5,target=.25 {FLOAT}").lines
    assert trained.succeed(f"predict kept test.csv {FLOAT}").lines == tried
    added = trained.json("compose more --from kept --add one --weights one=.5")["composition"]
    assert added["sources"] == ["two@1", "one@1"]
    mixed = trained.json("compose mixed --sources one --add two --target aim-spot --weights one=.5,two=.5")
    assert mixed["composition"]["attention"] is None
    trained.succeed(f"eval --tasks aim.yaml --composition mixed {FLOAT}")


WRONG = [
    ("eval --composition aim-attempt --drop thre", 1, "no source of 'aim-attempt@1' named 'thre'", "attempt registry"),
    (
        "eval --composition aim-attempt --drop one,two",
        1,
        "no source of 'aim-attempt@1' would be left",
        "--prompt aim-att",
    ),
    ("eval --composition aim-attempt --weights one=-1", 1, "the weight of 'one' is -1", "at least 0"),
    ("eval --composition aim-attempt --weights one", 2, "'one' is not a name and a number", "mnli=.5"),
    ("eval --composition aim-attempt --weights one=1,one=2", 2, "'one' has two numbers", "--help"),
    ("eval --composition aim-attempt --add on", 1, "no prompt named 'on'", "one"),
    ("eval --composition alone --drop one", 1, "the composition 'alone@1' has no sources to change", "--add"),
    ("eval --prompt one --drop one", 2, "name one with --composition", "--what compositions"),
    ("predict one test.csv --drop one", 2, "'one@1' is a prompt", "--what compositions"),
    ("compose x --from aim-attempt", 2, "--from wants a change", "--help"),
    ("compose x --from aim-attempt --target one --drop one", 2, "leave --sources, --target", "--add"),
    ("compose x --from nobody --drop one", 1, "no composition named 'nobody'", "attempt registry list"),
    ("compose x", 2, "--target", "attempt registry list"),
    ("inspect alone", 1, "'alone@1' has no sources", "--tokens"),
    ("inspect one --png one.png", 1, "'one@1' has no sources", "compositions"),
    ("inspect nobody", 1, "no prompt or composition named 'nobody'", "attempt registry list"),
    ("inspect one --drop two", 2, "'one@1' is a prompt", "--what compositions"),
    ("rank-sources aim.yaml --composition alone", 1, "'alone@1' has no sources to leave out", "attempt registry"),
    ("rank-sources aim.yaml --sources nobody", 1, "no prompt named 'nobody'", "attempt registry list"),
    ("rank-sources amy", 1, "no task named 'amy'", "attempt tasks list"),
    ("rank-sources aim.yaml --split test", 2, "'test' is not one of", "--help"),
]


@pytest.mark.parametrize(("command", "code", "message", "next_step"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_refused(trained: Attempt, command: str, code: int, message: str, next_step: str) -> None:
    result = trained(command)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert next_step in result.err


EARLY = [
    ("eval --tasks aim.yaml --prompt one --output nowhere/out.jsonl", "nowhere/out.jsonl"),
    ("eval --prompt one --split validation --train-file train.csv", "no file for 'validation'"),
    ("eval --tasks aim.yaml --composition both --limit 4", "'both@1' has no target prompt for the task 'aim'"),
    ("eval --tasks aim.yaml --prompt one --prompt stranger", "'one@1' was trained for tiny"),
    ("eval --tasks aim.yaml --composition aim-attempt --weights one=-1", "the weight of 'one' is -1"),
    ("predict one columns.csv", "no column 'text'"),
    ("predict --prompts one,nobody train.csv", "no prompt or composition named 'nobody'"),
    ("predict aim-attempt train.csv --weights two=nan", "the weight of 'two' is nan"),
    ("inspect aim-attempt --png nowhere/heat.png", "nowhere/heat.png"),
    ("inspect aim-attempt --task rows.yaml", "missing.csv"),
    ("rank-sources rows.yaml", "missing.csv"),
    ("rank-sources aim.yaml --sources one,stranger", "'one@1' was trained for tiny"),
    ("compose x --target one --sources longer --weights longer=1", "differ in length"),
]


@pytest.mark.parametrize(("command", "message"), EARLY, ids=[row[0] for row in EARLY])
def test_what_is_refused_before_the_backbone_is_loaded(early: Attempt, command: str, message: str) -> None:
    result = early(command)
    assert (result.code, result.out) == (1, "")
    assert message in result.err
    assert "loading" not in result.err


@pytest.fixture(scope="module")
def early(trained: Attempt) -> Attempt:
    """A prompt of another backbone, one of another length, a composition of two other targets, and rows that miss."""
    (trained.folder / "rows.yaml").write_text(TASK.replace("validation.csv", "missing.csv"))
    write_csv(trained.folder / "columns.csv", [{"words": "it was good"}])
    with opened(trained) as registry:
        one = registry.prompt("one")
        for name, fingerprint, length in (
            ("stranger", "another", 4),
            ("longer", one.fingerprint, 6),
            ("here", one.fingerprint, 4),
            ("there", one.fingerprint, 4),
        ):
            registry.add_prompt(
                np.ones((length, one.width), np.float32),
                name=name,
                kind="target",
                method="imported",
                backbone=one.backbone if fingerprint == one.fingerprint else "other",
                fingerprint=fingerprint,
                task=name,
                task_version=None,
                embedding_scale=1.0,
                placement=one.placement,
                settings={},
                numbers={},
                seed=None,
            )
    trained.succeed("compose both --target here,there")
    return trained


def test_an_output_is_left_as_it_was_where_the_work_does_not_begin(trained: Attempt) -> None:
    (trained.folder / "kept.jsonl").write_text("kept\n")
    refused = trained(f"eval --tasks aim.yaml --prompt one --output kept.jsonl --device warp {FLOAT}")
    assert refused.code == 1
    assert (trained.folder / "kept.jsonl").read_text() == "kept\n"


# --- inspect


def test_attention_as_cells_and_as_json(trained: Attempt) -> None:
    found = trained.json(f"inspect aim-attempt --rows 3 {FLOAT}")["inspection"]
    (aim,) = found["tasks"]
    assert (found["name"], found["kind"], found["split"]) == ("aim-attempt@1", "composition", "validation")
    assert (aim["task"], aim["n"], len(aim["per_row"])) == ("aim", 16, 3)
    assert list(aim["attention"]) == ["one@1", "two@1", "target"]
    assert sum(aim["attention"].values()) == pytest.approx(1, abs=1e-4)
    everything = trained.json(f"inspect aim-attempt --rows 16 {FLOAT}")["inspection"]["tasks"][0]["per_row"]
    for name, weight in aim["attention"].items():
        assert weight == pytest.approx(sum(row["attention"][name] for row in everything) / 16, abs=2e-5)
    predictions = trained.succeed(f"predict aim-attempt validation.csv {FLOAT}").lines
    for row in everything:
        assert row["attention"] == pytest.approx(predictions[row["row"]]["attention"], abs=2e-5)
    shown = trained.succeed(f"inspect aim-attempt --rows 2 {FLOAT}")
    lines = shown.out.splitlines()
    largest = max(aim["deviation"].values())
    assert f"aim: over 16 rows a weight's standard deviation is at most {largest:.1g}" in shown.err
    assert ("nearly the same for every input" in shown.err) == (largest < 0.01)
    alike = trained.succeed(f"inspect aim-attempt --weights one=.5,two=.5 {FLOAT}").err
    assert "is at most 0: the mixture is nearly the same for every input" in alike
    assert lines[0].split() == ["task", "n", "one@1", "two@1", "target"]
    assert re.fullmatch(r"aim +16(  0\.\d\d [█▏▎▍▌▋▊▉░]+){3}", lines[1])
    assert lines[2].split() == ["task", "row", "one@1", "two@1", "target", "input"]
    assert len(lines) == 5


def test_a_picture(trained: Attempt) -> None:
    pytest.importorskip("matplotlib")
    trained.succeed(f"inspect aim-attempt --task aim --png heat.png {FLOAT}")
    assert (trained.folder / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_words_near_a_prompt(trained: Attempt) -> None:
    found = trained.json(f"inspect one --tokens 2 {FLOAT}")["inspection"]
    assert "tasks" not in found
    assert [(line["prompt"], line["position"]) for line in found["tokens"]] == [("one@1", i) for i in range(4)]
    for line in found["tokens"]:
        first, second = line["nearest"]
        assert 1 >= first["cosine"] >= second["cosine"]
        assert first["l2"] > 0
    prompts = [
        line["prompt"] for line in trained.json(f"inspect aim-attempt --tokens 1 {FLOAT}")["inspection"]["tokens"]
    ]
    assert prompts == [name for name in ("aim-attempt@1", "one@1", "two@1") for _ in range(4)]
    assert trained.succeed(f"inspect one {FLOAT}").out.splitlines()[0].split() == ["prompt", "position", "nearest"]


def test_sources_alone_serve_any_task_that_is_named(trained: Attempt) -> None:
    trained.succeed("compose prior --sources one,two --attention aim-attempt")
    for command in ("inspect prior", "eval --composition prior"):
        asked = trained(f"{command} {FLOAT}")
        assert (asked.code, "name one with --task" in asked.err) == (2, True)
    (aim,) = trained.json(f"inspect prior --task aim.yaml {FLOAT}")["inspection"]["tasks"]
    assert aim["attention"]["target"] == 0
    assert sum(aim["attention"].values()) == pytest.approx(1, abs=1e-4)
    (scored,) = trained.json(f"eval --tasks aim.yaml --composition prior {FLOAT}")["evaluations"]
    assert scored["attention"]["target"] == 0


# --- rank-sources


def test_sources_are_ranked_in_three_ways(trained: Attempt) -> None:
    ranking = trained.json(f"rank-sources aim.yaml --composition aim-attempt {FLOAT}")["ranking"]
    assert (ranking["task"], ranking["n"], ranking["target"]) == ("aim", 16, "aim-attempt@1")
    scores = [source["score"] for source in ranking["sources"]]
    assert scores == sorted(scores, reverse=True)
    both = "--prompt one --prompt two --composition aim-attempt"
    evaluations = trained.json(f"eval --tasks aim.yaml {both} --split validation {FLOAT}")["evaluations"]
    whole = evaluations[2]["score"]
    for source in ranking["sources"]:
        assert source["score"] == next(e["score"] for e in evaluations if e["model"] == source["source"])
        assert source["change"]["difference"] == pytest.approx(source["score_without"] - whole, abs=2e-6)
        assert -1 <= source["pair_cosine"] <= source["cosine"] <= 1
    changes = [source["change"] for source in ranking["sources"]]
    assert len(changes) == 2
    # p is printed with four digits
    assert [change["p_holm"] for change in changes] == pytest.approx(
        holm([change["p"] for change in changes]), rel=1e-3
    )
    # a target that grew from `two` is more like it than like `one`
    likened = trained.json(f"rank-sources aim.yaml --target aim-spot --sources one,two {FLOAT}")["ranking"]["sources"]
    cosines = {source["source"]: source["cosine"] for source in likened}
    assert cosines["two@1"] > cosines["one@1"]
    assert all("change" not in source for source in likened)


def test_the_columns_that_can_be_had(trained: Attempt) -> None:
    (trained.folder / "other.yaml").write_text(TASK.replace("name: aim", "name: other"))
    bare = trained.succeed(f"rank-sources other.yaml --limit 6 {FLOAT}")
    assert bare.out.splitlines()[0].split() == ["source", "task", "accuracy", "interval"]
    assert "No cosines: 'other' has no target prompt yet" in bare.err
    full = trained.succeed(f"rank-sources aim.yaml --composition aim-attempt --limit 6 {FLOAT}").out.splitlines()
    assert full[0].endswith("cosine  cosine of pairs  change without it")
    assert len(full) == 3


def test_an_only_source_cannot_be_left_out(trained: Attempt) -> None:
    trained.succeed("compose single --from aim-attempt --only two")
    ranking = trained.json(f"rank-sources aim.yaml --composition single --limit 6 {FLOAT}")["ranking"]
    (two,) = ranking["sources"]
    assert (two["source"], "change" in two, "cosine" in two) == ("two@1", False, True)
