"""Draws the paper's figures from our numbers: scores against a quantity, and attention as a heat-map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attempt_cli.errors import AttemptError
from attempt_cli.experiments.summary import Row
from attempt_cli.plots import HeatMap, draw_heat_maps, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>P*Xhpd"
FEW_PLACES = 8  # up to this many different x have a tick each
APART = 0.012  # of the axis: methods at the same x are drawn side by side, so that their intervals do not overlap
AXES = {
    "trained_parameters": "trained parameters a task",
    "backbone_parameters": "parameters of the backbone",
    "sources": "source prompts",
    "k": "training rows",
}


@dataclass(frozen=True)
class Series:
    """Points of one method.

    Args:
        name: the method.
        x, y: their coordinates.
        widths: half widths of the intervals of y, None where there is none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    widths: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """One picture of several methods.

    Args:
        title: above it, e.g. the task.
        x, y: the labels of the axes.
        series: the methods.
        lines: joins the points.
        log_x, log_y: makes an axis logarithmic.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    lines: bool = True
    log_x: bool = False
    log_y: bool = False


def draw_experiment(file: Path, rows: Sequence[Row], plot: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Draws a figure of the paper from the rows of its table.

    Args:
        file: the PNG.
        rows: those of the table.
        plot: the `plot` field of the experiment.
        sizes: parameters by backbone.

    Raises:
        AttemptError: there is nothing to draw, or matplotlib is missing.
    """
    if plot["kind"] == "attention":
        draw_heat_maps(file, [attention_map(rows)])
        return
    if plot["kind"] == "dots":
        draw_dots(file, rows, plot["x"])
        return
    panels = score_panels(rows, plot["x"], lines=plot["kind"] == "lines", log=plot.get("log", False), sizes=sizes)
    draw_panels(file, panels)


def attention_map(rows: Sequence[Row]) -> HeatMap:
    """Makes the heat-map of targets (down) and sources (across).

    The target's own weight is last (before the 1 of equation 4 is added). A source that a target could not attend to
    (it was trained on the target's own rows) is an empty cell.

    Raises:
        AttemptError: no row has attention.
    """
    attended = [row for row in rows if row.attention]
    if not attended:
        raise AttemptError("no cell has attention to draw", "Run a method that mixes sources: --methods attempt.")
    found = dict.fromkeys(name for row in attended for name in row.attention or {})
    names = [*(name for name in found if name != "target"), "target"]
    several = len({row.method for row in attended}) > 1
    return HeatMap(
        "Attention of targets on sources",
        [f"{row.task} ({row.method})" if several else row.task for row in attended],
        names,
        [[(row.attention or {}).get(name, math.nan) for name in names] for row in attended],
    )


def score_panels(rows: Sequence[Row], x: str, *, lines: bool, log: bool, sizes: Mapping[str, int]) -> list[Panel]:
    """Makes a panel for each task: score in percent against a field of the row, or the size of its backbone.

    A method for which the quantity is not defined (prompt tuning has no sources) is drawn at 0.
    """
    panels = []
    for task in dict.fromkeys(row.task for row in rows):
        series = []
        for method in dict.fromkeys(row.method for row in rows if row.task == task):
            of = [row for row in rows if (row.task, row.method) == (task, method)]
            places = [sizes.get(row.backbone, 0) if x == "backbone_parameters" else getattr(row, x) or 0 for row in of]
            if log and not all(places):
                continue  # 0 (nothing trained) has no place on a logarithmic axis
            order = sorted(range(len(of)), key=places.__getitem__)
            series.append(
                Series(
                    method,
                    [places[i] for i in order],
                    [100 * of[i].mean for i in order],
                    [None if (width := of[i].width) is None else 100 * width for i in order],
                )
            )
        panels.append(Panel(task, AXES[x], "score, %", series, lines, log_x=log))
    return panels


