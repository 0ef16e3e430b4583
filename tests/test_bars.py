"""Bars of the libraries: shown on a terminal, never in a log, and only switched while something is loaded."""

from __future__ import annotations

import io
import sys

import pytest
from huggingface_hub.utils import tqdm as hub_tqdm
from tqdm.auto import tqdm
from transformers.utils import logging

from attempt_cli.bars import bars_on_terminals_only


class Stderr(io.StringIO):
    """A stderr that is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(bar: type[tqdm], monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """Returns what a bar writes to stderr."""
    stderr = Stderr(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    for _ in bar(range(3), desc="Converting", disable=False, file=stderr):
        pass
    return stderr.getvalue()


@pytest.mark.parametrize("bar", [tqdm, hub_tqdm, logging.tqdm])
def test_only_a_terminal_shows_bars_and_keeps_none(bar: type[tqdm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stderr(terminal=False))
    with bars_on_terminals_only():
        assert shown(bar, monkeypatch, terminal=False) == ""
    monkeypatch.setattr(sys, "stderr", Stderr(terminal=True))
    with bars_on_terminals_only():
        text = shown(bar, monkeypatch, terminal=True)
    assert "Converting:" in text
    assert text.rsplit("\r", 2)[1].strip() == ""  # it is wiped out at the end


def test_the_callers_bars_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = shown(tqdm, monkeypatch, terminal=False)
    with pytest.raises(ValueError, match="while loading"), bars_on_terminals_only():
        raise ValueError("while loading")
    after = shown(tqdm, monkeypatch, terminal=False)
    assert "Converting: 100%" in before
    assert "Converting: 100%" in after
