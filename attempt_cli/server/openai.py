"""Requests and answers in OpenAI's shape: completions and chat completions, whole and streamed.

A field that is not known, or a value that would change an answer in a way that is not computed here, is refused by
name. What clients send by default says nothing and is taken.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.serving import Prediction, ServedTask
from attempt_cli.server.engine import Answer

MOST_LOGPROBS = 20  # as OpenAI's chat completions
Name = Annotated[str, Field(min_length=1, max_length=300)]


def _greedy(value: Any) -> Any:
    if value not in (None, 0, 0.0) or isinstance(value, bool):
        raise ValueError("answers are the most probable ones: leave it out or send 0")
    return value


def _one(value: Any) -> Any:
    if value not in (None, 1) or isinstance(value, bool):
        raise ValueError("only 1 is supported")
    return value


def _none(value: Any) -> Any:
    if value not in (None, 0, False, {}, [], "") or value is True:
        raise ValueError("it is not supported: leave it out")
    return value


def _text_alone(value: Any) -> Any:
    return _none(None if value == {"type": "text"} else value)


def _no_tool(value: Any) -> Any:
    return _none(None if value in ("none", "auto") else value)


Greedy = Annotated[Any, BeforeValidator(_greedy)]
One = Annotated[Any, BeforeValidator(_one)]
Unused = Annotated[Any, BeforeValidator(_none)]
# says who asks or what for, and changes no answer
Said = Annotated[Any, Field(description="Changes no answer.")]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: Said = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    temperature: Greedy = None
    top_p: One = None
    n: One = None
    frequency_penalty: Unused = None
    presence_penalty: Unused = None
    logit_bias: Unused = None
    seed: Said = None
    user: Said = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an answer, where the request says it."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(_Request):
    """The body of `POST /v1/completions`."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: One = None
    echo: Unused = None
    suffix: Unused = None

    @property
    def inputs(self) -> list[str]:
        """The inputs; at least one."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def most_logprobs(self) -> int | None:
        """The number of label words with logprobs; None for none at all."""
        return self.logprobs


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user"]
    content: str | list[TextPart]
    name: Said = None


class ChatRequest(_Request):
    """The body of `POST /v1/chat/completions`: one message, the input."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: Annotated[Any, BeforeValidator(_text_alone)] = None
    tools: Unused = None
    tool_choice: Annotated[Any, BeforeValidator(_no_tool)] = None
    store: Unused = None
    metadata: Said = None

    @property
    def inputs(self) -> list[str]:
        """The one input."""
        content = self.messages[0].content
        return [content if isinstance(content, str) else "".join(part.text for part in content)]

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def most_logprobs(self) -> int | None:
        """The number of label words with logprobs; None for none at all."""
        return self.top_logprobs or 0 if self.logprobs else None


def row_of(served: ServedTask, text: str) -> str | Mapping[str, Any]:
    """Returns the row that a text stands for: itself, or of a task that reads several columns the JSON object in it.

    Raises:
        AttemptError: the task reads several columns, and the text is no object.
    """
    columns = served.task.input_columns()
    if len(columns) == 1:
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise AttemptError(
            f"the task '{served.task.name}' reads the columns {', '.join(columns)}, a text has only one",
            "Send a JSON object with them as the text, or POST /predict with rows as objects.",
        )
    return row


class Shape:
    """Writes the answers to one request.

    Args:
        request: the request.
        chat: whether it is a chat's.
    """

    def __init__(self, request: CompletionRequest | ChatRequest) -> None:
        self.request = request
        self.chat = isinstance(request, ChatRequest)
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, answers: list[tuple[Answer, Prediction]]) -> dict[str, Any]:
        """Returns the answer to a request that is not streamed."""
        choices = []
        for index, (answer, prediction) in enumerate(answers):
            said = {"message": {"role": "assistant", "content": prediction.text, "refusal": None}}
            choices.append(
                {
                    "index": index,
                    **(said if self.chat else {"text": prediction.text}),
                    "logprobs": self._logprobs(prediction),
                    "finish_reason": answer.finish,
                }
            )
        kind = "chat.completion" if self.chat else "text_completion"
        more = {"attempt": [details(answer, prediction) for answer, prediction in answers]}
        return {**self.head, "object": kind, "choices": choices, "usage": _usage([a for a, _ in answers]), **more}

    def piece(self, index: int, text: str, prediction: Prediction | None = None, *, first: bool = False) -> str:
        """Returns an event with a piece of an answer; of a label with its logprobs."""
        logprobs = self._logprobs(prediction) if prediction is not None else None
        if not self.chat:
            return self._event({"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return self._event({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def last(self, index: int, answer: Answer) -> str:
        """Returns the event that ends an answer."""
        empty: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._event({"index": index, **empty, "logprobs": None, "finish_reason": answer.finish})

    def end(self, answers: list[tuple[Answer, Prediction]]) -> str:
        """Returns what closes a stream."""
        usage = ""
        if self.request.wants_usage:
            usage = self._event(None, usage=_usage([answer for answer, _ in answers]))
        return usage + "data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any] | None, **more: Any) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self.head, "object": kind, "choices": [choice] if choice else [], **more}
        return f"data: {json.dumps(body)}\n\n"

    def _logprobs(self, prediction: Prediction) -> dict[str, Any] | None:
        """Returns log p of the label words among themselves, the answer's and those of the most probable."""
        most = self.request.most_logprobs
        if most is None or prediction.probabilities is None:
            return None
        words = {word: math.log(max(p, 1e-45)) for word, p in prediction.probabilities.items()}
        top = sorted(words, key=lambda word: -words[word])[:most]
        own = prediction.text
        if self.chat:
            content = {**_token(own, words[own]), "top_logprobs": [_token(word, words[word]) for word in top]}
            return {"content": [content], "refusal": None}
        return {
            "tokens": [own],
            "token_logprobs": [words[own]],
            "top_logprobs": [{word: words[word] for word in top}],
            "text_offset": [0],
        }


def details(answer: Answer, prediction: Prediction) -> dict[str, Any]:
    """Returns what OpenAI's shape has no place for: the label's value, probabilities, attention, tokens cut off."""
    found = prediction.record()
    if answer.truncated:
        found["truncated"] = answer.truncated
    if answer.estimated:
        found["estimated"] = list(answer.estimated)
    return found


def _token(word: str, logprob: float) -> dict[str, Any]:
    return {"token": word, "logprob": logprob, "bytes": list(word.encode())}


def _usage(answers: list[Answer]) -> dict[str, int]:
    read, written = sum(one.input_tokens for one in answers), sum(one.new_tokens for one in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
