"""One face for every frozen language model."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.layers import SwitchedLayers
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.backbones.tokens import kept_tokens
from attempt_cli.errors import AttemptError

# When a row is too long, its middle goes. At least so many of its last tokens stay: they are the template's cue
# ("sentiment:"), without which the model does not know what is asked.
CUE_TOKENS = 16

# From so many rows on, their tokens are kept on disk: the next training on them starts at once.
KEPT_ROWS = 2000

# Positions whose logits over the vocabulary stand in memory together (256 × 49,152 logits in fp32 take 48 MiB).
PROJECTED_AT_ONCE = 256


class FrozenBackbone(SwitchedLayers, ABC):
    """A language model whose weights never change, seen through embeddings and log-likelihoods.

    Args:
        model: the transformers model; put in evaluation mode, its parameters get no gradient.
        tokenizer: its tokenizer.
        name: the name under which prompts are bound to it (an alias, a hub id, a folder's name).
        source: where its weights came from.
    """

    architecture: str
    # keys and values of inputs that are read again and again; shared by all trainings on this backbone
    input_cache: InputCache | None = None
    # the `TunedWeights` that are in the model now; once they are released it is the frozen model again
    tuned: nn.Module | None = None

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

    # prompts

    @property
    def placements(self) -> tuple[str, ...]:
        """Where a prompt can stand, the default first: "before" is the paper's [P ; X], "after" is [X ; P]."""
        return ("before",)

    def check_placement(self, placement: str | None) -> str:
        """The placement that is asked for, or the default.

        Raises:
            AttemptError: this backbone cannot have it.
        """
        if placement is None:
            return self.placements[0]
        if placement not in self.placements:
            why = (
                "an encoder reads prompt and input as one"
                if self.architecture == "encoder-decoder"
                else ("its attention cannot go on from keys that were computed before")
            )
            raise AttemptError(
                f"{self.name} cannot have the prompt {placement} the input: {why}",
                f"Train with --placement {self.placements[0]}, or leave it out.",
            )
        return placement

    def shares_prompts(self, positions: int) -> bool:
        """Whether a prompt before all rows of a batch is computed once, not once a row.

        Args:
            positions: of the longest row, its prompt included.
        """
        return False

    @property
    def cache_bytes_per_token(self) -> int:
        """What keys and values of one input token take over all layers; 0 where inputs cannot be read once."""
        return 0

    def read(self, rows: Sequence[EncodedRow]) -> Past | None:
        """Keys and values of the rows' inputs, for prompts that are placed after them."""
        return None

    @property
    def least_positions(self) -> int:
        """How many positions keep the processor busy: from there on a batch need not hold rows of unlike length."""
        return 512 if self.device.type == "cpu" else 8192

    @property
    def most_positions(self) -> int | None:
        """From how many positions on a pass of tails gets slower, not faster; None where it does not.

        On a CPU tensors of tens of megabytes are taken from the system anew in every layer.
        """
        return 2048 if self.device.type == "cpu" else None

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
        if len(inputs) < KEPT_ROWS:
            found = self._cut_tokens(inputs, max_length, tails)
        else:
            digest = hashlib.sha256(f"{self._tokenizer_digest} {max_length}".encode())
            for text in (*inputs, None, *(tails or ())):
                digest.update(b"\0" if text is None else text.encode() + b"\1")
            found = kept_tokens(digest.hexdigest()[:32], lambda: self._cut_tokens(inputs, max_length, tails))
        # an empty input still needs one position from which the target is predicted
        return [
            EncodedRow(ids or [self.end_id], list(targets[number]) if targets else [], cut)
            for number, (ids, cut) in enumerate(found)
        ]

    def _cut_tokens(
        self, inputs: Sequence[str], max_length: int, tails: Sequence[str] | None
    ) -> list[tuple[list[int], int]]:
        """Each input's tokens under the limit, and how many did not fit."""
        encoded: list[list[int]] = self.tokenizer(list(inputs))["input_ids"] if inputs else []
        found = []
        for number, ids in enumerate(encoded):
            cut = max(0, len(ids) - max_length)
            if cut:
                tail = min(CUE_TOKENS, max_length // 4)
                if tails is not None:
                    tail = min(max(tail, len(self.tokenizer(tails[number])["input_ids"])), max_length * 3 // 4)
                ids = ids[: max_length - tail] + ids[len(ids) - tail :]
            found.append((ids, cut))
        return found

    @cached_property
    def _tokenizer_digest(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else f"{self.name} {self.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

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
            return on_device([ids + [self.pad_id] * (longest - len(ids)) for ids in sequences])

        def on_device(numbers: list[Any]) -> Tensor:
            tensor = torch.tensor(numbers, dtype=torch.long)
            # from pinned memory a GPU copies while it still computes the batch before
            return (
                tensor.pin_memory().to(self.device, non_blocking=True)
                if self.device.type == "cuda"
                else tensor.to(self.device)
            )

        inputs, targets = [row.input_ids for row in rows], [row.target_ids for row in rows]
        return Batch(
            padded(inputs),
            on_device([len(ids) for ids in inputs]),
            padded(targets),
            on_device([len(ids) for ids in targets]),
            on_device([row.task for row in rows]),
        )

    # the model

    def embed(self, ids: Tensor) -> Tensor:
        """X, the embeddings of tokens as they enter the first layer, [..., d] in the backbone's dtype."""
        embeddings: Tensor = self._embedding(ids)
        return embeddings

    @abstractmethod
    def target_log_likelihood(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, past: Past | None = None
    ) -> Tensor:
        """log p(y | [P ; X]) of each row's target, differentiable in the prompts; with `past`, log p(y | [X ; P]).

        The vocabulary projection runs at the targets' positions only.

        Args:
            batch: rows with targets.
            embeddings: X of the batch, [b, l, d].
            prompts: P of each row, [b, m, d], or of all rows, [1, m, d]; None for the bare model.
            past: what `read` gave for these rows: the prompts stand after the input.

        Returns:
            Sums over each target's tokens, [b], float32.
        """

    @abstractmethod
    def label_log_likelihoods(
        self,
        batch: Batch,
        embeddings: Tensor,
        prompts: Tensor | None,
        labels: Sequence[Sequence[int]],
        past: Past | None = None,
    ) -> Tensor:
        """log p of every label word for every row, in one pass: [P ; X] is computed once, not once a word.

        Args:
            batch: rows (targets are not looked at).
            embeddings: X, [b, l, d].
            prompts: [b, m, d], [1, m, d] for all rows, or None; with `past` of several tails a row, [b · tails, m, d].
            labels: tokens of each of c label words.
            past: what `read` gave for these rows: the prompts stand after the input.

        Returns:
            [b, c] or [b · tails, c], float32.
        """

    @abstractmethod
    def generate(
        self,
        batch: Batch,
        embeddings: Tensor,
        prompts: Tensor | None,
        max_new_tokens: int,
        placement: str = "before",
    ) -> list[str]:
        """The model's own continuation of [P ; X] or [X ; P], greedily, one text a row."""

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
        if len(hidden) <= PROJECTED_AT_ONCE:
            return own - self._normaliser(hidden)
        # long targets: the logits of a part are thrown away after it, and computed again for its gradient
        parts = [
            checkpoint(self._normaliser, part, use_reentrant=False) for part in torch.split(hidden, PROJECTED_AT_ONCE)
        ]
        return own - torch.cat(parts)

    def _normaliser(self, hidden: Tensor) -> Tensor:
        """log Σ exp of the logits over the vocabulary, [n, 1], float32, of hidden states [n, d]."""
        normaliser: Tensor = self._head(hidden).float().logsumexp(dim=-1, keepdim=True)
        return normaliser

    def _before_head(self, hidden: Tensor) -> Tensor:
        """What an architecture does to hidden states between its last layer and the vocabulary projection."""
        return hidden


def _bf16_bytes(weight: Tensor) -> bytes:
    return weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def with_prompts(embeddings: Tensor, prompts: Tensor | None) -> Tensor:
    """[P ; X], the prompts cast to X's dtype where they meet it; one prompt, [1, m, d], is every row's."""
    if prompts is None:
        return embeddings
    return torch.cat([prompts.to(embeddings.dtype).expand(len(embeddings), -1, -1), embeddings], dim=1)
