"""Rows from the hub, through the real loading code, from a stand-in on 127.0.0.1 (in processes of their own)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.splits import permutation
from tests.data.hub_stand_in import HubStandIn

ROOT = Path(__file__).parents[2]
LOAD = """
import json, sys
from attempt_cli.data.rows import load_examples
from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError
for name in sys.argv[1:]:
    try:
        rows = load_examples(load_task(name), "test")
        first = rows.examples[0]
        print(json.dumps({"rows": [e.row for e in rows.examples], "origin": rows.origin, "input": first.input}))
    except AttemptError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
"""


@dataclass
class Hub:
    server: HubStandIn
    cache: Path

    def load(self, *names: str, **environment: str) -> list[dict[str, Any]]:
        """What each task's test rows are, or the error, in a process with a cache of its own."""
        settings = {"HF_ENDPOINT": self.server.endpoint, "HF_HOME": str(self.cache), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *names],
            env={**os.environ, **settings, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    glue = root / "nyu-mll" / "glue" / "main"
    for split, count in (("train", 6), ("validation", 9)):
        pairs = {"sentence1": [f"{split} premise {n}" for n in range(count)], "sentence2": ["so"] * count}
        write(glue / "rte" / f"{split}-00000-of-00001.parquet", {**pairs, "label": [n % 2 for n in range(count)]})
    (glue / "README.md").write_text(
        "---\nconfigs:\n- config_name: rte\n  data_files:\n"
        "  - {split: train, path: rte/train-*}\n  - {split: validation, path: rte/validation-*}\n---\n"
    )
    # a repository whose own files are a loading script: its rows are on the hub's parquet branch only
    script = root / "aps" / "super_glue" / "main"
    script.mkdir(parents=True)
    (script / "README.md").write_text("---\n---\n")
    (script / "super_glue.py").write_text("raise SystemExit('never run')")
    branch = root / "aps" / "super_glue" / "refs" / "convert" / "parquet" / "cb"
    for split in ("train", "validation"):
        rows = {"premise": [f"{split} {n}" for n in range(8)], "hypothesis": ["so"] * 8, "label": [0, 1, 2, 0] * 2}
        write(branch / split / "0000.parquet", rows)
    with HubStandIn(root) as server:
        yield Hub(server, tmp_path_factory.mktemp("cache"))


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_rows_come_from_the_hub_once_and_then_from_its_cache(hub: Hub) -> None:
    rte, cb, sst2, scitail = hub.load("rte", "cb", "sst2", "scitail")
    assert rte["rows"] == permutation(9)[4:]
    assert cb["rows"] == permutation(8)[4:]
    assert rte["input"] == f"premise: validation premise {rte['rows'][0]}\nhypothesis: so\nentailment:"
    assert rte["origin"].startswith(
        "hub nyu-mll/glue (rte), validation: the second half of the seed-42 permutation of 9"
    )
    assert cb["origin"].startswith("hub aps/super_glue (cb), validation: the second half")
    assert cb["input"].startswith(f"premise: validation {cb['rows'][0]}\n")
    assert "rows of task 'sst2': 'validation' of nyu-mll/glue (sst2): the hub did not give them" in sst2["error"]
    assert "the hub has no data set 'allenai/scitail' that you may read" in scitail["error"]
    assert any(
        request.startswith("GET") and "validation-00000-of-00001.parquet" in request for request in hub.server.requests
    )

    hub.server.requests.clear()
    again = hub.load("rte", "cb", "scitail", HF_HUB_OFFLINE="1")
    assert again[:2] == [rte, cb]
    assert "the Hugging Face hub cannot be reached" in again[2]["error"]
    assert "--data-dir" in again[2]["hint"]
    assert hub.server.requests == []
