"""The one exception that commands turn into "what is wrong, what to type next"."""

from __future__ import annotations

from collections.abc import Iterable

from attempt_registry.errors import AttemptError, unknown_name_text

__all__ = ["ArgumentsError", "AttemptError", "StoppedError", "first_line", "unknown_name"]


class ArgumentsError(AttemptError):
    """Arguments that do not go together; the command line exits with 2, as for other wrong usage."""

    exit_code = 2


class StoppedError(AttemptError):
    """Work that a listener or a signal ended before its time."""

    exit_code = 130


def unknown_name(kind: str, name: str, known: Iterable[str], list_command: str) -> AttemptError:
    """Returns the error for an unknown name: the nearest known names and the command that lists them all."""
    return AttemptError(*unknown_name_text(kind, name, known, list_command))


def shortened(names: Iterable[object], most: int = 20) -> str:
    """Returns names as a comma list, and of many the first with their number: a message stays readable."""
    texts = [text if len(text) <= 60 else f"{text[:59]}…" for text in map(str, names)]
    more = f", … ({len(texts):,} in all)" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, preceded by its type unless it is an `AttemptError`."""
    text = str(error).strip().split("\n", 1)[0]
    return text if isinstance(error, AttemptError) else f"{type(error).__name__}: {text}".removesuffix(": ")
