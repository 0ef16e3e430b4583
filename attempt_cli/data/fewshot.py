"""Chooses k rows: by seed, balanced over the classes, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from attempt_cli.data.example import Example
from attempt_cli.errors import AttemptError


def few_shot(examples: Sequence[Example], k: int, *, per_class: bool, label_count: int, seed: int) -> list[Example]:
    """Chooses k rows, in their order.

    With the same seed and `per_class`, the rows for a smaller k are among those for a larger one, apart from the odd
    rows where the classes do not share k evenly.

    Args:
        examples: the rows to choose from.
        k: the number of rows, in total or of each class.
        per_class: whether k counts per class.
        label_count: the number of classes; 0 for free text, which is not balanced.
        seed: chooses the rows.

    Raises:
        AttemptError: fewer rows than k, or a class that has too few.
    """
    if k < 1:
        raise AttemptError(f"k is {k}", "Choose k of at least 1.")
    randomness = random.Random(seed)
    if not label_count:
        if len(examples) < k:
            raise AttemptError(f"k is {k}, but there are {len(examples)} rows", f"Choose k of at most {len(examples)}.")
        places = randomness.sample(range(len(examples)), len(examples))[:k]
        return [examples[place] for place in sorted(places)]
    by_class: list[list[int]] = [[] for _ in range(label_count)]
    for place, example in enumerate(examples):
        if example.label is None:
            raise AttemptError(f"row {example.row + 1} has no label, so its class is not known")
        by_class[example.label].append(place)
    wanted = [k] * label_count if per_class else _even_shares(k, label_count, randomness)
    chosen: list[int] = []
    for label, (places, share) in enumerate(zip(by_class, wanted, strict=True)):
        if len(places) < share:
            name = f"'{examples[places[0]].target}'" if places else f"number {label + 1} of {label_count}"
            most = min(map(len, by_class))
            raise AttemptError(
                f"class {name} has {len(places)} rows, {share} are wanted",
                f"Choose k of at most {most if per_class else most * label_count}"
                f"{' per class' if per_class else ' in total'}, or add rows of this class.",
            )
        randomness.shuffle(places)
        chosen += places[:share]
    return [examples[place] for place in sorted(chosen)]


def _even_shares(k: int, label_count: int, randomness: random.Random) -> list[int]:
    """Divides k among the classes as evenly as possible; the classes that get one more are drawn."""
    shares = [k // label_count] * label_count
    for label in randomness.sample(range(label_count), label_count)[: k % label_count]:
        shares[label] += 1
    return shares
