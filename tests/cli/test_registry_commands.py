"""`attempt registry …` as users meet it: the whole output of the real command."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from safetensors.numpy import save_file

from attempt_cli.cli import main as cli_main
from attempt_cli.cli.main import main
from attempt_cli.cli.registry import command
from attempt_registry import Backbone, Registry

FINGERPRINT = "f" * 64
NOW = "2026-01-02T03:04:05Z"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("attempt_registry.add.now", lambda: NOW)
    monkeypatch.delenv("ATTEMPT_REGISTRY", raising=False)
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def cli(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs `attempt registry ARGUMENTS`; the registry's folder reads FOLDER in what comes back."""

    def run(*arguments: str, format: str = "table", input: str = "") -> Result:
        start = ["attempt", "--registry", str(registry.folder), "--format", format]
        monkeypatch.setattr(sys, "argv", [*start, "registry", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = (text.replace(str(registry.folder), "FOLDER") for text in capsys.readouterr())
        return Result(code, out, err)

    return run


Cli = Callable[..., Result]


def add(registry: Registry, name: str, tensor: Any = None, **fields: Any) -> None:
    defaults: dict[str, Any] = {
        "kind": "source",
        "method": "prompt-tuning",
        "backbone": "tiny",
        "fingerprint": FINGERPRINT,
        "task": name,
        "task_version": 1,
        "embedding_scale": 0.1,
        "settings": {"steps": 10, "lr": 0.03},
        "numbers": {"accuracy": 0.8125},
        "seed": 0,
    }
    tensor = np.ones((2, 3)) if tensor is None else tensor
    registry.add_prompt(tensor, name=name, **{**defaults, **fields})


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """Two sources, a target, an attention and a composition (both named reviews), two runs."""
    registry.remember_backbone(Backbone("tiny", FINGERPRINT, "decoder-only", 3, 0.1, 1000, "made in the test"))
    add(registry, "sst2", tags=["paper", "best"])
    add(registry, "qnli", np.zeros((4, 3)), seed=1)
    parents = ["sst2", "qnli"]
    add(registry, "rte", kind="target", method="attempt", parents=parents, note="first try")
    registry.add_attention(
        {"down": np.ones((2, 3))},
        name="reviews",
        backbone="tiny",
        fingerprint=FINGERPRINT,
        rank=2,
        level="instance",
        temperature=4.7,
        width=3,
        settings={},
        seed=0,
        parents=parents,
    )
    registry.add_composition(
        name="reviews", backbone="tiny", fingerprint=FINGERPRINT, sources=parents, attention="reviews", targets=["rte"]
    )
    common: dict[str, Any] = {"settings": {}, "rows": {"train": 200}, "budget": {"steps": 10}, "versions": {}}
    registry.add_run(
        command="train-target rte",
        seed=0,
        numbers={"accuracy": 0.6},
        duration=12.5,
        artefacts=["rte"],
        inputs=parents,
        **common,
    )
    registry.add_run(command="eval", seed=None, numbers={}, duration=1.0, inputs=["rte"], **common)
    return registry


# --- list


def test_list(cli: Cli, filled: Registry) -> None:
    assert cli("list") == Result(
        0,
        """\
ref     kind    task  method         backbone  length  placement  tags         created
qnli@1  source  qnli  prompt-tuning  tiny      4       before     -            2026-01-02T03:04:05Z
rte@1   target  rte   attempt        tiny      2       before     -            2026-01-02T03:04:05Z
sst2@1  source  sst2  prompt-tuning  tiny      2       before     paper, best  2026-01-02T03:04:05Z
""",
        "",
    )


def test_list_the_other_tables(cli: Cli, filled: Registry) -> None:
    assert cli("list", "--what", "attentions").out == (
        "ref        level     rank  backbone  parents         created\n"
        "reviews@1  instance  2     tiny      sst2@1, qnli@1  2026-01-02T03:04:05Z\n"
    )
    assert cli("list", "--what", "compositions").out == (
        "ref        sources         attention  targets  backbone  created\n"
        "reviews@1  sst2@1, qnli@1  reviews@1  rte@1    tiny      2026-01-02T03:04:05Z\n"
    )
    assert cli("list", "--what", "runs", "--reverse").out == (
        "id  command           inputs                        artefacts     seed  duration  created\n"
        "2   eval              prompt:rte@1                  -             -     1         2026-01-02T03:04:05Z\n"
        "1   train-target rte  prompt:sst2@1, prompt:qnli@1  prompt:rte@1  0     12.5      2026-01-02T03:04:05Z\n"
    )
    assert cli("list", "--what", "runs", format="quiet").out == "1\n2\n"


def test_list_as_json_holds_every_field(cli: Cli, filled: Registry) -> None:
    data = json.loads(cli("list", "--kind", "target", format="json").out)
    prompt = filled.prompt("rte")
    assert data == {
        "version": 1,
        "prompts": [
            {
                "ref": "rte@1",
                "name": "rte",
                "version": 1,
                "kind": "target",
                "method": "attempt",
                "backbone": "tiny",
                "fingerprint": FINGERPRINT,
                "task": "rte",
                "task_version": 1,
                "length": 2,
                "width": 3,
                "dtype": "float32",
                "embedding_scale": 0.1,
                "placement": "before",
                "sha256": prompt.sha256,
                "settings": {"steps": 10, "lr": 0.03},
                "numbers": {"accuracy": 0.8125},
                "seed": 0,
                "created": NOW,
                "note": "first try",
                "tags": [],
                "parents": ["sst2@1", "qnli@1"],
                "id": 3,
            }
        ],
    }


@pytest.mark.parametrize(
    ("options", "refs"),
    [
        ([], "qnli@1 rte@1 sst2@1"),
        (["--kind", "source"], "qnli@1 sst2@1"),
        (["--task", "rte"], "rte@1"),
        (["--backbone", "tiny", "--method", "attempt"], "rte@1"),
        (["--tag", "best"], "sst2@1"),
        (["--sort", "length"], "rte@1 sst2@1 qnli@1"),
        (["--sort", "task", "--reverse", "--limit", "2"], "sst2@1 rte@1"),
        (["--what", "compositions", "--task", "rte"], "reviews@1"),
        (["--what", "compositions", "--task", "sst2"], ""),
        (["--what", "attentions", "--backbone", FINGERPRINT], "reviews@1"),
    ],
)
def test_filters_and_orders(cli: Cli, filled: Registry, options: list[str], refs: str) -> None:
    assert cli("list", *options, format="quiet") == Result(0, "".join(f"{ref}\n" for ref in refs.split()), "")


def test_a_mistyped_filter_does_not_look_like_an_empty_registry(cli: Cli, filled: Registry) -> None:
    assert cli("list", "--task", "rtee") == Result(
        0, "", "no prompts\nNothing here has the task 'rtee'. Did you mean rte?\n"
    )
    assert cli("list", "--tag", "bst") == Result(
        0, "", "no prompts\nNothing here has the tag 'bst'. Did you mean best?\n"
    )
    assert cli("list", "--kind", "target", "--tag", "best").err == "no prompts\n"
    assert json.loads(cli("list", "--task", "x", format="json").out) == {"version": 1, "prompts": []}


def test_an_empty_registry(cli: Cli, registry: Registry) -> None:
    assert cli("list") == Result(0, "", "no prompts\n")
    assert cli("verify") == Result(0, "", "no problems\n")
    assert cli("search", "x") == Result(0, "", "no matches\n")
    assert not registry.folder.exists()


def test_a_damaged_record_is_told_and_stops_nothing(cli: Cli, filled: Registry) -> None:
    with filled.transaction():
        filled._database.execute("UPDATE prompts SET settings = '{' WHERE name = 'qnli'")
    note = "1 damaged record is not shown: `attempt registry verify` says which.\n"
    assert cli("list", format="quiet") == Result(0, "rte@1\nsst2@1\n", "")
    assert cli("list", "--kind", "source").err == note
    assert cli("search", "qnli").err == note
    assert cli("show", "rte").code == 0
    assert cli("show", "qnli") == Result(
        1,
        "",
        "Error: prompt qnli@1 is damaged in the database: its field 'settings' cannot be read as JSON\n"
        "Restore a copy of the registry, or remove it (`attempt registry remove`) and make it again.\n",
    )
    verified = cli("verify")
    assert verified.code == 1
    assert "prompt qnli@1  its row is damaged: its field 'settings' cannot be read as JSON" in verified.out
    assert cli("remove", "qnli", "--yes", "--force").code == 0
    assert [line for line in cli("verify").out.splitlines() if "qnli" in line][1:] == []


@pytest.mark.parametrize("tag", ["\x1b[31mRED", "a\nb", "\u202eevil"])
def test_what_a_terminal_would_obey_is_no_tag_and_no_task(cli: Cli, filled: Registry, file: Path, tag: str) -> None:
    for arguments in (
        ("tag", "sst2", "--add", tag),
        ("add", str(file), "--backbone", "tiny", "--task", tag),
        ("add", str(file), "--backbone", "tiny", "--task", "x", "--tag", tag),
    ):
        result = cli(*arguments)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"Error: {tag!a} cannot be a ta")
        assert "has the control character U+" in result.err
    assert cli("list", "--task", "x", format="quiet").out == ""


def test_filters_that_a_table_does_not_have_are_wrong_usage(cli: Cli, filled: Registry) -> None:
    result = cli("list", "--what", "runs", "--task", "rte", "--sort", "name")
    assert result.code == 2
    assert result.err.endswith("Error: --task, --sort do not go with --what runs.\n")
    assert cli("list", "--sort", "size").code == 2


def clone_prompts(registry: Registry, count: int) -> list[str]:
    """Fills the table by SQL: adding ten thousand prompts one by one takes many seconds."""
    columns = [row[1] for row in registry._database.rows("PRAGMA table_info(prompts)")]
    changed = {"id": "NULL", "name": "printf('prompt-%05d', n)", "task": "'task-' || (n % 30)", "seed": "n % 3"}
    values = ", ".join(changed.get(column, column) for column in columns)
    with registry.transaction():
        registry._database.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
            f"INSERT INTO prompts SELECT {values} FROM numbers, prompts WHERE name = 'first'",
            (count,),
        )
        registry._database.execute("DELETE FROM prompts WHERE name = 'first'")
    registry.close()
    return [f"prompt-{n:05}@1" for n in range(1, count + 1)]


