"""A frozen backbone with a mixture of prompts: the model that is trained, scored and served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import ChatFrame
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.method import PromptModule, pool_input
from attempt_cli.placement import Placement


@dataclass(frozen=True)
class PromptedModel:
    """p(y | [P_instance(X) ; X]), or p(y | [X ; P_instance(X)]), whichever the placement says.

    Args:
        backbone: the frozen model.
        mixture: gives each row its prompt, or DePT's prompt and offsets; None is the bare model.
        scale: the factor of a prompt that enters the model: the backbone's embedding RMS if prompts are kept in units
            of it, 1 if they are kept as raw embeddings (the paper).
        placement: of the prompt; the mixture of X is the same in both placements.
        tuned: trained weights in the backbone, instead of prompts.
        frame: the chat template that input and prompt stand in; None for none. What of it is between the row's end and
            the prompt's comes with the prompt: rows are [text ; tail] behind [head ; P], or [head ; text] before
            [P ; tail].
    """

    backbone: FrozenBackbone
    mixture: PromptModule | None = None
    scale: float = 1.0
    placement: Placement = "before"
    tuned: TunedWeights | None = None
    frame: ChatFrame | None = None

    @property
    def trained(self) -> PromptModule | TunedWeights:
        """The module that a training changes; its parameters are in its `param_groups`.

        Raises:
            ValueError: the bare model has nothing to train.
        """
        module = self.mixture if self.mixture is not None else self.tuned
        if module is None:
            raise ValueError("a bare model has nothing to train")
        return module

    def release(self) -> None:
        """Takes trained weights out of the backbone; prompts are never in it."""
        if self.tuned is not None:
            self.tuned.release()

    @property
    def prompt_length(self) -> int:
        """The positions that enter with a prompt: m, and the chat template's part beside it; 0 for the bare model."""
        return self.mixture.length + len(self._beside_prompt) if self.mixture is not None else 0

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The chat template's tokens before and behind a row's text, those that come with the prompt left out."""
        if self.frame is None:
            return None
        before, behind = self.frame.head, self.frame.tail
        if self.mixture is None:
            return before, behind
        return ((), behind) if self.placement == "before" else (before, ())

    @property
    def _beside_prompt(self) -> tuple[int, ...]:
        if self.frame is None or self.mixture is None:
            return ()
        return self.frame.head if self.placement == "before" else self.frame.tail

    def label_tokens(self, words: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of label words; see `FrozenBackbone.label_tokens`."""
        return self.backbone.label_tokens(words, self.frame)

    def one_for_all(self, tasks: Iterable[int]) -> bool:
        """Tells whether all rows of these tasks have the same prompt: one task, and a method that reads no input."""
        return self.mixture is not None and not self.reads_input and len(set(tasks)) == 1

    @property
    def reads_input(self) -> bool:
        """Whether a row's prompt depends on its input: there is a G."""
        return self.mixture is not None and self.mixture.attention is not None

    @property
    def joins(self) -> tuple[object, ...] | None:
        """What models have in common whose rows can go through the backbone in one pass; None if this one cannot."""
        if self.mixture is None or self.mixture.changes_input:
            return None
        return id(self.backbone), self.placement, self.prompt_length, self.frame

    def overhead(self, longest: int, tasks: Iterable[int] = (0,)) -> int:
        """Returns the number of positions that a prompt adds to every row when scores are computed.

        It is m, or 0 if all rows share a prompt before them, which then has a pass of its own. (Generation repeats it
        for every row.)

        Args:
            longest: positions of the longest row, without the prompt.
            tasks: the rows' tasks.
        """
        before = self.placement == "before" and self.backbone.shares_prompts(longest + self.prompt_length)
        return 0 if before and self.one_for_all(tasks) else self.prompt_length

    def prompts(self, batch: Batch, embeddings: Tensor, task_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Returns the prompts as they enter the model, and the mixture's weights.

        Args:
            task_ids: the task of each prompt; the rows' own tasks by default.

        Returns:
            [b, m, d], with a chat template its part before or behind the prompt beside it, and [b, t + 1]; None if
            there are none.
        """
        if self.mixture is None:
            return None, None
        pooled = self.pooled(batch, embeddings) if self.reads_input else None
        return self._mixed(batch.task_ids if task_ids is None else task_ids, pooled)

    def pooled(self, batch: Batch, embeddings: Tensor) -> Tensor:
        """Returns what G reads of each row, [b, d], as it enters the model: not yet in the prompts' unit."""
        return pool_input(embeddings, self._text_mask(batch)).float()

    def _mixed(self, task_ids: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert self.mixture is not None
        prompts, weights = self.mixture(task_ids, None if pooled is None else pooled / self.scale)
        prompts = prompts * self.scale
        if self._beside_prompt:
            ids = torch.tensor(self._beside_prompt, device=prompts.device)
            beside = self.backbone.embed(ids).to(prompts.dtype).expand(len(prompts), -1, -1)
            prompts = torch.cat([beside, prompts] if self.placement == "before" else [prompts, beside], dim=1)
        return prompts, weights

    def _text_mask(self, batch: Batch) -> Tensor:
        """Returns what G reads of each row, [b, l]: its text, not the template, which is the same for all rows."""
        mask = batch.input_mask
        if self.around is None:
            return mask
        before, behind = map(len, self.around)
        places = torch.arange(mask.shape[1], device=mask.device)
        text = (places >= before) & (places < (batch.input_lengths - behind)[:, None])
        return torch.where(text.any(dim=1, keepdim=True), text, mask)  # a row without text is read whole

    def log_likelihood(self, rows: Sequence[EncodedRow], task_ids: Tensor | None = None) -> Tensor:
        """Returns log p of each row's own target, [b], differentiable in the mixture."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, _ = self._entering_prompts(rows, batch, embeddings, task_ids)
        return self.backbone.target_log_likelihood(batch, embeddings, prompts, self._read(rows))

    @torch.no_grad()
    def score_labels(
        self, rows: Sequence[EncodedRow], labels: Sequence[Sequence[int]], task_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns log p of every label word for every row, [b, c], and the mixture's weights, [b, t + 1]."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, task_ids)
        return self.backbone.label_log_likelihoods(batch, embeddings, prompts, labels, self._read(rows)), weights

    @torch.no_grad()
    def generate(
        self, rows: Sequence[EncodedRow], max_new_tokens: int, task_ids: Tensor | None = None
    ) -> tuple[list[str], Tensor | None]:
        """Returns the model's continuation of every row, and the mixture's weights."""
        batch, embeddings = self._enter(rows, task_ids)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, task_ids)
        ends = () if self.frame is None else (self.frame.end_id,)
        return self.backbone.generate(batch, embeddings, prompts, max_new_tokens, self.placement, ends), weights

    def _entering_prompts(
        self, rows: Sequence[EncodedRow], batch: Batch, embeddings: Tensor, task_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns what `prompts` does, but [1, m, d] if all rows share one prompt."""
        if not self.one_for_all([row.task for row in rows] if task_ids is None else task_ids.tolist()):
            return self.prompts(batch, embeddings, task_ids)
        one = (batch.task_ids if task_ids is None else task_ids)[:1]
        prompts, weights = self.prompts(batch, embeddings, one)
        return prompts, None if weights is None else weights.expand(len(rows), -1)

    def _read(self, rows: Sequence[EncodedRow]) -> Past | None:
        after = self.placement == "after" and self.mixture is not None
        return self.backbone.read(rows) if after else None

    def _enter(self, rows: Sequence[EncodedRow], task_ids: Tensor | None = None) -> tuple[Batch, Tensor]:
        """Returns the rows as a batch, and the embeddings of their inputs, [b, l, d], with DePT's offsets added."""
        if self.backbone.tuned is not self.tuned:
            held = "weights of another training" if self.backbone.tuned is not None else "no trained weights"
            raise RuntimeError(f"{self.backbone.name} holds {held}: this model does not work before or after that")
        batch = self.backbone.collate(rows)
        if self.tuned is not None:
            self.tuned.refresh()
            return batch, self.backbone.embed(batch.input_ids)  # with gradient: fine-tuning trains embeddings, too
        with torch.no_grad():
            embeddings = self.backbone.embed(batch.input_ids)
        if self.mixture is not None:
            offsets = self.mixture.offsets(batch.task_ids if task_ids is None else task_ids, embeddings.shape[1])
            if offsets is not None:
                embeddings = embeddings + (offsets * self.scale).to(embeddings.dtype)
        return batch, embeddings

    def longest_input(self, max_length: int, target_tokens: int) -> int:
        """Returns how many tokens of a text fit: the task's limit, or less if the model has fewer positions."""
        bound = self.backbone.max_positions
        if bound is None:
            return max_length
        template = sum(map(len, self.around or ()))
        return max(1, min(max_length, bound - self.prompt_length - template - target_tokens))


@torch.no_grad()
def score_many(
    models: Sequence[PromptedModel],
    rows: Sequence[EncodedRow],
    labels: Sequence[Sequence[Sequence[int]]],
    max_tokens: int = 8192,
    task_ids: Sequence[int] | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Scores every row's label words under several prompts; prompts placed after inputs share one pass over these.

    Args:
        models: models of one backbone that read the same rows (`PromptedModel.around`).
        rows: the rows.
        labels: each model's label words, as tokens.
        max_tokens: positions of suffixes computed at once, or fewer if that is faster; at least one suffix per row.
        task_ids: the target prompt that each model uses; the first by default.

    Returns:
        For each model what `PromptedModel.score_labels` returns.
    """
    task_ids = task_ids or [0] * len(models)
    results: dict[int, tuple[Tensor, Tensor | None]] = {}
    together: dict[tuple[int, object], list[int]] = {}
    for i, (model, words) in enumerate(zip(models, labels, strict=True)):
        if model.placement == "after" and model.mixture is not None:
            # words of one token need no branches, and all of them can be looked up behind any suffix
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
            shared = replace(past, suffixes=len(part))
            scores = backbone.label_log_likelihoods(batch, embeddings, prompts.flatten(0, 1), union, shared)
            scores = scores.view(len(rows), len(part), -1)
            for j, i in enumerate(part):
                own = [union.index(tuple(word)) for word in labels[i]]
                results[i] = scores[:, j, own], mixed[j][1]
    return [results[i] for i in range(len(models))]


def joint_log_likelihood(
    models: Sequence[PromptedModel], pairs: Sequence[tuple[int, EncodedRow]], suffixes: int = 1
) -> Tensor:
    """Returns log p of each row's own target under its own model, [n], from one pass through the frozen backbone.

    It is differentiable in every model's mixture.

    Args:
        models: models of one backbone, one placement and one prompt length (`PromptedModel.joins`).
        pairs: each row with its model's number.
        suffixes: so many pairs in a row, from the first on, share what stands in front, which is computed once for
            them: the input where prompts stand after it, else the prompt of one model and one task that reads no input.
    """
    first = models[pairs[0][0]]
    backbone, after = first.backbone, first.placement == "after"
    rows = [row for _, row in pairs]
    heads = rows[::suffixes]  # a row of each shared input
    batch, embeddings = first._enter(heads if after else rows)
    past = backbone.read(heads) if after else None
    pooled = None
    if any(models[number].reads_input for number in {number for number, _ in pairs}):
        pooled = first.pooled(batch, embeddings)
    if after and suffixes > 1:
        assert past is not None
        past = replace(past, suffixes=suffixes)
        pooled = None if pooled is None else pooled.repeat_interleave(suffixes, dim=0)
        batch = backbone.collate([replace(row, input_ids=row.input_ids[:1]) for row in rows])  # inputs are read
    # each model makes the prompts of its own rows
    places: dict[int, list[int]] = {}
    for place in range(0, len(pairs), 1 if after else suffixes):
        places.setdefault(pairs[place][0], []).append(place)
    order = [place for own in places.values() for place in own]
    index = torch.tensor(order).to(backbone.device, non_blocking=True)
    counts = [len(own) for own in places.values()]
    tasks = torch.split(batch.task_ids[index], counts)
    inputs = [None] * len(counts) if pooled is None else torch.split(pooled[index], counts)
    parts = []
    for (number, own), task_ids, read in zip(places.items(), tasks, inputs, strict=True):
        one = models[number].one_for_all(rows[place].task for place in own)
        own_read = read if models[number].reads_input else None
        prompts, _ = models[number]._mixed(task_ids[:1] if one else task_ids, own_read)
        parts.append(prompts.expand(len(own), -1, -1))
    back = sorted(range(len(order)), key=order.__getitem__)
    prompts = torch.cat(parts)[torch.tensor(back).to(backbone.device, non_blocking=True)]
    return backbone.target_log_likelihood(batch, embeddings, prompts, past)


def _repeated(task_id: int, rows: Sequence[EncodedRow], model: PromptedModel) -> Tensor:
    return torch.full((len(rows),), task_id, device=model.backbone.device)
