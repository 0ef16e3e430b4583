"""Keeps the libraries' progress bars out of logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Switches tqdm's bars off inside the block if stderr is no terminal; on a terminal they vanish when they are done.

    transformers and the hub's library have switches of their own, but the GGUF reader has none. All of them draw with
    tqdm, so it is tqdm that changes, for as long as the block runs: the caller's own settings stay as they are.
    """
    from tqdm import tqdm

    change = {"leave": False} if sys.stderr is not None and sys.stderr.isatty() else {"disable": True}
    original: Any = tqdm.__init__

    def quieter(self: Any, *arguments: Any, **settings: Any) -> None:
        original(self, *arguments, **{**settings, **change})

    bar: Any = tqdm
    bar.__init__ = quieter
    try:
        yield
    finally:
        bar.__init__ = original
