"""What a wheel of this checkout holds: every package, all of its data, and no folder called `registry`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a package of the wheel, and the folder that it comes from
PACKAGES = {"attempt_cli": "attempt_cli", "attempt_registry": "registry"}
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    files: set[str]
    source: set[str]  # the files of the checkout, under the names that they should have in the wheel
    log: str


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds in a copy, which leaves no build/ here, and in this environment, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, out = folder / "copy", folder / "out"
    for source in PACKAGES.values():
        shutil.copytree(ROOT / source, copy / source, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    expected = {
        f"{package}/{path.relative_to(copy / source).as_posix()}"
        for package, source in PACKAGES.items()
        for path in (copy / source).rglob("*")
        if path.is_file()
    }
    out.mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD, out], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("attempt_cli-*-py3-none-any.whl")
    with zipfile.ZipFile(file) as archive:
        return Built(set(archive.namelist()), expected, done.stdout + done.stderr)


def test_the_registry_is_installed_as_attempt_registry(wheel: Built) -> None:
    top = {name.split("/")[0] for name in wheel.files}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert {"attempt_registry/__init__.py", "attempt_registry/py.typed", "attempt_cli/py.typed"} <= wheel.files


def test_no_package_and_no_data_file_is_forgotten(wheel: Built) -> None:
    assert {Path(name).suffix for name in wheel.source} == {
        ".py",
        ".typed",
        ".yaml",
        ".toml",
        ".jsonl",
        ".html",
        ".js",
        ".css",
        ".attempt",
        ".md",
    }
    assert {name for name in wheel.files if ".dist-info/" not in name} == wheel.source


def test_setuptools_has_nothing_to_complain_of(wheel: Built) -> None:
    assert "would be ignored" not in wheel.log
    assert "Warning" not in wheel.log
