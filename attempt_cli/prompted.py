"""A frozen backbone behind a mixture of prompts: what is trained, scored and served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.method import DecomposedPrompt, PromptModule, pool_input


@dataclass(frozen=True)
class PromptedModel:
    """p(y | [P_instance(X) ; X]).

    Args:
        backbone: the frozen model.
        mixture: gives each row its prompt, or DePT's prompt and offsets; None is the bare model.
        scale: what a prompt is multiplied with to enter the model: the backbone's embedding RMS when prompts are kept
            in its units, 1 when they are kept as they are (the paper).
        placement: "before" the input, [P ; X], or "after" it, [X ; P]. What X is mixed by is the same in both.
        tuned: trained weights that are in the backbone, in the place of prompts.
    """

    backbone: FrozenBackbone
    mixture: PromptModule | None = None
    scale: float = 1.0
    placement: str = "before"
    tuned: TunedWeights | None = None

    @property
    def trained(self) -> PromptModule | TunedWeights:
        """What a training changes: its parameters, by `speed_groups`.

        Raises:
            ValueError: the bare model has nothing to train.
        """
        module = self.mixture if self.mixture is not None else self.tuned
        if module is None:
            raise ValueError("a bare model has nothing to train")
        return module

    def release(self) -> None:
        """Takes trained weights out of the backbone; prompts leave nothing in it."""
        if self.tuned is not None:
            self.tuned.release()

    @property
    def prompt_length(self) -> int:
        """m; 0 for the bare model."""
        return self.mixture.length if self.mixture is not None else 0

    def one_for_all(self, tasks: Iterable[int]) -> bool:
        """Whether rows of these tasks all have the same prompt: they are of one task, and no input is looked at."""
        return self.mixture is not None and self.mixture.attention is None and len(set(tasks)) == 1

    def overhead(self, longest: int, tasks: Iterable[int] = (0,)) -> int:
        """Positions that a prompt adds to every row where scores are computed.

        m, or 0 where one prompt stands before all rows and has a pass of its own. Generation repeats it for every row.

        Args:
            longest: positions of the longest row, without the prompt.
            tasks: of the rows.
        """
        before = self.placement == "before" and self.backbone.shares_prompts(longest + self.prompt_length)
        return 0 if before and self.one_for_all(tasks) else self.prompt_length

    def prompts(self, batch: Batch, embeddings: Tensor, task_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The prompts as they enter the model and the mixture's weights: of each row, or of each task that is given.

        Returns:
            [b, m, d] and [b, t + 1]; None where there are none.
        """
        if self.mixture is None:
            return None, None
        if task_ids is None:
            task_ids = batch.task_ids
        pooled = None
        if self.mixture.attention is not None:
            pooled = pool_input(embeddings, batch.input_mask).float() / self.scale
        prompts, weights = self.mixture(task_ids, pooled)
        return prompts * self.scale, weights

    def log_likelihood(self, rows: Sequence[EncodedRow], task_ids: Tensor | None = None) -> Tensor:
        """log p of each row's own target, [b], differentiable in the mixture."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, _ = self._entering_prompts(rows, batch, embeddings, task_ids)
        return self.backbone.target_log_likelihood(batch, embeddings, prompts, self._read(rows))

    @torch.no_grad()
    def score_labels(
        self, rows: Sequence[EncodedRow], labels: Sequence[Sequence[int]], task_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """log p of every label word for every row, [b, c], and the mixture's weights, [b, t + 1]."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, task_ids)
        return self.backbone.label_log_likelihoods(batch, embeddings, prompts, labels, self._read(rows)), weights

    @torch.no_grad()
    def generate(
        self, rows: Sequence[EncodedRow], max_new_tokens: int, task_ids: Tensor | None = None
    ) -> tuple[list[str], Tensor | None]:
        """The model's continuation of every row, and the mixture's weights."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, task_ids)
        return self.backbone.generate(batch, embeddings, prompts, max_new_tokens, self.placement), weights

    def _entering_prompts(
        self, rows: Sequence[EncodedRow], batch: Batch, embeddings: Tensor, task_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """As `prompts`, but [1, m, d] where one is for all."""
        if not self.one_for_all([row.task for row in rows] if task_ids is None else task_ids.tolist()):
            return self.prompts(batch, embeddings, task_ids)
        one = (batch.task_ids if task_ids is None else task_ids)[:1]
        prompts, weights = self.prompts(batch, embeddings, one)
        return prompts, None if weights is None else weights.expand(len(rows), -1)

    def _read(self, rows: Sequence[EncodedRow]) -> Past | None:
        after = self.placement == "after" and self.mixture is not None
        return self.backbone.read(rows) if after else None

    def _enter(self, rows: Sequence[EncodedRow], task_ids: Tensor | None = None) -> tuple[Batch, Tensor]:
        """The rows as a batch, and what stands for their input, [b, l, d]: its embeddings; DePT adds to them."""
        if self.backbone.tuned is not self.tuned:
            held = "another training's" if self.backbone.tuned is not None else "no"
            raise RuntimeError(f"{self.backbone.name} holds {held} weights: a model of weights ends with its release")
        batch = self.backbone.collate(rows)
        if self.tuned is not None:
            self.tuned.refresh()
            return batch, self.backbone.embed(batch.input_ids)  # fine-tuning trains the embeddings, too
        with torch.no_grad():
            embeddings = self.backbone.embed(batch.input_ids)
        if isinstance(self.mixture, DecomposedPrompt):
            offsets = self.mixture.offsets(batch.task_ids if task_ids is None else task_ids, embeddings.shape[1])
            embeddings = embeddings + (offsets * self.scale).to(embeddings.dtype)
        return batch, embeddings

    def longest_input(self, max_length: int, target_tokens: int) -> int:
        """How many input tokens fit: the task's limit, or less where the model sees fewer positions."""
        bound = self.backbone.max_positions
        if bound is None:
            return max_length
        return max(1, min(max_length, bound - self.prompt_length - target_tokens))


