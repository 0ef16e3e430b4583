"""Trained parameters: formulas against modules that are really built, and against numbers that are published."""

from __future__ import annotations

import pytest

from attempt_cli.backbones.shapes import backbone_shapes
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.parameters import COUNTINGS, Count, count_all, parameter_table
from attempt_cli.training.methods import METHODS


@pytest.mark.parametrize("name", ["t5-small", "t5-base", "smollm2-135m"])
def test_formula_and_count_agree(name: str) -> None:
    shape = backbone_shapes()[name]
    assert shape.build().device.type == "meta"  # no weights
    for method, counting in COUNTINGS.items():
        assert counting.count(shape) == counting.formula(shape), method


def test_every_method_is_counted_from_its_row() -> None:
    assert METHODS.keys() - COUNTINGS.keys() == {"spot"}  # it is prompt tuning
    assert COUNTINGS.keys() - METHODS.keys() == {"attempt-m"}


def test_the_paper_s_own_numbers() -> None:
    base = backbone_shapes()["t5-base"]
    assert COUNTINGS["attempt"].count(base) == 231_936
    assert COUNTINGS["attempt-m"].count(base) == 96_192
    assert COUNTINGS["prompt-tuning"].count(base) == 76_800


def test_unknown_names_are_told_at_once() -> None:
    with pytest.raises(AttemptError) as failure:
        count_all(["atempt", "lorra"], ["t5-bse"])
    message = str(failure.value.message)
    assert "'atempt' (did you mean attempt" in message
    assert "'lorra'" in message
    assert "'t5-bse' (did you mean t5-base" in message


def test_the_table_holds_both_ways() -> None:
    counts = count_all(["attempt-m"], ["t5-3b"])
    assert counts == [Count("t5-3b", 2_851_598_336, "attempt-m", 128_256, 128_256)]
    table = parameter_table(counts, ["backbone", "formula"], "title", "attempt reproduce fig7")
    (line,) = table.lines
    assert (line["formula"], line["counted"], line["published"], line["share"]) == (
        128_256,
        128_256,
        172_000,
        "0.0045 %",
    )
    assert table.printed[0]["backbone_parameters"] == "2,851,598,336"
    assert table.document["counts"][0]["counted"] == 128_256
