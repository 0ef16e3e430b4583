"""The ways of others, each as its own users run it, and the bare frozen model as the limit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attempt_cli.backbones.decoder_only import cache_argument
from attempt_cli.backbones.gguf_files import unpacked_gguf
from attempt_cli.backbones.names import find_backbone
from attempt_cli.backbones.rows import EncodedRow
from benchmarks.harness import Contender
from benchmarks.rows import BATCH, bucketed_batches, padded, random_batches

# a peer runs in both, and its faster one counts: nobody has to use what is slow on their processor
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def fresh_model(name: str, device: torch.device, dtype: torch.dtype, attention: str | None = None) -> Any:
    """The backbone's weights as a plain transformers model, in evaluation mode.

    Args:
        name: an alias, a hub id, a folder or a GGUF file.
        attention: "eager" or "sdpa"; the library's own choice (sdpa) without it.
    """
    from transformers import AutoModelForCausalLM

    place = find_backbone(name)
    location = str(unpacked_gguf(Path(place.location))) if place.kind == "gguf" else place.location
    model: Any = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, attn_implementation=attention)
    return model.to(device).eval()


def peft_model(model: Any, length: int) -> Any:
    """PEFT's prompt tuning of m = `length` tokens around a plain model."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    return get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=length))


def peft_training(name: str, model: Any, rows: Sequence[EncodedRow], pad: int) -> Contender:
    """PEFT's usual step: a shuffled batch padded to its longest row, full logits, the model's own loss, AdamW.

    Args:
        model: of `peft_model`.
        rows: the epoch's rows; labels are -100 but at the target.
        pad: the id of the pad.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    device = trained[0].device

    def step(batch: Sequence[EncodedRow]) -> float:
        model.train()
        ids = [[*row.input_ids, *row.target_ids] for row in batch]
        labels = padded([[*[-100] * len(row.input_ids), *row.target_ids] for row in batch], -100)
        mask = padded([[1] * len(row) for row in ids], 0)
        loss = model(
            input_ids=padded(ids, pad).to(device), attention_mask=mask.to(device), labels=labels.to(device)
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value: float = loss.item()  # logged, as a trainer does
        return value

    return Contender(name, [partial(step, batch) for batch in random_batches(rows)], len(rows))


# the limit


def bare_training(
    name: str, model: Any, rows: Sequence[EncodedRow], length: int, placement: str, *, kept: bool = False
) -> Contender:
    """The frozen model alone: a forward, and a backward through activations to the embeddings.

    No prompt is looked up or updated; the vocabulary projection is taken at the targets only. Batches are ours.

    Args:
        model: a plain transformers model.
        length: how many positions stand beside a row's own, as a prompt would; 0 for the row alone.
        placement: "before": everything is passed through forward and backward; "after": the input forward only, and
            the positions behind it forward and backward.
        kept: the input's keys and values are there already ("after").
    """
    device = model.get_input_embeddings().weight.device
    batches = bucketed_batches(rows)
    stores: list[list[tuple[Tensor, Tensor]]] = []
    if kept:
        stores = [_read(model, batch, device) for batch in batches]
    generator = torch.Generator().manual_seed(0)
    table = model.get_input_embeddings()
    drawn = table(torch.randint(table.num_embeddings, (length,), generator=generator).to(device)).detach()

    def before(batch: Sequence[EncodedRow]) -> float:
        ids = padded([[*row.input_ids, *row.target_ids[:-1]] for row in batch], 0).to(device)
        leaf = torch.cat([drawn.expand(len(batch), -1, -1), table(ids)], dim=1).detach().requires_grad_()
        hidden = model.base_model(inputs_embeds=leaf, use_cache=False).last_hidden_state
        ends = torch.tensor([length + len(row.input_ids) - 1 for row in batch], device=device)
        loss = _target_loss(model, hidden, ends, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def after(number: int, batch: Sequence[EncodedRow]) -> float:
        from transformers import DynamicCache

        past = DynamicCache(stores[number] if kept else _read(model, batch, device))
        lengths = torch.tensor([len(row.input_ids) for row in batch], device=device)
        ids = padded([row.target_ids[:-1] for row in batch], 0).long().to(device)
        leaf = torch.cat([drawn.expand(len(batch), -1, -1), table(ids)], dim=1).detach().requires_grad_()
        width = leaf.shape[1]
        mask = padded([[1] * len(row.input_ids) for row in batch], 0).to(device)
        hidden = model.base_model(
            inputs_embeds=leaf,
            **{cache_argument(model): past},
            attention_mask=torch.cat([mask, mask.new_ones(len(batch), width)], dim=1),
            position_ids=lengths[:, None] + torch.arange(width, device=device),
        ).last_hidden_state
        ends = torch.full((len(batch),), length - 1, device=device)
        loss = _target_loss(model, hidden, ends, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    if placement == "before":
        steps = [partial(before, batch) for batch in batches]
    else:
        steps = [partial(after, number, batch) for number, batch in enumerate(batches)]
    return Contender(name, steps, len(rows))


def _read(model: Any, batch: Sequence[EncodedRow], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of a batch's inputs, layer by layer; pads on the right."""
    ids = padded([row.input_ids for row in batch], 0).to(device)
    with torch.no_grad():
        cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def _target_loss(model: Any, hidden: Tensor, ends: Tensor, batch: Sequence[EncodedRow]) -> Tensor:
    """The mean negative log-likelihood of the targets' tokens, the first predicted from `ends`."""
    rows = torch.tensor([i for i, row in enumerate(batch) for _ in row.target_ids], device=hidden.device)
    steps = torch.tensor([k for row in batch for k in range(len(row.target_ids))], device=hidden.device)
    tokens = torch.tensor([token for row in batch for token in row.target_ids], device=hidden.device)
    logits = model.get_output_embeddings()(hidden[rows, ends[rows] + steps])
    return functional.cross_entropy(logits.float(), tokens)


