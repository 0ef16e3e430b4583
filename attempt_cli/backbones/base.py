"""The interface that all frozen language models share."""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.chat import ChatFrame, chat_frame
from attempt_cli.backbones.identity import Original, fingerprint
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.layers import SwitchedLayers
from attempt_cli.backbones.machine import free_on_gpu
from attempt_cli.backbones.norms import fuse_norms
from attempt_cli.backbones.rows import Batch, BatchShape, EncodedRow
from attempt_cli.backbones.tokens import kept_tokens
from attempt_cli.errors import AttemptError
from attempt_cli.placement import Placement

# A row that is too long loses its middle. At least this many of its last tokens stay: they are the template's cue
# ("sentiment:"), without which the model cannot know the question.
CUE_TOKENS = 16

# Tokens of at least this many rows are kept on disk: the next training on them starts at once.
KEPT_ROWS = 2000

# Takes the token that each row was given last, and says for each row whether it is done.
Watch = Callable[[list[int]], list[bool]]

# Positions whose logits over the vocabulary are in memory at the same time (256 × 49,152 logits in fp32 take 48 MiB).
PROJECTED_AT_ONCE = 256

# Weights from which on a GPU is busy for longer than the host takes to launch its kernels (estimated for 16 rows with a
# prompt of 20 to 100 tokens: no card has shown it)
LARGE_ON_GPU = 1_000_000_000


# the states of an input that there are: of its last token, and the mean over its tokens
STATES = ("last", "mean")


