"""The commands: what is typed, what is printed, and how wrong use is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.commands import Attempt
from tests.training.conftest import attempt, llama
from tests.training.toy import READ

__all__ = ["attempt", "llama"]

QUICK = (
    f"--train-file train.csv --validation-file validation.csv {READ} --dtype float32 --steps 2 --batch-size 4 "
    "--eval-every 0 --placement before"
)


@pytest.mark.slow
def test_from_training_to_other_tools_and_back(attempt: Attempt) -> None:
    attempt.succeed(f"train-source {QUICK} --name one --prompt-length 4")
    attempt.succeed(f"train-target {QUICK} --sources one --name aim")
    refused = attempt("export aim adapter --to peft")
    assert refused.code == 1
    assert "mixes a prompt of its own for every input" in refused.err
    assert "attempt compose NEW --flatten aim@1" in refused.err
    flat = attempt.json("compose plain --flatten aim")["flattened"][0]
    assert flat["name"] == "plain@1"
    assert flat["comparison"]["n"] == 12
    table = attempt.succeed("compose again --flatten aim --rows test.csv")
    assert "before - after" in table.out
    assert "again@1" in table.out
    written = attempt.json("export plain adapter --to peft")["export"]
    assert written["files"] == ["adapter_config.json", "adapter_model.safetensors", "attempt.json"]
    assert attempt("export plain adapter --to peft").code == 1
    attempt.succeed("export plain adapter --to peft --force")
    attempt.succeed("export aim aim.attempt --to bundle")
    fresh = Attempt(attempt.folder, attempt.backbone, "fresh")
    unknown = fresh("import aim.attempt", ATTEMPT_BACKBONE="")
    assert unknown.code == 1
    assert "which is not recorded here" in unknown.err
    added = fresh.json(f"import aim.attempt --backbone {attempt.backbone}")["imported"]
    assert [(row["what"], row["ref"]) for row in added] == [
        ("prompt", "one@1"), ("prompt", "aim@1"), ("attention", "aim@1"), ("composition", "aim@1"),
    ]  # fmt: skip
    (row,) = fresh.json("import adapter --name theirs")["imported"]
    assert (row["ref"], row["method"]) == ("theirs@1", "imported")
    same = "--prompt {} --test-file test.csv --dtype float32"
    scores = [
        one.json(f"eval {same.format(name)}")["evaluations"][0]["metrics"]
        for one, name in ((attempt, "plain"), (fresh, "theirs"))
    ]
    assert scores[0] == scores[1]


def test_wrong_use_is_told(attempt: Attempt) -> None:
    np.save(attempt.folder / "x.npy", np.ones((4, 24), np.float32))
    for line, code, says in (
        ("export x", 2, "Missing argument 'PATH'"),
        ("export x y --to gguff", 2, "is not one of"),
        ("export x y --to npy", 1, "no prompt or composition named 'x'"),
        ("import nowhere", 1, "there is nothing at nowhere"),
        ("import x.npy --task t --backbone nobody", 1, "no backbone named 'nobody'"),
        (f"import x.npy --backbone {attempt.backbone}", 2, "Name its task with --task"),
        (f"import x.npy --task a,b --backbone {attempt.backbone}", 2, "--task names 2"),
        ("import x.npy --task a --prefix y", 2, "--prefix says nothing of NumPy"),
        ("compose x --flatten y --sources z", 2, "--sources says nothing with --flatten"),
        ("compose x --from y --rows test.csv", 2, "--rows says nothing without --flatten"),
        ("compose x --flatten y", 1, "no composition named 'y'"),
    ):
        done = attempt(line)
        assert done.code == code, (line, done.err)
        assert says in done.err, line
        assert "defect" not in done.err


def test_an_export_loads_no_backbone(attempt: Attempt, tmp_path: Path) -> None:
    attempt.succeed(f"train-source {QUICK} --name one --prompt-length 4")
    done = attempt.succeed("export one matrix --to npy", ATTEMPT_BACKBONE=str(tmp_path / "gone"))
    assert "one@1" in done.out
    assert np.load(attempt.folder / "matrix" / "one.npy").shape == (4, 24)
