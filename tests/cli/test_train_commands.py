"""`attempt train-source`, `train-target`, `compose` and `demo` as users meet them, on a tiny random model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_registry import Registry
from tests.models import SAVERS
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv, write_jsonl

FILES = f"--train-file train.csv --validation-file validation.csv {READ}"
QUICK = f"{FILES} --dtype float32 --steps 3 --batch-size 8 --learning-rate 0.1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """A registry with the sources one and two, and the target aim-attempt of both."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source {name} {QUICK} --prompt-length 4 --seed {seed} --eval-every 0")
    attempt.succeed(f"train-target aim {QUICK} --sources one,two --attention-rank 4")
    return attempt


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


# --- train-source


def test_the_whole_output_of_a_training(attempt: Attempt) -> None:
    result = attempt.succeed(f"train-source reviews {QUICK} --prompt-length 4 --steps 20 --eval-every 10")
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        "name                reviews@1\n"
        "kind                source\n"
        "method              prompt-tuning\n"
        "task                reviews\n"
        "trained_parameters  96\n"
        "training_rows       40\n"
        "steps               20\n"
        f"first_loss          {number}\n"
        f"last_loss           {number}\n"
        f"seconds             {number}\n"
        f"peak_memory         {number} [MG]iB\n"
        rf"moved               {number}(e-\d+)?" + "\n"
        f"padding             {number}\n"
        r"best_step           (0|10|20)" + "\n"
        f"validation          accuracy: {number}\n"
        "run                 1\n",
        result.out,
    )
    lines = result.err.splitlines()
    assert lines[0] == f"loading {attempt.backbone} …"
    assert re.fullmatch(rf"reviews: step 0/20  validation accuracy {number}  \(best\)", lines[1])
    assert re.fullmatch(rf"reviews: step 1/20  loss {number}  accuracy {number}  {number} rows/s", lines[2])
    assert re.match(rf"reviews: step 10/20  validation accuracy {number}", lines[3])
    assert lines[-1] == "Next: `attempt eval --test-file FILE --prompt reviews@1`"
    assert "\x1b" not in result.out + result.err
    losses = opened(attempt).prompt("reviews").numbers
    assert losses["last_loss"] < losses["first_loss"]


def test_what_the_options_say_is_what_is_recorded(attempt: Attempt) -> None:
    document = attempt.json(
        f"train-source {FILES} --prompt-length 3 --epochs 0.5 --batch-size 4 --accumulate 2 --learning-rate 0.2 "
        "--weight-decay 0.01 --warmup-steps 1 --clip-norm 2 --units raw --max-length 60 --max-tokens 500 "
        "--train-limit 32 --eval-every 1 --eval-rows 5 --patience 9 --seed 4 --name mine --note 'first try' "
        "--tag trial --tag toy --dtype float32 --device cpu"
    )
    assert document["version"] == 1
    assert document["training"]["name"] == "mine@1"
    assert document["training"]["task"] == attempt.folder.name  # "train" says nothing of the task
    assert document["training"]["training_rows"] == 32
    assert document["training"]["steps"] == 2
    prompt = opened(attempt).prompt("mine")
    assert prompt.settings["training"] == {
        "method": "prompt-tuning",
        "prompt_length": 3,
        "epochs": 0.5,
        "batch_size": 4,
        "accumulate": 2,
        "learning_rate": 0.2,
        "attention_learning_rate": 0.01,
        "weight_decay": 0.01,
        "warmup_steps": 1,
        "clip_norm": 2.0,
        "seed": 4,
        "units": "raw",
        "placement": "after",
        "weight_learning_rate": 3e-4,
        "level": "instance",
        "constant_attention": False,
        "with_target": True,
        "learned_temperature": False,
        "balanced_start": False,
        "attention_input": "words",
        "cosine": False,
        "evidence": False,
        "one_norm": False,
        "gradient_checkpointing": False,
        "max_length": 60,
        "max_tokens": 500,
        "eval_every": 1,
        "eval_rows": 5,
        "patience": 9,
    }
    assert prompt.settings["total_steps"] == 2
    assert (prompt.embedding_scale, prompt.seed, prompt.length) == (1.0, 4, 3)
    assert (prompt.note, prompt.tags) == ("first try", ("trial", "toy"))
    run = opened(attempt).run(document["training"]["run"])
    assert run.command.startswith("attempt --format json train-source --train-file train.csv")
    assert run.rows["validation"]["n"] == 5
    assert run.budget["rows_per_step"] == 8


