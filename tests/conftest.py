"""What all tests share: no network, no registry or settings of the person who runs them, and the way to real rows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# the hub's libraries read this once, when they are imported
os.environ["HF_HUB_OFFLINE"] = "1"
# tiny models are faster on one thread, and threads of tests that run side by side would wait for each other tenfold;
# torch reads this once, too, and processes that tests start inherit it
os.environ["OMP_NUM_THREADS"] = "1"

_REAL_ROWS = Path(os.environ.get("ATTEMPT_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs fast tests first: what is broken mostly shows within the first minutes."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has an empty registry of its own, and none of the user's settings."""
    monkeypatch.setenv("ATTEMPT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("ATTEMPT_DATA", "ATTEMPT_BACKBONE", "ATTEMPT_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def real_rows() -> Path:
    """A folder with real rows in the hub's layout (mark such tests with `rows`)."""
    if not (_REAL_ROWS / "nyu-mll" / "glue").is_dir():
        pytest.skip(f"no real rows: neither ATTEMPT_DATA nor {_REAL_ROWS} holds nyu-mll/glue")
    return _REAL_ROWS
