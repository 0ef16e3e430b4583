"""A pretend GPU, the tiny backbones on it and on the CPU, and `attempt …` in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.example import Example
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from tests.models import SAVERS
from tests.pretend_cuda import PretendGpu, pretend_cuda
from tests.training.conftest import one_thread
from tests.training.toy import toy_rows, write_csv

__all__ = ["one_thread"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind) for kind, save in SAVERS.items()}


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_cuda() as one:
        yield one
        assert not one.streams.races


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[[str, str], FrozenBackbone]:
    """Loads a kind of backbone onto a device, in float32."""
    return lambda kind, device: load_backbone(str(folders[kind]), device=device, dtype="float32")


@pytest.fixture
def toy_task(tmp_path: Path) -> Task:
    files = {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
        for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24)))
    }
    return task_from_files(**files, input="{text} label:", label="mood", name="toy")  # type: ignore[arg-type]


@pytest.fixture
def examples(toy_task: Task) -> list[Example]:
    return load_examples(toy_task, "test").examples
