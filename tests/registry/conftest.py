"""A registry in a temporary folder, and short ways to fill it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_registry import Attention, Backbone, Prompt, Registry

FINGERPRINT = "f" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def backbone() -> Backbone:
    return Backbone("tiny", FINGERPRINT, "decoder-only", 3, 0.1, 1000, "made in the test")


@pytest.fixture
def add(registry: Registry) -> Callable[..., Prompt]:
    """Adds a prompt [2, 3]; every field can be given."""

    def add_prompt(name: str = "sst2", tensor: Any = None, **fields: Any) -> Prompt:
        defaults: dict[str, Any] = {
            "kind": "source",
            "method": "prompt-tuning",
            "backbone": "tiny",
            "fingerprint": FINGERPRINT,
            "task": name,
            "task_version": 1,
            "embedding_scale": 0.1,
            "settings": {"steps": 10},
            "numbers": {"accuracy": 0.5},
            "seed": 0,
        }
        if tensor is None:
            tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
        return registry.add_prompt(tensor, name=name, **{**defaults, **fields})

    return add_prompt


@pytest.fixture
def add_attention(registry: Registry) -> Callable[..., Attention]:
    def add(name: str = "glue", **fields: Any) -> Attention:
        defaults: dict[str, Any] = {
            "backbone": "tiny",
            "fingerprint": FINGERPRINT,
            "rank": 2,
            "level": "instance",
            "temperature": 4.7,
            "width": 3,
            "settings": {},
            "seed": 0,
        }
        tensors = {"down": np.ones((2, 3), np.float32), "up": np.full((3, 2), 0.5, np.float32)}
        return registry.add_attention(tensors, name=name, **{**defaults, **fields})

    return add


@pytest.fixture
def in_own_mounts() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a shell script that may mount: a small disk to fill, or a folder that nobody can write to."""

    def run(script: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "--map-root-user", "sh", "-e", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    if shutil.which("unshare") is None or run("mount -t tmpfs tmpfs /mnt").returncode:
        pytest.skip("needs `unshare` and the right to mount in it")
    return run
