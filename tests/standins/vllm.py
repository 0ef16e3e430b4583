"""A stand-in for vLLM's server with `--enable-prompt-embeds`: it decodes and refuses as that does, on a real model.

with vllm_server(folder) as server:
    httpx.post(f"{server.url}/v1/completions", json=body)
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any

import torch

MOST_LOGPROBS = 20


class RefusedError(Exception):
    """A request that the server answers with 400."""


@dataclass
class Server:
    """The model that it serves, and what it was asked.

    Args:
        folder: the model's; also the name that requests give.
        asked: bodies of all requests.
        url: its address.
        failing: statuses that the next requests are answered with.
        key: what it asks for as a bearer token; None lets all in.
        old: it does not know `logprob_token_ids`, and ignores it as any field that it does not know.
        delay: seconds before each answer, and before each piece of a stream.
        under_way, most_at_once: requests being answered now, and the most that there were.
        broken_off: streams that nobody listened to until their end.
    """

    folder: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    failing: list[int] = field(default_factory=list)
    key: str | None = None
    old: bool = False
    delay: float = 0.0
    under_way: int = 0
    most_at_once: int = 0
    broken_off: int = 0

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)

    def embeddings(self, data: Any) -> torch.Tensor:
        """Decodes prompt embeddings; they are 2-D floats of the model's width."""
        if not isinstance(data, str):
            raise RefusedError("prompt_embeds must be a base64 string")
        try:
            tensor = torch.load(
                io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location="cpu"
            )
        except Exception as error:
            raise RefusedError(f"prompt_embeds cannot be loaded: {error}") from error
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise RefusedError("prompt_embeds must be a floating tensor")
        tensor = tensor.squeeze(0) if tensor.dim() == 3 else tensor
        if tensor.dim() != 2 or tensor.shape[1] != self.model.config.hidden_size:
            raise RefusedError(f"prompt_embeds must be [tokens, {self.model.config.hidden_size}]")
        return tensor.float()

    def complete(self, sequence: torch.Tensor, body: dict[str, Any], most: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Continues embeddings greedily; yields each token, and the log-probabilities of its step's first tokens.

        As OpenAI's, they are the most probable ones and, at the end, the chosen token where it is not among them.
        """
        if body.get("temperature") != 0:
            raise RefusedError("this stand-in is greedy: temperature 0")
        own = body.get("logprob_token_ids") if not self.old else None
        ends = {self.tokenizer.eos_token_id, *(body.get("stop_token_ids") or [])}
        for _ in range(body.get("max_tokens", 16)):
            with torch.no_grad():
                scores = self.model(inputs_embeds=sequence[None]).logits[0, -1].float().log_softmax(-1)
            token = int(scores.argmax())
            listed = [*own, *({token} - {*own})] if own else scores.topk(most).indices.tolist()
            yield token, {self.named(i, body): float(scores[i]) for i in listed}
            if token in ends:
                return
            last = self.model.get_input_embeddings()(torch.tensor([token])).detach()
            sequence = torch.cat([sequence, last])

    def named(self, token: int, body: dict[str, Any]) -> str:
        """Writes a token as its text, or by its number where the request wants that."""
        return f"token_id:{token}" if body.get("return_tokens_as_token_ids") else self.tokenizer.decode([token])

    def written(self, ids: list[int]) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def completion(self, body: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Checks a request for a completion, and begins it."""
        most = body.get("logprobs") or 0
        if most > MOST_LOGPROBS:
            raise RefusedError(f"Requested sample logprobs of {most}, which is greater than max allowed: 20")
        if body.get("prompt") is not None:
            sequence = self.model.get_input_embeddings()(torch.tensor(body["prompt"])).detach()
        else:
            sequence = self.embeddings(body.get("prompt_embeds"))
        return self.complete(sequence, body, most)

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the events of a completion, one for each token; the last says why it ended."""
        most = body.get("max_tokens", 16)
        for number, (token, step) in enumerate(self.completion(body), start=1):
            name = self.named(token, body)
            logprobs = {
                "top_logprobs": [step],
                "tokens": [name],
                "token_logprobs": [step[name]],
                "text_offset": [0],
            }
            ends = {self.tokenizer.eos_token_id, *(body.get("stop_token_ids") or [])}
            finish = "stop" if token in ends else "length" if number == most else None
            text = "" if token in ends else self.tokenizer.decode([token])
            yield {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}]}

    def check_model(self, body: dict[str, Any]) -> None:
        """Refuses requests for another model."""
        self.asked.append(body)
        if body.get("model") != self.folder:
            raise RefusedError(f"The model `{body.get('model')}` does not exist.")

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answers one request."""
        self.check_model(body)
        if path == "/v1/completions":
            ids, steps = zip(*self.completion(body), strict=True)
            tokens = [self.named(token, body) for token in ids]
            logprobs = {"top_logprobs": steps, "tokens": tokens, "token_logprobs": [], "text_offset": []}
            text = self.written([*ids])
            return {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}]}
        if path == "/v1/chat/completions":
            found = [*self.complete(self.rendered(body["messages"]), body, body.get("top_logprobs") or 0)]
            content = [
                {"token": "", "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in step.items()]}
                for _, step in found
            ]
            message = {"role": "assistant", "content": self.written([token for token, _ in found])}
            return {"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}
        raise RefusedError("Not Found")

    def rendered(self, messages: list[dict[str, Any]]) -> torch.Tensor:
        """Renders a user's turn by the chat template; embeddings stand where their part does."""
        (message,) = messages
        place = "\u2063"  # a character that the template leaves alone
        parts = message["content"]
        content = "".join(part["text"] if part["type"] == "text" else place for part in parts)
        tensors = [self.embeddings(part["data"]) for part in parts if part["type"] == "prompt_embeds"]
        text = self.tokenizer.apply_chat_template(
            [{"role": message["role"], "content": content}], tokenize=False, add_generation_prompt=True
        )
        pieces = []
        for number, piece in enumerate(text.split(place)):
            ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            pieces.append(self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long)).detach())
            pieces += tensors[number : number + 1]
        return torch.cat(pieces)


@contextmanager
def vllm_server(folder: Path) -> Iterator[Server]:
    """Runs the stand-in on a free port of the loopback address."""
    server = Server(str(folder))

    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if refused := self.refused():
                self.say(*refused)
            elif self.path == "/v1/models":
                self.say(200, {"object": "list", "data": [{"id": server.folder, "root": server.folder}]})
            else:
                self.say(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with counting:
                server.under_way += 1
                server.most_at_once = max(server.most_at_once, server.under_way)
            try:
                time.sleep(server.delay)
                if refused := self.refused():
                    self.say(*refused)
                elif body.get("stream"):
                    self.send_stream(body)
                else:
                    self.say(200, server.answer(self.path, body))
            except RefusedError as error:
                self.say(400, {"error": {"message": str(error)}})
            except OSError:
                server.broken_off += 1
            finally:
                with counting:
                    server.under_way -= 1

        def refused(self) -> tuple[int, Any] | None:
            if server.failing:
                return server.failing.pop(0), {"error": {"message": "not now"}}
            if server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
                return 401, {"error": "Unauthorized"}
            return None

        def send_stream(self, body: dict[str, Any]) -> None:
            server.check_model(body)
            events = server.stream(body)
            first = next(events)  # what is refused has a status of its own
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in chain([first], events):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                time.sleep(server.delay)
            self.wfile.write(b"data: [DONE]\n\n")

        def say(self, status: int, said: Any) -> None:
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Http(ThreadingHTTPServer):
        request_queue_size = 256  # connections at once; five are the library's

    http = Http(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
