"""Heat-maps as PNG files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attempt_cli.errors import AttemptError
from attempt_cli.plots import HeatMap, draw_heat_maps


def test_shades_follow_the_numbers(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    columns = [f"source-{number}@1" for number in range(5)]
    dark, light = ([[value] * 5] * 30 for value in (1.0, 0.0))
    means = {}
    for name, values in (("dark", dark), ("light", light)):
        draw_heat_maps(tmp_path / f"{name}.png", [HeatMap("t", [f"row {i}" for i in range(30)], columns, values)])
        means[name] = image.imread(tmp_path / f"{name}.png")[:, :, 0].mean()
    assert means["dark"] < means["light"] - 0.3
    draw_heat_maps(tmp_path / "two.png", [HeatMap("t", ["rte"], columns, [[0.2] * 5])] * 2)
    assert image.imread(tmp_path / "two.png").shape[0] > 200


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AttemptError) as error:
        draw_heat_maps(tmp_path / "no.png", [HeatMap("t", ["a"], ["b"], [[0.5]])])
    assert "matplotlib" in error.value.message
    assert "pip install 'attempt-cli[plot]'" in (error.value.hint or "")
    assert not list(tmp_path.iterdir())
