"""`train-target --method …` for the baselines, and the options that make ATTEMPT's variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from attempt_registry import Registry
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

FILES = f"--train-file train.csv --validation-file validation.csv {READ} --dtype float32"
QUICK = f"{FILES} --steps 3 --batch-size 8 --max-length 16"
TESTED = f"{QUICK} --test-file test.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """A registry with the sources one and two, and the composition aim-attempt."""
    folder = tmp_path_factory.mktemp("baselines")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source {name} {QUICK} --prompt-length 8 --seed {seed} --eval-every 0")
    return attempt


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def test_what_cannot_be_kept_is_scored_at_once(trained: Attempt) -> None:
    options = "--method lora --weight-learning-rate 1e-2"
    prompts = len(list(opened(trained).prompts()))
    result = trained.json(f"train-target {trained.folder.name} {TESTED} {options}")[
        "training"
    ]  # as eval calls the task
    assert result["name"] == f"{trained.folder.name}-{options.split()[1]}"
    assert "composition" not in result
    assert result["trained_parameters"] > 0
    assert result["test"]["n"] == 24
    assert 0 <= result["test"]["metrics"]["accuracy"] <= 1
    assert len(list(opened(trained).prompts())) == prompts
    tested = opened(trained).run(result["test"]["run"])
    assert tested.numbers["score"] == result["test"]["metrics"]["accuracy"]
    assert tested.numbers["kind"] == "weights"
    bare = trained.json(f"eval --prompt none --test-file test.csv {READ} --dtype float32")["evaluations"][0]
    compared = trained.json(f"compare {tested.id} {bare['run']}")["comparison"]
    assert compared["n"] == 24


def test_without_test_rows_it_says_so(trained: Attempt) -> None:
    result = trained.succeed(f"train-target aim {QUICK} --method bitfit")
    assert "No test rows, so the trained model is not scored" in result.err
    assert "attempt eval" not in result.err


def test_mpt_keeps_a_prompt(trained: Attempt) -> None:
    result = trained.json(f"train-target aim {QUICK} --method mpt --sources one,two --attention-learning-rate 0.02")
    prompt = opened(trained).prompt(result["training"]["name"])
    assert (prompt.method, prompt.length, prompt.parents) == ("mpt", 8, ("one@1", "two@1"))
    trained.succeed(f"eval --prompt {prompt.ref} --test-file test.csv")


def test_ulpt_keeps_a_prompt_like_any_other(trained: Attempt) -> None:
    result = trained.json(f"train-target aim {QUICK} --method ulpt --ulpt-rank 3 --prompt-length 8")["training"]
    prompt = opened(trained).prompt(result["name"])
    assert (prompt.method, prompt.length, prompt.settings["init_from"]) == ("ulpt", 8, "random numbers")
    assert result["trained_parameters"] == 8 * 3 + 2 * prompt.width
    assert prompt.settings["training"]["method_settings"] == {"rank": 3}
    trained.succeed(f"eval --prompt {prompt.ref} --test-file test.csv")
    mixed = trained.json(f"train-target aim {QUICK} --sources one,{prompt.ref} --name mixed")["training"]
    assert opened(trained).composition(mixed["composition"]).sources == ("one@1", prompt.ref)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("dept", "left_factors, right_factors"),
        ("adept", "down, down_bias, up, up_bias"),
        ("smop --smop-prompts 2 --smop-noise 0.5", "experts, router"),
        ("pt-moe --pt-moe-balance 0.01", "experts, router, router_bias, shared"),
    ],
)
def test_what_is_more_than_a_prompt_is_kept_and_used_whole(trained: Attempt, method: str, parts: str) -> None:
    result = trained.json(f"train-target aim {QUICK} --method {method} --prompt-length 8")["training"]
    prompt = opened(trained).prompt(result["name"])
    assert (prompt.method, ", ".join(prompt.parts)) == (method.split()[0], parts)
    trained.succeed(f"eval --prompt {prompt.ref} --test-file test.csv")
    trained.succeed(f"predict {prompt.ref} test.csv --dtype float32")
    for refused in (f"train-target aim {QUICK} --sources {prompt.ref} --name no", f"compose no --target {prompt.ref}"):
        failed = trained(refused)
        assert failed.code == 1
        assert "is more than a prompt" in failed.err
    failed = trained(f"export {prompt.ref} matrix --to npy")
    assert failed.code == 1
    assert f"keeps {parts} beside it), which NumPy cannot express" in failed.err
    assert "Export it --to bundle" in failed.err


@pytest.mark.parametrize(
    ("options", "level", "settings"),
    [
        ("--level token --learned-temperature", "token", {}),
        ("--no-target --attention-rank 4", "instance", {"with_target": False}),
        ("--constant-attention", None, {"weights": {"one@1": 0.5, "two@1": 0.5, "target": 0.0}}),
    ],
)
def test_a_variant_is_recorded_and_evaluated(
    trained: Attempt, options: str, level: str | None, settings: dict[str, object]
) -> None:
    result = trained.json(f"train-target aim {QUICK} --sources one,two {options}")["training"]
    composition = opened(trained).composition(result["composition"])
    attention = composition.attention and opened(trained).attention(composition.attention).level
    assert attention == level
    assert {name: value for name, value in composition.settings.items() if name != "embedding_scale"} == settings
    trained.succeed(f"eval --composition {composition.ref} --test-file test.csv")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--method adapters", 2, "'adapters' is not one of"),
        ("--method lora --sources one", 2, "--sources only goes with --method attempt or mpt, not with lora"),
        ("--method lora --prompt-length 4", 2, "--prompt-length only goes with"),
        ("--method lora --learning-rate 1", 2, "--learning-rate only goes with"),
        ("--method lora --compile", 1, "--compile does not go with lora"),
        ("--method dept --placement after", 1, "--placement after is not for it"),
        (
            "--method dept --init-from one",
            2,
            "--init-from only goes with --method attempt or spot or mpt, not with dept",
        ),
        ("--method spot --init-from one --level token", 2, "--level only goes with --method attempt, not with spot"),
        ("--method mpt", 2, "MPT needs source prompts: --sources a,b,c or --sources all or a prompt to start from"),
        ("--sources one --weight-learning-rate 1", 2, "--weight-learning-rate only goes with --method fine-tuning or"),
        ("--sources one --constant-attention --no-target", 1, "leaves nothing to train"),
        ("--sources one --constant-attention --attention-rank 4", 2, "--attention-rank says nothing with"),
        ("--sources one --attention-from g --level token", 2, "--level says nothing with --attention-from"),
        ("--sources one --no-target --method lora", 2, "not with lora"),
        ("--method ulpt --ulpt-rank 0", 1, "--ulpt-rank is at least 1, not 0"),
        ("--method ulpt --init-from one", 2, "--init-from only goes with"),
        ("--sources one --ulpt-rank 2", 2, "--ulpt-rank only goes with --method ulpt, not with attempt"),
    ],
)
def test_options_that_do_not_fit_are_refused(trained: Attempt, options: str, code: int, message: str) -> None:
    runs = len(opened(trained).runs())
    result = trained(f"train-target aim {QUICK} {options}")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert len(opened(trained).runs()) == runs
