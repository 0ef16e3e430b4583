"""Decoder-only backbones: Llama and similar models."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones import attention
from attempt_cli.backbones.attention import Past, additive_mask, causal_mask, joined_mask
from attempt_cli.backbones.base import FrozenBackbone, Watch, stopping, summarised, with_prompts
from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.chat import ChatFrame
from attempt_cli.backbones.input_cache import Group, row_key
from attempt_cli.backbones.inputs_ahead import InputsAhead
from attempt_cli.backbones.kernels import Shape, choose_kernel
from attempt_cli.backbones.label_tree import LabelTree
from attempt_cli.backbones.llama import LlamaLayers
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.errors import AttemptError
from attempt_cli.placement import Placement


class DecoderOnlyBackbone(FrozenBackbone):
    """A causal language model; a row is [P ; X ; y] or, with the prompt placed after the input, [X ; P ; y].

    Rows have no gaps, and all pads are on the right. Causal attention alone then keeps real tokens from seeing pads: a
    row has the same positions and scores alone and in any batch, and no mask is needed.

    In [X ; P ; y] nothing that is trained enters X's own pass: its keys and values are computed once, without gradient
    (`read`), and gradients pass through P and y only.
    """

    architecture = "decoder-only"
    # whether the model runs with our attention (`use_own_attention`), which alone can use what `read` returns
    own_attention = False
    # layers with a backward pass of their own, if the architecture has them
    _own_layers: LlamaLayers | None = None
    # kept inputs of a step to come, once a GPU has to be sent some
    _ahead: InputsAhead | None = None

    @property
    def placements(self) -> tuple[Placement, ...]:
        return ("after", "before") if self.own_attention else ("before",)

    def use_own_attention(self, on: bool, *, layers: bool = True) -> None:
        """Switches the model to our attention or back to the one it was loaded with.

        Args:
            layers: whether our own layers run around it, if the architecture has them.
        """
        fitting = on and layers and LlamaLayers.fits(self.model.base_model)
        self._own_layers = LlamaLayers(self.model) if fitting else None
        if on and not self.own_attention:
            attention.register()
            self._loaded_attention = self.model.config._attn_implementation
            self.model.set_attn_implementation(attention.NAME)
        elif self.own_attention and not on:
            self.model.set_attn_implementation(self._loaded_attention)
        self.own_attention = on
        if self.on_gpu and self._own_layers is not None and not self._gradients_agree():
            self._own_layers = None

    @property
    def max_positions(self) -> int | None:
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return positions

    def target_tokens(self, text: str, *, end: bool, frame: ChatFrame | None = None) -> list[int]:
        # the space belongs to the word in these vocabularies: " yes" is what follows "answer:". The tokens are taken
        # from behind a colon, because SentencePiece (Llama 2, Mistral) puts a space of its own before any first word
        cue, lead, last = (":", " ", self.end_id) if frame is None else (frame.cue, frame.lead, frame.end_id)
        before, joined = self._plain_tokens(cue), self._plain_tokens(cue + lead + text.strip())
        ids = joined[len(before) :] if joined[: len(before)] == before else self._plain_tokens(lead + text.strip())
        return [*ids, last] if end else ids

    def _plain_tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenised(text, add_special_tokens=False)
        return ids

    @property
    def longest_row(self) -> int | None:
        return min((bound for bound in (self.max_positions, self._reach) if bound), default=None)

    def shares_prompts(self, positions: int) -> bool:
        return self.own_attention and self._two_passes_pay and not self._beyond_reach(positions)

    @cached_property
    def _two_passes_pay(self) -> bool:
        """Whether a pass of its own for a prompt takes less time than the prompt before every row.

        On a GPU the host takes as long for any pass, which a small model's computations do not make up for.
        """
        return not self.waits_for_host

    # the input's own pass

    @property
    def cache_bytes_per_token(self) -> int:
        layers, key_heads, width = self._key_shape
        return 2 * layers * key_heads * width * self.dtype.itemsize

    @property
    def _key_shape(self) -> tuple[int, int, int]:
        """The number of layers, the number of key heads, and the width of one."""
        config = self.model.config
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return config.num_hidden_layers, key_heads, width

    @torch.no_grad()
    def read(self, rows: Sequence[EncodedRow], states: bool = False) -> Past:
        """Returns keys and values of the rows' inputs, from the input cache if they are planned to be there."""
        lengths = [len(row.input_ids) for row in rows]
        found: dict[int, Tensor] = {}  # states of those that are read now
        both = self._keys_and_values(rows, len(rows), max(lengths), found)
        padded = min(lengths) < max(lengths)
        past = Past(both[:, 0].unbind(), both[:, 1].unbind(), self.on_device(lengths), padded)
        if not states:
            return past
        own = [found[place] if place in found else self._kept_states(row.input_ids) for place, row in enumerate(rows)]
        return replace(past, states=torch.stack(own))

    @torch.no_grad()
    def keys_and_values(self, rows: Sequence[EncodedRow], count: int, width: int) -> Tensor:
        return self._keys_and_values(rows, count, width, {})

    def fetch(self, rows: Sequence[EncodedRow]) -> None:
        if not self.on_gpu or self.input_cache is None:
            return
        found = {row_key(row.input_ids): self.input_cache.row_on_host(row.input_ids) for row in rows}
        on_host = {key: kept for key, kept in found.items() if kept is not None}
        if on_host and self._ahead is None:
            self._ahead = InputsAhead(self.device)
        if self._ahead is not None:
            self._ahead.send(on_host)

    def _keys_and_values(self, rows: Sequence[EncodedRow], count: int, width: int, states: dict[int, Tensor]) -> Tensor:
        """Returns what `keys_and_values` does; the states of rows that are read now are put into `states`."""
        layers, key_heads, head = self._key_shape
        kept = self._kept_inputs(rows)
        uncached = [place for place in range(len(rows)) if place not in kept]
        both = self._gathered(kept, (layers, 2, count, key_heads, width, head))
        if self._ahead is not None:
            self._ahead.was_read()
        unread = [len(rows[place].input_ids) for place in uncached]
        for batch in by_length(unread, 0, self.read_at_once, least=self.least_positions):
            states |= self._read_into(both, rows, [uncached[i] for i in batch])
        return both

    def _read_into(self, both: Tensor, rows: Sequence[EncodedRow], places: Sequence[int]) -> dict[int, Tensor]:
        """Reads some of the rows into their places; returns their states."""
        inputs = [rows[place].input_ids for place in places]
        fresh, states = self._read_group(Group("", tuple(map(tuple, inputs))))
        for place, one in zip(places, fresh, strict=True):  # all at once, they would be copied once more
            both[:, :, place, :, : one.shape[3]] = one
        if self.input_cache is not None:
            self.input_cache.offer(inputs, fresh, states)
        return dict(zip(places, states, strict=True))

    def _kept_states(self, ids: Sequence[int]) -> Tensor:
        """Returns the states of a row whose keys the input cache holds; those of a file are computed once more."""
        assert self.input_cache is not None
        planned = self.input_cache.group_of(ids)
        if planned is None:  # the cache has failed since: the row is read on its own
            return self._read_group(Group("", (tuple(ids),)))[1][0]
        group, index = planned
        if self.input_cache.states_of(group.name) is None:
            self._read_kept(group)
        own = self.input_cache.states_of(group.name)
        assert own is not None
        return own[index]

    def _kept_inputs(self, rows: Sequence[EncodedRow]) -> dict[int, Tensor]:
        """Returns keys and values of the rows that the input cache holds, by the row's place."""
        found = {}
        for place, row in enumerate(rows):
            planned = self.input_cache.group_of(row.input_ids) if self.input_cache is not None else None
            if planned is not None and self.input_cache is not None:
                group, index = planned
                kept = self.input_cache.get(group, self._read_kept)[index, ..., : len(row.input_ids), :]
                found[place] = kept if self._ahead is None else self._ahead.get(row_key(row.input_ids), kept)
        return found

    def _gathered(self, kept: Mapping[int, Tensor], shape: Sequence[int]) -> Tensor:
        """Puts kept rows side by side on the device, with zeros where there are none.

        For a GPU what is in the host's memory is gathered there, in one pinned block: row by row, each copy would be
        staged, and waited for.
        """
        by_host = self.on_gpu and any(one.device.type == "cpu" for one in kept.values())
        where = torch.device("cpu") if by_host else self.device
        both = torch.zeros(tuple(shape), dtype=self.dtype, device=where, pin_memory=by_host)
        late = {}
        for place, one in kept.items():
            if one.device == where:
                both[:, :, place, :, : one.shape[3]] = one
            else:  # on the device already
                late[place] = one
        if by_host:
            both = both.to(self.device, non_blocking=True)
        for place, one in late.items():
            both[:, :, place, :, : one.shape[3]] = one
        return both

    def _read_kept(self, group: Group) -> Tensor:
        """Runs `_read_group` on the layers as they were loaded: other trainings and resumed ones read the result."""
        with self.as_loaded():
            computed, states = self._read_group(group)
        if self.input_cache is not None:
            self.input_cache.add_states(group.name, states)
        return computed

    def _read_group(self, group: Group) -> tuple[Tensor, Tensor]:
        """Computes keys and values of a group's rows, [rows, layers, 2, g, l, e], and their states, [rows, 2, d]."""
        batch = self.collate([EncodedRow(list(ids), []) for ids in group.rows])
        layers, key_heads, head = self._key_shape
        size = (len(group.rows), layers, 2, key_heads, group.width, head)
        into = torch.empty(size, dtype=self.dtype, device=self.device)
        hidden = self._hidden(self.embed(batch.input_ids), keep=_Written(into))
        return into, summarised(hidden, batch.input_lengths)

    def _hidden_behind(
        self,
        past: Past,
        suffix: Tensor,
        mask: Tensor | None = None,
        steps: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns hidden states of suffixes behind prefixes whose keys are known, [n, s, d]; with `at` those, [k, d].

        Args:
            suffix: embeddings, [n, s, d]; n = rows · suffixes.
            mask: between the suffix's own positions, [1 or n, 1, s, s]; causal by default.
            steps: each position's distance from the suffix's start, [s] or [n, s]; in order by default.
            at: rows and positions.

        Raises:
            AttemptError: the model's layers cannot look back that far.
        """
        s = suffix.shape[1]
        lengths = past.lengths.repeat_interleave(past.suffixes)
        self._check_reach(past.width + s)
        positions = lengths[:, None] + (torch.arange(s, device=suffix.device) if steps is None else steps)
        mask = causal_mask(s, suffix.dtype, suffix.device) if mask is None else mask
        past_mask = past.mask(suffix.dtype)
        if self.on_gpu and past.suffixes == 1:  # put together once, not once a layer
            mask, past_mask = joined_mask(mask, past_mask, past.width), None
        return self._hidden(suffix, past, at, attention_mask=mask, position_ids=positions, past_mask=past_mask)

    def _hidden_behind_prompts(
        self,
        prompts: Tensor | None,
        sequence: Tensor,
        at: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states of a sequence behind prompts, at the sequence's rows and positions `at`, [k, d].

        A prompt that rows share has a pass of its own: no input enters it, so its keys and values are computed
        once per batch, and their gradients are sums over the rows.

        Args:
            prompts: [b, m, d], or [p, m, d], each for b / p rows that follow each other; None for no prompts.
            sequence: [b, s, d].
            at: rows and positions.
            mask: between the sequence's own positions, [b, 1, s, s]; causal by default.
            steps: each position's distance from the prompt's end, [b, s]; in order by default.
        """
        b, s = sequence.shape[:2]
        m = prompts.shape[1] if prompts is not None else 0
        if prompts is not None and m and len(prompts) < b and self.shares_prompts(m + s):
            keep: deque[tuple[Tensor, Tensor]] = deque()
            first = torch.zeros(1, dtype=torch.long, device=self.device)  # one position: the output itself is not used
            self._hidden(prompts.to(sequence.dtype), keep=keep, at=(first, first))
            keys, values = zip(*keep, strict=True)
            lengths = self.on_device([m] * len(prompts))
            past = Past(keys, values, lengths, padded=False, suffixes=b // len(prompts))
            return self._hidden_behind(past, sequence, mask, steps, at)
        arguments: dict[str, Any] = {} if mask is None else {"attention_mask": mask, "position_ids": steps}
        if m and mask is not None and steps is not None:
            whole = causal_mask(m + s, mask.dtype, mask.device).repeat(b, 1, 1, 1)
            whole[:, :, m:, m:] = mask
            before = torch.arange(m, device=steps.device).expand(b, -1)
            arguments = {"attention_mask": whole, "position_ids": torch.cat([before, m + steps], dim=1)}
        rows, columns = at
        return self._hidden(with_prompts(sequence, prompts), at=(rows, m + columns), **arguments)

    @property
    def _reach(self) -> int | None:
        """The longest row that gives the same numbers whole or split into prefix and suffix; None without a bound.

        Layers with a sliding window do not look back farther; some rotary embeddings change with the length.
        """
        config = self.model.config
        bounds: list[int | None] = [*windows_of(config)]
        rotary = getattr(config, "rope_parameters", None) or {}
        for settings in (rotary, *rotary.values()):  # of the model, or of each kind of layer
            if isinstance(settings, dict) and settings.get("rope_type") in ("longrope", "dynamic"):
                first = settings.get("original_max_position_embeddings")
                bounds.append(first or getattr(config, "original_max_position_embeddings", None) or self.max_positions)
        return min((bound for bound in bounds if bound), default=None)

    def _beyond_reach(self, positions: int) -> bool:
        reach = self._reach
        return reach is not None and positions > reach

    def _check_reach(self, positions: int) -> None:
        if self._beyond_reach(positions):
            raise AttemptError(
                f"a row of {positions} positions is longer than the {self._reach} that {self.name} can read in two "
                "parts (a sliding window, or rotary positions that change with the length)",
                "Give a shorter --max-length, or train with --placement before.",
            )

    @torch.no_grad()
    def input_states(self, batch: Batch) -> Tensor:
        return self._hidden(self.embed(batch.input_ids))

    # scores

    def target_log_likelihood(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, past: Past | None = None
    ) -> Tensor:
        b, longest = batch.target_ids.shape
        if past is not None and prompts is not None:
            suffix = prompts.to(embeddings.dtype).expand(b, -1, -1)
            if longest > 1:
                suffix = torch.cat([suffix, self.embed(batch.target_ids[:, :-1])], dim=1)
            rows, steps = batch.targets
            at = self._hidden_behind(past, suffix, at=(rows, prompts.shape[1] - 1 + steps))  # of [b, m + c - 1, d]
            scores = self._token_log_likelihoods(at, batch.target_ids[rows, steps, None])[:, 0]
            return self._summed(batch, scores)
        sequence = embeddings
        if longest > 1:  # every token of the target but the last is read before the next is predicted
            sequence = torch.cat([embeddings, embeddings.new_zeros(b, longest - 1, embeddings.shape[2])], dim=1)
            rows, steps = batch.read
            columns = batch.input_lengths[rows] + steps
            sequence[rows, columns] = self.embed(batch.target_ids[rows, steps])
        rows, steps = batch.targets
        at = self._hidden_behind_prompts(prompts, sequence, (rows, batch.input_lengths[rows] - 1 + steps))
        scores = self._token_log_likelihoods(at, batch.target_ids[rows, steps, None])[:, 0]
        return self._summed(batch, scores)

    def label_log_likelihoods(
        self,
        batch: Batch,
        embeddings: Tensor,
        prompts: Tensor | None,
        labels: Sequence[Sequence[int]],
        past: Past | None = None,
    ) -> Tensor:
        device, b = embeddings.device, embeddings.shape[0]
        tree = LabelTree(labels, self.on_device)
        branches = torch.arange(tree.count, device=device)
        if past is not None and prompts is not None:
            n, m = b * past.suffixes, prompts.shape[1]
            suffix = prompts.to(embeddings.dtype).expand(n, -1, -1)
            if tree.count:
                suffix = torch.cat([suffix, self.embed(tree.ids).expand(n, -1, -1)], dim=1)
            order = torch.cat([torch.arange(m, device=device), m + tree.steps])
            wanted = torch.arange(m - 1, m + tree.count, device=device).expand(n, -1)
            seen = additive_mask(tree.allowed(m), suffix.dtype)
            hidden = self._hidden_behind(past, suffix, seen, order, at=_every_row(wanted))
            return self._branch_scores(hidden.view(n, 1 + tree.count, -1), labels, tree)
        length = prompts.shape[1] if prompts is not None else 0
        # all branches count: some windows are of places in the tensor (GPT-Neo), others of positions
        if tree.count and self._beyond_reach(length + embeddings.shape[1] + tree.count + 1):
            # our mask of branches would let layers with a sliding window (Mistral, Gemma 3) see beyond the window
            return self._label_by_label(batch, embeddings, prompts, labels)
        ends = batch.input_lengths[:, None]  # [b, 1], where a row's input ends
        width = embeddings.shape[1]
        wanted = torch.cat([ends - 1, (width + branches).expand(b, -1)], dim=1)
        sequence = embeddings
        mask: Tensor | None = None
        steps: Tensor | None = None
        if tree.count:
            sequence = torch.cat([embeddings, self.embed(tree.ids).expand(b, -1, -1)], dim=1)
            steps = torch.cat([torch.arange(width, device=device).expand(b, -1), ends + tree.steps], dim=1)
            allowed = tree.allowed(width).repeat(b, 1, 1)
            allowed[:, width:, :width] = (torch.arange(width, device=device) < ends)[:, None, :]
            mask = additive_mask(allowed, sequence.dtype)
        hidden = self._hidden_behind_prompts(prompts, sequence, _every_row(wanted), mask, steps)
        return self._branch_scores(hidden.view(b, 1 + tree.count, -1), labels, tree)

    def _branch_scores(self, hidden: Tensor, labels: Sequence[Sequence[int]], tree: LabelTree) -> Tensor:
        """Returns log p of every word, [n, c]: of its first token at the prefix's end, of later ones at its branch.

        Args:
            hidden: at the prefix's end and at the branches, [n, 1 + k, d].
        """
        n = len(hidden)
        first_ids = self.on_device([word[0] for word in labels]).expand(n, -1)
        scores = self._token_log_likelihoods(hidden[:, 0], first_ids)  # [n, c]
        if tree.count:
            next_ids = self.on_device([token for word in labels for token in word[1:]])
            later = self._token_log_likelihoods(hidden[:, 1:].flatten(0, 1), next_ids.repeat(n)[:, None]).view(n, -1)
            scores = scores.index_add(1, tree.word_of, later)
        return scores

    def _label_by_label(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        columns = []
        for word in labels:
            own = self.collate([EncodedRow([0], list(word))] * len(embeddings))
            as_target = replace(batch, target_ids=own.target_ids, targets=own.targets, read=own.read)
            columns.append(self.target_log_likelihood(as_target, embeddings, prompts))
        return torch.stack(columns, dim=1)

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
        # the library's generation needs pads on the left: [pads ; P ; X] or [pads ; X ; P], nothing between the two
        known: dict[str, Any] = {}
        if prompts is not None and placement == "after":
            # rows beyond the model's reach cannot be read in two parts
            if past is not None and prompts.shape[1] and not self._beyond_reach(past.width + prompts.shape[1]):
                embeddings = embeddings[:, : past.width]
                known[cache_argument(self.model)] = self._as_cache(past)
            sequence = torch.cat(
                [
                    pads_first(embeddings, batch.input_lengths, 1),
                    prompts.to(embeddings.dtype).expand(len(embeddings), -1, -1),
                ],
                dim=1,
            )
        else:
            sequence = with_prompts(embeddings, prompts)
            sequence = pads_first(sequence, batch.input_lengths + sequence.shape[1] - embeddings.shape[1], 1)
        pads = embeddings.shape[1] - batch.input_lengths
        mask = (torch.arange(sequence.shape[1], device=sequence.device) >= pads[:, None]).long()
        # the library hands the head a slice of the hidden states, for which torch would copy the head once for each row
        head = self.model.get_output_embeddings()
        with head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:])):
            written = self.model.generate(
                inputs_embeds=sequence,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                stopping_criteria=stopping(watch),
                pad_token_id=self.pad_id,
                eos_token_id=[self.end_id, *ends],
                **known,
            )
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _as_cache(self, past: Past) -> Any:
        """Returns keys and values of inputs as the library's generation goes on from them: pads on the left."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, both in enumerate(zip(past.keys, past.values, strict=True)):
            at = next(self._stacks[0][layer].parameters()).device if self.spread else self.device
            keys, values = (pads_first(one, past.lengths, 2) if past.padded else one for one in both)
            cache.update(keys.to(at), values.to(at), layer)
        return cache

    def _hidden(
        self,
        sequence: Tensor,
        past: Past | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Returns the last layer's normed output, [n, s, d]; with `at`, at these rows and positions only, [k, d]."""
        if self.own_attention:
            config = self.model.config
            _, key_heads, width = self._key_shape
            keys = sequence.shape[1] + (past.width if past is not None else 0)
            heads = config.num_attention_heads
            backward = torch.is_grad_enabled()
            arguments["kernel"] = choose_kernel(Shape(self.device, self.dtype, heads, key_heads, width, keys, backward))
            if past is not None:
                arguments["past"] = past
            no_mask = arguments.get("attention_mask") is None and not self._beyond_reach(sequence.shape[1])
            if self.on_gpu and no_mask:
                arguments["causal"] = True
            if self._own_layers is not None and self._frozen_layers_run:
                return self._own_layers(sequence, at=at, **arguments)
            if no_mask:
                # without a mask the library looks at numbers on the device to find packed rows, and waits for them
                arguments["attention_mask"] = causal_mask(sequence.shape[1], sequence.dtype, sequence.device)
                arguments["position_ids"] = torch.arange(sequence.shape[1], device=sequence.device)[None]
        output = self.model.base_model(inputs_embeds=sequence, use_cache=False, **arguments)
        hidden: Tensor = output.last_hidden_state.to(self.device)
        return hidden if at is None else hidden[at]