class FrozenBackbone(SwitchedLayers, ABC):
    """A language model with fixed weights, used through embeddings and log-likelihoods.

    Args:
        model: the transformers model; it is put in evaluation mode, and its parameters get no gradient.
        tokenizer: its tokenizer.
        name: the name that prompts are bound to (an alias, a hub id, a folder's name).
        source: the place its weights came from.
    """

    architecture: str
    # whether it computes hidden states itself; an embedding table leaves that to another process
    has_layers = True
    # keys and values of inputs that are read more than once; shared by all trainings on this backbone
    input_cache: InputCache | None = None
    # the `TunedWeights` that are in the model now; once they are released it is the frozen model again
    tuned: nn.Module | None = None
    # layers with a backward pass of their own, if the architecture has them
    _own_layers: Any = None
    # positions of inputs that are read at once, pads included; a training sets its own
    read_at_once = 8192
    # what is worth knowing about how it was loaded
    notes: tuple[str, ...] = ()
    # how its weights were quantised at loading, and what these are in their files, by name
    quantization: str | None = None
    originals: Mapping[str, Original] = MappingProxyType({})

    def __init__(self, model: Any, tokenizer: Any, *, name: str, source: str) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self._embedding: Any = self.model.get_input_embeddings()
        self._head: Any = self.model.get_output_embeddings()
        self.end_id: int = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id  # of a pad token that the vocabulary lacks, the library makes a new number
        self.pad_id: int = pad if pad is not None and pad < self.vocabulary_size else self.end_id
        self._use_greedy_generation()
        if self.on_gpu:
            fuse_norms(self.model)

    @property
    def _frozen_layers_run(self) -> bool:
        """Whether layers of our own may run: they train no weights, and are neither compiled nor computed twice."""
        return self.tuned is None and not (self.compiled or self.checkpointed)

    def _gradients_agree(self) -> bool:
        """Tells whether our layers give the library's gradient with this card's kernels."""
        found, own = [], self._own_layers
        start = torch.randn(2, 5, self.width, generator=torch.Generator().manual_seed(0)) * self.embedding_rms
        entering = start.to(self.device, self.dtype)
        batch = self.collate([EncodedRow([1, 2, 3], [3, self.end_id]), EncodedRow([2], [1, 2, self.end_id])])
        for layers in (own, None):
            self._own_layers = layers
            with torch.enable_grad():
                prompts = entering.clone().requires_grad_()
                scores = self.target_log_likelihood(batch, self.embed(batch.input_ids), prompts)
                found.append(torch.autograd.grad(scores.sum(), prompts)[0].float())
        self._own_layers = own
        near = 1e-3 if self.dtype == torch.float32 else 0.1
        return bool((found[0] - found[1]).norm() <= near * found[1].norm())

    # identity

    @property
    def device(self) -> torch.device:
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.dtype

    @property
    def precision(self) -> str:
        """What its numbers depend on beside its weights: the dtype, and the quantisation where there is one."""
        return f"{self.quantization} {self.dtype}" if self.quantization else str(self.dtype)

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
        return sum(
            self.originals[name].count if name in self.originals else weight.numel()
            for name, weight in self.model.named_parameters()
        )

    @cached_property
    def embedding_rms(self) -> float:
        """The root mean square of an entry of the embeddings as they enter the first layer."""
        ids = torch.arange(self._table.shape[0], device=self.device)
        squares = sum(float(self.embed(part).float().square().sum()) for part in torch.split(ids, 8192))
        return math.sqrt(squares / self._table.numel())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; two backbones share them only if a prompt of one means the same to the other."""
        return fingerprint(self.model, self._table, self.originals)

    @cached_property
    def tokenizer_digest(self) -> str:
        """16 hexadecimal digits of the tokenizer and its end token: some files are read differently by version."""
        return hashlib.sha256(f"{self._tokenizer_digest} {self.end_id}".encode()).hexdigest()[:16]

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """The largest number of positions, prompt and target included; None without a bound."""

    # prompts

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The possible placements of a prompt, the default first."""
        return ("before",)

    def check_placement(self, placement: str | None) -> Placement:
        """Returns the given placement, or the default for None.

        Raises:
            AttemptError: this backbone does not support it.
        """
        for possible in self.placements:
            if placement in (None, possible):
                return possible
        why = (
            "an encoder reads prompt and input as one"
            if self.architecture == "encoder-decoder"
            else "its attention cannot continue from keys that were computed before"
        )
        raise AttemptError(
            f"{self.name} cannot have the prompt {placement} the input: {why}",
            f"Train with --placement {self.placements[0]}, or leave it out.",
        )

    def keep_inputs(self, budget: int, folder: Path | None = None) -> None:
        """Keeps keys and values of inputs that are read more than once.

        Args:
            budget: bytes; 0 keeps none. With a GPU the first stay on it, up to a quarter of its free memory.
            folder: where they are kept as files instead, for other processes, too.
        """
        self.input_cache = None
        if budget:
            self.input_cache = InputCache(
                budget,
                folder=folder,
                made_by=f"{self.fingerprint} {self.precision} {self.device.type}",
                on_host=self.on_gpu,
                on_device=free_on_gpu(self.device) // 4,
            )

    @property
    def longest_row(self) -> int | None:
        """Positions up to which all rows are read in one way; None without a bound."""
        return self.max_positions

    @property
    def waits_for_host(self) -> bool:
        """Whether launching its kernels takes longer than they do: a small model on one GPU."""
        return self.on_gpu and self.parameter_count < LARGE_ON_GPU and not self.spread

    def shares_prompts(self, positions: int) -> bool:
        """Tells whether a prompt before all rows of a batch is computed once per batch, not once per row.

        Args:
            positions: positions of the longest row, its prompt included.
        """
        return False

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of one input token's keys and values over all layers; 0 if inputs cannot be read on their own."""
        return 0

    def read(self, rows: Sequence[EncodedRow], states: bool = False) -> Past | None:
        """Returns keys and values of the rows' inputs, for prompts behind them; with `states` those, too."""
        return None

    def keys_and_values(self, rows: Sequence[EncodedRow], count: int, width: int) -> Tensor | None:
        """Returns what `read` does in one tensor, [layers, 2, count, g, width, e], with zeros where there is none."""
        return None

    def fetch(self, rows: Sequence[EncodedRow]) -> None:
        """Starts copying inputs that are read next to the GPU, where they are kept in the host's memory."""

    @property
    def least_positions(self) -> int:
        """The number of positions that keep the processor busy: a larger batch need not mix rows of unlike length."""
        return 512 if self.device.type == "cpu" else 8192

    @property
    def most_positions(self) -> int | None:
        """The number of positions beyond which a pass of suffixes gets slower, not faster; None if there is none.

        On a CPU every layer takes fresh memory from the system for tensors of tens of megabytes.
        """
        return 2048 if self.device.type == "cpu" else None

    # tokens

    @cached_property
    def chat_frame(self) -> ChatFrame:
        """The tokenizer's chat template, rendered.

        Raises:
            AttemptError: it has none that could be used; see `chat.chat_frame`.
        """
        frame = chat_frame(self.tokenizer, self.name)
        self._check_known([*frame.head, *frame.tail, frame.end_id], "the chat template")
        return frame

    def encode(
        self,
        inputs: Sequence[str],
        targets: Sequence[Sequence[int]] | None,
        max_length: int,
        tails: Sequence[str] | None = None,
        around: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> list[EncodedRow]:
        """Tokenises inputs and joins each with its target's tokens; long inputs lose their middle, targets nothing.

        Args:
            inputs: the rows' input texts.
            targets: tokens of each row's target (`target_tokens`), or None.
            max_length: the largest number of input tokens.
            tails: the end of each input that a cut leaves whole (the question behind a passage); of a tail that takes
                more than three quarters of the limit, only the end stays.
            around: a chat template's tokens before and behind each input, which then has no spaces at its ends and no
                token of the tokenizer's own around it; no limit cuts them.
        """
        special = around is None
        if around is not None:
            inputs = [text.strip() for text in inputs]
        if len(inputs) < KEPT_ROWS:
            found = self._cut_tokens(inputs, max_length, tails, special)
        else:
            digest = hashlib.sha256(f"{self._tokenizer_digest} {max_length}{'' if special else ' plain'}".encode())
            for text in (*inputs, None, *(tails or ())):
                digest.update(b"\0" if text is None else text.encode() + b"\1")
            found = kept_tokens(digest.hexdigest()[:32], lambda: self._cut_tokens(inputs, max_length, tails, special))
        if len(self.tokenizer) > self.vocabulary_size:
            for number, (ids, _) in enumerate(found):
                self._check_known(ids, f"input {number + 1}")
        head, tail = around or ((), ())
        # an empty input still needs one position from which the target is predicted
        return [
            EncodedRow([*head, *ids, *tail] or [self.end_id], list(targets[number]) if targets else [], cut)
            for number, (ids, cut) in enumerate(found)
        ]

    def _cut_tokens(
        self, inputs: Sequence[str], max_length: int, tails: Sequence[str] | None, special: bool
    ) -> list[tuple[list[int], int]]:
        """Returns each input's tokens under the limit, and the number of tokens that did not fit."""
        encoded: list[list[int]] = self._tokenised(list(inputs), add_special_tokens=special) if inputs else []
        found = []
        for number, ids in enumerate(encoded):
            cut = max(0, len(ids) - max_length)
            if cut:
                tail = min(CUE_TOKENS, max_length // 4)
                if tails is not None:
                    tail = min(
                        max(tail, len(self._tokenised(tails[number], add_special_tokens=special))), max_length * 3 // 4
                    )
                ids = ids[: max_length - tail] + ids[len(ids) - tail :]
            found.append((ids, cut))
        return found

    def _tokenised(self, text: str | list[str], **options: Any) -> Any:
        """Returns the tokens of a text, or of each of several; what looks like a control token is text like any other.

        A row that quotes `</s>` or `<|endoftext|>` would otherwise end, or begin another turn, in its middle.
        """
        pattern = self._still_control
        if pattern is not None:

            def apart(one: str) -> str:
                return re.sub(pattern, lambda found: f"{found[0][:1]} {found[0][1:]}", one)

            text = apart(text) if isinstance(text, str) else [apart(one) for one in text]
        return self.tokenizer(text, split_special_tokens=True, **options)["input_ids"]

    @cached_property
    def _still_control(self) -> str | None:
        """A pattern of the control tokens that are words of the vocabulary, too (T5's): only a space parts them."""
        added = self.tokenizer.added_tokens_decoder
        control = {number: str(token) for number, token in added.items() if token.special and len(str(token)) > 1}
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        found = [
            token
            for number, token in control.items()
            if number != self.tokenizer.unk_token_id and number in self.tokenizer(token, **plain)["input_ids"]
        ]
        return "|".join(map(re.escape, sorted(found, key=len, reverse=True))) or None

    def _check_known(self, ids: Sequence[int], what: str) -> None:
        """Refuses tokens that have no embedding: a tokenizer may have more tokens than the model."""
        for number in ids:
            if number >= self.vocabulary_size:
                raise AttemptError(
                    f"{what} has the token {self.tokenizer.convert_ids_to_tokens(number)!r} (number {number}), "
                    f"but {self.name} has {self.vocabulary_size} embeddings",
                    "Its tokenizer belongs to another model: give the folder its own, or leave that word out.",
                )

    @cached_property
    def _tokenizer_digest(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else f"{self.name} {self.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    def with_words(self, words: Sequence[int], frame: ChatFrame | None = None) -> ChatFrame:
        """Returns what stands around an input that comes behind words: a frame whose head ends in their tokens.

        Args:
            words: the words' tokens.
            frame: the chat template that both stand in; None for none.
        """
        if frame is not None:
            return replace(frame, head=(*frame.head, *words))
        plain, whole = (self._tokenised("a", add_special_tokens=special) for special in (False, True))
        start = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        head, tail = whole[:start], whole[start + len(plain) :]
        return ChatFrame("", (*head, *words), tuple(tail), cue=":", lead=" ", end_id=self.end_id)

    def text_tokens(self, text: str) -> list[int]:
        """Returns a text's tokens as they are in the middle of others, with none of the tokenizer's own around them."""
        before, after = (self._tokenised(word, add_special_tokens=False) for word in ("a:", "b"))
        whole = self._tokenised(f"a:{text}b", add_special_tokens=False)
        if whole[: len(before)] == before and whole[len(whole) - len(after) :] == after:
            found: list[int] = whole[len(before) : len(whole) - len(after)]
        else:
            found = self._tokenised(text, add_special_tokens=False)
        return found

    @abstractmethod
    def target_tokens(self, text: str, *, end: bool, frame: ChatFrame | None = None) -> list[int]:
        """Returns the tokens of a target as the model would write it after the input.

        Args:
            text: the target.
            end: whether an end token closes it (free text); encoder-decoders always add one.
            frame: the chat template whose assistant writes it; its turn has an end token of its own.
        """

    def label_tokens(self, words: Sequence[str], frame: ChatFrame | None = None) -> list[list[int]]:
        """Returns the tokens of label words, with end tokens if one word's tokens begin another's.

        Raises:
            AttemptError: two words have the same tokens (a vocabulary without their letters): one would always win.
        """
        plain = [self.target_tokens(word, end=False, frame=frame) for word in words]
        for i, word in enumerate(words):
            if not plain[i] or plain[i] in plain[:i]:
                other = f" as '{words[plain.index(plain[i])]}'" if plain[i] else ": none"
                raise AttemptError(
                    f"the label word '{word}' has the same tokens in {self.name}{other}",
                    "Choose other label words: --labels 'value=word,value=word', or `labels` in the task's YAML.",
                )
            self._check_known(plain[i], f"the label word '{word}'")
        if any(a != b and b[: len(a)] == a for a in plain for b in plain):
            return [self.target_tokens(word, end=True, frame=frame) for word in words]
        return plain

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        """Puts rows side by side on the backbone's device, in one copy: all that is known of lengths is known here."""
        shape = BatchShape.of(rows)
        batch = self.unpacked(self.on_device(self.packed(rows, shape)), shape)
        return replace(batch, tasks=tuple(row.task for row in rows))

    def packed(self, rows: Sequence[EncodedRow], shape: BatchShape) -> list[int]:
        """Returns rows as the numbers that `unpacked` makes a batch of."""
        inputs, targets = [row.input_ids for row in rows], [row.target_ids for row in rows]
        missing = shape.rows - len(rows)
        padded = [
            [token for ids in (*side, *[[]] * missing) for token in (*ids, *[self.pad_id] * (width - len(ids)))]
            for side, width in ((inputs, shape.inputs), (targets, shape.targets))
        ]
        places = [(row, step) for row, ids in enumerate(targets) for step in range(len(ids))]
        read = [(row, step) for row, step in places if step + 1 < len(targets[row])]
        filled = [
            [*some, *some[:1] * (count - len(some))] for some, count in ((places, shape.predicted), (read, shape.read))
        ]
        columns = [[place[side] for place in some] for some in filled for side in (0, 1)]
        lengths, tasks = [len(ids) for ids in inputs] + [1] * missing, [row.task for row in rows] + [0] * missing
        counted = [len(places)] if shape.filled else []
        return [number for part in (*padded, lengths, tasks, *columns, counted) for number in part]

    def unpacked(self, numbers: Tensor, shape: BatchShape) -> Batch:
        """Returns the batch that packed numbers stand for, on their device; further numbers behind it do not matter."""
        b, k, read = shape.rows, shape.predicted, shape.read
        sizes = [b * shape.inputs, b * shape.targets, b, b, k, k, read, read]
        input_ids, target_ids, lengths, tasks, *at = torch.split(numbers[: sum(sizes)], sizes)
        counted = None
        if shape.filled:
            counted = (torch.arange(k, device=numbers.device) < numbers[sum(sizes)]).float()
        return Batch(
            input_ids.view(b, shape.inputs),
            lengths,
            target_ids.view(b, shape.targets),
            (at[0], at[1]),
            (at[2], at[3]),
            tasks,
            counted,
        )

    def on_device(self, numbers: Sequence[int]) -> Tensor:
        """Returns whole numbers as a tensor on the device; a GPU takes them while it still computes."""
        return self.on_host(numbers).to(self.device, non_blocking=self.on_gpu)

    def on_host(self, numbers: Sequence[int]) -> Tensor:
        """Returns whole numbers as a tensor that the device can take while it still computes."""
        tensor = torch.tensor(numbers, dtype=torch.long)
        return tensor.pin_memory() if self.on_gpu else tensor

    @property
    def on_gpu(self) -> bool:
        """Whether the device computes on its own, so that nothing should wait for it."""
        return self.device.type == "cuda"

    # the model

    def embed(self, ids: Tensor) -> Tensor:
        """Returns X, the embeddings of tokens as they enter the first layer, [..., d] in the backbone's dtype."""
        embeddings: Tensor = self._embedding(ids)
        return embeddings

    @torch.no_grad()
    def states(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Returns the frozen model's last hidden states of each input: the last token's, and the mean, [b, 2, d], fp32.

        Of an encoder-decoder they are the encoder's.
        """
        return self.states_of(self.collate(rows))

    @torch.no_grad()
    def states_of(self, batch: Batch) -> Tensor:
        """Returns `states` of a batch's inputs."""
        return summarised(self.input_states(batch), batch.input_lengths)

    @abstractmethod
    def input_states(self, batch: Batch) -> Tensor:
        """Returns the last layer's normed output for inputs without a prompt, [b, l, d], without a gradient."""

    @abstractmethod
    def target_log_likelihood(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, past: Past | None = None
    ) -> Tensor:
        """Returns log p(y | [P ; X]) of each row's target, or with `past` log p(y | [X ; P]).

        It is differentiable in the prompts. The vocabulary projection runs at the targets' positions only.

        Args:
            batch: rows with targets.
            embeddings: X of the batch, [b, l, d].
            prompts: P of each row, [b, m, d], or [p, m, d], each for the next b / p rows; None for the bare model.
            past: what `read` returned for these rows; the prompts are then placed after the input. With several
                suffixes behind an input, as many rows of the batch in a row are that input's.

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
        """Returns log p of every label word for every row, in one pass: [P ; X] is computed once, not once per word.

        Args:
            batch: rows; their targets are ignored.
            embeddings: X, [b, l, d].
            prompts: [b, m, d], [1, m, d] for all rows, or None; with several suffixes behind `past`,
                [b · suffixes, m, d].
            labels: tokens of each of c label words.
            past: what `read` returned for these rows; the prompts are then placed after the input.

        Returns:
            [b, c] or [b · suffixes, c], float32.
        """

    @abstractmethod
    def generate(
        self,
        batch: Batch,
        embeddings: Tensor,
        prompts: Tensor | None,
        max_new_tokens: int,
        placement: Placement = "before",
        ends: Sequence[int] = (),
        watch: Watch | None = None,
        past: Past | None = None,
    ) -> list[str]:
        """Returns the model's own greedy continuation of [P ; X] or [X ; P], one text per row.

        It stops at the model's end token, or at one of `ends`.

        Args:
            watch: sees every row's token after each step; the rows that it says are done get no more.
            past: what `read` returned for these rows, whose prompts are then placed after the input;
                generation copies it, and encoder-decoders have none.
        """

    def _use_greedy_generation(self) -> None:
        """Makes generation greedy on every backbone.

        A checkpoint's generation_config.json may ask for beams or a repetition penalty (Qwen2.5 does), and the library
        applies every setting that a call does not name: a score would depend on who saved the weights.
        """
        from transformers import GenerationConfig

        start = getattr(self.model.config, "decoder_start_token_id", None)
        settings: Any = GenerationConfig
        self.model.generation_config = settings(
            pad_token_id=self.pad_id, eos_token_id=self.end_id, decoder_start_token_id=start
        )

    def _summed(self, batch: Batch, scores: Tensor) -> Tensor:
        """Sums the target tokens' scores, [k], over each row, [b]."""
        if batch.counted is not None:
            scores = scores * batch.counted
        return torch.zeros(len(batch.input_lengths), device=scores.device).index_add(0, batch.targets[0], scores)

    def _token_log_likelihoods(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Returns log p of tokens [n, k], each predicted from its row of `hidden` [n, d]; [n, k], float32.

        The tokens' own logits are computed in fp32. In bf16 a logit near 20 is a multiple of 0.125: two label words
        would often have the same score, and the first would win.
        """
        where = self._head.weight.device  # of spread layers the head may be on another GPU than the embeddings
        hidden, tokens = self._before_head(hidden).to(where), tokens.to(where)
        own = torch.einsum("nd,nkd->nk", hidden.float(), self._head.weight[tokens].float())
        if getattr(self._head, "bias", None) is not None:
            own = own + self._head.bias[tokens].float()
        if len(hidden) <= PROJECTED_AT_ONCE:
            return (own - self._normaliser(hidden)).to(self.device)
        # long targets: a part's logits are dropped after its forward pass, and computed again for its gradient
        parts = [
            checkpoint(self._normaliser, part, use_reentrant=False, preserve_rng_state=False)
            for part in torch.split(hidden, PROJECTED_AT_ONCE)
        ]
        return (own - torch.cat(parts)).to(self.device)

    def _normaliser(self, hidden: Tensor) -> Tensor:
        """Returns log Σ exp of the logits over the vocabulary, [n, 1], float32, for hidden states [n, d]."""
        normaliser: Tensor = self._head(hidden).float().logsumexp(dim=-1, keepdim=True)
        return normaliser

    def _before_head(self, hidden: Tensor) -> Tensor:
        """Applies what an architecture does to hidden states between its last layer and the vocabulary projection."""
        return hidden


def summarised(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Returns the last real position's state and the mean over real positions, [b, 2, d], of [b, l, d], in fp32."""
    hidden = hidden.float()
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    mean = (hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]
    return torch.stack([hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1], mean], dim=1)


def with_prompts(embeddings: Tensor, prompts: Tensor | None) -> Tensor:
    """Returns [P ; X], the prompts cast to X's dtype; of fewer prompts than rows each serves the next b / p rows."""
    if prompts is None:
        return embeddings
    each = prompts.to(embeddings.dtype)[:, None].expand(-1, len(embeddings) // len(prompts), -1, -1).flatten(0, 1)
    return torch.cat([each, embeddings], dim=1)


def stopping(watch: Watch | None) -> Any:
    """Returns the stopping criteria of the library's generation that a watch stands for; None for none."""
    if watch is None:
        return None
    from transformers import StoppingCriteria, StoppingCriteriaList

    look = watch

    class Watched(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.tensor(look(input_ids[:, -1].tolist()), device=input_ids.device)

    return StoppingCriteriaList([Watched()])
