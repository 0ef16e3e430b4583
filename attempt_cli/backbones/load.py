"""Loads a backbone from the hub, a folder or a GGUF file, onto the best device, in its fastest safe dtype."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.machine import cache_folder
from attempt_cli.backbones.names import Place, find_backbone, install_hint
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.hub import why_the_hub_is_silent

DTYPES = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float32": torch.float32, "fp32": torch.float32}


def load_backbone(name: str, *, device: str | None = None, dtype: str | None = None) -> FrozenBackbone:
    """Loads a frozen backbone.

    Args:
        name: an alias, a hub id, a folder or a GGUF file.
        device: "cuda", "mps", "cpu", …; the best available one by default.
        dtype: "bfloat16" or "float32"; by default bf16 if the processor computes in it. Never fp16: T5 overflows in it.

    Raises:
        AttemptError: the name is unknown, the weights cannot be found or read, or the device is not available.
    """
    place = find_backbone(name)
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    return load_from(place, where, kind)


@bars_on_terminals_only()
def load_from(place: Place, device: torch.device, dtype: torch.dtype) -> FrozenBackbone:
    """Loads the weights of a place; see `load_backbone`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, logging

    settings: Any = logging
    settings.set_verbosity_error()  # no advice of the library between our own lines
    location = str(_unpacked_gguf(Path(place.location))) if place.kind == "gguf" else place.location
    silence = why_the_hub_is_silent(location, "config.json") if place.kind == "hub" else None
    only_cached = {"local_files_only": silence is not None}
    try:
        config = AutoConfig.from_pretrained(location, **only_cached)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        # encoder-decoders keep this attention, and so do decoder-only models that our own does not fit. Measured on two
        # x86 cores: in bf16 the backward pass of scaled-dot-product attention is 1.2 to 1.3 times slower than plain
        # matrix products for rows of 70 to 220 tokens; in fp32 the two are equal
        eager = device.type == "cpu" and dtype == torch.bfloat16
        attention = {"attn_implementation": "eager"} if eager else {}
        loaded: Any = auto.from_pretrained(location, dtype=dtype, output_loading_info=True, **attention, **only_cached)
        model, report = loaded
        if report["missing_keys"]:  # the library would draw them at random
            raise AttemptError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(location, **only_cached)
        if tokenizer.eos_token_id is None:
            raise AttemptError("its tokenizer has no end token")
    except Exception as error:  # damaged files make the readers raise many types of errors
        raise _loading_error(place, error, silence) from error
    kind = EncoderDecoderBackbone if config.is_encoder_decoder else DecoderOnlyBackbone
    source = place.location if place.kind == "hub" else str(Path(place.location).resolve())
    backbone = kind(model, tokenizer, name=place.name, source=source)
    check_projection(backbone)
    return backbone


def choose_device(device: str | None) -> torch.device:
    """Returns the named device, else the first available of cuda, mps and cpu; under a launcher, the process's GPU."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        raise AttemptError(
            f"the device '{device}' is not available", "Use --device cuda, mps or cpu, or leave it out."
        ) from error
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """Returns the named dtype, else bf16 if the processor computes in it natively, else fp32."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise AttemptError(f"no dtype named '{dtype}'", "Use bfloat16 or float32 (T5 overflows in float16).")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.float32


def check_projection(backbone: FrozenBackbone) -> None:
    """Checks on a few tokens that our scores are the model's own log-likelihoods.

    Two targets, in a padded batch and as label words in one pass, are compared with plain forward passes. Some
    architectures scale or cap their logits after the head, look ahead, or read masks and positions in their own way. An
    architecture whose scores differ is refused: no answer is better than a wrong one.

    Raises:
        AttemptError: the scores differ.
    """
    inputs = [row.input_ids for row in backbone.encode(["one two three", "four"], None, 8)]
    targets = [backbone.target_tokens(text, end=True) for text in ("five six", "seven")]
    rows = [EncodedRow(ids, target) for ids, target in zip(inputs, targets, strict=True)]
    with torch.no_grad():
        theirs = torch.stack([_plain_log_likelihood(backbone, row) for row in rows])
        if isinstance(backbone, DecoderOnlyBackbone):
            for layers in (True, False):
                backbone.use_own_attention(True, layers=layers)
                if _differences(backbone, rows, theirs) is None and _reads_once(backbone, rows, theirs):
                    return
            backbone.use_own_attention(False)
        problem = _differences(backbone, rows, theirs)
    if problem is not None:
        raise AttemptError(
            f"the architecture {backbone.model.config.model_type} {problem}",
            "Use a backbone of the T5 or Llama families.",
        )


