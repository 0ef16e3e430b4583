"""What bad input gets: an exit code, an error that names the thing and the next step, and a registry as it was."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import resource
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attempt_registry import Registry
from tests.training.commands import Attempt, Result
from tests.training.toy import READ, toy_rows, write_csv

FILES = f"--train-file train.csv --validation-file validation.csv {READ}"
QUICK = f"{FILES} --dtype float32 --steps 2 --batch-size 8"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """A registry with sources of two lengths; a model of another width, and one of the same width."""
    from tests.models import save_llama

    folder = tmp_path_factory.mktemp("kept")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    save_llama(folder / "narrow", hidden_size=16)
    save_llama(folder / "stranger", intermediate_size=32)
    attempt = Attempt(folder, llama)
    attempt.succeed(f"train-source one {QUICK} --prompt-length 4 --eval-every 0")
    attempt.succeed(f"train-source longer {QUICK} --prompt-length 6 --eval-every 0")
    return attempt


def content(attempt: Attempt) -> dict[str, Any]:
    """All that a registry holds: its records, and its tensors' files with their hashes."""
    folder = attempt.folder / attempt.registry
    with Registry.open(folder) as registry:
        records = [registry.prompts(), registry.attentions(), registry.compositions(), registry.runs()]
    files = sorted(path for path in (folder / "objects").rglob("*.safetensors"))
    return {
        "records": records,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def failed(attempt: Attempt, command: str, *, clean: bool = False, **options: Any) -> Result:
    """The result of a command that fails as it should: nothing on stdout, no traceback, nothing kept.

    Args:
        clean: a tensor whose row could not be written may be left, for `registry gc` to remove.
    """
    before = content(attempt)
    result = attempt(command, **options)
    assert result.code in (1, 2)
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "defect in attempt" not in result.err
    assert len(result.err.strip().splitlines()) >= 2, result.err  # what is wrong, and what to do next
    if clean:
        with Registry.open(attempt.folder / attempt.registry) as registry:
            registry.gc(grace=0)
    assert content(attempt) == before
    return result


NAMES = [
    ("train-source ste2", 1, "no task named 'ste2'", "sst2"),
    ("train-source", 2, "name a task, or give --train-file with --input and --label", "--help"),
    ("train-source sst2 --label mood", 2, "--label only go with --train-file", "--help"),
    ("eval --tasks rte,bolq --prompt none", 1, "no task named 'bolq'", "boolq"),
    ("eval --tasks rte", 1, "nothing was trained for the task 'rte'", "attempt train-target rte"),
    ("eval --prompt onne --test-file test.csv", 1, "no prompt named 'onne'", "one"),
    ("eval --prompt one@7 --test-file test.csv", 1, "prompt 'one' has no version 7", "one@1"),
    ("eval --composition one --test-file test.csv", 1, "no composition named 'one'", "--what compositions"),
    ("eval --prompt one --split dev --test-file test.csv", 2, "'dev' is not one of", "--help"),
    (f"train-target aim {QUICK} --sources one,thre", 1, "no prompt named 'thre'", "attempt registry list"),
    (f"train-target aim {QUICK} --sources one --init-from onee", 1, "no prompt named 'onee'", "one"),
    (f"train-target aim {QUICK} --method spott", 2, "'spott' is not one of 'attempt', 'spot'", "--help"),
    (f"train-source aim {QUICK} --preset papr", 1, "no preset named 'papr'", "paper"),
    (f"train-source aim {QUICK} --backbone smollm-135m", 1, "no backbone named 'smollm-135m'", "smollm2-135m"),
    (f"train-source aim {QUICK} --backbone ./nowhere", 1, "no backbone at ./nowhere", "folder"),
    (f"train-source aim {QUICK} --device warp", 1, "the device 'warp' is not available", "--device"),
    (f"train-source aim {QUICK} --dtype float16", 1, "no dtype named 'float16'", "bfloat16"),
    (f"train-source aim {QUICK} --name 'a b'", 1, "'a b' cannot be a name", "Letters"),
    (f"train-source aim {QUICK} --tag a,b", 1, "'a,b' cannot be a tag", "commas"),
    ("fewshot --tasks cb --methods sport", 1, "no method named 'sport'", "spot"),
    ("compose new --target one --sources longer --attention nothing", 1, "no attention named 'nothing'", "attentions"),
    ("predict nobody test.csv", 1, "no prompt or composition named 'nobody'", "attempt registry list"),
    ("train-sorce sst2", 2, "No such command 'train-sorce'. Did you mean train-source", "--help"),
    ("train-source sst2 --stepz 3", 2, "No such option", "--steps"),
    ("train-source sst2 --steps three", 2, "'three' is not a valid integer", "--help"),
    ("--format xml registry list", 2, "'xml' is not one of 'table', 'json', 'quiet'", "--help"),
    ("--data-dir nowhere tasks list", 2, "Directory 'nowhere' does not exist", "--help"),
]


SAYS_NOTHING = [
    ("train-source aim --test-file test.csv", "No such option '--test-file'"),
    ("fewshot -k 2 --validation-file test.csv", "No such option '--validation-file'"),
    (f"train-target aim {QUICK} --sources one --test-file test.csv", "--test-file is for models that cannot be kept"),
    ("inspect one --split train --rows 3", "--split and --rows say nothing of 'one'"),
    ("compose new --target one --backbone tiny", "--backbone only goes with --sources all"),
]


@pytest.mark.parametrize(("command", "message"), SAYS_NOTHING, ids=[row[0] for row in SAYS_NOTHING])
def test_options_that_say_nothing_with_a_command(kept: Attempt, command: str, message: str) -> None:
    result = failed(kept, command)
    assert result.code == 2
    assert message in result.err


HUGE, LONG = 10**23, "9" * 5000
NUMBERS = [
    (f"compare {LONG} 1", 1, "a number has too many digits", "Look for it"),
    (f"registry show {LONG} --what runs", 1, "a number has too many digits", "Look for it"),
    (f"eval --prompt one --test-file test.csv --seed {HUGE}", 2, "--seed", "--help"),
    (f"train-source aim {QUICK} --seed {HUGE}", 1, "--seed", "less than"),
    (f"train-source aim {QUICK} --input-cache {LONG}GB", 1, "is not a size", "4GiB"),
    (f"eval --tasks {LONG}.yaml --prompt one", 1, "File name too long", "Check what was typed"),
]


@pytest.mark.parametrize(("command", "code", "message", "next_step"), NUMBERS, ids=[row[0][:60] for row in NUMBERS])
def test_numbers_and_names_beyond_all_bounds(
    kept: Attempt, command: str, code: int, message: str, next_step: str
) -> None:
    result = failed(kept, command)
    assert result.code == code
    assert message in result.err
    assert next_step in result.err


@pytest.mark.parametrize(("command", "code", "message", "next_step"), NAMES, ids=[row[0] for row in NAMES])
def test_names_that_are_not_there(kept: Attempt, command: str, code: int, message: str, next_step: str) -> None:
    result = failed(kept, command)
    assert result.code == code
    assert message in result.err
    assert next_step in result.err


def test_settings_out_of_bounds_are_told_all_at_once(kept: Attempt) -> None:
    command = f"train-source aim {FILES} --steps 0 --batch-size -1 --learning-rate 0 --prompt-length 0 --seed -1"
    result = failed(kept, command)
    assert result.code == 1
    for option in ("--steps", "--batch-size", "--learning-rate", "--prompt-length", "--seed"):
        assert re.search(rf"^  {option}: Input should be greater than", result.err, flags=re.MULTILINE)


def test_steps_and_epochs(kept: Attempt) -> None:
    result = failed(kept, f"train-source aim {FILES} --steps 3 --epochs 1")
    assert "give --steps or --epochs, not both" in result.err


ROWS = [
    ("text,mood\n", "has no rows", 1),
    ("", "has no rows", 1),
    ("words,mood\nit was good,yes\nit was bad,no\n", "no column 'text'", 1),
    ("text,label\nit was good,yes\nit was bad,no\n", "no column 'mood'", 1),
    ("text,mood\nit was good,yes\nit was bad,yes\n", "holds only 'yes'", 1),
    ("text,mood\nit was good,yes\nit was bad,no\nit was,\n", "row 3: nothing in column 'mood'", 1),
]


@pytest.mark.parametrize(("rows", "message", "code"), ROWS, ids=[row[1] for row in ROWS])
def test_files_that_do_not_fit(kept: Attempt, rows: str, message: str, code: int) -> None:
    (kept.folder / "bad.csv").write_text(rows)
    result = failed(kept, f"train-source aim --train-file bad.csv {READ} --dtype float32 --steps 2 --eval-every 0")
    assert result.code == code
    assert message in result.err
    assert str(kept.folder / "bad.csv") in result.err


def test_a_label_that_the_other_files_do_not_have(kept: Attempt) -> None:
    (kept.folder / "odd.csv").write_text("text,mood\nit was good,yes\nit was bad,No\n")
    result = failed(kept, f"train-source aim --train-file train.csv --validation-file odd.csv {READ} --steps 2")
    assert result.code == 1
    assert re.search(r"odd\.csv, line 3, row 2: unknown label 'No' in column 'mood'", result.err)
    assert "train.csv has 'no', 'yes'." in result.err
    evaluated = failed(kept, "eval --prompt one --test-file odd.csv --dtype float32")
    assert "row 2: unknown label 'No' in column 'mood'" in evaluated.err


def test_files_without_the_options_that_read_them(kept: Attempt) -> None:
    result = failed(kept, "train-source aim --train-file train.csv --label mood")
    assert result.code == 2
    assert "rows from files need --input" in result.err


def test_fewer_rows_than_k(kept: Attempt) -> None:
    command = f"fewshot -k 60 --train-file train.csv --test-file test.csv {READ} --methods prompt-tuning"
    result = failed(kept, command)
    assert result.code == 1
    assert "has 20 rows, 30 are wanted" in result.err
    assert "Choose k of at most 40 in total" in result.err


def test_no_sources(attempt: Attempt) -> None:
    result = attempt(f"train-target aim {QUICK} --sources all")
    assert (result.code, result.out) == (1, "")
    assert "there is no source prompt of tiny of another task than aim yet" in result.err
    assert "attempt train-source" in result.err
    assert not (attempt.folder / attempt.registry).exists()  # asking makes nothing


def test_prompts_of_different_length(kept: Attempt) -> None:
    result = failed(kept, f"train-target aim {QUICK} --sources one,longer")
    assert "the prompts differ in length: one@1 4, longer@1 6" in result.err
    other = failed(kept, f"train-target aim {QUICK} --sources one --prompt-length 5")
    assert "--prompt-length 5 is not the length of the prompts it is to start from (4)" in other.err
    # the length of what is composed is known without any model
    composed = failed(kept, "compose new --target one --sources longer --attention nothing")
    assert composed.code == 1


@pytest.mark.parametrize("name", ["narrow", "stranger"])
@pytest.mark.parametrize(
    "command",
    ["eval --prompt one --test-file test.csv", f"train-target aim {QUICK} --sources one", "predict one test.csv"],
    ids=["eval", "train-target", "predict"],
)
def test_a_backbone_that_the_prompt_is_not_for(kept: Attempt, name: str, command: str) -> None:
    """Of another width, or of the same."""
    result = failed(kept, f"{command} --backbone ./{name} --dtype float32")
    assert result.code == 1
    assert re.search(rf"'one@1' was trained for tiny \(\w+\), the backbone here is {name} \(\w+\)", result.err)
    assert f"attempt registry list --backbone {name}" in result.err


def test_a_prompt_that_is_damaged(kept: Attempt) -> None:
    registry = Registry.open(kept.folder / kept.registry)
    path = registry.tensor_path(registry.prompt("longer"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        result = failed(kept, "eval --prompt longer --test-file test.csv --dtype float32")
        assert "longer@1" in result.err
        assert str(path) in result.err
    finally:
        path.write_bytes(data)


def test_the_network_is_not_there(kept: Attempt) -> None:
    rows = failed(kept, "train-source sst2 --steps 1")
    assert "stanfordnlp/sst2" in rows.err or "nyu-mll/glue" in rows.err
    assert "--data-dir" in rows.err
    weights = failed(kept, f"train-source aim {QUICK} --backbone t5-small")
    assert "google-t5/t5-small" in weights.err
    assert "--backbone" in weights.err


# --- the disk


def test_a_file_where_the_registry_should_be(attempt: Attempt) -> None:
    (attempt.folder / attempt.registry).write_text("not a folder")
    for command in (f"train-source aim {QUICK}", "registry list", "eval --prompt one --test-file test.csv"):
        result = attempt(command)
        assert result.code in (1, 2)
        assert attempt.registry in result.err
        assert "is a file" in result.err
        assert "Traceback" not in result.err
    assert (attempt.folder / attempt.registry).read_text() == "not a folder"


def read_only(folder: Path) -> None:
    """Takes the permission to write from everybody else; from root by a mount that only this process sees."""
    if os.geteuid():
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
        return
    new_mounts = 0x00020000
    assert ctypes.CDLL(None, use_errno=True).unshare(new_mounts) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)


def can_be_read_only() -> bool:
    if os.geteuid():
        return True
    command = "mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,ro,bind /tmp"
    try:
        return subprocess.run(["unshare", "-m", "bash", "-c", command], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_be_read_only(), reason="root can write anywhere here, and may not mount")
def test_a_registry_that_is_read_only(kept: Attempt) -> None:
    folder = kept.folder / kept.registry
    prepare = partial(read_only, folder)
    result = failed(kept, f"train-source aim {QUICK}", prepare=prepare)
    assert result.code == 1
    assert f"the registry {folder} is read-only" in result.err
    assert "name another with --registry" in result.err
    listed = kept.succeed("--format quiet registry list", prepare=prepare)
    assert listed.out.split() == ["longer@1", "one@1"]
    # reading is enough to evaluate and to predict with what is there
    before = content(kept)
    evaluated = kept.succeed("eval --prompt one --test-file test.csv --dtype float32", prepare=prepare)
    assert "This evaluation is not recorded" in evaluated.err
    assert kept.succeed("predict one test.csv --dtype float32", prepare=prepare).lines
    assert content(kept) == before


def nothing_fits() -> None:
    """From now on no file may grow beyond a few bytes: writing ends as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def no_checkpoint_fits() -> None:
    import attempt_cli.training.loop as loop

    save = loop.save_checkpoint

    def limited(*arguments: Any) -> None:
        nothing_fits()
        save(*arguments)

    loop.save_checkpoint = limited


def no_result_fits() -> None:
    from attempt_cli.training import run

    record = run.record_training

    def limited(*arguments: Any, **named: Any) -> Any:
        nothing_fits()
        return record(*arguments, **named)

    run.record_training = limited


@pytest.mark.parametrize("prepare", [nothing_fits, no_checkpoint_fits, no_result_fits])
def test_a_disk_that_is_full(kept: Attempt, prepare: Callable[[], None]) -> None:
    command = f"train-source full {QUICK} --prompt-length 4 --eval-every 1"
    folder = kept.folder / kept.registry
    result = failed(kept, command, prepare=prepare, clean=True)
    assert result.code == 1
    assert re.search(r"Error: .*(SQLite failed|File too large)", result.err)
    assert str(folder) in result.err
    assert re.search("space|disk", result.err)
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("*.tmp"))
    assert Registry.open(folder).verify() == []
    # with room again it goes on
    resumed = kept.succeed(f"{command} --resume")
    assert ("continuing from step 2" in resumed.err) == (prepare is no_result_fits)
    registry = Registry.open(folder)
    registry.remove("full")
    registry.gc(grace=0)
