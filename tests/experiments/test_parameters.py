"""Trained parameters: formulas against modules that are really built, and against numbers that are published."""

from __future__ import annotations

import pytest

from attempt_cli.errors import AttemptError
from attempt_cli.experiments.parameters import COUNTINGS, Count, count_all, parameter_sheet, sizes

# the models' own cards and checkpoints
PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_sizes_are_those_of_the_models() -> None:
    assert {name: size.parameters for name, size in sizes().items()} == PUBLISHED


@pytest.mark.parametrize("name", ["t5-small", "t5-base", "smollm2-135m"])
def test_formula_and_count_agree(name: str) -> None:
    size = sizes()[name]
    assert size.build().device.type == "meta"  # no weights
    for method, counting in COUNTINGS.items():
        assert counting.count(size) == counting.formula(size), method


def test_the_paper_s_own_numbers() -> None:
    base = sizes()["t5-base"]
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


def test_the_sheet_holds_both_ways() -> None:
    counts = count_all(["attempt-m"], ["t5-3b"])
    assert counts == [Count("t5-3b", PUBLISHED["t5-3b"], "attempt-m", 128_256, 128_256)]
    sheet = parameter_sheet(counts, ["backbone", "formula"], "title", "attempt reproduce fig7")
    (line,) = sheet.lines
    assert (line["formula"], line["counted"], line["published"], line["share"]) == (
        128_256,
        128_256,
        172_000,
        "0.0045 %",
    )
    assert sheet.printed[0]["backbone_parameters"] == "2,851,598,336"
    assert sheet.document["counts"][0]["counted"] == 128_256
