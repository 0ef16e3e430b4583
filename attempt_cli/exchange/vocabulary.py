"""Prompts as added tokens of a model: each of a prompt's m vectors is the embedding of a token such as `<|reviews:0|>`.

What serves the model then serves every prompt by plain text. `write` makes a copy of the model with its tokenizer,
`write_delta` only the tokens and their rows of the embedding table, for an untouched model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.errors import AttemptError
from attempt_cli.exchange.peft import model_name

if TYPE_CHECKING:
    from torch import Tensor

    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.exchange.exporting import Selection
    from attempt_registry.records import Prompt

USAGE = "prompts.json"
DELTA = "prompt_tokens.safetensors"
# Texts whose tokens have to be ours with the prompt beside them; they begin and end in different ways.
PROBES = (
    "It broke after a day. label:",
    "word",
    "42 of them?",
    "Is it so: (a) yes, (b) no",
    "question: why\ntext: it is",
)


@dataclass(frozen=True)
class Tokens:
    """A prompt as tokens.

    Args:
        prompt: the record.
        names: the m tokens, e.g. "<|reviews:0|>".
        rows: their embeddings as they enter the first layer, float32 [m, d].
    """

    prompt: Prompt
    names: tuple[str, ...]
    rows: Tensor


def write(selection: Selection, folder: Path) -> None:
    """Writes a copy of the model that holds the prompts.

    Tied input and output embeddings of decoder-only models come apart: the new tokens' output rows are copies of the
    row of a token that the model hardly expects, so that what knows no `generation_config.json`, which suppresses them,
    writes none either. (Zeros would not do: there are models whose logits are all below zero.)

    Raises:
        AttemptError: see `_prepared`.
    """
    import torch

    backbone, parts = _prepared(selection)
    model, tokenizer = backbone.model, backbone.tokenizer
    if getattr(backbone, "own_attention", False):
        backbone.use_own_attention(False)  # type: ignore[attr-defined]
    known = len(tokenizer)
    ids = [_add(tokenizer, part) for part in parts]
    needed = max(map(max, ids)) + 1
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if needed > backbone.vocabulary_size:
        model.resize_token_embeddings(needed, mean_resizing=False)
    if tied and backbone.architecture == "decoder-only":
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    with torch.no_grad():
        for part, own in zip(parts, ids, strict=True):
            model.get_input_embeddings().weight[own] = part.rows.to(backbone.dtype)
        head = model.get_output_embeddings()
        if head.weight is not model.get_input_embeddings().weight:
            unlikely = _unlikely(backbone, parts, ids, known)
            for own in ids:
                head.weight[own] = head.weight[unlikely].clone()
                if head.bias is not None:
                    head.bias[own] = head.bias[unlikely].clone()
    usage = [_usage(backbone, part, own) for part, own in zip(parts, ids, strict=True)]
    every = [number for own in ids for number in own]
    model.generation_config.suppress_tokens = sorted({*(model.generation_config.suppress_tokens or []), *every})
    with bars_on_terminals_only():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_usage(folder, selection, usage)


def write_delta(selection: Selection, folder: Path) -> None:
    """Writes the tokens and their rows alone, in the order in which they are to be added to the tokenizer.

    Raises:
        AttemptError: see `_prepared`.
    """
    import torch
    from safetensors.torch import save_file

    backbone, parts = _prepared(selection)
    ids = [_add(backbone.tokenizer, part) for part in parts]
    usage = [_usage(backbone, part, own) for part, own in zip(parts, ids, strict=True)]
    rows = torch.cat([part.rows for part in parts]).contiguous()
    save_file({"rows": rows}, folder / DELTA, {"format": "pt"})
    _write_usage(folder, selection, usage)


def _prepared(selection: Selection) -> tuple[FrozenBackbone, list[Tokens]]:
    """Loads a backbone of the export's own, which it may change, and makes the prompts' tokens.

    Raises:
        AttemptError: the backbone is another one now, its input embeddings are not its table's rows times a number, or
            a token of that name is there.
    """
    import torch

    from attempt_cli.backbones.load import load_backbone
    from attempt_cli.backbones.names import recorded_backbone

    session = selection.session
    name = recorded_backbone(selection.registry, selection.prompts[0])
    session.listener.note(f"loading {name} …")
    # in float32 the copy is exact; a session's own backbone serves other calls and stays as it is
    backbone = load_backbone(name, device="cpu", dtype=session.dtype or "float32")
    if backbone.fingerprint != selection.backbone.fingerprint:
        raise AttemptError(
            f"{name} is another model now ({backbone.fingerprint}) than the prompts' "
            f"({selection.backbone.fingerprint})",
            "Put the weights back that the prompts were trained for.",
        )
    table = backbone.model.get_input_embeddings().weight
    some = torch.arange(min(64, len(table)))
    entering, kept = backbone.embed(some).float(), table[some].float()
    scale = float((entering * kept).sum() / kept.square().sum())  # Gemma multiplies what it looks up
    if not torch.allclose(entering, kept * scale, rtol=1e-2, atol=1e-4):
        raise AttemptError(
            f"the input embeddings of {backbone.name} are not rows of its table", "Export to another format."
        )
    known = backbone.tokenizer.get_vocab()
    names = [prompt.name for prompt in selection.prompts]
    parts = []
    for prompt in selection.prompts:
        label = prompt.name if names.count(prompt.name) == 1 else prompt.ref
        tokens = tuple(f"<|{label}:{number}|>" for number in range(prompt.length))
        if taken := [token for token in tokens if token in known]:
            raise AttemptError(f"{backbone.name} has a token {taken[0]} already", "Export a copy under another name.")
        parts.append(Tokens(prompt, tokens, torch.from_numpy(selection.entering(prompt)) / scale))
    return backbone, parts


def _add(tokenizer: Any, part: Tokens) -> list[int]:
    """Adds a prompt's tokens to a tokenizer; returns their numbers."""
    from tokenizers import AddedToken

    # not special: a server that takes control tokens in a text as plain text still finds these
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in part.names])
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(part.names))
    return ids