def short_number(value: float) -> str:
    """Shortens a count: 350, 96k, 1.2M, 11B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"


def draw_panels(file: Path, panels: Sequence[Panel]) -> None:
    """Writes a grid of panels as one PNG; a method has the same colour and marker in all of them.

    Raises:
        AttemptError: there is nothing to draw, or matplotlib is not installed.
    """
    if not any(panel.series for panel in panels):
        raise AttemptError("there is nothing to draw", "Every cell failed, or none has the quantity of the axis.")
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    figure, grid = _grid(len(panels), (4.2, 3.2), (1.6, 0.3))
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        _draw(axes, panel, names)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[name] for name in names], names, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(file, format="png")


def draw_dots(file: Path, rows: Sequence[Row], x: str) -> None:
    """Writes a panel for each task with a line for each method: the score with its interval, or the memory.

    Args:
        file: the PNG.
        rows: those of the table.
        x: "score" or "memory".

    Raises:
        AttemptError: there is nothing to draw, or matplotlib is not installed.
    """

    def value(row: Row) -> float | None:
        return 100 * row.mean if x == "score" else row.peak_memory and row.peak_memory / 1e9

    drawn = [(row, number) for row in rows if (number := value(row)) is not None]
    if not drawn:
        raise AttemptError("there is nothing to draw", f"No cell has a {x}.")
    tasks = list(dict.fromkeys(row.task for row, _ in drawn))
    methods = list(dict.fromkeys(row.method for row, _ in drawn))
    figure, grid = _grid(len(tasks), (2.9, 0.26 * len(methods) + 0.9), (1.4, 0.0), sharey=True)
    for axes, task in zip(grid, tasks, strict=True):
        for row, number in drawn:
            if row.task == task:
                place = methods.index(row.method)
                width = 100 * row.width if x == "score" and row.width is not None else None
                axes.errorbar(number, place, xerr=width, color=_colour(place, len(methods)), marker="o", capsize=2)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        if x == "memory":
            axes.set_xlim(left=0)
        _finish(axes, task, "score, %" if x == "score" else "GB at the most", lines="x")
    figure.savefig(file, format="png")


def _grid(
    count: int, each: tuple[float, float], more: tuple[float, float], *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Makes a figure with a number of panels, at most three beside each other.

    Args:
        count: of the panels.
        each, more: width and height of a panel, and of what is around all of them, in inches.
        sharey: gives all panels one y axis.
    """
    across = min(3, count)
    down = -(-count // across)
    figure = new_figure(each[0] * across + more[0], each[1] * down + more[1])
    grid = list(figure.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def _finish(axes: Axes, title: str, x: str, *, lines: Literal["both", "x", "y"] = "both") -> None:
    """Writes what every panel has: its title, the label of x, small ticks and thin lines."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis=lines, alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(place: int, count: int) -> tuple[float, ...]:
    """Picks one of matplotlib's ten colours, or of its twenty where ten are too few."""
    from matplotlib import colormaps

    colour: tuple[float, ...] = colormaps["tab10" if count <= 10 else "tab20"](place % 20)
    return colour


def _draw(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    with_intervals = any(width is not None for series in panel.series for width in series.widths)
    places = sorted({x for series in panel.series for x in series.x})
    for series in panel.series:
        place = names.index(series.name)
        offset = APART * (place - (len(names) - 1) / 2) if panel.lines and with_intervals else 0.0
        if panel.log_x:
            shifted = [x * (places[-1] / places[0]) ** offset for x in series.x]
        else:
            shifted = [x + (places[-1] - places[0]) * offset for x in series.x]
        errors = [width or 0.0 for width in series.widths] if any(series.widths) else None
        axes.errorbar(
            shifted,
            series.y,
            yerr=errors,
            label=series.name,
            color=_colour(place, len(names)),
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            linestyle="-" if panel.lines else "none",
            linewidth=1.2,
            capsize=2,
        )
    axes.set_ylabel(panel.y, fontsize=8)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.lines and len(places) <= FEW_PLACES:  # few counts: sizes, rows, sources
        axes.set_xticks(places, [short_number(x) for x in places])
        axes.set_xticks([], minor=True)
    if panel.log_y:
        axes.set_yscale("log")
    _finish(axes, panel.title, panel.x)
