"""The tiny backbones of `tests/models.py`, saved once, and loaded by the tool's own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from tests.models import save_gpt2, save_llama, save_t5

# the four ways in which positions, output layers and feed-forwards differ
KINDS = {
    "t5": lambda folder: save_t5(folder),
    "t5-untied": lambda folder: save_t5(folder, tied=False, feed_forward_proj="gated-gelu"),
    "llama": lambda folder: save_llama(folder),
    "gpt2": lambda folder: save_gpt2(folder),
}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models of width 24 gain nothing from threads, and on a busy machine lose tenfold by waiting for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {kind: save(root / kind) for kind, save in KINDS.items()}


@pytest.fixture(scope="session")
def backbones(folders: dict[str, Path]) -> dict[str, FrozenBackbone]:
    """Of each kind one, in float32; shared, so leave them as they are."""
    return {kind: load_backbone(str(folder), device="cpu", dtype="float32") for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backbone(backbones: dict[str, FrozenBackbone], kind: str) -> FrozenBackbone:
    return backbones[kind]


@pytest.fixture
def folder(folders: dict[str, Path], kind: str) -> Path:
    return folders[kind]
