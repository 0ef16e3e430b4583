"""A frozen backbone with a mixture of prompts: the model that is trained, scored and served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.base import STATES, FrozenBackbone, Watch
from attempt_cli.backbones.chat import ChatFrame
from attempt_cli.backbones.rows import Batch, EncodedRow
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.method import PromptModule
from attempt_cli.placement import Placement


@dataclass(frozen=True)
class PromptedModel:
    """p(y | [P_instance(X) ; X]), or p(y | [X ; P_instance(X)]), whichever the placement says.

    Args:
        backbone: the frozen model.
        mixture: gives each row its prompt, and of DePT and ADePT the input's offsets; None is the bare model.
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
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text, besides the model's own: that of the chat template's assistant."""
        return () if self.frame is None else (self.frame.end_id,)

    @property
    def _beside_prompt(self) -> tuple[int, ...]:
        if self.frame is None or self.mixture is None:
            return ()
        return self.frame.head if self.placement == "before" else self.frame.tail

    @cached_property
    def _beside_ids(self) -> Tensor:
        return self.backbone.on_device(self._beside_prompt)

    def label_tokens(self, words: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of label words; see `FrozenBackbone.label_tokens`."""
        return self.backbone.label_tokens(words, self.frame)

    def one_for_all(self, tasks: Iterable[int]) -> bool:
        """Tells whether all rows of these tasks have the same prompt: one task, and a method that reads no input."""
        return self.mixture is not None and not self.reads_input and len(set(tasks)) == 1

    @property
    def reads_input(self) -> bool:
        """Whether a row's prompt depends on its input: there is a G, or a router."""
        return self.mixture is not None and self.mixture.reads_input

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

    @property
    def reads_states(self) -> bool:
        """Whether G reads the frozen model's states of an input, not its word embeddings."""
        attention = None if self.mixture is None else self.mixture.attention
        return attention is not None and attention.reads != "words"

    def prompts(
        self, batch: Batch, embeddings: Tensor, task_ids: Tensor | None = None, states: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns the prompts as they enter the model, and the mixture's weights.

        Args:
            task_ids: the task of each prompt; the rows' own tasks by default.
            states: of the rows' inputs (`FrozenBackbone.states`), where they are known; a G that reads them asks for
                them otherwise.

        Returns:
            [b, m, d], with a chat template its part before or behind the prompt beside it, and [b, t + 1]; None if
            there are none.
        """
        if self.mixture is None:
            return None, None
        pooled = self.pooled(batch, embeddings, states) if self.reads_input else None
        return self._mixed(batch.task_ids if task_ids is None else task_ids, pooled)

    @property
    def reading(self) -> tuple[object, ...]:
        """What models have in common for which `pooled` returns the same."""
        if self.mixture is None:
            return ()
        return type(self.mixture).pool, self.mixture.attention and self.mixture.attention.reads, self.scale

    def pooled(self, batch: Batch, embeddings: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns what the mixture reads of each row, [b, d]: embeddings in prompts' unit, states of mean square 1."""
        assert self.mixture is not None
        if not self.reads_states:
            return self.mixture.pool(embeddings, self._text_mask(batch)).float() / self.scale
        assert self.mixture.attention is not None
        states = self.backbone.states_of(batch) if states is None else states
        own = states[:, STATES.index(self.mixture.attention.reads)]
        return own / own.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)

    def _mixed(self, task_ids: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert self.mixture is not None
        prompts, weights = self.mixture(task_ids, pooled)
        prompts = prompts * self.scale
        if self._beside_prompt:
            beside = self.backbone.embed(self._beside_ids).to(prompts.dtype).expand(len(prompts), -1, -1)
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

    def log_likelihood(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Returns log p of each row's own target, [b], differentiable in the mixture."""
        batch, one = self._collated(rows), self.one_for_all(row.task for row in rows)
        return self.likelihood_of(batch, self._read(rows), one)

    def likelihood_of(self, batch: Batch, past: Past | None, one: bool) -> Tensor:
        """Returns what `log_likelihood` does, computed on the device alone.

        Args:
            past: keys and values of the rows' inputs, with the prompt after them.
            one: whether all rows share one prompt (`one_for_all`).
        """
        embeddings = self._embedded(batch)
        states = None if past is None else past.states
        prompts, _ = self.prompts(batch, embeddings, batch.task_ids[:1] if one else None, states)
        return self.backbone.target_log_likelihood(batch, embeddings, prompts, past)

    @torch.no_grad()
    def score_labels(self, rows: Sequence[EncodedRow], labels: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Returns log p of every label word for every row, [b, c], and the mixture's weights, [b, t + 1]."""
        batch, embeddings = self._enter(rows)
        past = self._read(rows)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, past)
        return self.backbone.label_log_likelihoods(batch, embeddings, prompts, labels, past), weights

    @torch.no_grad()
    def generate(
        self, rows: Sequence[EncodedRow], max_new_tokens: int, watch: Watch | None = None, past: Past | None = None
    ) -> tuple[list[str], Tensor | None]:
        """Returns the model's continuation of every row, and the mixture's weights.

        Args:
            rows: the rows.
            max_new_tokens: the most tokens of a continuation.
            watch: sees every token and says which rows are done.
            past: keys and values of the rows' inputs, where they are known (`read_for`); not of a prompt before them.
        """
        batch, embeddings = self._enter(rows)
        past = past if past is not None else self._read(rows)
        prompts, weights = self._entering_prompts(rows, batch, embeddings, past)
        texts = self.backbone.generate(
            batch, embeddings, prompts, max_new_tokens, self.placement, self.ends, watch, past
        )
        return texts, weights

    def _entering_prompts(
        self, rows: Sequence[EncodedRow], batch: Batch, embeddings: Tensor, past: Past | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns what `prompts` does, but [1, m, d] if all rows share one prompt."""
        if not self.one_for_all(row.task for row in rows):
            return self.prompts(batch, embeddings, states=None if past is None else past.states)
        prompts, weights = self.prompts(batch, embeddings, batch.task_ids[:1])
        return prompts, None if weights is None else weights.expand(len(rows), -1)

    def _read(self, rows: Sequence[EncodedRow]) -> Past | None:
        return read_for([self], rows)

    @property
    def behind_input(self) -> bool:
        """Whether its prompt is placed after the input, which is then read by itself."""
        return self.placement == "after" and self.mixture is not None

    def _enter(self, rows: Sequence[EncodedRow]) -> tuple[Batch, Tensor]:
        """Returns the rows as a batch, and the embeddings of their inputs."""
        batch = self._collated(rows)
        return batch, self._embedded(batch)

    def _collated(self, rows: Sequence[EncodedRow]) -> Batch:
        if self.backbone.tuned is not self.tuned:
            held = "weights of another training" if self.backbone.tuned is not None else "no trained weights"
            raise RuntimeError(f"{self.backbone.name} holds {held}: this model does not work before or after that")
        return self.backbone.collate(rows)

    def _embedded(self, batch: Batch) -> Tensor:
        """Returns the embeddings of a batch's inputs, [b, l, d], with the method's offsets."""
        if self.tuned is not None:
            self.tuned.refresh(batch)
            return self.backbone.embed(batch.input_ids)  # with gradient: fine-tuning trains embeddings, too
        with torch.no_grad():
            embeddings = self.backbone.embed(batch.input_ids)
        return self.with_offsets(batch.task_ids, embeddings)

    def with_offsets(self, task_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Returns embeddings of inputs, [b, l, d], with what the method adds to them."""
        if self.mixture is None or not self.mixture.changes_input:
            return embeddings
        offsets = self.mixture.offsets(task_ids, embeddings.float() / self.scale)
        return embeddings if offsets is None else embeddings + (offsets * self.scale).to(embeddings.dtype)

    def longest_input(self, max_length: int, target_tokens: int) -> int:
        """Returns how many tokens of a text fit: the task's limit, or less if the model has fewer positions."""
        bound = self.backbone.max_positions
        if bound is None:
            return max_length
        template = sum(map(len, self.around or ()))
        return max(1, min(max_length, bound - self.prompt_length - template - target_tokens))


@torch.no_grad()
def likelihoods_of_many(models: Sequence[PromptedModel], rows: Sequence[EncodedRow]) -> list[Tensor]:
    """Returns each model's log p of each row's own target, [b]; prompts placed after inputs share one pass over these.

    Args:
        models: models of one backbone that read the same rows (`PromptedModel.around`).
        rows: the rows.
    """
    past = read_for(models, rows)
    return [
        model.likelihood_of(
            model._collated(rows), past if model.behind_input else None, model.one_for_all(row.task for row in rows)
        )
        for model in models
    ]


def read_for(models: Sequence[PromptedModel], rows: Sequence[EncodedRow]) -> Past | None:
    """Reads the rows' inputs once for all models whose prompts are placed after them; None where no prompt is.

    Args:
        models: models of one backbone that read the same rows (`PromptedModel.around`).
        rows: the rows.
    """
    behind = [model for model in models if model.behind_input]
    return behind[0].backbone.read(rows, any(model.reads_states for model in behind)) if behind else None


@torch.no_grad()
def score_many(
    models: Sequence[PromptedModel],
    rows: Sequence[EncodedRow],
    labels: Sequence[Sequence[Sequence[int]]],
    max_tokens: int = 8192,
    task_ids: Sequence[int] | None = None,
    asked: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Scores rows' label words under several prompts; prompts placed after inputs share one pass over these.

    Args:
        models: models of one backbone that read the same rows (`PromptedModel.around`).
        rows: the rows.
        labels: each model's label words, as tokens.
        max_tokens: positions of suffixes computed at once, or fewer if that is faster; at least one suffix per row.
        task_ids: the target prompt that each model uses; the first by default.
        asked: the numbers of the rows that each model is asked about; all rows by default. Prompts before the input
            then share passes, too: of few rows a model, one pass is cheaper than a pass a model.

    Returns:
        For each model what `PromptedModel.score_labels` returns, of its rows.
    """
    task_ids = task_ids or [0] * len(models)
    about = asked if asked is not None else [range(len(rows))] * len(models)
    together: dict[tuple[str, int, object], list[int]] = {}
    for i, (model, words) in enumerate(zip(models, labels, strict=True)):
        # words of one token need no branches, and all of them can be looked up behind any suffix
        branches = None if all(len(word) == 1 for word in words) else tuple(map(tuple, words))
        joins = model.joins is not None and (model.placement == "after" or asked is not None)
        together.setdefault((model.placement, model.prompt_length, branches if joins else (i,)), []).append(i)
    results: dict[int, tuple[Tensor, Tensor | None]] = {}
    shared: _Reading | None = None
    for (placement, _, _), members in together.items():
        if placement == "before" and len(members) == 1:
            (i,) = members
            results[i] = models[i].score_labels([replace(rows[row], task=task_ids[i]) for row in about[i]], labels[i])
            continue
        shared = shared or _Reading(models, task_ids, rows)
        union = list(dict.fromkeys(tuple(word) for i in members for word in labels[i]))
        pairs = [(i, row) for i in members for row in about[i]]
        scores, weights = shared.score(placement, pairs, union, max_tokens)
        for i in members:
            places = [place for place, (j, _) in enumerate(pairs) if j == i]
            columns = [union.index(tuple(word)) for word in labels[i]]
            own_weights = [weight for place in places if (weight := weights[place]) is not None]
            own_scores = scores[shared.backbone.on_device(places)][:, shared.backbone.on_device(columns)]
            results[i] = own_scores, torch.stack(own_weights) if own_weights else None
    return [results[i] for i in range(len(models))]


Pairs = Sequence[tuple[int, int]]  # (number of a model, number of a row)


class _Reading:
    """Rows that several models of one backbone are asked about: embedded once, read once.

    Args:
        models: have a mixture each.
        task_ids: the target prompt that each model uses.
        rows: the rows.
    """

    def __init__(self, models: Sequence[PromptedModel], task_ids: Sequence[int], rows: Sequence[EncodedRow]) -> None:
        self.models = models
        self.task_ids = task_ids
        self.rows = rows
        self.backbone = models[0].backbone
        # as they are: a method that adds something to them does so for its own rows alone
        self.batch, self.embeddings = replace(models[0], mixture=None)._enter(rows)

    @cached_property
    def past(self) -> Past:
        """Keys and values of the rows' inputs."""
        past = self.backbone.read(self.rows, self._reads_states)
        assert past is not None
        return past

    @cached_property
    def states(self) -> Tensor | None:
        """The frozen model's states of the rows' inputs, where a model reads them."""
        if not self._reads_states:
            return None
        after = any(model.placement == "after" for model in self.models)
        return self.past.states if after else self.backbone.states_of(self.batch)

    @property
    def _reads_states(self) -> bool:
        return any(model.reads_states for model in self.models)

    def score(
        self, placement: str, pairs: Pairs, words: Sequence[Sequence[int]], max_tokens: int
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Returns log p of every word for every pair, [n, c], and the mixture's weights of every pair."""
        length = self.models[pairs[0][0]].prompt_length
        width = length + sum(len(word) - 1 for word in words)
        scores: dict[tuple[int, int], Tensor] = {}
        mixed: dict[tuple[int, int], Tensor | None] = {}
        for part, suffixes in self._passes(placement, pairs, width, max_tokens):
            of = [row for _, row in part][::suffixes]
            prompts, weights = self.prompts(part)
            at = self.backbone.on_device(of)
            past = replace(self.past.of_rows(of, at), suffixes=suffixes) if placement == "after" else None
            batch, embeddings = self.batch.of_rows(at), self.embeddings[at]
            found = self.backbone.label_log_likelihoods(batch, embeddings, prompts, words, past)
            scores |= zip(part, found, strict=True)
            mixed |= zip(part, weights, strict=True)
        return torch.stack([scores[pair] for pair in pairs]), [mixed[pair] for pair in pairs]

    def _passes(self, placement: str, pairs: Pairs, width: int, max_tokens: int) -> Iterator[tuple[Pairs, int]]:
        """Yields pairs that are computed at once, those of a row beside each other, and how many each row has.

        Args:
            width: positions of a prompt and the label words.
        """
        if placement == "before":
            at_once = max(1, max_tokens // (width + self.embeddings.shape[1]))
            for start in range(0, len(pairs), at_once):
                yield pairs[start : start + at_once], 1
            return
        asking: dict[int, list[int]] = {}
        for i, row in pairs:
            asking.setdefault(row, []).append(i)
        budget = min(max_tokens, self.backbone.most_positions or max_tokens)
        for count in sorted({len(those) for those in asking.values()}):  # all rows of a pass have as many suffixes
            of = [row for row in asking if len(asking[row]) == count]
            at_once = max(1, budget // (width * len(of)))
            for start in range(0, count, at_once):
                part = [(i, row) for row in of for i in asking[row][start : start + at_once]]
                yield part, len(part) // len(of)

    def prompts(self, pairs: Pairs) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the prompt of every pair as it enters the model, [n, m, d], and the mixture's weights."""
        prompts: dict[tuple[int, int], Tensor] = {}
        weights: dict[tuple[int, int], Tensor | None] = {}
        for i in dict.fromkeys(i for i, _ in pairs):
            of = [row for j, row in pairs if j == i]
            model, at = self.models[i], self.backbone.on_device(of)
            batch, tasks = self.batch.of_rows(at), _repeated(self.task_ids[i], of, self.models[i])
            states = self.states[at] if self.states is not None and model.reads_states else None
            own, mixed = model.prompts(batch, self.embeddings[at], tasks, states)
            assert own is not None
            for place, row in enumerate(of):
                prompts[i, row], weights[i, row] = own[place], None if mixed is None else mixed[place]
        return torch.stack([prompts[pair] for pair in pairs]), [weights[pair] for pair in pairs]


@torch.no_grad()
def generate_each(
    models: Sequence[PromptedModel],
    rows: Sequence[EncodedRow],
    task_ids: Sequence[int],
    max_new_tokens: int,
    watch: Watch | None = None,
) -> tuple[list[str], list[Tensor | None]]:
    """Continues every row under a model of its own.

    Args:
        models: one for each row, of one backbone, placement, prompt length and chat template or none.
        rows: the rows.
        task_ids: the target prompt of each row.
        max_new_tokens: the most tokens of a continuation.
        watch: sees every token and says which rows are done.

    Returns:
        The continuations, and the mixture's weights of each row.
    """
    reading = _Reading(models, task_ids, rows)
    prompts, weights = reading.prompts(list(zip(range(len(models)), range(len(rows)), strict=True)))
    first = models[0]
    embeddings = reading.embeddings
    if any(model.mixture is not None and model.mixture.changes_input for model in models):
        tasks = first.backbone.on_device(task_ids)
        changed = [model.with_offsets(tasks[i, None], embeddings[i, None]) for i, model in enumerate(models)]
        embeddings = torch.cat(changed)
    past = reading.past if first.placement == "after" else None
    texts = first.backbone.generate(
        reading.batch, embeddings, prompts, max_new_tokens, first.placement, first.ends, watch, past
    )
    return texts, weights


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
    reading = {number: models[number] for number in {number for number, _ in pairs} if models[number].reads_input}
    past = backbone.read(heads, any(model.reads_states for model in reading.values())) if after else None
    states = None if past is None else past.states
    if states is None and any(model.reads_states for model in reading.values()):
        states = backbone.states_of(batch)
    # what each of them reads of every row; most read alike
    kinds: dict[object, Tensor] = {}
    for model in reading.values():
        if model.reading not in kinds:
            read = model.pooled(batch, embeddings, states)
            kinds[model.reading] = read.repeat_interleave(suffixes, dim=0) if after and suffixes > 1 else read
    if after and suffixes > 1:
        assert past is not None
        past = replace(past, suffixes=suffixes)
        batch = backbone.collate([replace(row, input_ids=row.input_ids[:1]) for row in rows])  # inputs are read
    # each model makes the prompts of its own rows
    places: dict[int, list[int]] = {}
    for place in range(0, len(pairs), 1 if after else suffixes):
        places.setdefault(pairs[place][0], []).append(place)
    order = [place for own in places.values() for place in own]
    index = backbone.on_device(order)
    counts = [len(own) for own in places.values()]
    tasks = torch.split(batch.task_ids[index], counts)
    inputs = {kind: torch.split(read[index], counts) for kind, read in kinds.items()}
    parts = []
    for turn, ((number, own), task_ids) in enumerate(zip(places.items(), tasks, strict=True)):
        one = models[number].one_for_all(rows[place].task for place in own)
        own_read = inputs[models[number].reading][turn] if models[number].reads_input else None
        prompts, _ = models[number]._mixed(task_ids[:1] if one else task_ids, own_read)
        parts.append(prompts.expand(len(own), -1, -1))
    back = sorted(range(len(order)), key=order.__getitem__)
    prompts = torch.cat(parts)[backbone.on_device(back)]
    return backbone.target_log_likelihood(batch, embeddings, prompts, past)


def _repeated(task_id: int, rows: Sequence[object], model: PromptedModel) -> Tensor:
    return torch.full((len(rows),), task_id, device=model.backbone.device)
