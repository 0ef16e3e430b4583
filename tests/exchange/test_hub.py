"""Imports from the hub: the real library against a stand-in on 127.0.0.1, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attempt_cli
from attempt_cli.session import Session
from tests.backbones.hub_stand_in import COMMIT, serve
from tests.exchange.conftest import add_prompt

IMPORT = """
import json, sys
import attempt_cli
from attempt_cli.errors import AttemptError
for line in sys.stdin:
    address, backbone, task = json.loads(line)
    try:
        session = attempt_cli.Session(sys.argv[1], backbone=backbone, device="cpu", dtype="float32")
        (prompt,) = attempt_cli.import_from(address, task=task, session=session).prompts
        print(json.dumps({"ref": prompt.ref, "imported": prompt.settings["imported"]}))
    except AttemptError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
"""


def test_imports_from_the_hub_pin_the_revision(
    sessions: Callable[..., Session], folders: dict[str, Path], tmp_path: Path
) -> None:
    session = sessions()
    add_prompt(session)
    repository = tmp_path / "repository"
    attempt_cli.export("moods", repository, to="peft", session=session)
    (repository / "modeling.py").write_text("raise SystemExit('code was run')")
    (repository / "model.safetensors").write_bytes(b"weights nobody asked for")
    (repository / "google").mkdir()
    np.save(repository / "google" / "prompt.npy", np.ones((3, 24), np.float32))
    lines: list[Any] = [
        ("hf://someone/moods", None, []),
        ("hf://someone/moods@main/google/prompt.npy", str(folders["llama"]), "rte"),
        ("hf://someone/moods/nowhere", None, []),
        ("hf://someone/other", None, []),
        ("hf://moods", None, []),
    ]
    with serve({"someone/moods": repository}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", IMPORT, tmp_path / "registry"],
            input="".join(json.dumps(line) + "\n" for line in lines),
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        asked = list(hub.requests)
    assert done.returncode == 0, done.stderr
    whole, file, *refused = map(json.loads, done.stdout.splitlines())
    assert whole["ref"] == "moods@2"
    assert whole["imported"]["repository"] == "someone/moods"
    assert whole["imported"]["revision"] == file["imported"]["revision"] == COMMIT
    assert file["ref"] == "rte@1"
    assert "there is no prompt at" in refused[0]["error"]
    assert "the hub has no model repository 'someone/other' that you may read" in refused[1]["error"]
    assert "'hf://moods' is no address of the hub" in refused[2]["error"]
    assert "hf://OWNER/REPO" in refused[2]["hint"]
    assert not [
        line for line in asked if "modeling.py" in line or ("model.safetensors" in line and "adapter" not in line)
    ]
