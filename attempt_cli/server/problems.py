"""Requests that are not answered, in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from attempt_cli.errors import AttemptError
from attempt_cli.server.catalogue import UnknownModelError
from attempt_cli.server.engine import BrokenModelError, UpstreamError
from attempt_registry.errors import RegistryError


class AsciiJson(JSONResponse):
    """JSON whose other characters are escapes: a name in an error may hold half a character, which no encoding has."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        code: for programs.
        param: the field that is meant.
        retry: seconds after which the same request may work.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry = status, message, code, param, retry

    def response(self) -> Response:
        """Returns the answer, in the shape of OpenAI's errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        headers = {"Retry-After": str(self.retry)} if self.retry is not None else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return AsciiJson(body, self.status, headers)


def error_text(error: AttemptError) -> str:
    """Returns message and hint as one text."""
    return f"{error.message}. {error.hint}" if error.hint else error.message


def explain_errors(app: FastAPI) -> None:
    """Writes every failure in the shape of OpenAI's errors."""

    @app.exception_handler(ApiError)
    async def own(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(UnknownModelError)
    async def unknown(_: Request, error: UnknownModelError) -> Response:
        return ApiError(404, error_text(error), "model_not_found", param="model").response()

    @app.exception_handler(AttemptError)
    async def refused(_: Request, error: AttemptError) -> Response:
        return ApiError(400, error_text(error), "invalid_value").response()

    @app.exception_handler(RegistryError)
    @app.exception_handler(BrokenModelError)
    async def broken(_: Request, error: AttemptError) -> Response:
        return ApiError(500, error_text(error), "model_broken").response()

    @app.exception_handler(UpstreamError)
    async def upstream(_: Request, error: UpstreamError) -> Response:
        return upstream_problem(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return invalid_request(error).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail), f"http_{error.status_code}").response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return ApiError(500, "the server failed; its log says why", "internal_error").response()


def upstream_problem(error: UpstreamError) -> ApiError:
    """Says what is wrong with another server."""
    return ApiError(error.status, error.message, error.code, retry=error.retry)


def invalid_request(error: RequestValidationError) -> ApiError:
    """Says which fields are wrong, the first by name for programs."""
    problems: dict[str, str] = {}
    for one in error.errors():
        place = [str(part) for part in one["loc"] if part != "body"]
        if one["type"] == "json_invalid":
            return ApiError(400, f"the body is not JSON: {one.get('ctx', {}).get('error', '')}", "invalid_json")
        if place and one["type"] == "extra_forbidden":
            problems.setdefault(".".join(place)[:200], "is not supported")
        else:
            problems.setdefault(".".join(place)[:200], str(one["msg"]).removeprefix("Value error, "))
    shown = [f"{name}: {text}" if name else text for name, text in list(problems.items())[:5]]
    names = [name for name in problems if name]
    return ApiError(400, "; ".join(shown), "invalid_request", param=names[0] if names else None)
