"""Encoder-decoder backbones: the T5 family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past, additive_mask
from attempt_cli.backbones.base import FrozenBackbone, Watch, stopping, with_prompts
from attempt_cli.backbones.chat import ChatFrame, no_chat
from attempt_cli.backbones.kernels import Shape, choose_kernel
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.backbones.t5 import T5Layers
from attempt_cli.placement import Placement


class EncoderDecoderBackbone(FrozenBackbone):
    """A model whose encoder reads [P ; X] and whose decoder writes the target (the paper's T5)."""

    architecture = "encoder-decoder"
    # layers with a backward pass of their own, if the architecture has them
    _own_layers: T5Layers | None = None

    def use_own_layers(self, on: bool) -> None:
        """Lets our own layers run, if the architecture has them, or the library's."""
        self._own_layers = T5Layers(self.model) if on and T5Layers.fits(self.model) else None
        if self.on_gpu and self._own_layers is not None and not self._gradients_agree():
            self._own_layers = None

    @property
    def max_positions(self) -> int | None:
        return None  # relative positions have no bound

    @property
    def chat_frame(self) -> ChatFrame:
        raise no_chat(self.name)

    def target_tokens(self, text: str, *, end: bool, frame: ChatFrame | None = None) -> list[int]:
        # T5's targets always end in </s>, whatever `end` says
        ids: list[int] = self._tokenised(text.strip(), add_special_tokens=False)
        return [*ids, self.end_id]

    def target_log_likelihood(
        self, batch: Batch, embeddings: Tensor, prompts: Tensor | None, past: Past | None = None
    ) -> Tensor:
        states, mask = self._encode(batch, embeddings, prompts)
        hidden = self._decode(batch.target_ids, states, mask)
        rows, steps = batch.targets
        scores = self._token_log_likelihoods(hidden[rows, steps], batch.target_ids[rows, steps, None])[:, 0]
        return self._summed(batch, scores)

    def label_log_likelihoods(
        self,
        batch: Batch,
        embeddings: Tensor,
        prompts: Tensor | None,
        labels: Sequence[Sequence[int]],
        past: Past | None = None,
    ) -> Tensor:
        states, mask = self._encode(batch, embeddings, prompts)
        b, c = len(states), len(labels)
        batch = self.collate([EncodedRow([self.pad_id], list(word)) for word in labels])
        ids, (words, steps) = batch.target_ids, batch.targets
        # the encoder runs once per row; the row's label words share its states in one pass of the decoder
        hidden = self._decode(ids.repeat(b, 1), states, mask)
        each = hidden.view(b, c, *hidden.shape[1:])[:, words, steps].flatten(0, 1)  # [b · k, d], k tokens of all words
        scores = self._token_log_likelihoods(each, ids[words, steps].repeat(b)[:, None]).view(b, -1)
        return torch.zeros(b, c, device=scores.device).index_add(1, words, scores)

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
        from transformers.modeling_outputs import BaseModelOutput

        states, mask = self._encode(batch, embeddings, prompts)
        written = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=[self.end_id, *ends],
            stopping_criteria=stopping(watch),
        )
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.no_grad()
    def input_states(self, batch: Batch) -> Tensor:
        return self._encode(batch, self.embed(batch.input_ids), None)[0]

    def _encode(self, batch: Batch, embeddings: Tensor, prompts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the encoder's states of [P ; X] and their mask, [b, m + l, d] and [b, m + l]."""
        mask = batch.input_mask
        if prompts is not None:
            mask = torch.cat([mask.new_ones(mask.shape[0], prompts.shape[1]), mask], dim=1)
        sequence = with_prompts(embeddings, prompts)
        states: Tensor
        if self._own_layers is not None and self._frozen_layers_run:
            added = self._added_mask(mask, sequence.dtype)
            states = self._own_layers.encode(sequence, added, self._kernel(mask.shape[1]))
            return states, mask.long()
        self._attend_by(mask.shape[1])
        states = self.model.get_encoder()(
            inputs_embeds=sequence, attention_mask=self._entering_mask(mask, sequence.dtype)
        ).last_hidden_state.to(self.device)
        return states, mask.long()

    def _entering_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a mask of real positions, [b, l], as the model takes it.

        Of a mask with one number a position the library asks whether it hides anything, and waits for the answer.
        """
        return additive_mask(mask.bool()[:, None], dtype) if self.model._supports_sdpa else mask.long()

    def _added_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Returns a mask of real positions, [b, l], as it is added to scores; None where a look at it costs no wait."""
        return None if mask.device.type == "cpu" and bool(mask.all()) else additive_mask(mask.bool()[:, None], dtype)

    def _kernel(self, keys: int) -> str:
        """Returns the faster kernel of attention for this length."""
        config = self.model.config
        heads, width = config.num_heads, config.d_kv
        return choose_kernel(Shape(self.device, self.dtype, heads, heads, width, keys, torch.is_grad_enabled()))

    def _attend_by(self, keys: int) -> None:
        """Switches to the library's faster attention for this length; both take T5's position bias."""
        if not self.model._supports_sdpa:  # LongT5
            return
        name = "eager" if self._kernel(keys) == "plain" else "sdpa"
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    def _decode(self, target_ids: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Returns the decoder's hidden states before each token of the target, [n, c, d].

        Args:
            target_ids: [n, c]; n / b targets that follow each other belong to one row.
            states, mask: of the rows, as `_encode` returns them.
        """
        start = target_ids.new_full((target_ids.shape[0], 1), self.model.config.decoder_start_token_id)
        # pads are only at the end, where causal attention hides them from real tokens
        read = torch.cat([start, target_ids[:, :-1]], dim=1)
        if self._own_layers is not None and self._frozen_layers_run:
            added = self._added_mask(mask, states.dtype)
            return self._own_layers.decode(self.embed(read), states, added, self._kernel(states.shape[1]))
        targets = len(target_ids) // len(states)
        states, mask = (one.repeat_interleave(targets, dim=0) if targets > 1 else one for one in (states, mask))
        hidden: Tensor = self.model.get_decoder()(
            input_ids=read,
            encoder_hidden_states=states,
            encoder_attention_mask=self._entering_mask(mask, states.dtype),
            use_cache=False,
        ).last_hidden_state.to(self.device)
        return hidden

    def _before_head(self, hidden: Tensor) -> Tensor:
        if getattr(self.model.config, "scale_decoder_outputs", False):
            hidden = hidden * float(self.model.config.d_model) ** -0.5
        return hidden
