"""Parses and checks names as users type them: `rte`, `rte@2`, `attention:glue@1`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from attempt_registry.errors import RegistryError

KINDS = ("prompt", "attention", "composition")

_NAME = re.compile(r"\w[\w.+-]{0,99}")
# Terminals obey the first kind and hide or reorder text by the second: what is shown would not be what is kept.
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
# words that options accept in place of a name
_RESERVED = {"all", "none"}


@dataclass(frozen=True)
class Reference:
    """A parsed name; without a `version` it means the newest."""

    kind: str | None
    name: str
    version: int | None

    @property
    def ref(self) -> str:
        """Returns the name with its version, if it has one, and without its kind."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse(text: str) -> Reference:
    """Splits a reference into kind, name and version.

    Raises:
        RegistryError: when it is no text, or the text after `@` is not a version.
    """
    if not isinstance(text, str):  # from Python anything may come, a record for instance
        raise RegistryError(f"{type(text).__name__} is not a name", "Give a text such as rte@2; a record has a `ref`.")
    kind: str | None = None
    before, colon, after = text.partition(":")
    if colon and before in KINDS:
        kind, text = before, after
    name, at, version = text.partition("@")
    if not at:
        return Reference(kind, name, None)
    if not (version.isascii() and version.isdigit() and 0 < len(version) < 16 and int(version) > 0):
        raise RegistryError(f"'{text}' has no version after the @", f"Write a number, as in {name or 'rte'}@2.")
    return Reference(kind, name, int(version))


def check_name(name: str) -> None:
    """Refuses names that could not be typed as references later.

    Raises:
        RegistryError: for an empty name, control characters, spaces, commas, `@`, `:`, slashes, and
            words that options use.
    """
    check_seen(name, "a name")
    if not _NAME.fullmatch(name):
        raise RegistryError(
            f"'{name}' cannot be a name",
            "Letters, digits and . _ + - are allowed, at most 100; the first is a letter, a digit or _.",
        )
    if name.casefold() in _RESERVED:
        raise RegistryError(f"'{name}' cannot be a name: options use the word", "Choose another name.")


def check_seen(text: str, what: str) -> None:
    """Refuses control and bidirectional characters in a text of one line, such as a tag or a task.

    Args:
        text: the text.
        what: what the text is to be, for the error, e.g. "a tag".

    Raises:
        RegistryError: when `text` has such a character; the message shows it escaped.
    """
    found = _UNSEEN.search(text)
    if found:
        raise RegistryError(
            f"{text!a} cannot be {what}: it has the control character U+{ord(found[0]):04X}",
            "Leave out control characters, line breaks and marks of writing direction.",
        )
