"""Tiny backbones, toy rows, and `attempt …` in processes of its own. Nothing heavy is imported before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.training.commands import Attempt
from tests.training.toy import toy_rows, write_csv

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone


@pytest.fixture(scope="package")
def one_thread() -> Iterator[None]:
    """Models of width 24 gain nothing from threads, and on a busy machine lose tenfold by waiting for them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama; read it only."""
    from tests.models import save_llama

    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def backbone(llama: Path) -> FrozenBackbone:
    """The tiny Llama in float32; shared, so leave it as it is."""
    from attempt_cli.backbones.load import load_backbone

    return load_backbone(str(llama), device="cpu", dtype="float32")


@pytest.fixture
def attempt(tmp_path: Path, llama: Path) -> Attempt:
    """Runs commands on the tiny Llama with an empty registry; train.csv, validation.csv and test.csv are there."""
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
    return Attempt(tmp_path, llama)