def test_the_paper_s_preset(attempt: Attempt) -> None:
    attempt.succeed(f"train-source toy {FILES} --preset paper --prompt-length 8 --steps 2 --dtype float32")
    prompt = opened(attempt).prompt("toy")
    training = prompt.settings["training"]
    assert (training["learning_rate"], training["batch_size"], training["units"]) == (0.3, 32, "raw")
    assert (training["steps"], training.get("epochs"), training["weight_decay"]) == (2, None, 1e-5)
    assert (prompt.embedding_scale, prompt.length) == (1.0, 8)


def test_quiet_says_the_name_and_nothing_else(attempt: Attempt) -> None:
    result = attempt.succeed(f"--format quiet train-source toy {QUICK} --prompt-length 4")
    assert (result.out, result.err) == ("toy@1\n", "")


def test_a_source_can_start_from_another(trained: Attempt) -> None:
    """Its length is the other's, and so is its start: with no learning to speak of it stays there."""
    trained.succeed(f"train-source three {QUICK} --init-from one --eval-every 0 --learning-rate 1e-12")
    registry = opened(trained)
    three, one = registry.prompt("three"), registry.prompt("one")
    assert (three.parents, three.length) == (("one@1",), 4)
    assert registry.prompt_tensor(three) == pytest.approx(registry.prompt_tensor(one), abs=1e-6)
    registry.remove("three")


def test_a_prompt_and_a_loss_that_do_not_move_are_told(attempt: Attempt) -> None:
    result = attempt.succeed(f"train-source toy {QUICK} --prompt-length 4 --learning-rate 1e-9 --steps 24")
    assert "Warning: the prompt hardly moved" in result.err
    assert "raise --learning-rate (now 1e-09)" in result.err
    assert "Warning: the loss did not fall" in result.err


def test_without_validation_rows(attempt: Attempt) -> None:
    result = attempt.succeed(f"train-source toy {QUICK} --prompt-length 4 --eval-every 0")
    assert "No validation rows were looked at: the last step is kept." in result.err
    assert "validation" not in result.out


def test_resume_with_nothing_to_resume_starts(attempt: Attempt) -> None:
    result = attempt.succeed(f"train-source toy {QUICK} --prompt-length 4 --resume")
    assert "it starts at step 0" in result.err
    assert opened(attempt).prompt("toy").numbers["steps"] == 3


def test_a_task_in_a_yaml_file(attempt: Attempt) -> None:
    write_jsonl(attempt.folder / "rows.jsonl", toy_rows(30))
    (attempt.folder / "mood.yaml").write_text(
        "name: mood\nversion: 3\ninput: '{text} mood:'\nlabel: mood\nlabels: {'no': bad, 'yes': good}\n"
        "metrics: [f1, accuracy]\nfiles: {train: rows.jsonl, validation: rows.jsonl}\n"
    )
    document = attempt.json("train-source mood.yaml --dtype float32 --steps 2 --prompt-length 4 --eval-rows 9")
    assert list(document["training"]["validation"]) == ["f1", "accuracy"]
    prompt = opened(attempt).prompt("mood")
    assert (prompt.task, prompt.task_version) == ("mood", 3)
    assert prompt.settings["task"]["labels"] == {"no": "bad", "yes": "good"}


def test_a_task_of_the_package_with_rows_in_a_folder(attempt: Attempt) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = attempt.folder / "rows" / "nyu-mll" / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = [{"sentence": row["text"], "label": int(row["mood"] == "yes"), "idx": 0} for row in toy_rows(40)]
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    quick = "--dtype float32 --steps 2 --prompt-length 4"
    first = attempt.succeed(f"--data-dir rows train-source sst2 {quick}")
    assert "Next: `attempt eval --tasks sst2 --prompt sst2@1`" in first.err
    reference = attempt.succeed(f"--data-dir rows train-source sst2 {quick} --text-format reference --name as-theirs")
    assert reference.code == 0
    registry = opened(attempt)
    assert registry.prompt("sst2").settings["format"] == "words"
    assert registry.prompt("as-theirs").settings["format"] == "reference"
    # each is scored in the format that it was trained under
    both = attempt.json("--data-dir rows eval --tasks sst2 --prompt sst2 --prompt as-theirs --output said.jsonl")
    assert [row["model"] for row in both["evaluations"]] == ["sst2@1", "as-theirs@1"]
    import json

    lines = [json.loads(line) for line in (attempt.folder / "said.jsonl").read_text().splitlines()]
    assert {line["target"] for line in lines if line["model"] == "as-theirs@1"} == {"0", "1"}
    assert {line["target"] for line in lines if line["model"] == "sst2@1"} == {"negative", "positive"}