@torch.no_grad()
def score_many(
    models: Sequence[PromptedModel],
    rows: Sequence[EncodedRow],
    labels: Sequence[Sequence[Sequence[int]]],
    max_tokens: int = 8192,
    task_ids: Sequence[int] | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Scores every row's label words under several prompts; inputs are read once for all prompts placed after them.

    Args:
        models: of one backbone.
        rows: the rows.
        labels: each model's label words, as tokens.
        max_tokens: positions of tails computed at once, or fewer where that is faster; a tail of all rows at least.
        task_ids: which of its target prompts each model uses; the first without it.

    Returns:
        For each model what `PromptedModel.score_labels` gives.
    """
    task_ids = task_ids or [0] * len(models)
    results: dict[int, tuple[Tensor, Tensor | None]] = {}
    together: dict[tuple[int, object], list[int]] = {}
    for i, (model, words) in enumerate(zip(models, labels, strict=True)):
        if model.placement == "after" and model.mixture is not None:
            # words of one token need no branches, and any of them can be looked up behind any tail
            branches = None if all(len(word) == 1 for word in words) else tuple(map(tuple, words))
            together.setdefault((model.prompt_length, branches), []).append(i)
        else:
            results[i] = model.score_labels(rows, words, _repeated(task_ids[i], rows, model))
    if together:
        backbone = models[0].backbone
        batch, embeddings = models[0]._enter(rows)
        past = backbone.read(rows)
    for (length, _), members in together.items():
        union = list(dict.fromkeys(tuple(word) for i in members for word in labels[i]))
        width = length + sum(len(word) - 1 for word in union)
        at_once = max(1, min(max_tokens, backbone.most_positions or max_tokens) // (width * len(rows)))
        for start in range(0, len(members), at_once):
            part = members[start : start + at_once]
            mixed = [models[i].prompts(batch, embeddings, _repeated(task_ids[i], rows, models[i])) for i in part]
            prompts = torch.stack([prompts for prompts, _ in mixed if prompts is not None], dim=1)  # [b, n, m, d]
            assert past is not None
            shared = replace(past, tails=len(part))
            scores = backbone.label_log_likelihoods(batch, embeddings, prompts.flatten(0, 1), union, shared)
            scores = scores.view(len(rows), len(part), -1)
            for j, i in enumerate(part):
                own = [union.index(tuple(word)) for word in labels[i]]
                results[i] = scores[:, j, own], mixed[j][1]
    return [results[i] for i in range(len(models))]


def _repeated(task_id: int, rows: Sequence[EncodedRow], model: PromptedModel) -> Tensor:
    return torch.full((len(rows),), task_id, device=model.backbone.device)
