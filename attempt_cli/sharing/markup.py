"""Writes texts of others into Markdown, where they stay the texts that they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# what Markdown or HTML takes for more than a character, wherever it stands in a line; bars are for `table`
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>()#~&$!])")
_JOINERS = "\u200c\u200d"  # they have no width, but scripts and emoji need them


def visible(text: str, *, lines: bool = False) -> str:
    """Returns a text without control characters and marks of direction, which can hide or turn around what it says.

    Args:
        text: the text.
        lines: keep line breaks and tabs; else they become spaces.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character if character.isprintable() or character in kept or character in _JOINERS else " "
        for character in text
    )


def plain(text: str) -> str:
    """Returns a text for the middle of a line of Markdown, in which nothing is a link, emphasis or HTML."""
    return _ACTIVE.sub(r"\\\1", " ".join(visible(text).split()))


def code(text: str) -> str:
    """Returns a text as a code span."""
    shown = " ".join(visible(text).split())
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def block(text: str, language: str = "") -> str:
    """Returns a text as a fenced block of code, with a fence that is longer than any in it."""
    shown = visible(text, lines=True).strip("\n")
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown themselves; bars in them stay bars, in code, too."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