# --- train-target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "ATTEMPT needs source prompts: --sources a,b,c or --sources all"),
        ("--method spot", "SPoT needs a prompt to start from: --init-from NAME"),
        (
            "--method spot --init-from one --sources one",
            "--sources only goes with --method attempt or mpt, not with spot",
        ),
        ("--method prompt-tuning --init-from one", "prompt tuning from another prompt is SPoT"),
        ("--method lorra", "'lorra'"),
        ("--sources ,", "',' names nothing"),
    ],
)
def test_methods_that_do_not_fit_their_options(attempt: Attempt, options: str, message: str) -> None:
    result = attempt(f"train-target toy {QUICK} {options}")
    assert result.code == 2
    assert message in result.err
    assert not (attempt.folder / attempt.registry).exists()


@pytest.mark.parametrize("method", ["attempt", "spot", "prompt-tuning"])
def test_a_target_by_each_method(trained: Attempt, method: str) -> None:
    given = {"attempt": "--sources two,one --init-from one --attention-rank 4", "spot": "--init-from two"}
    own = given.get(method, "--prompt-length 4")
    document = trained.json(f"train-target toy {QUICK} --method {method} {own} --name by-{method}")
    training = document["training"]
    assert (training["name"], training["kind"], training["method"]) == (f"by-{method}@1", "target", method)
    registry = opened(trained)
    prompt = registry.prompt(f"by-{method}")
    assert (prompt.kind, prompt.method, prompt.task, prompt.length) == ("target", method, "toy", 4)
    parents = {"attempt": ("one@1", "two@1"), "spot": ("two@1",), "prompt-tuning": ()}[method]
    assert prompt.parents == parents
    if method == "attempt":
        assert training["composition"] == training["attention"] == "by-attempt@1"
        assert training["trained_parameters"] == 4 * 24 + 2 * 4 * 24 + 2 * 24
        assert registry.composition("by-attempt").sources == ("two@1", "one@1")
    else:
        assert "composition" not in training
        assert training["trained_parameters"] == 4 * 24


def test_all_sources_are_the_newest_of_each_name_but_none_of_the_target_s_own_task(attempt: Attempt) -> None:
    for name in ("one", "two", "one", "toy"):
        attempt.succeed(f"train-source {name} {QUICK} --prompt-length 4 --eval-every 0 --steps 1")
    told = attempt.succeed(f"train-target toy {QUICK} --sources all --eval-every 0 --steps 1").err
    # by name alone: what has seen the same rows under another name is mixed, and said
    assert "'one@2' was trained on the training rows of toy itself, as the task one" in " ".join(told.split())
    assert "toy@1' was trained" not in told
    registry = opened(attempt)
    assert registry.composition("toy-attempt").sources == ("one@2", "two@1")
    assert registry.prompt("toy-attempt").settings["init_from"] == "one@2"


@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_the_whole_way_on_every_architecture(attempt: Attempt, kind: str) -> None:
    """In the dtype that the processor likes best, from the first source to a prediction."""
    model = SAVERS[kind](attempt.folder / kind)
    here = Attempt(attempt.folder, model)
    quick = f"{FILES} --steps 4 --batch-size 8 --eval-rows 6"
    for name in ("one", "two"):
        here.succeed(f"train-source {name} {quick} --prompt-length 4")
    here.succeed(f"train-target aim {quick} --sources all")
    evaluations = here.json("eval --test-file test.csv --prompt none --prompt one --composition aim-attempt")
    assert [row["model"] for row in evaluations["evaluations"]] == ["no prompt", "one@1", "aim-attempt@1"]
    for line in here.succeed("predict aim-attempt", input="it was good\n").lines:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert sum(line["attention"].values()) == pytest.approx(1, abs=1e-4)
    prompt = opened(here).prompt("aim-attempt")
    assert prompt.backbone == kind
    assert np.isfinite(opened(here).prompt_tensor(prompt)).all()


# --- compose


def test_compose_with_fewer_and_more_sources(trained: Attempt) -> None:
    trained.succeed(f"train-source extra {QUICK} --prompt-length 4 --eval-every 0 --steps 1")
    fewer = trained.json("compose fewer --sources two --target aim-attempt --note 'without one'")["composition"]
    assert fewer["name"] == "fewer@1"
    assert (fewer["sources"], fewer["targets"], fewer["attention"]) == (["two@1"], ["aim-attempt@1"], "aim-attempt@1")
    assert fewer["note"] == "without one"
    trained.json("compose more --sources extra,two,one --target aim-attempt --attention aim-attempt@1")
    options = "--test-file test.csv --composition fewer --composition more --composition aim-attempt --dtype float32"
    scores = trained.json(f"eval {options}")["evaluations"]
    assert [list(row["attention"]) for row in scores] == [
        ["two@1", "target"],
        ["extra@1", "two@1", "one@1", "target"],
        ["one@1", "two@1", "target"],
    ]
    for row in scores:
        assert sum(row["attention"].values()) == pytest.approx(1, abs=1e-3)
    assert opened(trained).lineage("two").compositions


