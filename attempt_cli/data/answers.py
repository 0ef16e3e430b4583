"""Compares free-text answers with accepted ones as SQuAD's official script does (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower-cases and drops punctuation, articles and extra white space: "The  Beatles!" becomes "beatles"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(prediction: str, answer: str) -> float:
    """Computes F1 over the words of both, counted with repetition; 0.0 when they share none."""
    predicted, true = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((Counter(predicted) & Counter(true)).values())
    return 2 * shared / (len(predicted) + len(true)) if shared else 0.0


def best_f1(prediction: str, answers: Sequence[str]) -> float:
    """Returns the highest word F1 over the accepted answers."""
    return max((word_f1(prediction, answer) for answer in answers), default=0.0)


def best_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1.0 when the normalised prediction is one of the normalised answers, else 0.0."""
    predicted = normalize_answer(prediction)
    return float(any(predicted == normalize_answer(answer) for answer in answers))
