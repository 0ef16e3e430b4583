"""Keys stay what they are: cells and checkpoints that were recorded earlier are found by them."""

from __future__ import annotations

from pathlib import PurePosixPath

from attempt_cli.keys import content_key


def test_a_key_depends_on_content_and_not_on_order() -> None:
    assert content_key({"a": 1, "b": [2, None]}) == content_key({"b": [2, None], "a": 1}) == "c8caf5ad035ad1d6"
    assert content_key({"a": 1, "b": [None, 2]}) != content_key({"a": 1, "b": [2, None]})
    assert content_key({"folder": PurePosixPath("x/y")}) == content_key({"folder": "x/y"})
