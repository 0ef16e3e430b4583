"""Prompts that are more than a prompt: a bundle holds all, other formats refuse it, strange parts do not load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.exchange.formats import FORMATS, TARGETS
from attempt_cli.session import Session
from attempt_registry import RegistryError
from tests.exchange.conftest import add_prompt

ROWS = [{"text": text} for text in ("the text is good", "it was bad, one two", "three")]
PLAIN = [name for name in TARGETS if FORMATS[name].plain]


def parts(session: Session) -> dict[str, np.ndarray]:
    """The offsets of DePT, of rank 2 on 9 positions."""
    draws = np.random.default_rng(7)
    width = session.load_backbone().width
    shapes = {"left_factors": (9, 2), "right_factors": (2, width)}
    return {name: draws.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_bundle_holds_all_of_it(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    prompt = add_prompt(session, method="dept", parts=parts(session))
    assert prompt.parts == ("left_factors", "right_factors")
    attempt_cli.export("moods", tmp_path / "one.attempt", to="bundle", session=session)
    for _ in range(2):  # the second time it is there already
        attempt_cli.import_from(tmp_path / "one.attempt", session=fresh)
        (there,) = fresh.store.prompts()
        assert (there.sha256, there.parts, there.method) == (prompt.sha256, prompt.parts, "dept")
    first, second = (attempt_cli.load("moods", session=each).predict(ROWS) for each in (session, fresh))
    assert first == second
    plain = add_prompt(session, "plain")
    assert np.array_equal(session.store.prompt_tensor(plain), session.store.prompt_tensor(prompt))
    assert [one.probabilities for one in attempt_cli.load("plain", session=session).predict(ROWS)] != [
        one.probabilities for one in first
    ]


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("to", PLAIN)
def test_formats_of_plain_prompts_refuse_it(
    sessions: Callable[..., Session], tmp_path: Path, to: str, placement: str
) -> None:
    session = sessions()
    add_prompt(session, method="dept", parts=parts(session), placement=placement)
    with pytest.raises(AttemptError, match="is more than a prompt") as failure:
        attempt_cli.export("moods", tmp_path / "out", to=to, session=session)
    assert failure.value.hint == "Export it --to bundle."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["dept", "adept", "smop", "pt-moe", "of-somebody"])
def test_parts_that_are_not_the_method_s_are_refused(sessions: Callable[..., Session], method: str) -> None:
    session = sessions()
    strange = {"left_factors": np.ones((3, 2), np.float32), "experts": np.ones((2, 3), np.float32)}
    add_prompt(session, method=method, parts=strange)
    with pytest.raises(AttemptError, match=rf"'moods@1' keeps experts, left_factors, which are not what {method}"):
        attempt_cli.load("moods", session=session).predict(ROWS)


def test_a_part_has_another_name_than_the_prompt(sessions: Callable[..., Session]) -> None:
    with pytest.raises(RegistryError, match="is named 'prompt'"):
        add_prompt(sessions(), parts={"prompt": np.ones((2, 3), np.float32)})
