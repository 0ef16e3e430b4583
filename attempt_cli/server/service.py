"""Answers requests: their inputs go into the engine's queue, and come back in the shape that was asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from attempt_cli.data.example import Example
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import MAX_NEW_TOKENS
from attempt_cli.evaluation.serving import Prediction, ServedTask, prediction_of, rendered
from attempt_cli.server.catalogue import Catalogue
from attempt_cli.server.engine import Answer, Ask, Engine, FullError, StoppedError, UpstreamError
from attempt_cli.server.openai import ChatRequest, CompletionRequest, Name, Shape, details, row_of
from attempt_cli.server.problems import ApiError, error_text, upstream_problem
from attempt_cli.server.settings import ServerSettings


class PredictRequest(BaseModel):
    """The body of `POST /predict`: rows, and the models that are all asked about each of them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    inputs: str | dict[str, Any] | Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    models: Name | Annotated[list[Name], Field(min_length=1)]


class Service:
    """Answers requests by putting their inputs into the engine's queue."""

    def __init__(self, catalogue: Catalogue, engine: Engine, settings: ServerSettings) -> None:
        self.catalogue = catalogue
        self.engine = engine
        self.settings = settings

    async def predict(self, body: PredictRequest) -> dict[str, Any]:
        """Answers `POST /predict`."""
        rows = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        names = list(dict.fromkeys([body.models] if isinstance(body.models, str) else body.models))
        self._check_rows(len(rows) * len(names), "inputs")
        served = {name: self.catalogue[name] for name in names}
        most = self._usual_length
        asks = {
            name: [Ask(one, example, most) for example in self._examples(one, rows)] for name, one in served.items()
        }
        answers = await self._answers([ask for of in asks.values() for ask in of])
        return {
            "predictions": {
                name: [details(answers[ask], predicted(ask, answers[ask])) for ask in of] for name, of in asks.items()
            }
        }

    async def complete(self, body: CompletionRequest | ChatRequest) -> Any:
        """Answers a completion or a chat completion."""
        self._check_rows(len(body.inputs), "prompt")
        served = self.catalogue[body.model]
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options says nothing without stream", "invalid_value", param="stream_options")
        if isinstance(body, ChatRequest) and body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", param="top_logprobs")
        if body.most_logprobs is not None and not served.task.is_classification:
            raise ApiError(
                400,
                f"logprobs: '{body.model}' writes free text, whose logprobs are not computed. Leave it out.",
                "unsupported_value",
                param="logprobs",
            )
        most = body.most_tokens or self._usual_length
        if most > self.settings.max_new_tokens and not served.task.is_classification:
            raise ApiError(
                400,
                f"max_tokens: this server writes {self.settings.max_new_tokens} tokens at most",
                "invalid_value",
                param="max_tokens",
            )
        try:
            rows = [row_of(served, text) for text in body.inputs]
            examples = self._examples(served, rows)
        except AttemptError as error:
            raise ApiError(400, error_text(error), "invalid_value", param="prompt") from None
        asks = [Ask(served, example, most, body.stops) for example in examples]
        shape = Shape(body)
        if body.stream:
            events = self._events(shape, asks)
            first = await anext(events)  # a full queue is an error, not the beginning of a stream
            return StreamingResponse(_chained(first, events), media_type="text/event-stream")
        answers = await self._answers(asks)
        return shape.whole([(answers[ask], predicted(ask, answers[ask])) for ask in asks])

    async def _events(self, shape: Shape, asks: Sequence[Ask]) -> AsyncIterator[str]:
        """Yields the events of a stream: pieces of texts as they are generated, labels whole."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue()

        def put(index: int, text: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                loop.call_soon_threadsafe(pieces.put_nowait, (index, text))

        def ended(index: int, _: object) -> None:
            put(index, None)

        for index, ask in enumerate(asks):
            ask.said = partial(put, index)
            ask.future.add_done_callback(partial(ended, index))
        self._put(asks)
        begun: set[int] = set()
        answers: dict[int, tuple[Answer, Prediction]] = {}
        until = loop.time() + self.settings.timeout
        try:
            while len(answers) < len(asks):
                index, text = await asyncio.wait_for(pieces.get(), max(0.001, until - loop.time()))
                first = index not in begun
                begun.add(index)
                if text is not None:
                    yield shape.piece(index, text, first=first)
                    continue
                answer = asks[index].future.result()
                answers[index] = answer, predicted(asks[index], answer)
                if first:  # a label, or an empty text
                    yield shape.piece(index, answers[index][1].text, answers[index][1], first=True)
                yield shape.last(index, answer)
            yield shape.end([answers[index] for index in range(len(asks))])
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            raise self._late(asks) from None
        finally:
            for ask in asks:
                ask.gone = True
                ask.future.cancel()

    @property
    def _usual_length(self) -> int:
        """The most tokens of a text where the request does not say it: as `attempt predict`."""
        return min(MAX_NEW_TOKENS, self.settings.max_new_tokens)

    def _examples(self, served: ServedTask, rows: Sequence[Any]) -> list[Example]:
        try:
            return [rendered(served.task, row, number, "the request") for number, row in enumerate(rows)]
        except RecursionError:
            raise ApiError(400, "a row is nested too deeply", "invalid_value", param="inputs") from None

    def _check_rows(self, count: int, param: str) -> None:
        if count == 0:
            raise ApiError(400, f"{param} holds nothing to answer", "invalid_value", param=param)
        if count > self.settings.max_rows:
            raise ApiError(
                400,
                f"{count} answers are asked for, this server gives {self.settings.max_rows} to a request. "
                "Send several requests.",
                "too_many_rows",
                param=param,
            )

    def _put(self, asks: Sequence[Ask]) -> None:
        try:
            self.engine.put(asks)
        except FullError as error:
            raise ApiError(429, error_text(error), "queue_full", retry=1) from None
        except StoppedError as error:
            raise ApiError(503, error_text(error), "stopping", retry=5) from None

    async def _answers(self, asks: Sequence[Ask]) -> dict[Ask, Answer]:
        self._put(asks)
        futures = [asyncio.wrap_future(ask.future) for ask in asks]
        try:
            found = await asyncio.wait_for(asyncio.gather(*futures), self.settings.timeout)
        except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
            raise self._late(asks) from None
        finally:
            for ask in asks:
                ask.gone = True
        return dict(zip(asks, found, strict=True))

    def _late(self, asks: Sequence[Ask]) -> ApiError:
        seconds = self.settings.timeout
        if self.engine.forwards and any(ask.future.running() for ask in asks):
            return ApiError(504, f"the upstream did not answer within {seconds:g} seconds", "upstream_timeout", retry=5)
        return ApiError(503, f"not answered within {seconds:g} seconds. Ask again later.", "timeout", retry=5)


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields events; what goes wrong after the first is an event, too: the status has been sent."""
    yield first
    try:
        async for event in rest:
            yield event
    except Exception as error:
        known = upstream_problem(error) if isinstance(error, UpstreamError) else error
        problem = known if isinstance(known, ApiError) else ApiError(500, "the server failed", "internal_error")
        yield f"data: {bytes(problem.response().body).decode()}\n\n"
        if problem is not known:
            raise  # into the log


def predicted(ask: Ask, answer: Answer) -> Prediction:
    """Puts an answer under the names of labels and sources."""
    return prediction_of(ask.served.task, answer.prediction, ask.served.model.sources)