def _unlikely(backbone: FrozenBackbone, parts: Sequence[Tokens], ids: Sequence[list[int]], known: int) -> int:
    """Returns the token, of the first `known`, whose largest logit beside the prompts is the smallest."""
    import torch

    (row,) = backbone.encode([PROBES[0]], None, 512)
    config, largest = backbone.model.config, []
    start = {"decoder_input_ids": torch.tensor([[config.decoder_start_token_id]])} if config.is_encoder_decoder else {}
    for part, own in zip(parts, ids, strict=True):
        read = [*row.input_ids, *own] if part.prompt.placement == "after" else [*own, *row.input_ids]
        with torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([read]), **start).logits[0, :, :known]
        largest.append(logits.float().amax(0))
    return int(torch.stack(largest).amax(0).argmin())


def _usage(backbone: FrozenBackbone, part: Tokens, ids: list[int]) -> dict[str, Any]:
    """Says how a text is to be written for its tokens to be those that the prompt was trained with.

    Raises:
        AttemptError: the tokenizer joins text and prompt in no way that gives them.
    """
    tokenizer, prompt, tokens = backbone.tokenizer, part.prompt, "".join(part.names)
    task = prompt.settings.get("task") or {}
    ways = [("{text}" + tokens, True)]
    if prompt.placement == "before":  # some tokenizers put a space of their own before a text, or a start token
        start = tokenizer.bos_token or ""
        ways = [(f"{tokens}{{text}}", True), (f"{tokens} {{text}}", True), (f"{tokens}{start}{{text}}", False)]
    frame = backbone.chat_frame if prompt.chat_template else None
    inputs = [row.input_ids for row in backbone.encode(PROBES, None, 512, around=((), ()) if frame else None)]
    wanted = [[*own, *ids] if prompt.placement == "after" else [*ids, *own] for own in inputs]
    if frame is not None:
        wanted = [[*frame.head, *own, *frame.tail] for own in wanted]
    for way, specials in ways:
        texts = [way.replace("{text}", probe) for probe in PROBES]
        if frame is not None:
            turns = [[{"role": "user", "content": text}] for text in texts]
            found = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        else:
            found = tokenizer(texts, add_special_tokens=specials)["input_ids"]
        if found == wanted:
            return {
                "prompt": prompt.ref,
                "task": prompt.task,
                "input": task.get("input"),
                "labels": task.get("labels"),
                "text": way,
                "in_the_user_s_turn": frame is not None,
                "add_special_tokens": specials,
                "tokens": list(part.names),
                "ids": ids,
            }
    raise AttemptError(
        f"the tokenizer of {backbone.name} cannot put '{prompt.ref}' {prompt.placement} a text as it was trained",
        "Export to another format.",
    )


def _write_usage(folder: Path, selection: Selection, usage: list[dict[str, Any]]) -> None:
    said = {"base_model": model_name(selection.backbone), "prompts": usage}
    (folder / USAGE).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
