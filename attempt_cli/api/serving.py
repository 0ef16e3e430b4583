"""Serves trained prompts over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attempt_cli.name_lists import listed
from attempt_cli.server.run import Serving, run_server
from attempt_cli.server.settings import ServerSettings
from attempt_cli.session import Session

__all__ = ["Serving", "serve"]


def serve(
    models: str | Sequence[str] = (),
    *,
    started: Callable[[Serving], Any] | None = None,
    session: Session | None = None,
    **settings: Any,
) -> None:
    """Serves prompts and compositions of one backbone over HTTP until SIGINT or SIGTERM (Ctrl-C).

    Args:
        models: names of prompts and compositions; without any, all that the registry has for the backbone, those that
            are added later included.
        started: is told the address when the server listens.
        session: says where the registry and the backbone are, and how much memory inputs that were read may take.
        settings: `host`, `port`, `api_key`, `max_tokens`, `wait`, `max_body`, `max_rows`, `max_new_tokens`,
            `timeout`, `max_queue`, `upstream`, `upstream_model`, `upstream_key`, as docs/serving.md describes them.

    Raises:
        AttemptError: the extra `serve` is not installed, there is nothing to serve, the port is taken, or the upstream
            does not answer or has another model.
        ArgumentsError: a setting that no server can have.

        attempt.serve("support-chats-attempt", port=8000)
    """
    run_server(session or Session(), listed(models), ServerSettings(**settings), started or (lambda serving: None))
