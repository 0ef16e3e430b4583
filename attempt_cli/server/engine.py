"""One thread that owns the backbone: it takes what waits, of whatever tasks, and answers it together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import MAX_NEW_TOKENS, RowPrediction

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.backbones.rows import EncodedRow
    from attempt_cli.data.example import Example
    from attempt_cli.evaluation.serving import ServedTask

# rows taken from the queue at once: what comes later need not wait for more than these
TAKEN_AT_ONCE = 64
# rows whose texts are generated together
WRITTEN_AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """What the model says to one input under one prompt.

    Args:
        prediction: the label with probabilities, or the text.
        input_tokens: tokens of the input that were read.
        truncated: tokens of the input that did not fit.
        new_tokens: tokens of the label, or those that were generated.
        finish: "stop" or "length".
        estimated: label words whose probability another server did not list (`forwarding.word_scores`).
    """

    prediction: RowPrediction
    input_tokens: int
    truncated: int
    new_tokens: int
    finish: str = "stop"
    estimated: tuple[str, ...] = ()


@dataclass(eq=False)
class Ask:
    """One input under one prompt, waiting for its answer.

    Args:
        served: the model and its task.
        example: the rendered input.
        max_new_tokens: of a text that is generated.
        stop: texts that end it.
        said: is called in the engine's thread with every piece of a text as it is generated.
        future: gets the answer.
        gone: nobody waits for the answer any more.
    """

    served: ServedTask
    example: Example
    max_new_tokens: int = MAX_NEW_TOKENS
    stop: tuple[str, ...] = ()
    said: Callable[[str], None] | None = None
    future: Future[Answer] = field(default_factory=Future)
    gone: bool = False


class BrokenModelError(AttemptError):
    """A model that cannot be loaded: no fault of the request."""


class UpstreamError(AttemptError):
    """Another server that has the layers does not answer as it should.

    Args:
        status: of HTTP, for whoever asked here.
        message: what is wrong.
        code: for programs.
        retry: seconds after which the same request may work.
    """

    def __init__(self, status: int, message: str, code: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry


class FullError(AttemptError):
    """The queue is full."""


class StoppedError(AttemptError):
    """The engine takes nothing more."""


@dataclass
class Counts:
    """What the engine has done since its start."""

    batches: int = 0
    rows: int = 0
    labels: int = 0
    tokens: int = 0
    texts: int = 0


class Engine:
    """The thread that computes.

    It waits for a few milliseconds after the first input for others, unless they wait already, and answers all of them
    together, however many prompts they ask. Texts are generated step by step, and between two steps labels are
    answered: nobody who wants a label waits for a text. A text waits for the texts before it.

    Args:
        backbone: the backbone; no other thread uses it from now on.
        max_tokens: positions computed at once, pads included; at least one row.
        wait: seconds.
        queue: the largest number of inputs that wait.
    """

    forwards = False  # whether another server has the layers

    def __init__(self, backbone: FrozenBackbone, *, max_tokens: int, wait: float, queue: int) -> None:
        self.backbone = backbone
        self.max_tokens = max_tokens
        self.wait = wait
        self.queue = queue
        self.counts = Counts()
        self._waiting: deque[Ask] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._labels: dict[tuple[object, ...], list[list[int]]] = {}
        self._thread = threading.Thread(target=self._run, name="attempt-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Answers what waits, takes nothing more, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """The number of inputs that wait."""
        return len(self._waiting)

    def own_counts(self) -> tuple[tuple[str, str, int], ...]:
        """Returns name, meaning and number of what this kind of engine alone counts."""
        return (
            ("attempt_batches", "Batches of labels that were computed.", self.counts.batches),
            ("attempt_inputs_read", "Inputs in these batches.", self.counts.rows),
        )

    def put(self, asks: Sequence[Ask]) -> None:
        """Takes inputs; their futures get the answers.

        Raises:
            FullError: too many wait already.
            StoppedError: the engine is ending.
        """
        with self._changed:
            if self._stopping or not self.alive:
                raise StoppedError("the server is ending", "Ask again when it is back.")
            if len(self._waiting) + len(asks) > self.queue:
                raise FullError(f"{len(self._waiting)} inputs wait already", "Ask again in a moment.")
            self._waiting.extend(asks)
            self._changed.notify()

    def _wait_for_inputs(self) -> bool:
        """Waits until there are inputs; returns whether there are, and not the end."""
        with self._changed:
            if not self._waiting:
                while not (self._waiting or self._stopping):
                    self._changed.wait()
                until = time.monotonic() + self.wait
                while not self._stopping and len(self._waiting) < TAKEN_AT_ONCE:
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            return bool(self._waiting)

    def _run(self) -> None:
        while self._wait_for_inputs():
            self._answer_labels()
            if writing := self._take(lambda ask: not ask.served.task.is_classification, WRITTEN_AT_ONCE):
                self._guarded(writing, self._write)

    def _take(self, wanted: Callable[[Ask], bool], most: int) -> list[Ask]:
        """Takes the first of those that are wanted out of the queue, and drops those whose callers went away."""
        taken: list[Ask] = []
        with self._changed:
            left: deque[Ask] = deque()
            for ask in self._waiting:
                if len(taken) == most or not wanted(ask):
                    left.append(ask)
                elif ask.future.set_running_or_notify_cancel():
                    taken.append(ask)
            self._waiting = left
        return taken

    def _answer_labels(self) -> None:
        if asks := self._take(lambda ask: ask.served.task.is_classification, TAKEN_AT_ONCE):
            self._guarded(asks, self._score)

    def _guarded(self, asks: list[Ask], answer: Callable[[list[_Ready]], None]) -> None:
        """Answers inputs; what goes wrong for one, or for a batch, is told to those who asked."""
        try:
            answer(self._encoded(asks))
        except BaseException as error:
            for ask in asks:
                if not ask.future.done():
                    ask.future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _encoded(self, asks: list[Ask]) -> list[_Ready]:
        """Loads models and tokenises inputs, those of a model together; leaves out whose model cannot be loaded."""
        from attempt_cli.evaluation.prediction import encode_examples

        by_model: dict[int, list[Ask]] = {}
        for ask in asks:
            by_model.setdefault(id(ask.served), []).append(ask)
        ready = []
        for some in by_model.values():
            served = some[0].served
            try:
                loaded = self._loaded(served)
                rows = encode_examples(loaded.model, served.task, [ask.example for ask in some], served.max_length)
                index = loaded.task_index(served.task.name)
                words = self._label_tokens(served.task.label_words, loaded) if served.task.is_classification else []
            except AttemptError as error:
                for ask in some:
                    ask.future.set_exception(error)
                continue
            ready += [_Ready(ask, loaded, row, index, words) for ask, row in zip(some, rows, strict=True)]
        return ready

    def _loaded(self, served: ServedTask) -> Loaded:
        try:
            return served.model.load(self.backbone)
        except AttemptError as error:
            raise BrokenModelError(f"'{served.model.name}' cannot be loaded: {error.message}", error.hint) from error

    def _label_tokens(self, words: tuple[str, ...], loaded: Loaded) -> list[list[int]]:
        key = (loaded.model.frame is not None, *words)
        if key not in self._labels:
            self._labels[key] = loaded.model.label_tokens(words)
        return self._labels[key]

    # labels

    def _score(self, ready: list[_Ready]) -> None:
        from attempt_cli.backbones.batches import by_length

        # several prompts on one input are one row, as far as they fit one batch
        by_row: dict[tuple[object, ...], list[_Ready]] = {}
        for one in ready:
            by_row.setdefault((one.loaded.model.around, *one.row.input_ids), []).append(one)
        groups = list(by_row.values())
        overhead = max((one.behind for one in ready), default=0)
        lengths = [len(group[0].row.input_ids) for group in groups]
        for indices in by_length(lengths, overhead, self.max_tokens, least=self.backbone.least_positions):
            self._score_batch([groups[i] for i in indices])

    def _score_batch(self, groups: list[list[_Ready]]) -> None:
        from attempt_cli.prompted import score_many

        rows = [group[0].row for group in groups]
        by_model: dict[tuple[int, int], list[tuple[int, _Ready]]] = {}
        doubles: list[tuple[_Ready, _Ready]] = []  # the same question twice: answered once
        for number, group in enumerate(groups):
            seen: dict[tuple[int, int], _Ready] = {}
            for one in group:
                key = (id(one.loaded), one.index)
                if key in seen:
                    doubles.append((one, seen[key]))
                    continue
                seen[key] = one
                by_model.setdefault(key, []).append((number, one))
        members = list(by_model.values())
        answers = score_many(
            [those[0][1].loaded.model for those in members],
            rows,
            [those[0][1].words for those in members],
            self.max_tokens,
            [those[0][1].index for those in members],
            [[number for number, _ in those] for those in members],
        )
        self.counts.batches += 1
        self.counts.rows += len(rows)
        self.counts.labels += sum(map(len, groups))
        for those, (scores, weights) in zip(members, answers, strict=True):
            attention = weights.tolist() if weights is not None else None
            for place, (probabilities, best) in enumerate(
                zip(scores.softmax(dim=-1).tolist(), scores.argmax(dim=-1).tolist(), strict=True)
            ):
                one = those[place][1]
                word = one.ask.served.task.label_words[best]
                mixed = tuple(attention[place]) if attention is not None else None
                one.give(RowPrediction(word, tuple(probabilities), None, mixed), len(one.words[best]))
        for one, first in doubles:
            one.ask.future.set_result(first.ask.future.result())

    # texts

    def _write(self, ready: list[_Ready]) -> None:
        from attempt_cli.backbones.batches import by_length
        from attempt_cli.prompted import generate_each

        # of one bound: a row that is done is computed on with the others, and must not leave the model's positions
        alike: dict[tuple[str, tuple[int, ...], int, int], list[_Ready]] = {}
        for one in ready:
            model = one.loaded.model
            key = (model.placement, model.ends, model.prompt_length, self._longest_text(one))
            alike.setdefault(key, []).append(one)
        for (_, _, length, most), group in alike.items():
            lengths = [len(one.row.input_ids) for one in group]
            for indices in by_length(lengths, length + most, self.max_tokens):
                some = [group[i] for i in indices]
                texts = [_Text(one, self.backbone, most) for one in some]

                def watch(tokens: list[int], texts: list[_Text] = texts) -> list[bool]:
                    done = [text.take(token) for text, token in zip(texts, tokens, strict=True)]
                    self._answer_labels()
                    return done

                _, weights = generate_each(
                    [one.loaded.model for one in some],
                    [one.row for one in some],
                    [one.index for one in some],
                    most,
                    watch,
                )
                self.counts.texts += len(texts)
                for text, mixed in zip(texts, weights, strict=True):
                    attention = tuple(mixed.tolist()) if mixed is not None else None
                    self.counts.tokens += len(text.tokens)
                    text.one.give(RowPrediction(text.close(), attention=attention), len(text.tokens), text.finish)

    def _longest_text(self, one: _Ready) -> int:
        """Returns the most tokens of a text: what was asked for, or fewer where the model has no more positions."""
        bound = self.backbone.max_positions
        if bound is None:
            return one.ask.max_new_tokens
        left = bound - one.loaded.model.prompt_length - len(one.row.input_ids)
        return max(1, min(one.ask.max_new_tokens, left))


@dataclass(frozen=True, eq=False)
class _Ready:
    """An input as tokens, and its model."""

    ask: Ask
    loaded: Loaded
    row: EncodedRow
    index: int
    words: list[list[int]]

    @property
    def behind(self) -> int:
        """Positions of the prompt and the label words."""
        return self.loaded.model.prompt_length + sum(map(len, self.words))

    def give(
        self, prediction: RowPrediction, new_tokens: int, finish: str = "stop", estimated: tuple[str, ...] = ()
    ) -> None:
        row = self.row
        self.ask.future.set_result(Answer(prediction, len(row.input_ids), row.truncated, new_tokens, finish, estimated))


class _Text:
    """A text as it is generated: one line, up to its end token, a stop text or its longest length."""

    def __init__(self, one: _Ready, backbone: FrozenBackbone, most: int) -> None:
        self.one = one
        self.most = most
        self.backbone = backbone
        self.ends = (backbone.end_id, *one.loaded.model.ends)
        self.tokens: list[int] = []
        self.finish = "length"
        self.done = False
        self._text = ""
        self._said = 0
        # an ending of what is there may be the beginning of a stop text
        self._held = max((len(text) - 1 for text in one.ask.stop), default=0)

    def take(self, token: int) -> bool:
        """Takes the next token; returns whether the text is done."""
        if self.done or self.one.ask.gone or token in self.ends:
            self.finish = self.finish if self.done else "stop"
            self.done = True
            return True
        self.tokens.append(token)
        text = self.backbone.tokenizer.decode(self.tokens, skip_special_tokens=True).lstrip()
        ends = [place for stop in ("\n", *self.one.ask.stop) if (place := text.find(stop)) >= 0]
        if ends:
            text, self.done, self.finish = text[: min(ends)], True, "stop"
        elif len(self.tokens) >= self.most:
            self.done = True
        self._text = text
        if not self.done:  # half a character and spaces at the end may still change or go
            self._say(text[: len(text) - self._held].rstrip().rstrip("\ufffd"))
        return self.done

    def close(self) -> str:
        """Returns the whole text; says what was held back."""
        text = self._text.rstrip()
        self._say(text)
        return text

    def _say(self, text: str) -> None:
        if self.one.ask.said is not None and len(text) > self._said:
            self.one.ask.said(text[self._said :])
            self._said = len(text)
