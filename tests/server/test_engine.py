"""What waits together is answered together, each as it would be alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from attempt_cli.backbones.input_cache import RecentInputs
from attempt_cli.evaluation.serving import rendered
from attempt_cli.server.engine import Answer, Ask, StoppedError
from tests.server.shop import Served
from tests.server.test_openai import TEXTS, expected

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED = ("mood", "topic", "style", "long", "first", "second", "aim")


def ask(server: Served, name: str, text: str, **more: Any) -> Ask:
    served = server.catalogue[name]
    return Ask(served, rendered(served.task, text, 0, "a test"), **more)


def answers(server: Served, asks: list[Ask]) -> list[Answer]:
    server.engine.put(asks)
    return [one.future.result(30) for one in asks]


def cache(server: Served) -> RecentInputs:
    kept = server.engine.backbone.input_cache
    assert isinstance(kept, RecentInputs)
    return kept


def test_tasks_are_mixed_in_a_batch_and_change_no_answer(server: Served) -> None:
    """Prompts before and after, of two lengths, with label words of one and of several tokens, and a mixture."""
    asks = [ask(server, name, text) for text in TEXTS for name in LABELLED]
    asks.append(ask(server, "topic", "it is one of its own"))
    found = answers(server, asks)
    assert server.engine.counts.batches == 1
    assert server.engine.counts.rows == len(TEXTS) + 1
    assert server.engine.counts.labels == len(asks)
    for name in LABELLED:
        alone = expected(server, name, TEXTS)
        mine = [answer for one, answer in zip(asks, found, strict=True) if one.served is server.catalogue[name]]
        for own, answer in zip(alone, mine, strict=False):
            assert answer.prediction.text == own.text
            assert answer.prediction.probabilities == pytest.approx(list(own.probabilities.values()), abs=1e-5)
            if own.attention is not None:
                assert answer.prediction.attention == pytest.approx(list(own.attention.values()), abs=1e-5)


def test_several_prompts_on_an_input_cost_one_reading_and_later_ones_none(server: Served) -> None:
    answers(server, [ask(server, name, TEXTS[0]) for name in ("mood", "topic", "style", "aim")])
    assert (cache(server).misses, cache(server).hits) == (1, 0)
    again = answers(server, [ask(server, "long", TEXTS[0]), ask(server, "mood", TEXTS[0])])
    assert (cache(server).misses, cache(server).hits) == (1, 1)
    assert again[1].prediction.text == expected(server, "mood", TEXTS[:1])[0].text


def test_kept_inputs_stay_within_their_budget_the_oldest_go_first(start: Callable[..., Served]) -> None:
    server = start(cache=1)
    (one,) = answers(server, [ask(server, "mood", TEXTS[0])])
    assert cache(server).bytes == 0
    cache(server).budget = 3 * one.input_tokens * server.engine.backbone.cache_bytes_per_token
    for number in range(8):
        answers(server, [ask(server, "mood", f"it was good {number}")])
        assert 0 < cache(server).bytes <= cache(server).budget
        assert cache(server).bytes == sum(t.numel() * t.element_size() for t in cache(server)._kept.values())
    hits = cache(server).hits
    answers(server, [ask(server, "mood", "it was good 7")])
    assert cache(server).hits == hits + 1
    answers(server, [ask(server, "mood", "it was good 0")])
    assert cache(server).hits == hits + 1


def test_the_same_question_twice_is_answered_twice(server: Served) -> None:
    found = answers(server, [ask(server, "mood", TEXTS[0]), ask(server, "mood", TEXTS[0])])
    assert found[0] == found[1]
    assert cache(server).misses == 1


def test_a_token_budget_cuts_batches(start: Callable[..., Served]) -> None:
    server = start(max_tokens=1)
    asks = [ask(server, name, text) for text in TEXTS for name in LABELLED]
    found = answers(server, asks)
    assert server.engine.counts.batches == len(TEXTS)
    assert [answer.prediction.text for answer in found[: len(LABELLED)]] == [
        expected(server, name, TEXTS[:1])[0].text for name in LABELLED
    ]


def test_labels_do_not_wait_for_texts(server: Served) -> None:
    """A label asked for in the middle of a text is answered before the text ends."""
    seen: list[str] = []
    label = ask(server, "mood", TEXTS[0])

    def said(piece: str) -> None:
        if not seen:
            server.engine.put([label])
        seen.append("label" if label.future.done() else "none")

    (text,) = answers(server, [ask(server, "story", TEXTS[0], said=said)])
    assert seen[-1] == "label"
    assert text.prediction.text == expected(server, "story", TEXTS[:1])[0].text
    assert label.future.result(0).prediction.text == expected(server, "mood", TEXTS[:1])[0].text


def test_texts_of_several_prompts_are_written_together(server: Served) -> None:
    asks = [ask(server, name, text) for text in TEXTS for name in ("story", "tale")]
    found = answers(server, asks)
    for name, part in (("story", found[::2]), ("tale", found[1::2])):
        assert [one.prediction.text for one in part] == [one.text for one in expected(server, name, TEXTS)]


def test_a_text_ends_at_its_bounds(server: Served) -> None:
    (whole,) = answers(server, [ask(server, "story", TEXTS[0])])
    text = whole.prediction.text
    said: list[str] = []
    stop = text[10:12]
    asks = [
        ask(server, "story", TEXTS[0], max_new_tokens=3),
        ask(server, "story", TEXTS[0], stop=(stop,), said=said.append),
        ask(server, "story", TEXTS[0], max_new_tokens=40),
    ]
    short, stopped, long = answers(server, asks)
    assert (short.new_tokens, short.finish) == (3, "length")
    assert text.startswith(short.prediction.text)
    assert stopped.prediction.text == text[: text.index(stop)].rstrip() == "".join(said)
    assert stopped.finish == "stop"
    assert long.new_tokens == 40
    assert long.prediction.text.startswith(text)


def test_a_prompt_that_cannot_be_loaded_fails_alone(server: Served) -> None:
    broken = ask(server, "topic", TEXTS[0])
    assert broken.served.model.record is not None
    server.shop.registry.tensor_path(server.shop.registry.prompt("topic")).write_bytes(b"damaged")
    well = ask(server, "mood", TEXTS[0])
    server.engine.put([broken, well])
    assert well.future.result(30).prediction.text in ("yes", "no")
    with pytest.raises(Exception, match=r"'topic@1' cannot be loaded"):
        broken.future.result(30)


def test_stopping_answers_what_was_taken(start: Callable[..., Served]) -> None:
    server = start(wait=500)
    asks = [ask(server, name, text) for text in TEXTS for name in ("mood", "story")]
    server.engine.put(asks)
    server.engine.stop()
    assert all(one.future.done() and one.future.exception() is None for one in asks)
    with pytest.raises(StoppedError):
        server.engine.put([ask(server, "mood", TEXTS[0])])


def test_who_went_away_is_not_answered(server: Served) -> None:
    held, held_up = threading.Event(), threading.Event()

    def hold(piece: str) -> None:
        held.set()
        held_up.wait(30)

    first = ask(server, "story", TEXTS[0], said=hold)
    server.engine.put([first])
    assert held.wait(30)
    gone, there = ask(server, "tale", TEXTS[0]), ask(server, "tale", TEXTS[1])
    server.engine.put([gone, there])
    gone.future.cancel()
    first.gone = True  # its reader left: the next token ends it
    held_up.set()
    assert there.future.result(30).prediction.text
    assert first.future.result(30).new_tokens < 32
    assert server.engine.counts.texts == 2