def _differences(backbone: FrozenBackbone, rows: list[EncodedRow], theirs: torch.Tensor) -> str | None:
    """Compares our scores of the rows' targets with those of plain forward passes; returns None if they agree."""
    batch = backbone.collate(rows)
    embeddings = backbone.embed(batch.input_ids)
    targets = [row.target_ids for row in rows]
    try:
        ours = backbone.target_log_likelihood(batch, embeddings, None)
        labels = backbone.label_log_likelihoods(batch, embeddings, None, targets).diagonal()
    except _FOREIGN_ARCHITECTURE as error:
        return f"does not take our masks and positions: {error}"
    if not _close(backbone, ours, theirs):
        return "changes its logits after the output layer, or looks ahead"
    return None if _close(backbone, labels, theirs) else "does not follow our masks and positions"


def _reads_once(backbone: FrozenBackbone, rows: list[EncodedRow], theirs: torch.Tensor) -> bool:
    """Tells whether scores stay the same when a row's end, as a prompt, reads the keys and values of the rest."""
    longer = [row for row in rows if len(row.input_ids) > 1]
    try:
        for row in longer:
            cut = len(row.input_ids) - 1
            rest = [EncodedRow(row.input_ids[:cut], row.target_ids), EncodedRow(row.input_ids[:1], row.target_ids)]
            batch = backbone.collate(rest)  # the second row only pads the first
            prompts = backbone.embed(torch.tensor([row.input_ids[cut:]] * 2, device=backbone.device))
            ours = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts, backbone.read(rest))
            if not _close(backbone, ours[:1], theirs[rows.index(row)][None]):
                return False
    except _FOREIGN_ARCHITECTURE:
        return False
    return bool(longer)


_FOREIGN_ARCHITECTURE = (TypeError, ValueError, IndexError, AttributeError, RuntimeError, AssertionError)


def _close(backbone: FrozenBackbone, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    # fp32 differs in the order of sums alone; in bf16 a log-likelihood near -50 is accurate to a few tenths
    relative, absolute = (0.002, 0.005) if backbone.dtype == torch.float32 else (0.02, 0.2)
    return torch.allclose(ours, theirs, rtol=relative, atol=absolute)


def _plain_log_likelihood(backbone: FrozenBackbone, row: EncodedRow) -> torch.Tensor:
    """Returns log p of a row's target by the model's own forward pass, a scalar."""
    ids = torch.tensor([row.input_ids], device=backbone.device)
    target = torch.tensor([row.target_ids], device=backbone.device)
    if backbone.architecture == "encoder-decoder":
        logits = backbone.model(input_ids=ids, labels=target).logits[0]
    else:
        logits = backbone.model(input_ids=torch.cat([ids, target], dim=1)).logits[0, ids.shape[1] - 1 : -1]
    score: torch.Tensor = logits.float().log_softmax(-1).gather(1, target[0][:, None]).sum()
    return score


def _unpacked_gguf(file: Path) -> Path:
    """Returns a bf16 safetensors copy of a GGUF file in the cache, written at the first load: later loads are fast."""
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    cache = cache_folder() / "gguf"
    folder = cache / f"{file.stem}-{key}"
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = cache / f"{folder.name}.{os.getpid()}.partial"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # a damaged file makes the reader raise many types of errors
        raise AttemptError(
            f"the GGUF file {file} cannot be read: {error}", "Download it again, or name a folder or a hub id."
        ) from error
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # otherwise another process was faster, and its copy is used
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _loading_error(place: Place, error: Exception, silence: str | None) -> AttemptError:
    reason = silence or first_line(error)
    if place.kind != "hub":
        return AttemptError(
            f"the backbone at {place.location} cannot be loaded: {reason}",
            "The folder needs config.json, the weights as safetensors and the tokenizer's files.",
        )
    install = install_hint(place.name)
    ways = "give a local folder or a GGUF file with --backbone, or put it in $ATTEMPT_MODELS"
    return AttemptError(
        f"the backbone '{place.name}' is not on this machine and could not be loaded from the hub ({place.location}):"
        f" {reason}",
        f"Without a network: {f'`{install}`, ' if install else ''}{ways}/{place.name}.",
    )


def describe(backbone: FrozenBackbone) -> dict[str, Any]:
    """Returns what a registry records of a backbone."""
    return {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "architecture": backbone.architecture,
        "width": backbone.width,
        "embedding_rms": backbone.embedding_rms,
        "parameters": backbone.parameter_count,
        "source": backbone.source,
    }
