"""One face for every frozen language model."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attempt_cli.errors import AttemptError

# When a row is too long, its middle goes. At least so many of its last tokens stay: they are the template's cue
# ("sentiment:"), without which the model does not know what is asked.
CUE_TOKENS = 16


@dataclass(frozen=True)
class EncodedRow:
    """A row's tokens, made once.

    Args:
        input_ids: the input's tokens, at least one.
        target_ids: the target's tokens; empty where a row is only to be predicted.
        truncated: how many input tokens did not fit.
    """

    input_ids: list[int]
    target_ids: list[int]
    truncated: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows side by side, padded on the right.

    Args:
        input_ids: [b, l].
        input_lengths: real tokens of each input, [b].
        target_ids: [b, c].
        target_lengths: real tokens of each target, [b].
    """

    input_ids: Tensor
    input_lengths: Tensor
    target_ids: Tensor
    target_lengths: Tensor

    @property
    def input_mask(self) -> Tensor:
        """True at real input tokens, [b, l]."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < self.input_lengths[:, None]


class FrozenBackbone(ABC):
    """A language model whose weights never change, seen through embeddings and log-likelihoods.

    Args:
        model: the transformers model; put in evaluation mode, its parameters get no gradient.
        tokenizer: its tokenizer.
        name: the name under which prompts are bound to it (an alias, a hub id, a folder's name).
        source: where its weights came from.
    """

    architecture: str

    def __init__(self, model: Any, tokenizer: Any, *, name: str, source: str) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self._embedding: Any = self.model.get_input_embeddings()
        self._head: Any = self.model.get_output_embeddings()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.end_id: int = tokenizer.eos_token_id
        self._forget_generation_habits()

    # identity

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.dtype

    @property
    def width(self) -> int:
        """d, the width of an embedding."""
        return int(self._table.shape[1])

    @property
    def vocabulary_size(self) -> int:
        """The number of embeddings."""
        return int(self._table.shape[0])

    @property
    def _table(self) -> Tensor:
        table: Tensor = self._embedding.weight
        return table

    @property
    def parameter_count(self) -> int:
        """The number of frozen weights."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def embedding_rms(self) -> float:
        """The root mean square of an entry of the embeddings as they enter the first layer."""
        ids = torch.arange(self._table.shape[0], device=self.device)
        squares = sum(float(self.embed(part).float().square().sum()) for part in torch.split(ids, 8192))
        return math.sqrt(squares / self._table.numel())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two backbones share only if a prompt of one means the same to the other.

        Hashed are the architecture, the layers' number, the embedding table and a few entries of every other weight
        (a model fine-tuned with its embeddings frozen is another model), in bf16, so that the same checkpoint has one
        fingerprint whatever dtype it is loaded in.
        """
        config = self.model.config
        layers = getattr(config, "num_hidden_layers", None)
        digest = hashlib.sha256(f"{config.model_type} {layers} {list(self._table.shape)}".encode())
        digest.update(_bf16_bytes(self._table))
        for name, weight in sorted(self.model.named_parameters()):
            flat = weight.detach().flatten()
            digest.update(name.encode() + _bf16_bytes(flat[:: max(1, len(flat) // 16)]))
        return digest.hexdigest()[:16]

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """How many positions the model can see, prompt and target included; None where there is no bound."""

    # tokens

    def encode(
        self,
        inputs: Sequence[str],
        targets: Sequence[Sequence[int]] | None,
        max_length: int,
        tails: Sequence[str] | None = None,
    ) -> list[EncodedRow]:
        """Tokenises inputs and joins each with its target's tokens; long inputs lose their middle, targets nothing.

        Args:
            inputs: the rows' input texts.
            targets: tokens of each row's target (`target_tokens`), or None.
            max_length: the largest number of input tokens.
            tails: the end of each input that a cut must leave whole (the question behind a passage); of a tail that
                takes more than three quarters of the limit, its end.
        """
        encoded: list[list[int]] = self.tokenizer(list(inputs))["input_ids"] if inputs else []
        rows = []
        for number, ids in enumerate(encoded):
            cut = max(0, len(ids) - max_length)
            if cut:
                tail = min(CUE_TOKENS, max_length // 4)
                if tails is not None:
                    tail = min(max(tail, len(self.tokenizer(tails[number])["input_ids"])), max_length * 3 // 4)
                ids = ids[: max_length - tail] + ids[len(ids) - tail :]
            # an empty input still needs one position from which the target is predicted
            rows.append(EncodedRow(ids or [self.end_id], list(targets[number]) if targets else [], cut))
        return rows

    @abstractmethod
    def target_tokens(self, text: str, *, end: bool) -> list[int]:
        """The tokens of a target as the model would go on to write it.

        Args:
            text: the target.
            end: whether an end token closes it (free text); encoder-decoders always close.
        """

    def label_tokens(self, words: Sequence[str]) -> list[list[int]]:
        """The tokens of label words; closed by an end token where one word's tokens begin another's.

        Raises:
            AttemptError: two words are the same tokens (a vocabulary without their letters): one would always win.
        """
        plain = [self.target_tokens(word, end=False) for word in words]
        for i, word in enumerate(words):
            if not plain[i] or plain[i] in plain[:i]:
                other = f" as '{words[plain.index(plain[i])]}'" if plain[i] else ": none"
                raise AttemptError(
                    f"the label word '{word}' has the same tokens in {self.name}{other}",
                    "Choose other label words: --labels 'value=word,value=word', or `labels` in the task's YAML.",
                )
        if any(a != b and b[: len(a)] == a for a in plain for b in plain):
            return [self.target_tokens(word, end=True) for word in words]
        return plain

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        """Puts rows side by side on the backbone's device."""

        def padded(sequences: list[list[int]]) -> Tensor:
            longest = max(map(len, sequences))
            return torch.tensor([ids + [self.pad_id] * (longest - len(ids)) for ids in sequences], dtype=torch.long)

        inputs, targets = [row.input_ids for row in rows], [row.target_ids for row in rows]
        return Batch(
            padded(inputs).to(self.device),
            torch.tensor([len(ids) for ids in inputs]).to(self.device),
            padded(targets).to(self.device),
            torch.tensor([len(ids) for ids in targets]).to(self.device),
        )

    # the model

    def embed(self, ids: Tensor) -> Tensor:
        """X, the embeddings of tokens as they enter the first layer, [..., d] in the backbone's dtype."""
        embeddings: Tensor = self._embedding(ids)
        return embeddings

    @abstractmethod
    def target_log_likelihood(self, batch: Batch, embeddings: Tensor, prompts: Tensor | None) -> Tensor:
        """log p(y | [P ; X]) of each row's target, differentiable in the prompts.

        The vocabulary projection runs at the targets' positions only.

        Args:
            batch: rows with targets.
            embeddings: X of the batch, [b, l, d].
            prompts: P of each row, [b, m, d]; None for the bare model.

        Returns:
            Sums over each target's tokens, [b], float32.
        """

    @abstractmethod
    def label_log_likelihoods(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        """log p of every label word for every row, in one pass: [P ; X] is computed once, not once a word.

        Args:
            batch: rows (targets are not looked at).
            embeddings: X, [b, l, d].
            prompts: [b, m, d] or None.
            labels: tokens of each of c label words.

        Returns:
            [b, c], float32.
        """

    @abstractmethod
    def generate(self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, max_new_tokens: int) -> list[str]:
        """The model's own continuation of [P ; X], greedily, one text a row."""

    def _forget_generation_habits(self) -> None:
        """Generation is greedy on every backbone.

        A checkpoint's generation_config.json may ask for beams or a repetition penalty (Qwen2.5 does), and the library
        applies what a call does not name: a score would hang on who saved the weights.
        """
        from transformers import GenerationConfig

        start = getattr(self.model.config, "decoder_start_token_id", None)
        settings: Any = GenerationConfig
        self.model.generation_config = settings(
            pad_token_id=self.pad_id, eos_token_id=self.end_id, decoder_start_token_id=start
        )

    def _token_log_likelihoods(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p of tokens [n, k], each predicted from its row of `hidden` [n, d]; [n, k], float32.

        The tokens' own logits are computed in fp32. In bf16 a logit near 20 is a multiple of 0.125: two label words
        would often score the same, and the first of them win.
        """
        hidden = self._before_head(hidden)
        own = torch.einsum("nd,nkd->nk", hidden.float(), self._head.weight[tokens].float())
        if getattr(self._head, "bias", None) is not None:
            own = own + self._head.bias[tokens].float()
        normaliser: Tensor = self._head(hidden).float().logsumexp(dim=-1, keepdim=True)
        return own - normaliser

    def _before_head(self, hidden: Tensor) -> Tensor:
        """What an architecture does to hidden states between its last layer and the vocabulary projection."""
        return hidden


def _bf16_bytes(weight: Tensor) -> bytes:
    return weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def with_prompts(embeddings: Tensor, prompts: Tensor | None) -> Tensor:
    """[P ; X], the prompts cast to X's dtype where they meet it."""
    return embeddings if prompts is None else torch.cat([prompts.to(embeddings.dtype), embeddings], dim=1)
