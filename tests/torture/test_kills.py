"""A short version of `make torture`."""

from __future__ import annotations

import os
import random

import pytest

from tests.torture import command_kills
from tests.torture.registry_kills import OPERATIONS, torture


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_at_any_line_loses_nothing() -> None:
    counts = torture(8, tell=lambda text: None)
    assert counts["killed"] + counts["finished"] == 8 * len(OPERATIONS)
    assert counts["killed"] >= 6 * len(OPERATIONS)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_training_goes_on_to_the_same_bits_and_other_commands_are_whole() -> None:
    counts = command_kills.torture(1, random.randrange(1 << 30), tell=lambda text: None)  # other moments in every run
    assert counts["trainings equal to the bit"] == counts["compose whole"] == counts["gc whole"] == 1
