"""Scores, intervals and differences as people read them: in percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attempt_cli.evaluation.statistics import PairedTest


def percent(score: float) -> str:
    """Writes a score in percent: "81.5"."""
    return f"{100 * score:.1f}"


def interval_text(interval: tuple[float, float]) -> str:
    """Writes an interval in percent: "76.2-86.0"."""
    low, high = interval
    return f"{percent(low)}-{percent(high)}"


def difference_text(test: PairedTest) -> str:
    """Writes a paired difference in points, with its interval: "+6.5 (+1.9 to +11.0), p 0.009 (Holm 0.027)"."""
    low, high = test.interval
    text = f"{100 * test.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), p {float(f'{test.p:.4g}'):.2g}"
    return text if test.p_holm is None else f"{text} (Holm {float(f'{test.p_holm:.4g}'):.2g})"


def weights_text(weights: Mapping[str, float] | None) -> str:
    """Writes the weights of an attention: "mnli@1 0.31, target 0.12"."""
    return ", ".join(f"{name} {weight:.2f}" for name, weight in (weights or {}).items())
