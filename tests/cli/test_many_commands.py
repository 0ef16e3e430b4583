"""Several targets, the attention prior, one input for many prompts, and the options of speed, as users meet them."""

from __future__ import annotations

from pathlib import Path

import pytest

from attempt_registry import Registry
from tests.training.commands import Attempt
from tests.training.toy import toy_rows, write_csv

RUN = "--dtype float32 --steps 2 --batch-size 8 --learning-rate 0.1 --eval-every 0"
YAML = """\
name: {name}
version: 1
files: {{train: {name}.csv, test: {name}.csv}}
input: "{{text}} label:"
label: mood
labels: {{'yes': {words[0]}, 'no': {words[1]}}}
metrics: [accuracy]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """Two tasks of one template, two sources, the prior, and the composition `both` of two targets."""
    folder = tmp_path_factory.mktemp("many")
    for seed, (name, words) in enumerate(
        (("left", ("yes", "no")), ("right", ("bad", "good")), ("third", ("it", "is")))
    ):
        write_csv(folder / f"{name}.csv", toy_rows(20, seed))
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, words=words), "utf-8")
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source left.yaml --name {name} {RUN} --prompt-length 4 --seed {seed}")
    attempt.succeed(f"train-attention --sources one,two --tasks left.yaml,right.yaml --attention-rank 3 {RUN}")
    attempt.succeed(f"train-target left.yaml,right.yaml --sources one,two --attention-from prior --name both {RUN}")
    return attempt


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def test_what_is_kept_and_said(trained: Attempt) -> None:
    registry = opened(trained)
    assert registry.composition("both").targets == ("both.left@1", "both.right@1")
    assert registry.attention("both").parents == ("one@1", "two@1", "attention:prior@1")
    assert registry.verify() == []
    result = trained.succeed(
        f"train-target left.yaml,right.yaml --sources one,two --attention-rank 3 {RUN} --format json"
    )
    document = result.json["training"]
    assert document["name"] == "left-right-attempt@1"
    assert document["parameters_per_task"] == 4 * 24 + (2 * 3 * 24 + 2 * 24) / 2
    assert document["training_rows"] == {"left": 20, "right": 20}
    assert document["peak_memory"] > 1 << 20
    assert "Next: `attempt eval --tasks FILE.yaml,… --composition left-right-attempt@1`" in result.err


@pytest.mark.parametrize("method", ["hyperformer", "hyperdecoder", "adapterfusion"])
def test_weights_of_several_tasks_are_scored_on_each(trained: Attempt, method: str) -> None:
    options = f"--method {method} --dtype float32 --steps 4 --batch-size 8 --eval-every 0"
    result = trained.succeed(f"train-target left.yaml,right.yaml {options} --format json")
    document = result.json["training"]
    assert (document["name"], document["tasks"]) == (f"left-right-{method}", ["left", "right"])
    assert document["parameters_per_task"] == document["trained_parameters"] / 2
    assert "attention" not in document
    assert document["test"].keys() == {"left", "right"}
    for name, test in document["test"].items():
        assert test["n"] == 20
        run = opened(trained).run(test["run"])
        assert (run.numbers["task"], run.numbers["score"]) == (name, test["metrics"]["accuracy"])
    assert f"Next: `attempt compare {document['test']['left']['run']} RUN`" in result.err
    alone = trained(f"train-target left.yaml {options}")
    if method == "adapterfusion":
        assert alone.code == 1
        assert "AdapterFusion is trained on 2 tasks at the least, not on 1" in alone.err
    else:
        assert alone.code == 0


def test_a_task_joins(trained: Attempt) -> None:
    trained.succeed(f"train-target --add-task third.yaml --composition both {RUN}")
    composition = opened(trained).composition("both")
    assert (composition.version, composition.targets[-1]) == (2, "both.third@1")
    for command, message in (
        ("train-target left.yaml --add-task third.yaml --composition both", "tasks join a composition with"),
        ("train-target --add-task third.yaml", "tasks join a composition with"),
        ("train-target --add-task third.yaml --composition both --sources one", "--sources is settled"),
        ("train-target --add-task third.yaml --composition both --attention-rank 3", "--attention-rank is settled"),
        ("train-target --add-task third.yaml --composition bth", "no composition named 'bth'"),
        ("train-target left.yaml,right.yaml --method spot --init-from one", "only go with --method attempt"),
        ("train-target left.yaml --sources one,two --max-rows-per-task 3", "are for several tasks"),
        ("train-target left.yaml,right.yaml --sources one,two --sampling-temperature 0.5", "0.5 is not in the range"),
        ("train-target left.yaml,right.yaml --sources one,two --train-file left.csv", "file options go with one task"),
        ("train-target left.yaml --sources one,two --attention-from prio", "no attention named 'prio'"),
        ("train-attention --sources one,two --tasks lft.yaml", "lft.yaml"),
    ):
        result = trained(f"{command} {RUN}")
        assert result.code in (1, 2), command
        assert message in result.err, result.err
        assert "Traceback" not in result.err


def test_an_input_is_read_once_for_many_prompts(trained: Attempt) -> None:
    (trained.folder / "lines.txt").write_text("it was good\nbad is the text\n", "utf-8")
    lines = trained.succeed("predict --prompts one,two,both lines.txt --dtype float32").lines
    assert len(lines) == 2
    assert list(lines[0])[:2] == ["one", "two"]
    assert {"both:left", "both:right"} <= set(lines[0])
    assert lines[0]["both:right"]["word"] in ("bad", "good")
    alone = trained.succeed("predict both lines.txt --task right --dtype float32").lines
    for many, one in zip(lines, alone, strict=True):
        assert many["both:right"]["label"] == one["label"]
        assert many["both:right"]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    result = trained("predict --prompts one,tow lines.txt")
    assert result.code == 1
    assert "no prompt or composition named 'tow'" in result.err
    assert trained("predict").code == 2
    assert trained("predict one lines.txt --prompts two").code == 2
    assert "choose one with --task" in trained("predict both lines.txt").err


def test_the_prior_serves_any_task(trained: Attempt) -> None:
    trained.succeed("compose zero --sources one,two --attention prior")
    scored = trained.succeed("eval --composition zero --tasks right.yaml --dtype float32 --format json").json
    assert scored["evaluations"][0]["n"] == 20
    said = trained.succeed("predict zero --task right.yaml right.csv --dtype float32").lines
    assert all(line["attention"]["target"] == 0 for line in said)
    assert "Name one with --task" in trained("predict zero right.csv").err


# --- speed


def test_options_of_speed_change_no_result(trained: Attempt) -> None:
    base = f"train-source left.yaml {RUN} --prompt-length 4 --steps 6"  # two epochs: inputs are read again
    names = {
        "plain": "--input-cache 0",
        "kept": "--input-cache 1GiB",
        "filed": "--input-cache-dir inputs",
        "twice": "--gradient-checkpointing",
        "again": "--input-cache-dir inputs",
    }
    for name, options in names.items():
        trained.succeed(f"{base} --name {name} {options}")
    assert list((trained.folder / "inputs").glob("*.kv"))
    registry = opened(trained)
    tensors = {name: registry.prompt_tensor(registry.prompt(name)) for name in names}
    assert (tensors["kept"] == tensors["filed"]).all()
    assert (tensors["kept"] == tensors["again"]).all()
    for tensor in tensors.values():
        assert tensor == pytest.approx(tensors["plain"], abs=2e-3)


def test_as_many_rows_as_fit(trained: Attempt) -> None:
    command = "train-source left.yaml --dtype float32 --steps 1 --eval-every 0 --prompt-length 4 --name auto"
    trained.succeed(f"{command} --batch-size auto")
    assert opened(trained).prompt("auto").settings["training"]["batch_size"] == 32  # all 20 rows are in it


def test_placements_are_not_mixed(trained: Attempt) -> None:
    trained.succeed(f"train-source left.yaml --name first --placement before {RUN} --prompt-length 4")
    assert opened(trained).prompt("first").placement == "before"
    for command, message in (
        (f"train-target left.yaml --sources one,first {RUN}", "trained in different places of the row"),
        (f"train-target left.yaml --sources one,two --placement before {RUN}", "was trained after the input"),
        (f"train-source left.yaml --input-cache 4apples {RUN}", "'4apples' is not a size"),
        (f"train-source left.yaml --input-cache 10 --prompt-length 4 {RUN} --steps 6", "does not hold one row"),
        ("compose mixed --sources one,first --target both.left --attention prior", "trained in different places"),
    ):
        result = trained(command)
        assert result.code == 1, command
        assert message in result.err, result.err
