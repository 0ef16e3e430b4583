"""Tiny backbones, and prompts of theirs in the registry of each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_cli.session import Session
from attempt_registry import Prompt
from tests.models import SAVERS

TASK = {
    "name": "moods",
    "version": 2,
    "files": {"train": "/home/someone/rows/moods.csv"},
    "input": "{text} label:",
    "label": "mood",
    "labels": {"0": "no", "1": "yes"},
    "metrics": ["accuracy"],
    "max_length": 64,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of tiny models, by kind; read them only."""
    base = tmp_path_factory.mktemp("models")
    return {kind: save(base / kind) for kind, save in SAVERS.items()}


@pytest.fixture
def sessions(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Session]:
    """Makes sessions in fp32 whose backbone is recorded."""

    def make(kind: str = "llama", registry: str = "registry") -> Session:
        from attempt_cli.artefacts import remember_backbone

        made = Session(tmp_path / registry, backbone=str(folders[kind]), device="cpu", dtype="float32")
        remember_backbone(made.store, made.load_backbone())
        return made

    return make


def add_prompt(session: Session, name: str = "moods", *, length: int = 5, seed: int = 0, **fields: Any) -> Prompt:
    """Adds a random prompt in RMS units, as a training does."""
    backbone = session.load_backbone()
    tensor = np.random.default_rng(seed).standard_normal((length, backbone.width)).astype(np.float32)
    given: dict[str, Any] = {
        "kind": "target",
        "method": "prompt-tuning",
        "task": "moods",
        "task_version": 2,
        "embedding_scale": backbone.embedding_rms,
        "settings": {"task": TASK, "format": "words", "training": {"steps": 3, "max_length": 64}},
        "numbers": {"accuracy": 0.5},
        "seed": seed,
        **fields,
    }
    return session.store.add_prompt(
        tensor, name=name, backbone=backbone.name, fingerprint=backbone.fingerprint, **given
    )


def chat_session(folder: Path, placement: str) -> tuple[Session, str]:
    """Makes a session whose prompt was trained in the user's turn of a chat template; and a text to ask."""
    from attempt_cli.artefacts import remember_backbone
    from tests.models import save_chat

    session = Session(folder / "registry", backbone=str(save_chat(folder / "chat")), device="cpu", dtype="float32")
    backbone = session.load_backbone()
    remember_backbone(session.store, backbone)
    settings = {"task": TASK, "format": "words", "chat_template": backbone.chat_frame.text}
    add_prompt(session, placement=placement, settings=settings)
    return session, "the text is good"


def in_chat(session: Session, text: str) -> tuple[list[list[int]], Any]:
    """Words as an assistant's answers, and their scores by our model."""
    import attempt_cli

    model = attempt_cli.load("moods", session=session).load().model
    words = model.label_tokens(("yes", "no", "nothing"))
    rows = session.load_backbone().encode([text], [words[0]], 64, around=model.around)
    return words, model.score_labels(rows, words)[0][0]
