"""Prompts that were trained inside a chat template are served as they were trained, beside prompts that were not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.shop import serve_here
from tests.server.test_engine import answers, ask
from tests.server.test_openai import TEXTS, expected
from tests.server.test_upstream import chat_shop

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_prompt_in_a_chat_template_is_answered_together_with_one_without(tmp_path: Path, placement: str) -> None:
    server = serve_here(chat_shop(tmp_path, placement), wait=50)
    try:
        asks = [ask(server, name, text) for text in TEXTS for name in ("moods", "plain", "tale")]
        found = answers(server, asks)
        assert server.engine.counts.batches == 1
        for number, name in enumerate(("moods", "plain", "tale")):
            for answer, own in zip(found[number::3], expected(server, name, TEXTS), strict=True):
                assert answer.prediction.text == own.text
                wanted = own.probabilities and pytest.approx(list(own.probabilities.values()), abs=1e-5)
                assert answer.prediction.probabilities == wanted
        in_template, plain = found[0].prediction.probabilities, found[1].prediction.probabilities
        assert in_template is not None
        assert in_template != pytest.approx(plain, abs=1e-3)
        assert found[0].input_tokens > found[1].input_tokens  # a part of the template comes with the row
    finally:
        server.engine.stop()
