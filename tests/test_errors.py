"""Checks that an error stays readable, whatever a damaged file puts into it."""

from __future__ import annotations

import pytest

from attempt_registry.errors import AttemptError


@pytest.mark.parametrize("given", ["x" * 5000, "x " * 5000, "\n".join(["a row"] * 2000)])
def test_what_a_file_holds_makes_no_message_longer_than_a_screen(given: str) -> None:
    error = AttemptError(f"the end token '{given}' is none", f"Look at {given}.")
    for text in (str(error), error.message, str(error.hint)):
        assert len(text) <= 4000
        assert "…" in text
    assert error.message.startswith("the end token 'x" if given[0] == "x" else "the end token 'a row")
    assert error.message.endswith("' is none")


def test_messages_of_a_usual_length_stay_as_they_are() -> None:
    path = "/".join(["folder"] * 40)
    assert AttemptError(f"no file {path}", "Give another.").message == f"no file {path}"
