"""A server as one writes it around PEFT: an adapter a task, one request after the other. The peer of `serving`.

    python -m benchmarks.peft_server --tasks 20

Prompt tuning's adapters share the weights: as many models of their own would do the same passes in N times the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import PromptTuningConfig, TaskType
from pydantic import BaseModel

from attempt_cli.backbones.load import load_backbone
from benchmarks.peers import fresh_model, peft_model


class Ask(BaseModel):
    """What `serving` sends."""

    model: str
    prompt: str
    max_tokens: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--device")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--labels", default="negative,positive")
    options = parser.parse_args()
    ours = load_backbone(options.backbone, device=options.device)  # its tokens and its dtype
    labels = [ours.target_tokens(word, end=False)[0] for word in options.labels.split(",")]
    words = options.labels.split(",")
    model: Any = peft_model(fresh_model(options.backbone, ours.device, ours.dtype), options.length).eval()
    for number in range(options.tasks):
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=options.length)
        model.add_adapter(f"task-{number}", config)

    @torch.inference_mode()
    def answer(ask: Ask) -> str:
        model.set_adapter(ask.model)
        ids = torch.tensor([ours.tokenizer(ask.prompt)["input_ids"]], device=ours.device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1, labels]
        return words[int(logits.argmax())]

    app = FastAPI()
    pool = ThreadPoolExecutor(1)

    @app.post("/v1/completions")
    async def complete(ask: Ask) -> dict[str, Any]:
        text = await asyncio.get_running_loop().run_in_executor(pool, answer, ask)
        return {"object": "text_completion", "model": ask.model, "choices": [{"index": 0, "text": text}]}

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as taken:
        print(f'"url": "http://127.0.0.1:{taken.getsockname()[1]}"', flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[taken])


if __name__ == "__main__":
    main()
