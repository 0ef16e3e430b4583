"""Peak memory on systems without /proc and without `resource`."""

from __future__ import annotations

import subprocess
import sys

WINDOWS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import psutil, torch
sys.modules["resource"] = None  # importing it fails, as on Windows
from attempt_cli.training.memory import PeakMemory
def no_such_file(*_, **__):
    raise FileNotFoundError
Path.read_text = Path.write_text = no_such_file
psutil.Process = lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123))
sys.platform = "win32"
print(PeakMemory([torch.device("cpu")]).bytes())
"""


def test_windows_has_its_peak_from_psutil() -> None:
    done = subprocess.run([sys.executable, "-c", WINDOWS], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("123\n", "")