# evaluation


def harness_scoring(
    name: str, model: Any, rows: Sequence[EncodedRow], labels: Sequence[Sequence[int]], pad: int, *, share: bool
) -> Contender:
    """lm-evaluation-harness' way: requests sorted by length, longest first, full logits, log-softmax over all of them.

    Args:
        model: of `peft_model`, or a plain one.
        labels: tokens of each label word; a request is a row with one of them.
        share: one request for all words of one token, as its logits cache does; else one a word.
    """
    requests: list[tuple[list[int], list[Sequence[int]]]] = []
    for row in rows:
        if share and all(len(word) == 1 for word in labels):
            requests.append((row.input_ids, list(labels)))
        else:
            requests += [([*row.input_ids, *word[:-1]], [word]) for word in labels]
    requests.sort(key=lambda request: (-len(request[0]), request[0]))
    device = model.get_input_embeddings().weight.device

    @torch.inference_mode()
    def step(batch: Sequence[tuple[list[int], list[Sequence[int]]]]) -> list[float]:
        found = []
        ids = padded([ids for ids, _ in batch], pad)
        mask = padded([[1] * len(ids) for ids, _ in batch], 0)
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        scores = functional.log_softmax(logits, dim=-1)
        for row, (real, words) in zip(scores, batch, strict=True):
            end = len(row) - ids.shape[1] + len(real)  # a prompt's own positions come first
            for word in words:
                tokens = torch.tensor(word, device=device)
                found.append(row[end - len(word) : end].gather(1, tokens[:, None]).sum().item())
        return found

    batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
    return Contender(name, [partial(step, batch) for batch in batches], len(rows))


def generate_scoring(name: str, model: Any, rows: Sequence[EncodedRow], pad: int, tokens: int = 4) -> Contender:
    """The library's `generate` of a few tokens, rows sorted by length, pads on the left, for an answer as text.

    Args:
        model: of `peft_model`, or a plain one.
        tokens: how many are generated at the most.
    """
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    device = model.get_input_embeddings().weight.device

    @torch.inference_mode()
    def step(batch: Sequence[EncodedRow]) -> None:
        ids = [row.input_ids for row in batch]
        mask = padded([[1] * len(row) for row in ids], 0, left=True).to(device)
        model.generate(
            input_ids=padded(ids, pad, left=True).to(device),
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=pad,
        ).tolist()

    batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
    return Contender(name, [partial(step, batch) for batch in batches], len(rows))


def pass_per_task(
    name: str, models: Sequence[Any], batches: Sequence[Sequence[EncodedRow]], pad: int, labels: Sequence[Sequence[int]]
) -> Contender:
    """Every batch once through a PEFT model for every task, the rows' label words read off the full logits.

    Args:
        models: of `peft_model`, one a task.
    """
    firsts = torch.tensor([word[0] for word in labels])

    @torch.inference_mode()
    def step(batch: Sequence[EncodedRow]) -> None:
        ids = padded([row.input_ids for row in batch], pad)
        mask = padded([[1] * len(row.input_ids) for row in batch], 0)
        for model in models:
            device = model.get_input_embeddings().weight.device
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            ends = [len(row.input_ids) - ids.shape[1] - 1 for row in batch]
            logits[range(len(batch)), ends][:, firsts].log_softmax(-1).tolist()

    return Contender(name, [partial(step, batch) for batch in batches], sum(map(len, batches)))
