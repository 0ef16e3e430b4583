"""What every request passes before it is looked at: its host, its key, the size of its body."""

from __future__ import annotations

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attempt_cli.server.metrics import Metrics
from attempt_cli.server.problems import ApiError
from attempt_cli.server.settings import ServerSettings

# the page's own files and answers, nothing from elsewhere, and no other page around it
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# answered without a key: they say nothing about the registry
OPEN = {"/", "/page.js", "/page.css", "/health"}


class Gate:
    """What every request passes: its host, its key, the size of its body; and what every answer gets.

    Args:
        app: what lies behind it.
        settings: say what is let in.
        metrics: count the answers.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        clock = asyncio.get_running_loop().time
        began = clock()
        status = 0
        self.metrics.taken()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            problem = self._refused(scope)
            body = b"" if problem else await self._body(scope, receive)
            if problem is None and body is None:
                problem = ApiError(
                    413, f"the body is larger than the {self.settings.max_body} bytes allowed", "body_too_large"
                )
            if problem is not None:
                await problem.response()(scope, receive, sending)
            else:
                await self.app(scope, _replayed(body or b"", receive), sending)
        except _GoneError:
            status = 499
        finally:
            self.metrics.answered(scope, status, clock() - began)

    def _refused(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self.settings.is_local and not _is_local(headers.get(b"host", b"").decode("latin-1"), self.settings.host):
            # a page of another site whose name was made to mean this machine
            return ApiError(403, "this server answers to the names of this machine only", "wrong_host")
        key = self.settings.api_key
        if key is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
                return ApiError(
                    401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key"
                )
        return None

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body; None where it is too large, of which no more is read."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.settings.max_body:
            return None
        clock = asyncio.get_running_loop().time
        until = clock() + self.settings.timeout
        parts, size, more = [], 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - clock()))
            except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
                raise _GoneError from None
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.settings.max_body:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


class _GoneError(Exception):
    """The client went away before its request was whole."""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hands a body out once; later calls wait for the client to go away."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _is_local(host: str, own: str) -> bool:
    """Whether a Host header names this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return name.lower() in {"localhost", "127.0.0.1", "::1", own.lower()}
