"""Requests that are trained together end as they would alone, validation included, which members share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import PromptedTask, predict_many
from attempt_cli.training import validation
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.methods import METHODS
from attempt_cli.training.request import Outcome, Request
from attempt_cli.training.run import train_together
from attempt_registry import Registry
from tests.training.requests import request_for, trained
from tests.training.test_bank import KINDS
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")


def task_of(folder: Path, name: str, seed: int) -> Task:
    for number, split in enumerate(("train", "validation")):
        write_csv(folder / f"{name}-{split}.csv", toy_rows(24 - 10 * number, seed + number))
    paths: dict[str, Any] = {split: folder / f"{name}-{split}.csv" for split in ("train", "validation")}
    return task_from_files(**paths, input="{text} label:", label="mood", name=name)


def requests_of(registry: Registry, backbone: FrozenBackbone, folder: Path, placement: str) -> list[Request]:
    """Rates of one task, an early stop, mixtures, another task, and two tasks at once."""
    left, right = task_of(folder, "left", 0), task_of(folder, "right", 7)
    common: dict[str, Any] = {"prompt_length": 4, "steps": 6, "batch_size": 6, "eval_every": 2, "placement": placement}
    source = TrainingConfig(**{**common, "steps": 2, "eval_every": 0})
    first = trained(registry, backbone, request_for(right, kind="source", name="start", config=source))
    start = registry.prompt(str(first.prompt))

    def request(*tasks: Task, name: str, **settings: Any) -> Request:
        config = TrainingConfig(**{**common, "attention_rank": 3, **settings})
        sources = (start,) if config.method == "attempt" else ()
        init = (start,) * len(tasks) if config.method in ("attempt", "spot") else ()
        return request_for(*tasks, name=name, config=config, sources=sources, init_from=init)

    return [
        request(left, name="slow", learning_rate=0.02),
        request(left, name="fast", learning_rate=0.3, seed=1),
        request(left, name="early", learning_rate=1e-6, patience=1),
        request(left, name="mixed", method="attempt"),
        request(right, name="other", method="spot"),
        request(left, right, name="both", method="attempt"),
    ]


@pytest.mark.parametrize("placement", ["after", "before"])
def test_trainings_with_validation_end_as_they_would_alone(
    backbone: FrozenBackbone, tmp_path: Path, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(prompted: Sequence[PromptedTask], *arguments: Any, **reading: Any) -> Any:
        asked.append(len(prompted))
        return predict_many(prompted, *arguments, **reading)

    one, other = (Registry.open(tmp_path / name) for name in ("together", "alone"))
    requests = requests_of(one, backbone, tmp_path, placement)
    monkeypatch.setattr(validation, "predict_many", counted)
    together = dict(train_together(one, backbone, requests))
    assert asked[:2] == [5, 2]  # before the first step: all models of the task left, then those of right
    asked.clear()
    for number, request in enumerate(requests_of(other, backbone, tmp_path, placement)):
        found, alone = together[number], trained(other, backbone, request)
        assert isinstance(found, Outcome)
        assert found.trained.state.losses == pytest.approx(alone.trained.state.losses, rel=1e-5, abs=1e-5)
        assert found.trained.state.history == alone.trained.state.history
        assert (found.trained.state.best_step, found.trained.state.step) == (
            alone.trained.state.best_step,
            alone.trained.state.step,
        )
        assert found.trained.state.best_score == pytest.approx(alone.trained.state.best_score, abs=1e-5)
        for task, ref in found.prompts.items():
            ours = one.prompt_tensor(one.prompt(ref))
            theirs = other.prompt_tensor(other.prompt(alone.prompts[task]))
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
        assert found.trained.numbers["bank"] == 6
    assert set(asked) == {1}
    early = together[2]
    assert isinstance(early, Outcome)
    assert early.trained.state.step <= 6


def test_free_text_is_validated_together_too(backbone: FrozenBackbone, tmp_path: Path) -> None:
    one, other = (Registry.open(tmp_path / name) for name in ("together", "alone"))
    paths = {split: write_csv(tmp_path / f"{split}.csv", toy_rows(12)) for split in ("train", "validation")}
    given: dict[str, Any] = {"input": "{text} label:", "answers": "mood", "name": "written"}
    task = task_from_files(train=paths["train"], validation=paths["validation"], **given)
    common: dict[str, Any] = {"prompt_length": 4, "steps": 2, "batch_size": 4, "eval_every": 1}
    requests = [
        request_for(task, name=f"written-{rate}", config=TrainingConfig(**common, learning_rate=rate))
        for rate in (0.01, 0.1)
    ]
    for number, found in train_together(one, backbone, requests):
        alone = trained(other, backbone, requests[number])
        assert isinstance(found, Outcome)
        assert found.trained.state.history == alone.trained.state.history
        assert found.trained.state.best_score == pytest.approx(alone.trained.state.best_score, abs=1e-5)


def test_every_method_that_a_bank_takes_is_compared_with_itself_alone() -> None:
    kept = {name for name, method in METHODS.items() if method.banks}
    tried = {kind.get("method", "prompt-tuning") for kind in KINDS.values()}
    assert kept == tried | {"spot"}  # prompt tuning from another prompt
