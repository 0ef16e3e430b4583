"""One task is one of many: whether a task trains alone or beside others, the same is refused, noted and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.many import ManyRequest, train_many
from attempt_cli.training.recipes import Request, train_prompt
from attempt_registry import Registry, RegistryError, Run
from tests.training.tiny import Recorder
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"prompt_length": 4, "steps": 2, "batch_size": 8, "learning_rate": 0.1}


@dataclass(frozen=True)
class Made:
    """What a training said and left."""

    run: Run
    warnings: list[str]
    truncated: int
    prompt: Any
    composition: Any


class _NoStep(Recorder):
    def start(self, step: int, total: int) -> None:
        raise AssertionError("the training began")


def alone(registry: Registry, backbone: FrozenBackbone, task: Task, **given: Any) -> Made:
    listener = given.pop("listener", Recorder())
    first = given["sources"][0] if given.get("sources") else None
    request = Request(task=task, kind="target", init_from=first, **given)
    outcome = train_prompt(registry, backbone, request, listener=listener)
    assert outcome is not None
    assert outcome.composition is not None
    return Made(
        registry.run(outcome.run),
        outcome.trained.warnings,
        outcome.truncated,
        registry.prompt(outcome.prompt or ""),
        registry.composition(outcome.composition),
    )


def one_of_many(registry: Registry, backbone: FrozenBackbone, task: Task, **given: Any) -> Made:
    listener = given.pop("listener", Recorder())
    first = given["sources"][0] if given.get("sources") else None
    request = ManyRequest(tasks=(task,), init_from=(first,), **given)
    outcome = train_many(registry, backbone, request, listener=listener)
    assert outcome is not None
    assert outcome.composition is not None
    return Made(
        registry.run(outcome.run),
        outcome.trained.warnings,
        outcome.truncated,  # type: ignore[attr-defined]
        registry.prompt(outcome.prompts[task.name]),
        registry.composition(outcome.composition),
    )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    rows = toy_rows(24)
    rows[0]["text"] = "it was " * 60 + rows[0]["text"]
    train, validation = write_csv(tmp_path / "t.csv", rows), write_csv(tmp_path / "v.csv", toy_rows(8, 1))
    return task_from_files(train=train, validation=validation, input="{text} label:", label="mood", name="toy")


@pytest.fixture
def registry(tmp_path: Path, backbone: FrozenBackbone, task: Task) -> Registry:
    kept = Registry.open(tmp_path / "kept")
    for seed, name in enumerate(("one", "two")):
        config = TrainingConfig(**QUICK, eval_every=0, seed=seed)
        train_prompt(kept, backbone, Request(task=task, kind="source", name=name, config=config))
    return kept


def asked(registry: Registry, **changes: Any) -> dict[str, Any]:
    config = TrainingConfig(method="attempt", **QUICK, attention_rank=3, eval_every=1, max_length=40)
    sources = tuple(registry.prompt(name) for name in ("one", "two"))
    return {"name": "aim", "config": config, "sources": sources, **changes}


def test_the_same_numbers_and_records(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    first, second = (path(registry, backbone, task, **asked(registry)) for path in (alone, one_of_many))
    assert (registry.prompt_tensor(first.prompt) == registry.prompt_tensor(second.prompt)).all()
    g, other = (
        registry.attention_tensors(registry.attention(made.composition.attention or "")) for made in (first, second)
    )
    assert all((g[name] == other[name]).all() for name in g)
    for field in ("settings", "rows", "budget", "inputs", "seed"):
        assert getattr(first.run, field) == getattr(second.run, field), field
    for field in ("settings", "parents", "kind", "method", "task", "numbers"):
        ours, theirs = getattr(first.prompt, field), getattr(second.prompt, field)
        if field == "numbers":  # of the machine, not of the training
            ours, theirs = ({k: v for k, v in n.items() if k not in ("seconds", "peak_memory")} for n in (ours, theirs))
        assert ours == theirs, field
    assert first.composition.settings == second.composition.settings
    assert (first.truncated, second.truncated) == (1, 1)


@pytest.mark.parametrize("path", [alone, one_of_many])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"sources": (*given["sources"], given["sources"][0])}, r"'one@1' is named twice"),
        (lambda given: {"name": "x" * 101}, "cannot be a name"),
        (lambda given: {"tags": ("a,b",)}, "cannot be a tag"),
        (lambda given: {"sources": ()}, "ATTEMPT needs source prompts"),
        (lambda given: {"config": given["config"].model_copy(update={"attention_rank": 24})}, "--attention-rank 24"),
        (lambda given: {"config": given["config"].model_copy(update={"prompt_length": 5})}, "has 4 tokens"),
        (lambda given: {"config": given["config"].model_copy(update={"placement": "before"})}, "after the input"),
        (
            lambda given: {"config": given["config"].model_copy(update={"with_target": False, "balanced_start": True})},
            "--balanced-start",
        ),
    ],
)
def test_what_is_refused_before_the_first_step(
    registry: Registry,
    backbone: FrozenBackbone,
    task: Task,
    path: Callable[..., Made],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
) -> None:
    given = asked(registry)
    with pytest.raises((AttemptError, RegistryError), match=message):
        path(registry, backbone, task, **{**given, **change(given)}, listener=_NoStep())
    assert len(registry.runs()) == 2


def test_a_name_that_is_too_long_with_its_task(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    given = asked(registry, name="x" * 98)
    first = given["sources"][0]
    request = ManyRequest(tasks=(task, replace(task, name="other")), init_from=(first, first), **given)
    with pytest.raises(RegistryError, match="cannot be a name"):
        train_many(registry, backbone, request, listener=_NoStep())
