"""An engine without layers: it computes what enters the model, and another server does the rest."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from attempt_cli.evaluation.prediction import RowPrediction
from attempt_cli.server.engine import Engine, UpstreamError, _Ready, _Text

if TYPE_CHECKING:
    from torch import Tensor

    from attempt_cli.backbones.table import EmbeddingTable
    from attempt_cli.server.upstream import Upstream

AT_ONCE = 64  # inputs that are forwarded at once; further ones wait

Prefix = tuple[int, ...]


class UpstreamEngine(Engine):
    """One thread that mixes prompts and forwards embeddings; many inputs are under way at once.

    Every prefix of the label words' tokens is a request of its own: of words of one token there is one prefix, the
    empty one. The same sums as in the local engine are the words' scores.

    Args:
        table: the backbone's embeddings and tokenizer.
        upstream: the server that has its layers.
        queue: the largest number of inputs that wait.
    """

    backbone: EmbeddingTable
    forwards = True

    def __init__(self, table: EmbeddingTable, upstream: Upstream, *, queue: int) -> None:
        super().__init__(table, max_tokens=1, wait=0, queue=queue)
        self.upstream = upstream
        self._under_way: set[asyncio.Task[None]] = set()

    def own_counts(self) -> tuple[tuple[str, str, int], ...]:
        return (
            ("attempt_upstream_requests", "Requests to the upstream.", self.upstream.sent),
            ("attempt_upstream_failures", "Those of them that failed.", self.upstream.failed),
        )

    def _run(self) -> None:
        asyncio.run(self._forward_all())

    async def _forward_all(self) -> None:
        async with self.upstream.connected():
            while await asyncio.to_thread(self._wait_for_inputs):
                self._guarded(self._take(lambda _: True, AT_ONCE - len(self._under_way)), self._forward)
                if len(self._under_way) >= AT_ONCE:
                    await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            if self._under_way:
                await asyncio.wait(self._under_way)

    def _forward(self, ready: list[_Ready]) -> None:
        """Computes what enters the model, for the inputs of a model together, and sends each on its way."""
        from attempt_cli.exchange.vllm import entering

        by_model: dict[tuple[int, int], list[_Ready]] = {}
        for one in ready:
            by_model.setdefault((id(one.loaded), one.index), []).append(one)
        for those in by_model.values():
            sequences, weights = entering(those[0].loaded.model, [one.row for one in those], those[0].index)
            for place, (one, sequence) in enumerate(zip(those, sequences, strict=True)):
                attention = None if weights is None else tuple(weights[place].tolist())
                task = asyncio.get_running_loop().create_task(self._answer(one, sequence, attention))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _answer(self, one: _Ready, sequence: Tensor, attention: tuple[float, ...] | None) -> None:
        try:
            await (self._label if one.words else self._text)(one, sequence, attention)
        except Exception as error:
            one.ask.future.set_exception(error)

    async def _label(self, one: _Ready, sequence: Tensor, attention: tuple[float, ...] | None) -> None:
        import torch

        behind: dict[Prefix, dict[int, None]] = {}
        for word in one.words:
            for place, token in enumerate(word):
                behind.setdefault(tuple(word[:place]), {})[token] = None

        async def listed(prefix: Prefix) -> dict[int, float]:
            ids = torch.tensor(prefix, dtype=torch.long)
            whole = torch.cat([sequence, self.backbone.embed(ids).float()])
            return await self.upstream.first_token(whole, list(behind[prefix]))

        found = dict(zip(behind, await asyncio.gather(*map(listed, behind)), strict=True))
        if not found[()].keys() & behind[()].keys():
            raise UpstreamError(
                502,
                f"the upstream lists the {len(found[()])} most probable tokens, and none begins a label word of "
                f"'{one.ask.served.task.name}'. Newer servers list what is asked for.",
                "upstream_error",
            )
        scores, estimated = word_scores(one.words, found, self.backbone.vocabulary_size)
        best = max(range(len(scores)), key=scores.__getitem__)
        words = one.ask.served.task.label_words
        self.counts.labels += 1
        one.give(
            RowPrediction(words[best], tuple(_softmax(scores)), attention=attention),
            len(one.words[best]),
            estimated=tuple(word for word, guessed in zip(words, estimated, strict=True) if guessed),
        )

    async def _text(self, one: _Ready, sequence: Tensor, attention: tuple[float, ...] | None) -> None:
        most = self._longest_text(one)
        text = _Text(one, self.backbone, most)
        async with aclosing(self.upstream.tokens(sequence, most, text.ends)) as pieces:
            async for tokens, finish in pieces:
                if any(text.take(token) for token in tokens):
                    break
                text.finish = "stop" if finish == "stop" else "length"
        self.counts.texts += 1
        self.counts.tokens += len(text.tokens)
        one.give(RowPrediction(text.close(), attention=attention), len(text.tokens), text.finish)


def word_scores(
    words: Sequence[Sequence[int]], listed: dict[Prefix, dict[int, float]], vocabulary: int
) -> tuple[list[float], list[bool]]:
    """Returns log p of words from log p of the tokens that were listed behind their prefixes.

    What is not listed shares what the listed tokens leave of the probability with all others that are not: its mean,
    which is never more than the least that is listed.

    Args:
        words: tokens of each word.
        listed: prefix -> token -> log p.
        vocabulary: the number of tokens.

    Returns:
        The scores, and whether a token of the word was not listed.
    """
    unlisted = {}
    for prefix, found in listed.items():
        rest = max(1 - sum(map(math.exp, found.values())), 1e-9) / max(vocabulary - len(found), 1)
        unlisted[prefix] = min(math.log(rest), *found.values())
    scores, estimated = [], []
    for word in words:
        steps = [(tuple(word[:place]), token) for place, token in enumerate(word)]
        scores.append(sum(listed[prefix].get(token, unlisted[prefix]) for prefix, token in steps))
        estimated.append(any(token not in listed[prefix] for prefix, token in steps))
    return scores, estimated


def _softmax(scores: Sequence[float]) -> list[float]:
    most = max(scores)
    shares = [math.exp(score - most) for score in scores]
    return [share / sum(shares) for share in shares]
