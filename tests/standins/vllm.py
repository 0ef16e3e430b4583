"""A stand-in for vLLM's server with `--enable-prompt-embeds`: it decodes and refuses as that does, on a real model.

with vllm_server(folder) as server:
    httpx.post(f"{server.url}/v1/completions", json=body)
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    """

    folder: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    failing: list[int] = field(default_factory=list)

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

    @torch.no_grad()
    def complete(self, sequence: torch.Tensor, body: dict[str, Any], most: int) -> tuple[str, list[dict[str, float]]]:
        """Continues embeddings greedily; returns the text, and the log-probabilities of each step's first tokens."""
        if body.get("temperature") != 0:
            raise RefusedError("this stand-in is greedy: temperature 0")
        ids: list[int] = []
        steps: list[dict[str, float]] = []
        for _ in range(body.get("max_tokens", 16)):
            logits = self.model(inputs_embeds=sequence[None]).logits[0, -1].float()
            top = logits.log_softmax(-1).topk(most)
            steps.append(
                {
                    self.tokenizer.decode([i]): score
                    for i, score in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                }
            )
            ids.append(int(logits.argmax()))
            if ids[-1] == self.tokenizer.eos_token_id:
                break
            last = self.model.get_input_embeddings()(torch.tensor(ids[-1:]))
            sequence = torch.cat([sequence, last])
        return self.tokenizer.decode(ids, skip_special_tokens=True), steps

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answers one request."""
        self.asked.append(body)
        if body.get("model") != self.folder:
            raise RefusedError(f"The model `{body.get('model')}` does not exist.")
        if path == "/v1/completions":
            most = body.get("logprobs") or 0
            if most > MOST_LOGPROBS:
                raise RefusedError(f"Requested sample logprobs of {most}, which is greater than max allowed: 20")
            text, steps = self.complete(self.embeddings(body.get("prompt_embeds")), body, most)
            logprobs = {"top_logprobs": steps, "tokens": [], "token_logprobs": [], "text_offset": []}
            return {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}]}
        if path == "/v1/chat/completions":
            text, steps = self.complete(self.rendered(body["messages"]), body, body.get("top_logprobs") or 0)
            content = [
                {"token": "", "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in step.items()]}
                for step in steps
            ]
            message = {"role": "assistant", "content": text}
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

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.failing:
                status, said = server.failing.pop(0), {"error": {"message": "not now"}}
            else:
                try:
                    status, said = 200, server.answer(self.path, body)
                except RefusedError as error:
                    status, said = 400, {"error": {"message": str(error)}}
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