def attempt(registry: Registry, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attempt_cli", "--registry", str(registry.folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ten_thousand_prompts_are_listed_whole_and_fast(registry: Registry) -> None:
    add(registry, "first", settings={"steps": 300, "lr": 0.03, "batch": 16, "device": "cpu"}, tags=["a", "b"])
    refs = clone_prompts(registry, 10_000)
    for form in ("table", "json", "quiet"):
        best = 60.0
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = attempt(registry, "--format", form, "registry", "list")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            if best < 1.0:
                break
        assert done.stderr == ""
        if form == "json":
            assert [prompt["ref"] for prompt in json.loads(done.stdout)["prompts"]] == refs
        else:
            lines = done.stdout.splitlines()
            assert [line.split()[0] for line in lines] == (refs if form == "quiet" else ["ref", *refs])
        # The promise is half a second on the clock. Processor time does not depend on what else the machine does; the
        # bound is wide enough for a slow one, and too narrow for importing torch.
        assert best < 1.0, f"{form}: {best:.2f} s"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_hundred_rows_and_a_note(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    add(registry, "first")
    clone_prompts(registry, 120)
    monkeypatch.setenv("COLUMNS", "200")
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "attempt_cli", "--registry", str(registry.folder), "registry", "list"]
    with subprocess.Popen(command, stdout=secondary, stderr=subprocess.PIPE, text=True) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                piece = os.read(primary, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        assert process.stderr is not None
        assert process.stderr.read() == "100 of 120 prompts; --limit 120 shows all, filters show fewer.\n"
    os.close(primary)
    refs = re.findall(r"prompt-\d{5}@1", shown.decode())
    assert refs == [f"prompt-{n:05}@1" for n in range(1, 101)]


def test_wide_characters_keep_piped_tables_aligned(cli: Cli, registry: Registry) -> None:
    """Chinese characters and emoji take two cells of a terminal, so fewer spaces follow them."""
    for name, note, tag in (("a", "good", "情感分析"), ("b", "best 🙂", "x"), ("c", "中文", "naïve"), ("d", "", "🙂")):
        add(registry, name, note=note, tags=[tag])
    assert cli("search", "tiny").out == (
        "what    ref  task  backbone  tags      note\n"
        "prompt  a@1  a     tiny      情感分析  good\n"
        "prompt  b@1  b     tiny      x         best 🙂\n"
        "prompt  c@1  c     tiny      naïve     中文\n"
        "prompt  d@1  d     tiny      🙂        -\n"
    )


# --- show


def test_show_a_prompt(cli: Cli, filled: Registry) -> None:
    sha256 = filled.prompt("rte").sha256
    assert cli("show", "rte") == Result(
        0,
        f"""\
ref                rte@1
kind               target
method             attempt
backbone           tiny
fingerprint        {FINGERPRINT}
task               rte
task_version       1
length             2
width              3
dtype              float32
embedding_scale    0.1
placement          before
sha256             {sha256}
seed               0
created            2026-01-02T03:04:05Z
note               first try
tags               -
parents            sst2@1, qnli@1
file               FOLDER/objects/{sha256[:2]}/{sha256[2:]}.safetensors
ancestors          sst2@1, qnli@1
removed_ancestors  -
children           -
compositions       reviews@1
hub                -
made_by_runs       1 (train-target rte, 2026-01-02T03:04:05Z)
used_by_runs       2 (eval, 2026-01-02T03:04:05Z)
settings           steps: 10
                   lr: 0.03
numbers            accuracy: 0.8125
""",
        "",
    )


def test_show_puts_the_runs_of_one_command_together(cli: Cli, filled: Registry) -> None:
    empty: dict[str, Any] = {"settings": {}, "rows": {}, "budget": {}, "numbers": {}, "versions": {}}
    for _ in range(3):
        filled.add_run(command="grid", seed=0, duration=1.0, inputs=["rte"], **empty)
    assert f"used_by_runs       2 (eval, {NOW}), 3 from 3 to 5 (grid, {NOW} to {NOW})\n" in cli("show", "rte").out
    shown = json.loads(cli("show", "rte", format="json").out)["prompt"]["used_by_runs"]
    assert [run["id"] for run in shown] == [2, 3, 4, 5]


def test_show_as_json(cli: Cli, filled: Registry) -> None:
    prompt = json.loads(cli("show", "sst2@1", format="json").out)["prompt"]
    assert prompt["ref"] == "sst2@1"
    assert (prompt["name"], prompt["version"], prompt["tags"]) == ("sst2", 1, ["paper", "best"])
    assert prompt["children"] == ["rte@1", "attention:reviews@1"]
    assert prompt["used_by_runs"] == [{"id": 1, "command": "train-target rte", "created": NOW}]
    assert prompt["numbers"] == {"accuracy": 0.8125}


def test_show_finds_the_kind_and_says_when_there_are_several(cli: Cli, filled: Registry) -> None:
    result = cli("show", "reviews")
    assert result.err == "There is also a composition 'reviews': --what compositions shows it.\n"
    assert "level              instance\n" in result.out
    result = cli("show", "reviews", "--what", "compositions")
    assert result.err == ""
    assert result.out == (
        "ref                reviews@1\n"
        "backbone           tiny\n"
        f"fingerprint        {FINGERPRINT}\n"
        "sources            sst2@1, qnli@1\n"
        "attention          reviews@1\n"
        "targets            rte@1\n"
        "placement          before\n"
        "created            2026-01-02T03:04:05Z\n"
        "note               -\n"
        "ancestors          sst2@1, qnli@1, attention:reviews@1, rte@1\n"
        "removed_ancestors  -\n"
        "children           -\n"
        "compositions       -\n"
        "hub                -\n"
        "made_by_runs       -\n"
        "used_by_runs       -\n"
        "settings           -\n"
    )


def test_show_a_run(cli: Cli, filled: Registry) -> None:
    assert cli("show", "1", "--what", "runs").out == (
        "id         1\n"
        "command    train-target rte\n"
        "settings   -\n"
        "rows       train: 200\n"
        "seed       0\n"
        "budget     steps: 10\n"
        "numbers    accuracy: 0.6\n"
        "versions   -\n"
        "duration   12.5\n"
        "created    2026-01-02T03:04:05Z\n"
        "artefacts  prompt:rte@1\n"
        "inputs     prompt:sst2@1, prompt:qnli@1\n"
    )
    assert cli("show", "9", "--what", "runs") == Result(
        1, "", "Error: no run 9\n`attempt registry list --what runs` shows all runs.\n"
    )
    assert cli("show", "rte", "--what", "runs").code == 2


def test_show_what_is_not_there(cli: Cli, filled: Registry) -> None:
    assert cli("show", "review") == Result(
        1,
        "",
        "Error: no prompt, attention or composition named 'review'\n"
        "Did you mean reviews? `attempt registry list` shows all names.\n",
    )
    assert cli("show", "rte@2") == Result(1, "", "Error: prompt 'rte' has no version 2\nThere is rte@1.\n")


# --- add


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.safetensors"
    save_file({"prompt": np.arange(6, dtype=np.float16).reshape(2, 3)}, path)
    return path


def test_add(cli: Cli, filled: Registry, file: Path) -> None:
    options = ["--backbone", "tiny", "--task", "mrpc", "--scale", "0.25", "--tag", "a", "--tag", "b", "--note", "n"]
    result = cli("add", str(file), *options)
    prompt = filled.prompt("mrpc")
    path = f"FOLDER/objects/{prompt.sha256[:2]}/{prompt.sha256[2:]}.safetensors"
    assert result == Result(
        0,
        f"""\
ref              mrpc@1
kind             source
task             mrpc
backbone         tiny
length           2
width            3
embedding_scale  0.25
placement        before
tags             a, b
note             n
file             {path}
""",
        "",
    )
    assert (prompt.method, prompt.fingerprint, prompt.task_version) == ("imported", FINGERPRINT, None)
    assert prompt.settings == {"file": "prompt.safetensors"}
    np.testing.assert_array_equal(filled.prompt_tensor(prompt), [[0, 1, 2], [3, 4, 5]])
    # the next version, from an array, of the backbone by its fingerprint
    np.save(file.with_suffix(".npy"), np.ones((5, 3)))
    target = ["--name", "mrpc", "--kind", "target", "--task", "my-own task"]
    result = cli("add", str(file.with_suffix(".npy")), "--backbone", FINGERPRINT, *target, format="quiet")
    assert result == Result(0, "mrpc@2\n", "")
    assert filled.prompt("mrpc").task == "my-own task"


def test_add_refuses_what_does_not_fit(cli: Cli, filled: Registry, file: Path) -> None:
    before = filled.prompts()
    common = ["--backbone", "tiny", "--task", "mrpc"]
    npy = file.with_suffix(".npy")

    def refused(tensor: Any, *options: str) -> str:
        np.save(npy, tensor)
        result = cli("add", str(npy), *(options or common))
        assert (result.code, result.out) == (1, "")
        return result.err.replace(str(npy), "FILE")

    assert refused(np.ones((2, 4))) == (
        "Error: FILE has width 4, but the embeddings of tiny have width 3\n"
        "Name the backbone that it was trained for with --backbone.\n"
    )
    assert refused(np.ones((3, 20))) == (
        "Error: FILE has width 20, but the embeddings of tiny have width 3\n"
        "Its height fits: save the transposed matrix, one row per prompt token.\n"
    )
    assert refused(np.ones((1, 2, 3))).startswith("Error: a prompt is a matrix [length, width], not a tensor of shape")
    assert refused(np.full((2, 3), np.nan)).startswith("Error: tensor 'prompt' has 6 values that are not finite")
    assert refused(np.ones((2, 3), int)).startswith("Error: tensor 'prompt' holds int64, not floating-point numbers")
    assert refused(np.ones((2, 3)), "--backbone", "tinny", "--task", "x") == (
        "Error: no backbone named 'tinny' is recorded here\n"
        "Did you mean tiny? `attempt backbone show tinny` records it.\n"
    )
    assert refused(np.ones((2, 3)), *common, "--name", "a b").startswith("Error: 'a b' cannot be a name\n")
    assert refused(np.ones((2, 3)), *common, "--scale", "-1").startswith("Error: the embedding scale -1.0 is not a pos")
    assert cli("add", "missing.npy", *common).code == 2
    assert cli("add", str(npy)).code == 2
    assert filled.prompts() == before


def test_add_refuses_a_pickle_and_says_how_to_convert_it(cli: Cli, filled: Registry, tmp_path: Path) -> None:
    path = tmp_path / "prompt.pt"
    path.write_bytes(b"PK\x03\x04 whatever")
    result = cli("add", str(path), "--backbone", "tiny", "--task", "x")
    assert result.code == 1
    assert result.err.replace(str(tmp_path), "HERE") == (
        "Error: HERE/prompt.pt is a pickle: opening one can run any program hidden in it, so it is not loaded here\n"
        "Convert it in Python, which reads tensors and nothing else:\n"
        "  import torch, safetensors.torch; tensors = torch.load('HERE/prompt.pt', weights_only=True)\n"
        "  safetensors.torch.save_file(tensors if isinstance(tensors, dict) else {'prompt': tensors}, "
        "'HERE/prompt.safetensors')\n"
    )


# --- remove


def test_remove_asks(cli: Cli, filled: Registry) -> None:
    add(filled, "rte")
    refused = cli("remove", "rte", input="n\n")
    assert (refused.code, refused.out) == (0, "")
    assert refused.err == "Other versions stay: rte@1.\nRemove prompt rte@2? [y/N]: Nothing was removed.\n"
    assert filled.versions("rte") == [1, 2]
    unanswered = cli("remove", "rte")
    assert unanswered.code == 1
    assert unanswered.err.endswith("Error: nothing was removed: the question got no answer\n--yes answers it.\n")
    assert filled.versions("rte") == [1, 2]
    agreed = cli("remove", "rte", input="y\n")
    assert (agreed.code, agreed.err) == (0, "Other versions stay: rte@1.\nRemove prompt rte@2? [y/N]: ")
    assert agreed.out == (
        "kind            prompt\n"
        "ref             rte@2\n"
        "compositions    -\n"
        "children        -\n"
        "other_versions  rte@1\n"
        "removed         yes\n"
    )
    assert filled.versions("rte") == [1]


def test_remove_dry_run_and_yes(cli: Cli, filled: Registry) -> None:
    add(filled, "free")
    rehearsal = cli("remove", "free", "--dry-run", format="json")
    assert json.loads(rehearsal.out)["removal"] == {
        "kind": "prompt",
        "ref": "free@1",
        "compositions": [],
        "children": [],
        "other_versions": [],
        "removed": False,
    }
    assert filled.versions("free") == [1]
    assert cli("remove", "free", "--yes", format="quiet") == Result(0, "free@1\n", "")
    assert filled.versions("free") == []


def test_remove_refuses_the_part_of_a_composition(cli: Cli, filled: Registry) -> None:
    message = (
        "Error: prompt sst2@1 is part of a composition: reviews@1\n"
        "Remove it first (`attempt registry remove reviews@1 --what compositions`), or use --force.\n"
    )
    assert cli("remove", "sst2", "--yes") == Result(1, "", message)
    assert cli("remove", "sst2", "--dry-run") == Result(1, "", message)
    assert cli("remove", "reviews", "--what", "attentions", "--yes").code == 1
    forced = cli("remove", "sst2", "--force", input="y\n")
    assert forced.code == 0
    assert forced.err == (
        "These compositions will no longer load: reviews@1.\n"
        "Its children stay: rte@1, attention:reviews@1.\n"
        "Remove prompt sst2@1? [y/N]: "
    )
    assert cli("verify") == Result(
        1,
        "what                   problem                                 file\n"
        "composition reviews@1  its part sst2@1 is not in the registry  -\n",
        "Error: 1 problem in the registry\nRestore copies of the files, or remove the broken records.\n",
    )
    assert cli("remove", "reviews", "--what", "compositions", "--yes").code == 0
    assert cli("verify").code == 0


# --- search, tag, verify, gc, path


def test_search(cli: Cli, filled: Registry) -> None:
    assert cli("search", "FIRST", "try").out == (
        "what    ref    task  backbone  tags  note\nprompt  rte@1  rte   tiny      -     first try\n"
    )
    assert cli("search", "reviews", format="quiet").out == "reviews@1\nreviews@1\n"
    matches = json.loads(cli("search", "reviews", format="json").out)["matches"]
    assert [match["what"] for match in matches] == ["attention", "composition"]


def test_tag(cli: Cli, filled: Registry) -> None:
    assert cli("tag", "sst2", "--add", "new", "--remove", "paper").out == "ref   sst2@1\ntags  best, new\n"
    assert filled.prompt("sst2").tags == ("best", "new")
    assert cli("tag", "sst2", "--remove", "nope") == Result(
        1, "", "Error: sst2@1 has no tag 'nope'\nIt has best, new.\n"
    )
    assert cli("tag", "sst2").err.endswith("Error: Name a tag with --add TAG or --remove TAG.\n")
    assert cli("tag", "sst2").code == 2


def test_verify_names_file_and_prompt(cli: Cli, filled: Registry) -> None:
    path = filled.tensor_path(filled.prompt("qnli"))
    path.write_bytes(b"x")
    result = cli("verify")
    assert result.code == 1
    where = str(path).replace(str(filled.folder), "FOLDER")
    assert result.out.splitlines()[1] == f"prompt qnli@1  its file is damaged (wrong hash)  {where}"
    problems = json.loads(cli("verify", format="json").out)["problems"]
    assert [(problem["what"], problem["problem"]) for problem in problems] == [
        ("prompt qnli@1", "its file is damaged (wrong hash)")
    ]


def test_gc(cli: Cli, filled: Registry) -> None:
    add(filled, "free", np.full((2, 3), 7.0))
    path = filled.tensor_path(filled.prompt("free"))
    filled.remove("free")
    size = path.stat().st_size
    assert cli("gc").out == "files    0\nbytes    0\nyoung    1\nremoved  no\n"
    assert cli("gc", "--grace", "0", "--dry-run").out == f"files    1\nbytes    {size}\nyoung    0\nremoved  no\n"
    refused = cli("gc", "--grace", "0", input="\n")
    assert refused.err == f"Remove 1 file, {size} bytes? [y/N]: Nothing was removed.\n"
    assert path.exists()
    data = json.loads(cli("gc", "--grace", "0", "--yes", format="json").out)["garbage"]
    assert data == {
        "files": [str(path).replace(str(filled.folder), "FOLDER")],
        "bytes": size,
        "young": 0,
        "removed": True,
    }
    assert not path.exists()
    assert cli("verify").code == 0


def test_path(cli: Cli, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("path") == Result(0, "FOLDER\n", "")
    assert json.loads(cli("path", format="json").out) == {"version": 1, "registry": {"path": "FOLDER"}}
    assert not registry.folder.exists()
    environment = {**os.environ, "ATTEMPT_REGISTRY": "/somewhere/else"}
    program = [sys.executable, "-m", "attempt_cli", "registry", "path"]
    assert subprocess.check_output(program, env=environment, text=True) == "/somewhere/else\n"
    environment = {**os.environ, "XDG_DATA_HOME": "/data"} | {"HOME": "/home/x"}
    environment.pop("ATTEMPT_REGISTRY", None)
    if sys.platform == "linux":
        assert subprocess.check_output(program, env=environment, text=True) == "/data/attempt\n"


# --- docs/json.md

JSON_PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
JSON_EXAMPLES = re.findall(r"^`attempt ([^`\n]+)`\n\n```json\n(.+?)\n```$", JSON_PAGE, flags=re.MULTILINE | re.DOTALL)


def shape(text: str) -> dict[str, Any]:
    """Returns the keys of a document and, below them, those of its record or of its first row; "…" ends a list."""
    document = json.loads(re.sub(r",\s*…", "", text))
    records = {key: value[0] if isinstance(value, list) and value else value for key, value in document.items()}
    return {key: sorted(record) if isinstance(record, dict) else None for key, record in records.items()}


def test_every_command_has_a_section_with_an_example() -> None:
    context = click.Context(cli_main.attempt)
    names = []
    for name in cli_main.COMMANDS:
        found = cli_main.attempt.get_command(context, name)
        names += [f"{name} {below}" for below in found.commands] if isinstance(found, click.Group) else [name]
    assert sorted(re.findall(r"^### (.+)$", JSON_PAGE, flags=re.MULTILINE)) == sorted(names)
    for name in names:
        assert any(line.startswith(name) for line, _ in JSON_EXAMPLES), name
    assert all("version" in shape(text) for line, text in JSON_EXAMPLES if not line.startswith("predict"))


def test_the_examples_of_the_registry_have_the_keys_that_the_commands_write(
    cli: Cli, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mood.npy", np.ones((2, 3)))
    common: dict[str, Any] = {"backbone": "smollm2-135m", "fingerprint": FINGERPRINT}
    registry.remember_backbone(Backbone(*common.values(), "decoder-only", 3, 0.1, 1000, "made in the test"))
    add(registry, "message-topics", np.zeros((2, 3)), **common)
    add(registry, "support-chats-attempt", np.full((2, 3), 2.0), kind="target", parents=["message-topics"], **common)
    sources, targets = ["message-topics"], ["support-chats-attempt"]
    registry.add_composition(name="support-chats-attempt", sources=sources, targets=targets, **common)
    empty: dict[str, Any] = {"settings": {}, "rows": {}, "budget": {}, "numbers": {}, "versions": {}}
    for _ in range(9):
        registry.add_run(command="eval", seed=0, duration=1.0, inputs=targets, **empty)
    registry.tensor_path(registry.prompt("message-topics")).write_bytes(b"damaged")
    examples = [(line.split()[1:], text) for line, text in JSON_EXAMPLES if line.startswith("registry ")]
    assert {arguments[0] for arguments, _ in examples} == set(command.commands)
    for arguments, text in examples:
        assert shape(cli(*arguments, format="json").out) == shape(text), arguments


# --- all


@pytest.mark.parametrize("name", sorted(command.commands))
def test_every_command_has_examples_in_its_help(cli: Cli, name: str) -> None:
    result = cli(name, "--help")
    assert result.code == 0
    examples = [line for line in result.out.splitlines() if line.startswith("    ") and "registry " + name in line]
    assert examples, result.out
    silent = [
        option.name for option in command.commands[name].params if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--what", "runs"],
        ["show", "rte"],
        ["search", "rte"],
        ["tag", "rte", "--add", "x"],
        ["verify"],
        ["gc", "--yes"],
        ["path"],
        ["remove", "reviews", "--what", "compositions", "--yes"],
        ["add", "FILE", "--backbone", "tiny", "--task", "x"],
    ],
)
def test_no_command_imports_what_it_does_not_need(filled: Registry, file: Path, arguments: list[str]) -> None:
    filled.close()
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    program = (
        "import sys\n"
        "from attempt_cli.cli.main import attempt\n"
        f"attempt(['--registry', {str(filled.folder)!r}, 'registry', *{arguments!r}], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "transformers", "datasets", "pydantic", "sklearn", "scipy", "rich"}
    if arguments[0] != "add":
        # sqlite_utils imports pandas: half a second that only writing a row may cost
        assert not loaded & {"numpy", "pandas", "pyarrow", "safetensors", "sqlite_utils"}
