"""Decoder-only backbones: Llama and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attempt_cli.backbones.base import Batch, FrozenBackbone, with_prompts


class DecoderOnlyBackbone(FrozenBackbone):
    """A causal language model; a row is [P ; X ; y] without a gap, pads come after it.

    With pads only on the right of a row, causal attention alone keeps real tokens from seeing them: positions and
    scores of a row are the same alone and in any batch, and no mask is needed.
    """

    architecture = "decoder-only"

    @property
    def max_positions(self) -> int | None:
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return positions

    def target_tokens(self, text: str, *, end: bool) -> list[int]:
        # the space belongs to the word in these vocabularies: " yes" is what follows "answer:". It is read off behind a
        # colon, for SentencePiece (Llama 2, Mistral) puts a space of its own before whatever comes first
        before, joined = self._plain_tokens(":"), self._plain_tokens(": " + text.strip())
        ids = joined[len(before) :] if joined[: len(before)] == before else self._plain_tokens(" " + text.strip())
        return [*ids, self.end_id] if end else ids

    def _plain_tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def target_log_likelihood(self, batch: Batch, embeddings: Tensor, prompts: Tensor | None) -> Tensor:
        b, longest = batch.target_ids.shape
        length = prompts.shape[1] if prompts is not None else 0
        sequence = embeddings
        if longest > 1:  # every token of the target but the last is read before the next is predicted
            sequence = torch.cat([embeddings, embeddings.new_zeros(b, longest - 1, embeddings.shape[2])], dim=1)
            rows, steps = self._target_positions(batch.target_lengths - 1)
            columns = batch.input_lengths[rows] + steps
            sequence[rows, columns] = self.embed(batch.target_ids[rows, steps])
        hidden = self._hidden(with_prompts(sequence, prompts))  # [b, m + l + c - 1, d]
        rows, steps = self._target_positions(batch.target_lengths)
        predicted_from = length + batch.input_lengths[rows] - 1 + steps
        scores = self._token_log_likelihoods(hidden[rows, predicted_from], batch.target_ids[rows, steps, None])[:, 0]
        return torch.zeros(b, device=scores.device).index_add(0, rows, scores)

    def label_log_likelihoods(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        device = embeddings.device
        b = embeddings.shape[0]
        length = prompts.shape[1] if prompts is not None else 0
        # the words' tokens but their last stand behind the input, side by side: branches of one tree
        branch_of = torch.tensor(
            [j for j, word in enumerate(labels) for _ in word[:-1]], device=device, dtype=torch.long
        )
        step_of = torch.tensor([k for word in labels for k in range(len(word) - 1)], device=device, dtype=torch.long)
        branch_ids = torch.tensor([token for word in labels for token in word[:-1]], device=device, dtype=torch.long)
        window = getattr(self.model.config, "sliding_window", None)
        if len(branch_ids) and window and length + embeddings.shape[1] + max(map(len, labels)) > window:
            # our mask of branches would let layers with a sliding window (Mistral, Gemma 3) see beyond it
            return self._label_by_label(batch, embeddings, prompts, labels)
        ends = length + batch.input_lengths  # [b], where a row's prefix ends
        prefix = with_prompts(embeddings, prompts)
        if len(branch_ids) == 0:
            hidden = self._hidden(prefix)
        else:
            sequence = torch.cat([prefix, self.embed(branch_ids).expand(b, -1, -1)], dim=1)
            width, branches = prefix.shape[1], len(branch_ids)
            positions = torch.arange(width, device=device).expand(b, -1)
            positions = torch.cat([positions, ends[:, None] + step_of], dim=1)
            prefix_index = torch.arange(width, device=device)
            allowed = torch.zeros(b, width + branches, width + branches, dtype=torch.bool, device=device)
            allowed[:, :width, :width] = prefix_index[:, None] >= prefix_index
            allowed[:, width:, :width] = (prefix_index < ends[:, None])[:, None, :]
            allowed[:, width:, width:] = (branch_of[:, None] == branch_of) & (step_of[:, None] >= step_of)
            mask = torch.zeros(allowed.shape, dtype=sequence.dtype, device=device)
            mask = mask.masked_fill(~allowed, torch.finfo(sequence.dtype).min)[:, None]
            hidden = self._hidden(sequence, attention_mask=mask, position_ids=positions)
        # log p(first token) comes from the prefix's end, that of every later one from the branch
        every_row = torch.arange(b, device=device)
        first_ids = torch.tensor([word[0] for word in labels], device=device).expand(b, -1)
        scores = self._token_log_likelihoods(hidden[every_row, ends - 1], first_ids)  # [b, c]
        if len(branch_ids):
            next_ids = torch.tensor([token for word in labels for token in word[1:]], device=device)
            after = hidden[:, -len(branch_ids) :].reshape(b * len(branch_ids), -1)
            later = self._token_log_likelihoods(after, next_ids.repeat(b)[:, None]).view(b, -1)
            scores = scores.index_add(1, branch_of, later)
        return scores

    def _label_by_label(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, labels: Sequence[Sequence[int]]
    ) -> Tensor:
        columns = []
        for word in labels:
            ids = torch.tensor([list(word)], device=embeddings.device).expand(len(embeddings), -1)
            as_target = replace(batch, target_ids=ids, target_lengths=torch.full_like(batch.input_lengths, len(word)))
            columns.append(self.target_log_likelihood(as_target, embeddings, prompts))
        return torch.stack(columns, dim=1)

    def generate(self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, max_new_tokens: int) -> list[str]:
        # the library's generation wants pads on the left: [pads ; P ; X], nothing between prompt and text
        sequence = with_prompts(embeddings, prompts)
        length = sequence.shape[1]
        shift = length - (batch.input_lengths + length - embeddings.shape[1])  # pads of each row
        index = (torch.arange(length, device=sequence.device) - shift[:, None]) % length
        sequence = sequence.gather(1, index[..., None].expand_as(sequence))
        mask = (torch.arange(length, device=sequence.device) >= shift[:, None]).long()
        written = self.model.generate(
            inputs_embeds=sequence,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_id,
        )
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _hidden(self, sequence: Tensor, **arguments: Tensor) -> Tensor:
        hidden: Tensor = self.model.base_model(inputs_embeds=sequence, use_cache=False, **arguments).last_hidden_state
        return hidden

    @staticmethod
    def _target_positions(lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Row and step of every real target token, two tensors of equal length."""
        rows, steps = (torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]).nonzero(
            as_tuple=True
        )
        return rows, steps
