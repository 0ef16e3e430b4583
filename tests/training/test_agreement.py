"""One task is one of many: whether a task trains alone or beside others, the same is refused, noted and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.run import train
from attempt_registry import Registry, RegistryError, Run
from tests.training.requests import request_for, trained
from tests.training.tiny import Recorder
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"prompt_length": 4, "steps": 2, "batch_size": 8, "learning_rate": 0.1}


@dataclass(frozen=True)
class Made:
    """What a training said and left."""

    run: Run
    notes: list[str]
    prompt: Any
    composition: Any


class _NoStep(Recorder):
    def start(self, step: int, total: int) -> None:
        raise AssertionError("the training began")


def alone(registry: Registry, backbone: FrozenBackbone, task: Task, **given: Any) -> Made:
    return _made(registry, backbone, (task,), **given)


def one_of_many(registry: Registry, backbone: FrozenBackbone, task: Task, **given: Any) -> Made:
    return _made(registry, backbone, (task.model_copy(update={"name": "other"}), task), **given)


def _made(registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...], **given: Any) -> Made:
    listener = given.pop("listener", Recorder())
    starts = given["sources"][:1] * len(tasks) if given.get("sources") else ()
    request = request_for(*tasks, init_from=starts, **given)
    outcome = trained(registry, backbone, request, listener=listener)
    assert outcome.composition is not None
    prompt = registry.prompt(outcome.prompts[tasks[-1].name])
    composition = registry.composition(outcome.composition)
    return Made(registry.run(outcome.run), list(outcome.notes), prompt, composition)


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
        train(kept, backbone, request_for(task, kind="source", name=name, config=config))
    return kept


def asked(registry: Registry, **changes: Any) -> dict[str, Any]:
    config = TrainingConfig(method="attempt", **QUICK, attention_rank=3, eval_every=1, max_length=40)
    sources = tuple(registry.prompt(name) for name in ("one", "two"))
    return {"name": "aim", "config": config, "sources": sources, **changes}


def test_the_same_records(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    first, second = (path(registry, backbone, task, **asked(registry)) for path in (alone, one_of_many))
    assert (first.prompt.name, second.prompt.name) == ("aim", "aim.toy")
    for field in ("parents", "kind", "method", "task", "seed", "embedding_scale", "placement", "length"):
        assert getattr(first.prompt, field) == getattr(second.prompt, field), field
    ours, theirs = first.prompt.settings, second.prompt.settings
    assert ours == {name: theirs[name] for name in ours}  # of several it says more: which tasks, how they were sampled
    assert set(theirs) - set(ours) == {"tasks", "max_rows_per_task", "sampling_temperature"}
    assert first.composition.settings == second.composition.settings
    assert first.run.inputs == second.run.inputs
    assert set(first.run.budget) == set(second.run.budget)
    assert first.run.rows["train"] == {k: v for k, v in second.run.rows["toy"].items() if k != "validation"}
    assert first.run.rows["validation"] == second.run.rows["toy"]["validation"]


def test_the_same_notes(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    given = asked(registry)
    given["config"] = given["config"].model_copy(update={"eval_every": 0})
    first, second = (path(registry, backbone, task, **given).notes for path in (alone, one_of_many))
    assert first == [
        "no validation rows were looked at: the last step is kept",
        "1 of 24 training inputs were longer than the limit and lost their middle; --max-length raises it",
    ]
    own = [note for note in second if "was trained on the training rows" not in note]  # of a source of the same rows
    assert own == [f"{name}: {note}" for name in ("other", "toy") for note in first]


def test_the_same_numbers(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    """One task's prompt, and one prompt for all tasks of a list of one."""
    config = TrainingConfig(method="prompt-tuning", **QUICK, eval_every=0, max_length=40)
    one = trained(registry, backbone, request_for(task, name="one-task", config=config))
    two = trained(registry, backbone, request_for(task, name="shared", config=config, keep="shared", kind="source"))
    first, second = (registry.prompt_tensor(registry.prompt(outcome.prompt or "")) for outcome in (one, two))
    assert (first == second).all()
    assert one.trained.state.losses == two.trained.state.losses


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
    assert alone(registry, backbone, task, **given).prompt.name == given["name"]
    with pytest.raises(RegistryError, match="cannot be a name"):
        one_of_many(registry, backbone, task, **given, listener=_NoStep())
