"""The check for a GPU stays true to the code: its shortest form runs on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gpu_check_rehearses_on_a_cpu(tmp_path: Path) -> None:
    sections = ("right", "speed", "bank", "attention", "large")
    command = [sys.executable, "benchmarks/gpu/gpu_check.py", "--device", "cpu", "--tiny", "--only", ",".join(sections)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "ATTEMPT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text("utf-8"))
    assert set(found) == set(sections)
    assert not [text for text in found.values() if isinstance(text, str) and text.startswith("FAILED")], found
    assert "TOO LARGE" not in done.stdout
    assert all(value != value or value > 0 for value in found["bank"].values())
