"""A short version of `make torture`."""

from __future__ import annotations

import os

import pytest

from tests.torture.registry_kills import OPERATIONS, torture


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_at_any_line_loses_nothing() -> None:
    counts = torture(8, tell=lambda text: None)
    assert counts["killed"] + counts["finished"] == 8 * len(OPERATIONS)
    assert counts["killed"] >= 6 * len(OPERATIONS)
