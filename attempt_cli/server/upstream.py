"""Asks another server that takes prompt embeddings, as vLLM does with `--enable-prompt-embeds`."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx

from attempt_cli.errors import AttemptError, shortened
from attempt_cli.exchange.peft import model_name
from attempt_cli.exchange.vllm import LOGPROBS, completion
from attempt_cli.server.engine import UpstreamError

if TYPE_CHECKING:
    from torch import Tensor

    from attempt_cli.backbones.table import EmbeddingTable
    from attempt_cli.server.settings import ServerSettings
    from attempt_registry.records import Backbone

CONNECTIONS = 64  # requests under way at once; the server batches them
KEPT_SECONDS = 2  # an idle connection is used again: servers close theirs after five
SAID = 300  # characters of the server's own message
TOKEN = "token_id:"
# the server's defaults may come with the model and change what is most probable
PLAIN = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# a text whose tokens are sent both ways at the start, and how far their scores may be apart
PROBE = "Is it good? It was the best of them: 5"
CLOSE = 0.5


class Upstream:
    """The server that has the layers.

    Args:
        url: its address, with or without "/v1".
        key: the bearer token that it asks for; None for none.
        timeout: seconds that one of its answers may take.
    """

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = ""
        self.sent = 0
        self.failed = 0
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 10), pool=None)
        self._client: httpx.AsyncClient

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Upstream]:
        """Opens connections for the event loop that runs; proxies and keys of the environment are none of theirs."""
        limits = httpx.Limits(
            max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEPT_SECONDS
        )
        async with httpx.AsyncClient(
            base_url=self.url, headers=self._headers, timeout=self._timeout, limits=limits, trust_env=False
        ) as self._client:
            yield self

    # at the start

    async def choose(self, name: str | None, backbone: Backbone) -> None:
        """Chooses the model: the one that is named, else the one that has the backbone's name or place.

        Raises:
            AttemptError: the server does not answer, or serves no such model.
        """
        listed = await self._document("GET", "/v1/models")
        try:
            models = {str(one["id"]): one.get("root") for one in listed["data"]}
        except (KeyError, TypeError, AttributeError):
            raise self._odd("its list of models is none") from None
        wanted = [name] if name is not None else [model_name(backbone), backbone.source, backbone.name]
        for one in wanted:
            for model, root in models.items():
                if one in (model, root if name is None else None):
                    self.model = model
                    return
        raise AttemptError(
            f"{self.url} serves {shortened(models) or 'no model'}, not {wanted[0]}",
            f"Name {'it' if len(models) == 1 else 'one'} with --upstream-model"
            f"{', if it is this backbone' if name is None else ''}.",
        )

    async def compare(self, table: EmbeddingTable) -> None:
        """Sends a few tokens as such and as embeddings: the same scores say that the tables are the same.

        Raises:
            AttemptError: the server takes no embeddings, or reads these tokens otherwise.
        """
        import torch

        (row,) = table.encode([PROBE], None, 32)
        embeddings = table.embed(torch.tensor(row.input_ids)).float()
        hint = f"Start it with --enable-prompt-embeds and the weights of {table.name}."
        as_tokens = {**completion(self.model, embeddings), "prompt": row.input_ids}
        del as_tokens["prompt_embeds"]
        try:
            theirs = await self._first_token(as_tokens)
            ours = await self._first_token(completion(self.model, embeddings))
        except UpstreamError as error:
            raise AttemptError(f"{error.message} ({self.url})", hint) from error
        best = sorted(theirs, key=lambda token: -theirs[token])[:3]
        if any(abs(ours.get(token, -math.inf) - theirs[token]) > CLOSE for token in best):
            raise AttemptError(
                f"'{self.model}' at {self.url} has other embeddings than {table.name}: it scores a text's tokens and "
                "their embeddings differently",
                hint,
            )

    # requests

    async def first_token(self, embeddings: Tensor, wanted: Sequence[int]) -> dict[int, float]:
        """Returns log p of tokens behind embeddings: of those wanted, or of the most probable.

        Args:
            embeddings: [positions, d].
            wanted: tokens; servers that cannot be asked for them list the most probable.
        """
        body = completion(self.model, embeddings)
        if len(wanted) <= LOGPROBS:
            body["logprob_token_ids"] = list(wanted)
        return await self._first_token(body)

    async def _first_token(self, body: dict[str, Any]) -> dict[int, float]:
        answer = await self._document("POST", "/v1/completions", self._named(body))
        try:
            (top,) = answer["choices"][0]["logprobs"]["top_logprobs"]
            found = {_number(token): float(score) for token, score in top.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise self._odd("its logprobs cannot be read") from None
        if not found or any(math.isnan(score) for score in found.values()):
            raise self._odd("its logprobs are no numbers")
        return found

    async def tokens(
        self, embeddings: Tensor, most: int, ends: Sequence[int]
    ) -> AsyncGenerator[tuple[list[int], str | None], None]:
        """Yields a text's tokens as they come, and why it ended; who stops listening ends it.

        Args:
            embeddings: [positions, d].
            most: the most tokens.
            ends: tokens that end it.
        """
        body = {**completion(self.model, embeddings, most), "logprobs": 1, "stream": True, "stop_token_ids": [*ends]}
        async with self._answer("POST", "/v1/completions", self._named(body)) as response:
            async for line in response.aiter_lines():
                name, _, data = line.partition(":")
                if name != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                try:
                    event = json.loads(data)
                    if "error" in event:
                        raise self._odd(f"broke off: {_message(event)}")
                    for choice in event["choices"][:1]:
                        said = (choice.get("logprobs") or {}).get("tokens") or []
                        yield [_number(token) for token in said], choice.get("finish_reason")
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise self._odd("its stream cannot be read") from None
        raise self._odd("its stream ended in the middle")

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**PLAIN, **body, "return_tokens_as_token_ids": True}

    async def _document(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        async with self._answer(method, path, body) as response:
            try:
                return json.loads(await response.aread())
            except ValueError:
                raise self._odd("its answer is not JSON") from None

    @asynccontextmanager
    async def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx.Response]:
        """Asks, and hands out what comes with status 200.

        Raises:
            UpstreamError: anything else.
        """
        self.sent += 1
        try:
            async with self._client.stream(method, path, json=body) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, await response.aread())
                yield response
        except httpx.TimeoutException:
            self.failed += 1
            raise UpstreamError(504, "the upstream did not answer in time", "upstream_timeout", 5) from None
        except httpx.HTTPError as error:
            self.failed += 1
            raise UpstreamError(
                503, f"the upstream cannot be reached: {str(error) or type(error).__name__}", "upstream_unreachable", 5
            ) from None
        except UpstreamError:
            self.failed += 1
            raise

    def _refused(self, status: int, content: bytes) -> UpstreamError:
        try:
            said = _message(json.loads(content))
        except ValueError:
            said = ""
        text = f"the upstream answered {status}{': ' if said else ''}{said}"
        if status in (429, 503):
            return UpstreamError(503, text, "upstream_busy", 1)
        if status in (401, 403):
            return UpstreamError(502, text, "upstream_key")
        return UpstreamError(502, text, "upstream_error")

    def _odd(self, what: str) -> UpstreamError:
        return UpstreamError(502, f"the upstream answered, but {what}", "upstream_error")


def _number(token: str) -> int:
    """Reads a token that is written by its number."""
    if not token.startswith(TOKEN):
        raise ValueError(token)
    return int(token.removeprefix(TOKEN))


def _message(document: Any) -> str:
    """Returns the beginning of what a server says is wrong, in any of the shapes that are usual."""
    for name in ("error", "message", "detail"):
        document = document.get(name, document) if isinstance(document, dict) else document
    text = document if isinstance(document, str) else json.dumps(document)
    text = " ".join(text.split())
    return text if len(text) <= SAID else f"{text[: SAID - 1]}…"


def find_upstream(settings: ServerSettings, backbone: Backbone) -> Upstream:
    """Asks the server that is named for its models, before anything is loaded.

    Raises:
        AttemptError: the backbone is an encoder-decoder, the server does not answer, or it serves another model.
    """
    assert settings.upstream is not None
    if backbone.architecture != "decoder-only":
        raise AttemptError(
            f"{backbone.name} is an encoder-decoder: servers that take embeddings serve decoder-only models",
            "Leave --upstream out: `attempt serve` computes it here.",
        )
    upstream = Upstream(settings.upstream, settings.upstream_key, settings.timeout)

    async def choose() -> None:
        async with upstream.connected():
            await upstream.choose(settings.upstream_model, backbone)

    try:
        asyncio.run(choose())
    except UpstreamError as error:
        hint = "Start it, as `vllm serve MODEL --enable-prompt-embeds`, or give its address as --upstream."
        if error.code == "upstream_key":
            hint = "Give its key with --upstream-key or $ATTEMPT_UPSTREAM_KEY."
        raise AttemptError(f"{error.message} ({upstream.url})", hint) from error
    return upstream


def compare_tables(upstream: Upstream, table: EmbeddingTable) -> None:
    """Proves with a few tokens that the server's embeddings are those of the table; errors as in `compare`."""

    async def compare() -> None:
        async with upstream.connected():
            await upstream.compare(table)

    asyncio.run(compare())
