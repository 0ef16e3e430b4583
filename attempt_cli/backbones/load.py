"""Loads a backbone from the hub, a folder or a GGUF file, onto the best device, in its fastest safe dtype."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones import names
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import chat_frame, no_chat
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone, windows_of
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.machine import cache_folder
from attempt_cli.backbones.names import Place, find_backbone, install_hint
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.backbones.strangers import (
    ADAPTER,
    check_config,
    check_gguf,
    check_tokenizer,
    check_weights,
    in_folder,
    in_repository,
)
from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.byte_sizes import size_text
from attempt_cli.checked_files import remove_stale_partials
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


# The library loads a PEFT adapter that lies beside the weights without a word, if PEFT is installed, and may fetch its
# base model instead. No folder has this name, so that it finds none.
WITHOUT_ADAPTER: dict[str, Any] = {"adapter_kwargs": {"subfolder": "no-adapter"}}


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
        _raise_foreign(error)
        return
    if config.is_encoder_decoder:
        raise no_chat(place.name)
    chat_frame(tokenizer, place.name)


@bars_on_terminals_only()
def load_from(place: Place, device: torch.device, dtype: torch.dtype) -> FrozenBackbone:
    """Loads the weights of a place; see `load_backbone`."""
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
        check_weights(find, raw)
        config = AutoConfig.from_pretrained(location, **reading)
        # a config may name an attention, and with it code on the hub: the choice is ours
        config._attn_implementation = config._experts_implementation = None
        config.transformers_weights = None  # nor other files than those that were checked
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        # encoder-decoders keep this attention, and so do decoder-only models that our own does not fit. Measured on two
        # x86 cores: in bf16 the backward pass of scaled-dot-product attention is 1.2 to 1.3 times slower than plain
        # matrix products for rows of 70 to 220 tokens; in fp32 the two are equal
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
            **reading,
        )
        model, report = loaded
        if report["missing_keys"]:  # the library would draw them at random
            raise AttemptError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(location, **reading)
        check_tokens(tokenizer, int(model.get_input_embeddings().weight.shape[0]))
    except BaseException as error:  # damaged files make the readers raise many types of errors
        _raise_foreign(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise _memory_error(place, device, dtype) from error
        raise _loading_error(place, error, silence) from error
    kind = EncoderDecoderBackbone if config.is_encoder_decoder else DecoderOnlyBackbone
    try:
        backbone = kind(model, tokenizer, name=place.name, source=place.source)
        check_scores(backbone)
    except AttemptError:
        raise
    except BaseException as error:  # settings of another type than the library means; it looks at few of them
        _raise_foreign(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise _memory_error(place, device, dtype) from error
        raise _loading_error(place, error, silence) from error
    if find(ADAPTER) is not None:
        backbone.notes = (
            f"{place.name} is loaded without the adapter that lies beside its weights ({ADAPTER}). To use both as one "
            "model, merge the adapter first (`merge_and_unload` of PEFT) and save the result.",
        )
    return backbone


def _raise_foreign(error: BaseException) -> None:
    """Raises again what is not about a file: Ctrl-C and the like. A panic of the tokenizers' Rust code is about one."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def location_of(place: Place) -> tuple[str, str | None, dict[str, Any]]:
    """Returns what the library reads a place from, why the hub is silent where it is, and how it is to be read."""
    location = str(_unpacked_gguf(Path(place.location))) if place.kind == "gguf" else place.location
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


def choose_device(device: str | None) -> torch.device:
    """Returns the named device, else the first available of cuda, mps and cpu.

    Of several processes on this machine (`LOCAL_RANK`) each has a GPU of its own, as far as there are enough.
    """
    if device in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if device is None:
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


@torch.enable_grad()
def check_scores(backbone: FrozenBackbone) -> None:
    """Checks on a few rows that our scores are the model's own log-likelihoods, and that prompts get a gradient.

    Words of several tokens, as targets in a padded batch and as label words in one pass, are compared with plain
    forward passes; where the config names a window, also on a row that is longer. Some architectures scale or cap their
    logits after the head, look ahead, or read masks and positions in their own way. An architecture whose scores differ
    is refused: no answer is better than a wrong one.

    Raises:
        AttemptError: the scores differ, or a prompt gets no gradient.
    """
    check_gradients(backbone)
    words = [backbone.target_tokens(text, end=True) for text in ("five six", "seven")]
    inputs = [row.input_ids for row in backbone.encode(["one two three", "four five"], None, 8)]
    short = len(inputs)
    longest = _row_beyond_windows(backbone, max(map(len, words)))
    if longest:
        text = "one two three four five six seven eight nine ten " * longest
        inputs.append(backbone.encode([text], None, longest)[0].input_ids)
    with torch.no_grad():
        truth = _plain_scores(backbone, inputs, words)
    if isinstance(backbone, DecoderOnlyBackbone):
        if "position_ids" not in signature(backbone.model.base_model.forward).parameters:
            raise _foreign(backbone, "does not follow our masks and positions")  # MPT drops them without a word
        for layers in (True, False):
            try:
                backbone.use_own_attention(True, layers=layers)
            except _FOREIGN_ARCHITECTURE:
                break
            if _problem(backbone, truth) is None and _reads_once(backbone, truth, short):
                return
        backbone.use_own_attention(False)
    problem = _problem(backbone, truth)
    if problem is not None:
        raise _foreign(backbone, problem)


