"""What commands print, computed another way."""

from __future__ import annotations

from collections.abc import Sequence


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusts p-values as Holm (1979) defines it: of each the largest of (n - j) p over those that are not larger."""
    n = len(ps)
    smaller = [sorted(p for p in ps if p <= own) for own in ps]
    return [min(1.0, max((n - j) * p for j, p in enumerate(of))) for of in smaller]