def test_compose_takes_the_attention_that_was_trained_with_the_target(trained: Attempt) -> None:
    """Not one that the target was later composed with."""
    trained.succeed(f"train-target other {QUICK} --sources one,two --attention-rank 4 --eval-every 0 --steps 1")
    trained.succeed("compose a-first-in-the-alphabet --sources one --target aim-attempt --attention other-attempt")
    trained.succeed("compose again --sources one,two --target aim-attempt")
    assert opened(trained).composition("again").attention == "aim-attempt@1"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--target nobody", 1, "no prompt named 'nobody'"),
        ("--target one --sources two", 1, "no attention was trained with one@1"),
        ("--target aim-attempt --attention aim-attempt", 2, "--attention mixes sources: give --sources too"),
        ("--target aim-attempt --sources one,one", 1, "named twice"),
        ("--target aim-attempt,aim-attempt", 1, "two target prompts are for one task"),
        ("--sources one", 2, "name the target prompts with --target, a composition with --from, or --sources"),
    ],
)
def test_compose_refuses(trained: Attempt, options: str, code: int, message: str) -> None:
    before = [composition.ref for composition in opened(trained).compositions()]
    result = trained(f"compose wrong {options}")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert [composition.ref for composition in opened(trained).compositions()] == before


# --- backbone, demo


def test_backbone_show_and_list(attempt: Attempt) -> None:
    shown = attempt.json("backbone show --dtype float32")["backbone"]
    assert (shown["name"], shown["width"], shown["architecture"]) == ("tiny", 24, "decoder-only")
    assert (shown["device"], shown["dtype"], shown["positions"], shown["layers"]) == ("cpu", "float32", 128, 2)
    listed: dict[str, Any] = {row["name"]: row for row in attempt.json("backbone list")["backbones"]}
    assert listed["tiny"]["fingerprint"] == shown["fingerprint"]
    assert listed["t5-base"]["location"] == "google-t5/t5-base"
    assert "t5-base" in attempt.succeed("--format quiet backbone list").out.splitlines()


def fewer_steps() -> None:
    import attempt_cli.cli.demo

    attempt_cli.cli.demo.SOURCE_STEPS = attempt_cli.cli.demo.TARGET_STEPS = 2


def test_demo(attempt: Attempt) -> None:
    result = attempt.succeed(f"demo --backbone {attempt.backbone} --dtype float32", prepare=fewer_steps)
    lines = result.out.splitlines()
    assert lines[0].split() == ["task", "method", "score", "n", "steps", "attention"]
    assert [line.split()[1] for line in lines[1:]] == ["none", "source", "prompt-tuning", "attempt"]
    assert "shop-reviews@1" in lines[4]
    registry = opened(attempt)
    assert {prompt.name for prompt in registry.prompts(tag="demo")} == {
        "shop-reviews",
        "message-topics",
        "support-chats-32-shot-prompt-tuning",
        "support-chats-32-shot-attempt",
    }
    predicted = attempt.succeed(
        "predict support-chats-32-shot-attempt --dtype float32", input="Third agent today and still no answer.\n"
    )
    assert set(predicted.lines[0]["attention"]) == {"shop-reviews@1", "message-topics@1", "target"}


# --- what is refused before the backbone is loaded


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train-source mnli --eval-every 5", "mnli"),
        ("train-source toy --train-file train.csv --input '{txt} label:' --label mood", "no column 'txt'"),
        (
            "train-source toy --train-file train.csv --input '{text} label:' --label mood --name 'a b'",
            "cannot be a name",
        ),
        ("train-source toy --train-file train.csv --input '{text} label:' --label mood --tag a,b", "cannot be a tag"),
        ("train-source toy --train-file train.csv --input '{text} label:' --label mood --init-from nn", "named 'nn'"),
        ("train-source toy --train-file train.csv --input '{text} label:' --label mood --steps 0", "--steps"),
        (
            "train-target toy --train-file train.csv --input '{text} label:' --label mood --sources one,one",
            "named twice",
        ),
        ("train-attention --sources one --tasks none.yaml", "none.yaml"),
    ],
)
def test_nothing_is_loaded_for_what_cannot_be_trained(trained: Attempt, command: str, message: str) -> None:
    result = trained(command)
    assert result.code in (1, 2)
    assert message in result.err
    assert "loading" not in result.err