def check_gradients(backbone: FrozenBackbone) -> None:
    """Checks that gradients pass through quantised products: some of their kernels have no backward pass.

    The residual stream would still bring a prompt a gradient, and a training would look like one. One module of each
    kind is asked: it is linear, so that gradient · x is what x changes.

    Raises:
        AttemptError: a gradient does not pass, or is wrong.
    """
    kinds = {
        type(module): module
        for module in backbone.model.modules()
        if isinstance(getattr(module, "in_features", None), int) and _is_quantised(module)
    }
    for kind, module in kinds.items():
        x = torch.randn(4, module.in_features, generator=torch.Generator().manual_seed(0))
        x = x.to(backbone.device, backbone.dtype).requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(module(x).float().sum(), x)
            with torch.no_grad():
                change = (module(x).float() - module(torch.zeros_like(x)).float()).sum(1)
            passes = bool(((gradient * x).float().sum(1) - change).norm() <= 0.1 * change.norm() + 1e-6)
        except (RuntimeError, NotImplementedError, TypeError):  # a kernel without a backward pass
            passes = False
        if not passes:
            raise AttemptError(
                f"the weights of {backbone.name} are quantised ({kind.__name__}), and no gradient passes through them",
                "Prompts cannot be trained on it: use the checkpoint that it was made from.",
            )


