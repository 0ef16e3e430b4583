"""The exception that users see and the registry's own, and the wording of errors about unknown names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# a damaged file's values stand in messages: what is longer loses its middle
LONGEST_WORD, LONGEST = 300, 4000


class AttemptError(Exception):
    """A failure that a user can act on; the command line prints it without a traceback and exits with 1.

    Args:
        message: what is wrong, naming the thing.
        hint: what to type or do next.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = _readable(message)
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is None else _readable(hint)


class RegistryError(AttemptError):
    """A failure of the registry: an unknown name, a file that is missing or damaged, a record that does not fit."""


def _readable(text: str) -> str:
    """Returns a text whose words, and which itself, are short enough to read."""
    text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _cut(word[0], LONGEST_WORD), text)
    return text if len(text) <= LONGEST else _cut(text, LONGEST)


def _cut(text: str, length: int) -> str:
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Returns the known names most similar to a mistyped one, best first; none when nothing is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=most, cutoff=0.5)
    return [by_folded[folded] for folded in found]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Asks for the nearest names, e.g. "Did you mean rte or rte2? "; empty when nothing is close."""
    near = nearest_names(name, known)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def unknown_name_text(kind: str, name: str, known: Iterable[str], list_command: str) -> tuple[str, str]:
    """Returns the message and the hint for an unknown name: `no prompt named 'rtee'` and the nearest names."""
    return f"no {kind} named '{name}'", f"{did_you_mean(name, known)}`{list_command}` shows all names."
