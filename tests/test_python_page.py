"""The Python of docs/python.md and the README runs as it stands there, in order, with fewer steps, on a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import attempt_cli
from tests.models import save_chat

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")

# runs blocks as one program, keeps what they print, and shows a page's lines in tracebacks
RUN = """
import json, sys
printed = []
names = {"__name__": "page", "print": lambda *values: printed.append(" ".join(map(str, values)))}
for line, block in json.load(sys.stdin):
    exec(compile("\\n" * line + block, "the page", "exec"), names)
open("printed.json", "w").write(json.dumps(printed))
"""


def blocks(text: str) -> list[tuple[int, str]]:
    """The Python blocks with the number of lines before each."""
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


def run_blocks(text: str, folder: Path) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Runs a page's blocks in a fresh interpreter; returns what they printed, and the process."""
    for split in ("train", "validation", "test"):  # made-up rows of the paper's task that the page names
        path = folder / "data" / "aps" / "super_glue" / "cb" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"premise": f"a is {i}", "hypothesis": f"{i} is a", "label": i % 3} for i in range(24)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    model = str(save_chat(folder / "model"))
    short = [
        (line, re.sub(r"\bsteps=\d+", "steps=2", block).replace("smollm2-135m", model)) for line, block in blocks(text)
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, input=json.dumps(short), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "printed.json").read_text()), done


@pytest.mark.slow
def test_the_page_runs_and_nothing_else_is_printed(tmp_path: Path) -> None:
    printed, done = run_blocks(PAGE, tmp_path)
    assert done.stdout == ""
    bar = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    assert bar
    assert all(re.search(r"\d/2 \[", line) for line in bar), done.stderr  # tqdm's, of the page's own listener
    said = dict.fromkeys(printed)
    assert any(re.fullmatch(r"stopped at step \d of 2; nothing is lost", line) for line in said)
    assert "no task named 'support-chat'" in said
    assert sum("stopped" in line for line in printed) == 1  # it was continued to its end
    assert [line for line in printed if line.endswith(" {}")], "the grid has no failures"


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    (label,), done = run_blocks(README, tmp_path)
    assert label in attempt_cli.load_task("shop-reviews").labels
    assert done.stdout == done.stderr == ""


def test_every_public_name_is_on_the_page() -> None:
    assert [name for name in attempt_cli.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []
