"""Pictures, by matplotlib (the extra `plot`): heat-maps of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 0.62  # inches of a heat-map's cell
FEW_ROWS = 24  # with more, a cell is too low to be written in
DARK = 0.6  # from this share of the scale on, a cell is dark and its number white


@dataclass(frozen=True)
class HeatMap:
    """Numbers in [0, 1] as shades.

    Args:
        title: above it.
        rows, columns: the names of its sides, rows from the top.
        values: [rows][columns]; NaN leaves a cell empty.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty picture of a size in inches.

    Raises:
        AttemptError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        raise AttemptError(
            "pictures need matplotlib, which is not installed", "Install it: `pip install 'attempt-cli[plot]'`."
        ) from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def draw_heat_maps(file: Path, maps: Sequence[HeatMap]) -> None:
    """Writes heat-maps below each other as one PNG, all on one scale from 0 to 1.

    Raises:
        AttemptError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    heights = [_cell_height(heat) * len(heat.rows) for heat in maps]
    labels = 0.085 * max(len(name) for heat in maps for name in heat.rows)  # inches of the longest name
    above = 0.5 + 0.055 * max(len(name) for heat in maps for name in heat.columns)  # slanted names, and the title
    width = labels + 1.4 + CELL * max(len(heat.columns) for heat in maps)
    figure = new_figure(max(width, 4.5), sum(heights) + len(maps) * above + 0.3)
    grid = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)
    for axes, heat in zip(grid[:, 0], maps, strict=True):
        image = axes.imshow(heat.values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(heat.title, fontsize=10, loc="left")
        axes.set_xticks(range(len(heat.columns)), heat.columns, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(heat.rows)), heat.rows, fontsize=8)
        axes.tick_params(length=0)
        if len(heat.rows) <= FEW_ROWS:
            for i, line in enumerate(heat.values):
                for j, value in enumerate(line):
                    if math.isnan(value):
                        continue
                    colour = "white" if value > DARK else "black"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=list(grid[:, 0]), shrink=0.8, fraction=0.05, label="attention")
    figure.savefig(file, format="png")


def _cell_height(heat: HeatMap) -> float:
    return 0.34 if len(heat.rows) <= FEW_ROWS else 0.16
