"""Runs the application on a port until the process is told to end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

EXTRA_SECONDS = 5  # after the timeout of a request, until a server that is ending cuts it off


class Server(uvicorn.Server):
    """A server that SIGINT and SIGTERM end gently from before it says that it listens; the process goes on then."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone: `ended_by_signals` has them already. The library's own would raise them once more."""
        yield

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Ends the server at a signal; at a second SIGINT without waiting for answers."""
        if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(app: Any, taken: socket.socket, timeout: float, started: Callable[[], object]) -> None:
    """Answers until a signal, and until what was taken is answered.

    Args:
        app: the application.
        taken: listens already.
        timeout: seconds that a request may take.
        started: is called when signals end the server.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(timeout) + EXTRA_SECONDS,
    )
    server = Server(config)
    with server.ended_by_signals():
        started()
        server.run(sockets=[taken])
