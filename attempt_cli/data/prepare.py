"""Derives columns for the few tasks whose rows need more than a template, each by a small named function.

A task's YAML names one with `prepare: wsc`; the function gets the row and returns the columns that it adds or replaces.
The ideas follow the preprocessors of T5 (Raffel et al., 2020), which this literature uses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Preparation:
    """A function, the columns it reads and the columns it makes."""

    function: Callable[[Row], dict[str, Any]]
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def stsb_score(row: Row) -> dict[str, Any]:
    """Writes the similarity as text, rounded to the nearest 0.2 as in T5: 3.8 becomes "3.8", 4.75 becomes "4.8"."""
    label = row["label"]
    if label is None:
        return {"score": None}
    # T5 multiplies in single precision, where 0.7 * 5 is 3.5 and rounds to even: 0.8, not 0.6
    fifths = struct.unpack("f", struct.pack("f", struct.unpack("f", struct.pack("f", float(label)))[0] * 5))[0]
    return {"score": f"{round(fifths) / 5:.1f}"}


def wsc_marks(row: Row) -> dict[str, Any]:
    """Puts the noun between asterisks and the pronoun between hashes: "* Mark * told Pete # He # ..."."""
    spans = sorted(
        [(row["span1_index"], row["span1_text"], "*"), (row["span2_index"], row["span2_text"], "#")],
        key=lambda span: span[0],
        reverse=True,  # the later span first: its marks then do not move the earlier one
    )
    text = row["text"]
    for word, span, mark in spans:
        start = _word_start(text, word)
        if text.startswith(span, start):
            text = f"{text[:start]}{mark} {span} {mark}{text[start + len(span) :]}"
    return {"marked": text}


def _word_start(text: str, number: int) -> int:
    """Finds the position at which a word (counted from 0) begins; white space separates words."""
    for position, found in enumerate(re.finditer(r"\S+", text)):
        if position == number:
            return found.start()
    return len(text)


def record_passage(row: Row) -> dict[str, Any]:
    """Turns the "@highlight" lines of ReCoRD's passage into sentences of the passage, as in T5."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    return {"passage": re.sub(r"\n@highlight\n", ". ", passage)}


def multirc_markup(row: Row) -> dict[str, Any]:
    """Removes HTML line breaks and bold marks from MultiRC's texts."""
    return {
        column: re.sub(r"</?b>", "", row[column].replace("<br>", " ")) for column in ("paragraph", "question", "answer")
    }


def squeezed_context(row: Row) -> dict[str, Any]:
    """Makes every run of white space in the context one space: news pages come with dozens of line breaks."""
    return {"context": " ".join(row["context"].split())}


PREPARATIONS = {
    "stsb": Preparation(stsb_score, ("label",), ("score",)),
    "wsc": Preparation(wsc_marks, ("text", "span1_index", "span1_text", "span2_index", "span2_text"), ("marked",)),
    "record": Preparation(record_passage, ("passage",), ("passage",)),
    "multirc": Preparation(multirc_markup, ("paragraph", "question", "answer"), ("paragraph", "question", "answer")),
    "context": Preparation(squeezed_context, ("context",), ("context",)),
}