def _is_quantised(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and type(weight) in (Tensor, torch.nn.Parameter) and weight.is_floating_point()
    return not (plain and type(module) is torch.nn.Linear)


def _foreign(backbone: FrozenBackbone, problem: str) -> AttemptError:
    return AttemptError(
        f"the architecture {backbone.model.config.model_type} {problem}", "Use a backbone of the T5 or Llama families."
    )


def _row_beyond_windows(backbone: FrozenBackbone, word: int) -> int:
    """Returns how many input tokens are more than the model's windows hold; 0 if it has none that a row can exceed."""
    windows = [window for window in windows_of(backbone.model.config) if window <= LONGEST_CHECKED]
    positions = backbone.max_positions or 2 * LONGEST_CHECKED
    return min(max(windows) + 16, positions - word - 1) if windows else 0


# Tokens. Behind longer windows label words are scored one by one, which is the plain way: no row needs to prove it.
LONGEST_CHECKED = 600


@dataclass(frozen=True)
class _Truth:
    """What the model's own forward passes say.

    Args:
        inputs: tokens of each of r rows.
        words: tokens of each of c words.
        scores: log p of every word behind every row, [r, c], float32.
        logit: the largest absolute logit of a word's token.
    """

    inputs: list[list[int]]
    words: list[list[int]]
    scores: Tensor
    logit: float

    def with_targets(self, targets: Tensor) -> Tensor:
        """Returns the scores of the first rows, with ours at each row's target: the words in turn."""
        ours = self.scores[: len(targets)].clone()
        rows = torch.arange(len(targets), device=ours.device)
        ours[rows, rows % len(self.words)] = targets.detach().float()
        return ours

    def agrees(self, backbone: FrozenBackbone, ours: Tensor, rows: slice | int) -> bool:
        """Tells whether our scores of all words, [.., c], are those of the rows, as far as the dtype can tell.

        What counts is how far apart different rows score: in a model whose weights are near zero all is alike, and a
        difference of a fixed size would hide any mistake.
        """
        spread = float((self.scores.amax(0) - self.scores.amin(0)).max())
        # fp32 differs in the order of sums alone; in bf16 the plain pass rounds every logit
        relative, steps = (2e-3, 100.0) if backbone.dtype == torch.float32 else (0.02, 1.0)
        rounding = steps * torch.finfo(backbone.dtype).eps * self.logit * max(map(len, self.words))
        bound = relative * spread + rounding + 1e-4
        return bool((ours.float() - self.scores[rows]).abs().max() <= bound)


def _problem(backbone: FrozenBackbone, truth: _Truth) -> str | None:
    """Compares our scores with the plain ones, and takes a prompt's gradient; returns None if nothing is wrong.

    A row's first token, as its prompt, changes nothing in its score.
    """
    rows = [EncodedRow(ids, truth.words[i % len(truth.words)]) for i, ids in enumerate(truth.inputs)]
    behind = backbone.collate([EncodedRow(row.input_ids[1:] or row.input_ids, row.target_ids) for row in rows])
    whole = backbone.collate(rows)
    try:
        prompts = backbone.embed(whole.input_ids[:, :1]).detach().requires_grad_()
        targets = backbone.target_log_likelihood(behind, backbone.embed(behind.input_ids), prompts)
        (gradient,) = torch.autograd.grad(targets.sum(), prompts)
        with torch.no_grad():
            labels = backbone.label_log_likelihoods(whole, backbone.embed(whole.input_ids), None, truth.words)
    except _FOREIGN_ARCHITECTURE as error:
        return f"does not take our masks and positions: {first_line(error)}"
    if not truth.agrees(backbone, truth.with_targets(targets), slice(None)):
        return "changes its logits after the output layer, or looks ahead"
    if not truth.agrees(backbone, labels, slice(None)):
        return "does not follow our masks and positions"
    return None if bool(gradient.isfinite().all()) and bool(gradient.any()) else "gives a prompt no gradient"


def _reads_once(backbone: FrozenBackbone, truth: _Truth, short: int) -> bool:
    """Tells whether scores stay the same when a row's last token, as a prompt, reads the keys and values of the rest.

    Args:
        short: the number of rows that no window cuts; a row that is longer is not read in parts.
    """
    inputs = truth.inputs[:short]
    rest = [EncodedRow(ids[:-1] or ids, truth.words[i % len(truth.words)]) for i, ids in enumerate(inputs)]
    try:
        batch = backbone.collate(rest)
        embeddings = backbone.embed(batch.input_ids)
        past = backbone.read(rest)
        ends = torch.tensor([ids[-1:] for ids in inputs], device=backbone.device)
        prompts = backbone.embed(ends).detach().requires_grad_()
        targets = backbone.target_log_likelihood(batch, embeddings, prompts, past)
        (gradient,) = torch.autograd.grad(targets.sum(), prompts)
        with torch.no_grad():
            labels = backbone.label_log_likelihoods(batch, embeddings, prompts, truth.words, past)
    except (*_FOREIGN_ARCHITECTURE, AttemptError):  # the latter: a window shorter than these rows
        return False
    agree = all(truth.agrees(backbone, ours, slice(short)) for ours in (truth.with_targets(targets), labels))
    return agree and bool(gradient.isfinite().all())


_FOREIGN_ARCHITECTURE = (TypeError, ValueError, IndexError, AttributeError, RuntimeError, AssertionError, KeyError)


def _plain_scores(backbone: FrozenBackbone, inputs: list[list[int]], words: list[list[int]]) -> _Truth:
    """Scores all words behind each row by forward passes without a mask, as the library computes them."""
    longest = max(map(len, words))
    targets = torch.tensor([word + [backbone.pad_id] * (longest - len(word)) for word in words], device=backbone.device)
    real = torch.tensor([[step < len(word) for step in range(longest)] for word in words], device=backbone.device)
    scores, logit = [], 0.0
    for ids in inputs:
        row = torch.tensor([ids], device=backbone.device).expand(len(words), -1)
        if backbone.architecture == "encoder-decoder":
            logits = backbone.model(input_ids=row, labels=targets).logits
        else:
            logits = backbone.model(input_ids=torch.cat([row, targets], dim=1)).logits[:, len(ids) - 1 : -1]
        own = logits.gather(2, targets[..., None])[..., 0]
        scores.append(((own.float() - logits.float().logsumexp(-1)) * real).sum(1))
        logit = max(logit, float((own * real).abs().max()))
    return _Truth(inputs, words, torch.stack(scores), logit)


def _unpacked_gguf(file: Path) -> Path:
    """Returns a bf16 safetensors copy of a GGUF file in the cache, written at the first load: later loads are fast.

    A copy that was changed since, or is not whole, is written again.

    Raises:
        AttemptError: the file cannot be read, or the copy cannot be written.
    """
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    cache = cache_folder() / "gguf"
    folder = cache / f"{file.stem}-{key}"
    if _is_whole(folder):
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    remove_stale_partials(cache)
    partial = cache / f"{folder.name}.{os.getpid()}.partial"
    try:
        check_gguf(file)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            **WITHOUT_ADAPTER,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    except BaseException as error:  # a damaged file makes the reader raise many types of errors
        _raise_foreign(error)
        raise AttemptError(
            f"the GGUF file {file} cannot be read: {first_line(error)}",
            "Download it again, or name a folder or a hub id.",
        ) from error
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for written in partial.iterdir():
            with written.open("rb+") as opened:
                os.fsync(opened.fileno())
        (partial / WHOLE).write_text(json.dumps(_sizes_and_times(partial)), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:  # of the disk, told by several libraries
        if not _is_whole(folder):  # otherwise another process was faster, and its copy is used
            raise AttemptError(
                f"the weights of {file} cannot be unpacked into {cache}: {first_line(error)}",
                "Free some space, or name another folder in $ATTEMPT_CACHE, then run the command again.",
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


WHOLE = "unpacked.json"  # of an unpacked GGUF file: the sizes and times of the files beside it


def _sizes_and_times(folder: Path) -> dict[str, list[int]]:
    stats = {file.name: file.stat() for file in folder.iterdir() if file.name != WHOLE}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / WHOLE).read_text("utf-8")) == _sizes_and_times(folder))
    except (OSError, ValueError, RecursionError):
        return False


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
