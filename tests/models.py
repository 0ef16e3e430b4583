"""Tiny random language models, each saved with its own tokenizer: no network, the same numbers at every call.

The weights are drawn wide enough that logits differ by whole units: a greedy choice then never hangs on the last bit
of a float, and an error in a position or a mask shows in every score.

    folder = save_t5(tmp_path / "t5")
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.training.methods import METHODS

WEIGHT_METHODS = tuple(name for name, method in METHODS.items() if method.trains_weights)
WIDTH = 24
LAYERS = 2
LLAMA_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

# one token each after a space; everything else is spelt: " no" therefore begins " nothing", and "entailment" and
# "entailed" share a prefix of several tokens
WORDS = ("yes", "no", "good", "bad", "it", "is", "was", "the", "text", "label", "one", "two", "three", "four", "five")

# a template with a system turn of its own, which leaves out spaces at a text's ends
TURNS = (
    "{% if messages[0]['role'] != 'system' %}<s>system\nbe good<end>\n{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_level_tokenizer(*, start: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the merges of WORDS, as Llama 3 and GPT-2 have; the space belongs to the word.

    Args:
        start: a token put before every text (Llama); None for none (GPT-2).
    """
    pieces = ["<end>", "<pad>", *([start] if start else []), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "Ġ"  # a space, as byte-level vocabularies write it
        for letter in word:
            if (left, letter) not in merges:
                merges.append((left, letter))
                pieces.append(left + letter)
            left += letter
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = {"eos_token": "<end>", "pad_token": "<pad>"}
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, pieces.index(start))]
        )
        specials["bos_token"] = start
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def unigram_tokenizer(template: str = "$A </s>") -> PreTrainedTokenizerFast:
    """A SentencePiece-like unigram vocabulary, where every text begins with a space of the tokenizer's own.

    Args:
        template: what stands around a text: "$A </s>" in T5, "<s> $A" in Llama 2.
    """
    letters = sorted({chr(c) for c in range(33, 127)} - {"▁"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in letters] + [("▁" + word, -3.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1), ("<s>", 3)])
    specials = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def save_llama(folder: Path, *, sentencepiece: bool = False, **config: Any) -> Path:
    """A Llama of two layers (rotary positions, grouped key heads, untied output layer), in float32.

    Args:
        folder: where to.
        sentencepiece: the tokenizer of Llama 2 and Mistral rather than the byte-level one of Llama 3 and SmolLM2.
        config: further settings.
    """
    tokenizer = unigram_tokenizer("<s> $A") if sentencepiece else byte_level_tokenizer(start="<s>")
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        **LLAMA_SIZES,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return save(LlamaForCausalLM(LlamaConfig(**(settings | config))), tokenizer, folder)


def save_chat(folder: Path, template: str = TURNS, **options: Any) -> Path:
    """A Llama as `save_llama` makes it, whose tokenizer has a chat template."""
    save_llama(folder, **options)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def save_mistral(folder: Path, **config: Any) -> Path:
    """A Mistral of the same size: a Llama whose layers may have a `sliding_window`."""
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = byte_level_tokenizer(start="<s>")
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), **LLAMA_SIZES}
    return save(MistralForCausalLM(MistralConfig(**(settings | config))), tokenizer, folder)


def save_gpt2(folder: Path, **config: Any) -> Path:
    """A GPT-2 of two layers: positions are learned and absolute, input and output embeddings are one table."""
    tokenizer = byte_level_tokenizer(start=None)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return save(GPT2LMHeadModel(GPT2Config(**(settings | config))), tokenizer, folder)


def save_t5(folder: Path, *, tied: bool = True, **config: Any) -> Path:
    """A T5 of two and two layers.

    Args:
        folder: where to.
        tied: one table for input and output, and scaled decoder states (T5 1.0); else an output layer of its own and
            no scaling (T5 1.1, Flan-T5).
        config: further settings, e.g. `feed_forward_proj="gated-gelu"`.
    """
    tokenizer = unigram_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": LAYERS,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    made = T5Config(**(settings | config))
    # transformers 5 ties the layers whatever the constructor is told; only the attribute is believed
    made.tie_word_embeddings = tied
    made.scale_decoder_outputs = tied
    return save(T5ForConditionalGeneration(made), tokenizer, folder)


def save_gguf(file: Path, llama: Path) -> Path:
    """A Llama saved by `save_llama` (with its byte-level tokenizer) as one GGUF file in float32."""
    import gguf

    model: Any = LlamaForCausalLM.from_pretrained(llama)
    config = model.config
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(len(vocabulary))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        **{f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"},
        "self_attn.o_proj": "attn_output",
        **{f"mlp.{one}_proj": f"ffn_{one}" for one in ("gate", "up", "down")},
    }
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        layer = stem.removeprefix("model.layers.").split(".", 1) if stem.startswith("model.layers.") else None
        gguf_name = f"blk.{layer[0]}.{names[layer[1]]}" if layer else names[stem]
        if "attn_q" in gguf_name or "attn_k" in gguf_name:  # GGUF pairs the rotary halves otherwise
            heads = config.num_attention_heads if "attn_q" in gguf_name else config.num_key_value_heads
            rows, columns = weight.shape
            weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(f"{gguf_name}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


SAVERS: dict[str, Callable[..., Path]] = {"t5": save_t5, "llama": save_llama, "gpt2": save_gpt2}


def save(model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Draws a model's weights from a fixed seed and saves it with its tokenizer."""
    generator = torch.Generator().manual_seed(20220522)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # tied weights come once
            if weight.dim() == 1:  # gains of the norms about one, biases about nought
                centre = 0.0 if name.endswith("bias") else 1.0
                weight.copy_(centre + 0.1 * torch.randn(weight.shape, generator=generator))
            elif "relative_attention_bias" in name or "wpe" in name:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
            elif "embed" in name or "shared" in name or "wte" in name or "lm_head" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        if isinstance(model, T5ForConditionalGeneration):  # untied, it still reads with one table on both sides
            model.encoder.embed_tokens.weight.copy_(model.shared.weight)
            model.decoder.embed_tokens.weight.copy_(model.shared.weight)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


def tune(backbone: FrozenBackbone, method: str, seed: int) -> TunedWeights:
    """Puts what a weight method trains into the backbone."""
    tuned: TunedWeights = METHODS[method].builder()(backbone, seed)
    return tuned


def save_adapter(folder: Path) -> Path:
    """Puts a LoRA adapter of PEFT beside a saved Llama, whose numbers it changes much; returns the folder."""
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM.from_pretrained(folder)
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=1.0)
    adapted.save_pretrained(folder)
    return folder
