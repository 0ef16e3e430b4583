"""Prompt embeddings as vLLM's server takes them: base64 of a torch file with a matrix [positions, width].

The server is started with `--enable-prompt-embeds`. For completions the caller sends all that enters the model, prompt
and input; for chats the prompt alone, as a part of the user's turn.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.exchange.peft import model_name

if TYPE_CHECKING:
    from torch import Tensor

    from attempt_cli.exchange.exporting import Selection
    from attempt_cli.prompted import PromptedModel

LOGPROBS = 20  # as many as the server gives by default
SAMPLE = "Put your text here."


def encoded(embeddings: Tensor) -> str:
    """Returns a matrix, [positions, width], as the server reads it."""
    import torch

    file = io.BytesIO()
    torch.save(embeddings.detach().contiguous().clone(), file)  # a view would carry its whole storage along
    return base64.b64encode(file.getvalue()).decode("ascii")


def entering_embeddings(model: PromptedModel, rows: Sequence[Any], task: int = 0) -> list[Tensor]:
    """Returns what `entering` does, without the mixture's weights."""
    return entering(model, rows, task)[0]


def entering(model: PromptedModel, rows: Sequence[Any], task: int = 0) -> tuple[list[Tensor], Tensor | None]:
    """Computes what enters the first layer for each row.

    Args:
        model: its backbone may be an `EmbeddingTable`.
        rows: encoded for the model (`PromptedModel.around`).
        task: the index of the target prompt.

    Returns:
        Prompt and input in their places, float32 [positions, width] of each row, and the mixture's weights, [b, t + 1].
    """
    import torch

    tasks = torch.full((len(rows),), task)
    with torch.no_grad():
        batch = model.backbone.collate(rows)
        embeddings = model.backbone.embed(batch.input_ids)
        prompts, weights = model.prompts(batch, embeddings, tasks)
        embeddings = model.with_offsets(tasks, embeddings)
    found = []
    for place, row in enumerate(rows):
        parts = [embeddings[place, : len(row.input_ids)].float()]
        if prompts is not None:
            parts.insert(0 if model.placement == "before" else 1, prompts[place].float())
        found.append(torch.cat(parts))
    return found, weights


def completion(model: str, embeddings: Tensor, max_tokens: int = 1) -> dict[str, Any]:
    """Returns the body of a request to /v1/completions."""
    return {
        "model": model,
        "prompt": None,
        "prompt_embeds": encoded(embeddings),
        "max_tokens": max_tokens,
        "logprobs": LOGPROBS,
        "temperature": 0,
    }


def chat(model: str, prompt: Tensor, text: str, placement: str, max_tokens: int = 1) -> dict[str, Any]:
    """Returns the body of a request to /v1/chat/completions; the server renders the chat template around its parts.

    The server is started with `--chat-template-content-format openai`, too.
    """
    parts: list[dict[str, str]] = [
        {"type": "prompt_embeds", "data": encoded(prompt)},
        {"type": "text", "text": text},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": parts if placement == "before" else parts[::-1]}],
        "max_tokens": max_tokens,
        "logprobs": True,
        "top_logprobs": LOGPROBS,
        "temperature": 0,
    }


def write(selection: Selection, folder: Path) -> None:
    """Writes the prompt as a torch file, and a request that can be sent as it is.

    `completions.json` has all that enters for a sample text. `chat.json` carries the prompt alone, beside that text;
    only prompts that were trained inside the user's turn of the chat template have one.

    Raises:
        AttemptError: the backbone is an encoder-decoder, or its embeddings cannot be read.
    """
    import torch

    from attempt_cli.artefacts import load_prompt
    from attempt_cli.backbones.names import recorded_backbone
    from attempt_cli.backbones.table import load_table

    (prompt,) = selection.prompts
    backbone = selection.backbone
    if backbone.architecture != "decoder-only":
        raise AttemptError(f"vLLM does not serve encoder-decoders such as {backbone.name}", "Export to another format.")
    table = load_table(recorded_backbone(selection.registry, prompt), backbone)
    model = load_prompt(selection.registry, table, prompt).model
    own = torch.from_numpy(selection.entering(prompt))
    torch.save(own, folder / "prompt.pt")
    rows = table.encode([SAMPLE], None, 512, around=model.around)
    served = model_name(backbone)
    _write_json(folder / "completions.json", completion(served, entering_embeddings(model, rows)[0]))
    if prompt.chat_template:
        _write_json(folder / "chat.json", chat(served, own, SAMPLE, prompt.placement))


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", "utf-8")
