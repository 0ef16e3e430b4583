"""Loads a backbone from the hub, a folder or a GGUF file, onto the best device, in its fastest safe dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attempt_cli.backbones import names
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import chat_frame, no_chat
from attempt_cli.backbones.check import check_scores
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.device import choose_device, choose_dtype
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.gguf_files import unpacked_gguf
from attempt_cli.backbones.names import Place, find_backbone, install_hint
from attempt_cli.backbones.quantized import (
    check_quantization,
    check_unquantized,
    loading_options,
    originals,
    settle,
)
from attempt_cli.backbones.spread import TooLargeError, gpus, places
from attempt_cli.backbones.strangers import (
    ADAPTER,
    WITHOUT_ADAPTER,
    check_config,
    check_sizes,
    check_tokenizer,
    check_weights,
    in_folder,
    in_repository,
    raise_foreign,
    shapes_on_hub,
)
from attempt_cli.backbones.weight_sizes import check_memory
from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.byte_sizes import size_text
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.hub import why_the_hub_is_silent


def load_backbone(
    name: str, *, device: str | None = None, dtype: str | None = None, quantize: str | None = None
) -> FrozenBackbone:
    """Loads a frozen backbone.

    Args:
        name: an alias, a hub id, a folder or a GGUF file.
        device: "cuda", "mps", "cpu", …; the best available one by default. "auto": the layers over all GPUs.
        dtype: "bfloat16" or "float32"; by default bf16 where the processor is faster in it. Never fp16: T5 overflows.
        quantize: "nf4" or "int8": keeps the layers' matrices in 4 or 8 bits, with bitsandbytes.

    Raises:
        AttemptError: the name is unknown, the weights cannot be found or read, the device is not available or has too
            little memory, or it cannot quantise.
    """
    place = find_backbone(name)
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    check_quantization(quantize, where)
    backbone = load_from(place, where, kind, quantize, spread=device == "auto" and len(gpus()) > 1)
    if device == "auto" and not backbone.spread:
        why = "one GPU has room for them" if len(gpus()) > 1 else f"there is {'one' if gpus() else 'no'} GPU"
        backbone.notes += (f"--device auto: {why}, so all layers are on {backbone.device}.",)
    return backbone


def check_chat_template(name: str) -> None:
    """Refuses a backbone without a chat template before its weights are loaded.

    Raises:
        AttemptError: it is an encoder-decoder, or see `chat.chat_frame`. What else is wrong, its loading tells.
    """
    from transformers import AutoConfig, AutoTokenizer

    place = find_backbone(name)
    location, _, reading = location_of(place)
    try:
        config = AutoConfig.from_pretrained(location, **reading)
        tokenizer = AutoTokenizer.from_pretrained(location, **reading)
    except BaseException as error:  # damaged files make the readers raise many types of errors
        raise_foreign(error)
        return
    if config.is_encoder_decoder:
        raise no_chat(place.name)
    chat_frame(tokenizer, place.name)


@bars_on_terminals_only()
def load_from(
    place: Place, device: torch.device, dtype: torch.dtype, quantize: str | None = None, *, spread: bool = False
) -> FrozenBackbone:
    """Loads the weights of a place, with `spread` over all GPUs; see `load_backbone`."""
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        PreTrainedConfig,
        logging,
    )
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings: Any = logging
    settings.set_verbosity_error()  # no advice of the library between our own lines
    location, silence, reading = location_of(place)
    local = place.kind != "hub"
    try:
        raw, _ = PreTrainedConfig.get_config_dict(location, local_files_only=silence is not None)
        check_config(raw, CONFIG_MAPPING)
        for named in (raw, get_tokenizer_config(location, local_files_only=silence is not None)):
            check_tokenizer(named)
        find = in_folder(Path(location)) if local else in_repository(location, cached_only=silence is not None)
        announced = shapes_on_hub(location) if not local and silence is None else None
        shapes = announced or check_weights(find, raw)
        check_sizes(raw, shapes)
        check_unquantized(raw, quantize)
        config = AutoConfig.from_pretrained(location, **reading)
        # a config may name an attention, and with it code on the hub: the choice is ours
        config._attn_implementation = config._experts_implementation = None
        config.transformers_weights = None  # nor other files than those that were checked
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        # encoder-decoders keep this attention, and so do decoder-only models that our own does not fit. Measured on two
        # x86 cores: in bf16 the backward pass of scaled-dot-product attention is 1.2 to 1.3 times slower than plain
        # matrix products for rows of 70 to 220 tokens; in fp32 the two are equal
        tight = None
        if not raw.get("quantization_config"):  # of packed weights the shapes say little
            tight = check_memory(place.name, shapes, lambda: _skeleton(auto, config), device, dtype, quantize, spread)
        parts = places(place.name, _skeleton(auto, config), dtype, quantize) if spread else {"": device}
        if announced is not None:
            check_weights(find, raw)  # fetches them, now that they fit
        in_place = spread or quantize is not None  # through the host's memory otherwise
        eager = device.type == "cpu" and dtype == torch.bfloat16
        attention = {"attn_implementation": "eager"} if eager else {}
        loaded: Any = auto.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            **WITHOUT_ADAPTER,
            **attention,
            **({"device_map": parts} if in_place else {}),
            **loading_options(quantize, dtype),
            **reading,
        )
        model, report = loaded
        if report["missing_keys"]:  # the library would draw them at random
            raise AttemptError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        if not in_place:
            model.to(device)
        settle(model)
        tokenizer = AutoTokenizer.from_pretrained(location, **reading)
        check_tokens(tokenizer, int(model.get_input_embeddings().weight.shape[0]))
    except TooLargeError:
        raise
    except BaseException as error:  # damaged files make the readers raise many types of errors
        raise_foreign(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise _memory_error(place, device, dtype) from error
        raise _loading_error(place, error, silence) from error
    kind = EncoderDecoderBackbone if config.is_encoder_decoder else DecoderOnlyBackbone
    try:
        backbone = kind(model, tokenizer, name=place.name, source=place.source)
        if quantize is not None:
            backbone.quantization, backbone.originals = quantize, originals(model, find)
        check_scores(backbone)
    except AttemptError:
        raise
    except BaseException as error:  # settings of another type than the library means; it looks at few of them
        raise_foreign(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise _memory_error(place, device, dtype) from error
        raise _loading_error(place, error, silence) from error
    backbone.notes = (tight,) if tight else ()
    if find(ADAPTER) is not None:
        backbone.notes += (
            f"{place.name} is loaded without the adapter that lies beside its weights ({ADAPTER}). To use both as one "
            "model, merge the adapter first (`merge_and_unload` of PEFT) and save the result.",
        )
    return backbone


def _skeleton(auto: Any, config: Any) -> Any:
    """Returns the model of a config without memory for its weights."""
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def location_of(place: Place) -> tuple[str, str | None, dict[str, Any]]:
    """Returns what the library reads a place from, why the hub is silent where it is, and how it is to be read."""
    location = str(unpacked_gguf(Path(place.location))) if place.kind == "gguf" else place.location
    silence = why_the_hub_is_silent(location, "config.json") if place.kind == "hub" else None
    return location, silence, {"local_files_only": silence is not None, "trust_remote_code": False}


def check_tokens(tokenizer: Any, embeddings: int) -> None:
    """Refuses a tokenizer without an end token, or whose end token has no embedding.

    Raises:
        AttemptError: says which.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise AttemptError("its tokenizer has no end token")
    if end >= embeddings:
        raise AttemptError(f"its end token {tokenizer.eos_token!r} is number {end} of {embeddings} embeddings")