def cache_argument(model: Any) -> str:
    """Returns what the installed transformers calls known keys and values: `past_key_values` or, later, `cache`."""
    return "cache" if "cache" in inspect.signature(model.base_model.forward).parameters else "past_key_values"


def pads_first(rows: Tensor, lengths: Tensor, dim: int) -> Tensor:
    """Moves the pads of rows, [b, …], along a dimension from their end to their start.

    Args:
        lengths: real positions of each row, [b].
        dim: of the positions.
    """
    width = rows.shape[dim]
    index = (torch.arange(width, device=rows.device) - (width - lengths)[:, None]) % width
    shape = [1] * rows.dim()
    shape[0], shape[dim] = len(rows), width
    return rows.gather(dim, index.view(shape).expand_as(rows))


class _Written(deque[tuple[Tensor, Tensor]]):
    """A sequence of layers' keys and values that writes each where it belongs, and keeps none of them.

    It is no list: of lists the hooks of spread layers hand on copies.

    Args:
        into: [rows, layers, 2, g, l, e].
    """

    def __init__(self, into: Tensor) -> None:
        super().__init__()
        self._into, self._layer = into, 0

    def append(self, both: tuple[Tensor, Tensor]) -> None:
        for side in (0, 1):
            self._into[:, self._layer, side] = both[side]
        self._layer += 1

    def extend(self, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        for both in layers:
            self.append(both)


WINDOWS = (
    *("sliding_window", "sliding_window_size", "window_size", "attention_window", "attention_window_size"),
    *("local_attention", "local_radius", "attention_chunk_size", "block_size"),
)


def windows_of(config: Any) -> list[int]:
    """Returns the windows that a config names, in tokens: sliding, local or chunked, as architectures call them."""
    named = [getattr(one, name, None) for one in (config, config.get_text_config()) for name in WINDOWS]
    flat = [size for value in named for size in (value if isinstance(value, list) else [value])]
    return [size for size in flat if isinstance(size, int) and size > 1]


def _every_row(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Flattens a few positions of every row, [n, k], to row indices and positions of equal length."""
    rows = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)
    return rows.flatten(), positions.flatten()
