"""Starter sources: they come with the package, are added once, and the first target transfers from them."""

from __future__ import annotations

from pathlib import Path

import pytest

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.exchange.starter import FOLDER, starter_backbones
from attempt_cli.session import Session


def test_they_are_added_once_and_without_a_backbone(tmp_path: Path) -> None:
    session = Session(tmp_path / "registry")
    added = attempt_cli.add_starters(session=session)
    assert [prompt.name for prompt in added.prompts] == [f"starter-{prompt.task}" for prompt in added.prompts]
    assert {prompt.kind for prompt in added.prompts} == {"source"}
    assert {(prompt.backbone, prompt.length, prompt.width) for prompt in added.prompts} == {("smollm2-135m", 10, 576)}
    assert all("validation" in prompt.numbers for prompt in added.prompts)
    attempt_cli.add_starters(session=session)
    assert [prompt.ref for prompt in session.store.prompts()] == sorted(prompt.ref for prompt in added.prompts)


def test_they_say_nothing_of_the_machine_that_trained_them() -> None:
    assert starter_backbones() == ["smollm2-135m"]
    for file in FOLDER.glob("*.attempt"):
        data = file.read_bytes()
        assert len(data) < 500_000
        assert b"/work" not in data
        assert b"/home" not in data
        assert b"site-packages" not in data


def test_a_backbone_without_some_is_told(tmp_path: Path) -> None:
    with pytest.raises(AttemptError, match="there are no starter sources for t5-base"):
        attempt_cli.add_starters(session=Session(tmp_path / "registry", backbone="t5-base"))


@pytest.mark.real
@pytest.mark.slow
def test_a_first_target_transfers_from_them(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    lines = [
        f"{text},{mood}" for text, mood in (("a fine film", "good"), ("dull and far too long", "bad")) for _ in "12"
    ]
    rows.write_text("text,mood\n" + "\n".join(lines) + "\n")
    session = Session(tmp_path / "registry", backbone="smollm2-135m", device="cpu")
    starters = attempt_cli.add_starters(session=session)
    task = attempt_cli.task_from_files(train=rows, input="{text} mood:", label="mood", name="moods")
    outcome = attempt_cli.train_target(task, sources="all", steps=2, eval_every=0, batch_size=2, session=session)
    assert outcome is not None
    composition = session.store.composition(outcome.composition or "")
    assert set(composition.sources) == {prompt.ref for prompt in starters.prompts}