def _memory_error(place: Place, device: torch.device, dtype: torch.dtype) -> AttemptError:
    """Tells that the weights do not fit, and what they need, where files on this machine say so."""
    folder = Path(place.location)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    files = f" (its files take {size_text(size)})" if size else ""
    free = f", where {size_text(torch.cuda.mem_get_info(device)[0])} are free" if device.type == "cuda" else ""
    bf16 = "" if dtype == torch.bfloat16 else ", --dtype bfloat16, which takes half"
    return AttemptError(
        f"the backbone '{place.name}'{files} does not fit in the memory of {device}{free}",
        f"End other programs, or use a smaller backbone{bf16}, or --device cpu.",
    )


def _loading_error(place: Place, error: BaseException, silence: str | None) -> AttemptError:
    reason = silence or first_line(error)
    if place.kind != "hub":
        return AttemptError(
            f"the backbone at {place.location} cannot be loaded: {reason}",
            "The folder needs config.json, the weights as safetensors and the tokenizer's files.",
        )
    ready = [alias for alias in names.aliases() if find_backbone(alias).kind != "hub"]
    installs = [install_hint(place.name), *map(install_hint, names.aliases())]
    install = next((command for command in installs if command), None)
    at_once = f"`--backbone {ready[0]}` works at once, or " if ready else f"`{install}`, or " if install else ""
    return AttemptError(
        f"the backbone '{place.name}' is not on this machine and could not be loaded from the hub ({place.location}):"
        f" {reason}",
        f"Without a network: {at_once}give a local folder or a GGUF file with --backbone, or put it in "
        f"$ATTEMPT_MODELS/{place.name}.",
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
