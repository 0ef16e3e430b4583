"""What the registry says when it cannot do what was asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegistryError(Exception):
    """A failure that a user can act on.

    Args:
        message: what is wrong, naming the thing.
        hint: what to type or do next.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names most like a mistyped one, best first; none when nothing is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=most, cutoff=0.5)
    return [by_folded[folded] for folded in found]


def unknown_name_text(kind: str, name: str, known: Iterable[str], list_command: str) -> tuple[str, str]:
    """The message and the hint for a name that nothing has, e.g. `no prompt named 'rtee'` and the nearest names."""
    near = nearest_names(name, known)
    did_you_mean = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"no {kind} named '{name}'", f"{did_you_mean}`{list_command}` shows all names."
