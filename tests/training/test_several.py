"""Many targets at once: whose rows train what, what is kept, the attention prior, and a task that joins later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.artefacts import load_attention, load_composition
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import PromptedTask, encode_examples, predict, predict_many
from attempt_cli.method import SharedPrompt, attempt_parameters
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.order import BatchOrder, task_shares
from attempt_cli.training.request import Request
from attempt_cli.training.run import train
from attempt_registry import Registry
from tests.training.requests import request_for
from tests.training.requests import trained as made
from tests.training.tiny import Recorder
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("left", "right")


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[Task, ...]:
    """Two tasks of 24 and 12 rows; the second one's words are turned round."""
    made = []
    for seed, name in enumerate(NAMES):
        rows = toy_rows(24 if not seed else 12, seed)
        labels = None if not seed else "yes=bad,no=good"
        files = {"train": write_csv(tmp_path / f"{name}.csv", rows), "validation": write_csv(tmp_path / "v.csv", rows)}
        made.append(task_from_files(**files, input="{text} label:", label="mood", labels=labels, name=name, test=None))  # type: ignore[arg-type]
    return tuple(made)


@pytest.fixture
def registry(tmp_path: Path, backbone: FrozenBackbone, tasks: tuple[Task, ...]) -> Registry:
    """With the source prompts `one` and `two`."""
    kept = Registry.open(tmp_path / "kept")
    for seed, name in enumerate(("one", "two")):
        config = TrainingConfig(prompt_length=4, steps=2, batch_size=8, eval_every=0, seed=seed)
        train(kept, backbone, request_for(tasks[seed], kind="source", name=name, config=config))
    return kept


def request(registry: Registry, tasks: tuple[Task, ...], **changes: Any) -> Request:
    config = TrainingConfig(
        method="attempt", prompt_length=4, steps=4, batch_size=8, learning_rate=0.1, attention_rank=3, eval_every=2
    )
    sources = tuple(registry.prompt(name) for name in ("one", "two"))
    return replace(request_for(*tasks, name="both", config=config, sources=sources), **changes)


def test_one_g_and_a_prompt_a_task_are_kept(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    outcome = made(registry, backbone, request(registry, tasks))
    assert outcome.prompts == {"left": "both.left@1", "right": "both.right@1"}
    composition = registry.composition("both")
    assert (composition.ref, composition.targets) == (outcome.composition, ("both.left@1", "both.right@1"))
    assert composition.placement == "after"
    assert outcome.trained_parameters == 2 * 4 * 24 + 2 * 3 * 24 + 2 * 24
    assert outcome.parameters_per_task == attempt_parameters(24, 4, 3, 2)
    numbers = outcome.trained.numbers
    assert set(numbers["validation"]) == {"mean", "left accuracy", "right accuracy"}
    mean = (numbers["validation"]["left accuracy"] + numbers["validation"]["right accuracy"]) / 2
    assert numbers["validation"]["mean"] == pytest.approx(mean)
    run = registry.run(outcome.run)
    assert run.rows["left"]["n"] == 24
    assert registry.verify() == []
    # what was recorded predicts as what was trained
    loaded = load_composition(registry, backbone, composition)
    for index, task in enumerate(tasks):
        examples = load_examples(task, "train").examples[:5]
        ours = predict(outcome.model, task, examples, task_index=index)
        theirs = predict(loaded.model, task, examples, task_index=loaded.task_index(task.name))
        assert [row.probabilities for row in ours.rows] == [row.probabilities for row in theirs.rows]
        assert ours.rows[0].attention == theirs.rows[0].attention


def test_a_prompt_gets_gradient_from_its_own_rows_and_g_from_all(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    model = made(registry, backbone, request(registry, tasks)).model
    assert model.mixture is not None
    encoded = [
        [replace(row, task=index) for row in encode_examples(model, task, load_examples(task, "train").examples)]
        for index, task in enumerate(tasks)
    ]
    parameters = dict(model.mixture.named_parameters())
    found = []
    for rows in (encoded[0], encoded[1], [*encoded[0], *encoded[1]]):
        model.mixture.zero_grad()
        model.log_likelihood(rows).sum().backward()
        found.append({name: tensor.grad.clone() for name, tensor in parameters.items() if tensor.grad is not None})
    left, right, both = found
    assert left["target_prompts"][0].abs().sum() > 0
    assert left["target_prompts"][1].abs().sum() == 0
    assert right["target_prompts"][0].abs().sum() == 0
    for name in parameters:
        torch.testing.assert_close(left[name] + right[name], both[name], rtol=1e-3, atol=1e-4)
    assert left["attention.up.weight"].abs().sum() > 0
    assert right["attention.up.weight"].abs().sum() > 0


def test_a_stopped_training_goes_on_to_the_same_numbers(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...], tmp_path: Path
) -> None:
    asked = request(registry, tasks, sampling_temperature=2.0, max_rows_per_task=10)
    with pytest.raises(TrainingStoppedError):
        train(registry, backbone, asked, listener=Recorder(interrupt_at=3))
    resumed = Recorder()
    ours = train(registry, backbone, asked, resume=True, listener=resumed)
    assert ours is not None
    assert resumed.began == (3, 4)
    whole = made(registry, backbone, asked)
    for name in NAMES:
        one, other = (registry.prompt_tensor(registry.prompt(o.prompts[name])) for o in (ours, whole))
        assert (one == other).all()
    assert not list((registry.folder / "checkpoints").iterdir())


def test_the_prior_starts_a_target_and_serves_a_task_without_rows(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    prior = made(registry, backbone, request(registry, tasks, keep="attention", name="prior"))
    assert (prior.prompts, prior.composition, prior.attention) == ({}, None, "prior@1")
    assert [prompt.name for prompt in registry.prompts(kind="target")] == []
    kept = registry.attention("prior")
    weights = load_attention(registry, kept)
    asked = request(registry, tasks[:1], name="aim", attention_from=kept)
    aim = made(
        registry, backbone, replace(asked, config=asked.config.model_copy(update={"attention_learning_rate": 1e-12}))
    )
    assert aim.prompts == {"left": "aim@1"}
    assert aim.attention is not None
    again = load_attention(registry, registry.attention(aim.attention))
    torch.testing.assert_close(again.up.weight, weights.up.weight)  # it began there, and could not move
    assert registry.attention(aim.attention).parents[-1] == "attention:prior@1"
    registry.add_composition(
        name="zero",
        backbone=kept.backbone,
        fingerprint=kept.fingerprint,
        sources=("one", "two"),
        attention="prior",
        settings={"embedding_scale": kept.settings["embedding_scale"]},
    )
    loaded = load_composition(registry, backbone, registry.composition("zero"))
    rows = predict(loaded.model, tasks[0], load_examples(tasks[0], "train").examples).rows
    assert all(row.attention is not None and row.attention[-1] == 0 for row in rows)
    assert all(sum(row.attention or ()) == pytest.approx(1) for row in rows)


def test_a_task_joins_later_and_the_others_stay(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    first = made(registry, backbone, request(registry, tasks[:1], name="glue"))
    before = registry.composition("glue")
    assert first.attention is not None
    asked = request(registry, tasks[1:], name="glue", attention_from=registry.attention(first.attention), onto=before)
    joined = made(registry, backbone, asked)
    after = registry.composition("glue")
    assert (after.version, after.targets, after.attention) == (2, ("glue@1", "glue.right@1"), first.attention)
    assert joined.trained_parameters == 4 * 24
    examples = load_examples(tasks[0], "train").examples[:6]
    old, new = (
        predict(load_composition(registry, backbone, record).model, tasks[0], examples) for record in (before, after)
    )
    for ours, theirs in zip(old.rows, new.rows, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)
    with pytest.raises(AttemptError, match=r"has the target glue\.right@1 already"):
        train(registry, backbone, replace(asked, onto=after))


def test_one_prompt_for_all_tasks(registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]) -> None:
    asked = request(registry, tasks, keep="shared", sources=(), name="generic")
    shared = made(
        registry, backbone, replace(asked, config=asked.config.model_copy(update={"method": "prompt-tuning"}))
    )
    assert set(shared.prompts.values()) == {"generic@1"}
    assert (registry.prompt("generic").task, shared.trained_parameters) == ("left+right", 4 * 24)


def test_one_prompt_under_factors_of_each_task(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    asked = request(registry, tasks, keep="shared", sources=(), name="common")
    config = asked.config.model_copy(update={"method": "mpt"})
    outcome = made(registry, backbone, replace(asked, config=config))
    assert set(outcome.prompts.values()) == {"common@1"}
    # P*, and u of [m, 1] and v of [1, d] for each of the two
    assert outcome.trained_parameters == 4 * 24 + 2 * (4 + 24)
    mixture = outcome.model.mixture
    assert isinstance(mixture, SharedPrompt)
    assert not torch.equal(mixture.left_factors[0], mixture.left_factors[1])  # each task's rows trained their own
    kept = torch.from_numpy(registry.prompt_tensor(registry.prompt("common")))
    assert torch.equal(kept, mixture.shared_prompt.detach())


@pytest.mark.parametrize("method", ["fine-tuning", "adapter"])
def test_weights_for_all_tasks_leave_only_a_run(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...], method: str
) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    asked = request(registry, tasks, keep="shared", sources=(), name="weights")
    config = asked.config.model_copy(update={"method": method, "weight_learning_rate": 0.01})
    outcome = made(registry, backbone, replace(asked, config=config))
    assert (outcome.prompts, outcome.composition, outcome.attention) == ({}, None, None)
    assert registry.run(outcome.run).settings["training"]["method"] == method
    examples = load_examples(tasks[0], "train").examples[:4]
    tuned = predict(outcome.model, tasks[0], examples)
    outcome.release()
    bare = predict(PromptedModel(backbone), tasks[0], examples)
    assert [row.probabilities for row in tuned.rows] != [row.probabilities for row in bare.rows]
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_cannot_be_trained_is_said_at_once(
    registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]
) -> None:
    asked = request(registry, (tasks[0], tasks[0]), sources=())
    with pytest.raises(AttemptError) as failure:
        train(registry, backbone, asked)
    assert "the task 'left' is named twice" in str(failure.value)
    assert "ATTEMPT needs source prompts" in str(failure.value)
    longer = request(registry, tasks)
    with pytest.raises(AttemptError, match=r"'one@1' has 4 tokens, --prompt-length is 5"):
        train(registry, backbone, replace(longer, config=longer.config.model_copy(update={"prompt_length": 5})))
    with pytest.raises(AttemptError, match=r"'one@1' was trained after the input, --placement is before"):
        train(registry, backbone, replace(longer, config=longer.config.model_copy(update={"placement": "before"})))


# --- which rows


def test_shares() -> None:
    assert task_shares([100, 10]) == [100, 10]
    assert task_shares([100, 10], cap=20) == [20, 10]
    even = task_shares([100, 1], temperature=1e9)
    assert abs(even[0] - even[1]) <= 1
    assert task_shares([10_000, 100], temperature=2) == [9182, 918]  # in proportion to 100 and 10
    for wrong in ({"cap": 0}, {"temperature": 0.5}):
        with pytest.raises(AttemptError, match="cannot be sampled"):
            task_shares([3, 3], **wrong)  # type: ignore[arg-type]


def test_an_epoch_holds_the_shares_and_mixes_tasks() -> None:
    tasks = [0] * 50 + [1] * 5
    order = BatchOrder([3] * 55, 10, 0, tasks, [20, 20])
    assert order.batches_per_epoch == 4
    epochs = [[row for step in range(4) for row in order.batch(4 * epoch + step)] for epoch in range(2)]
    for rows in epochs:
        assert sum(row < 50 for row in rows) == 20
        assert len({row for row in rows if row < 50}) == 20  # no row twice while there are others
        assert sorted(row for row in rows if row >= 50) == sorted([50, 51, 52, 53, 54] * 4)
    assert set(epochs[0]) != set(epochs[1])  # a capped task shows other rows in every epoch
    assert any(len({row < 50 for row in order.batch(step)}) == 2 for step in range(4))
    again = BatchOrder([3] * 55, 10, 0, tasks, [20, 20])
    assert again.batch(5) == order.batch(5)


def test_many_are_asked_as_each_alone(registry: Registry, backbone: FrozenBackbone, tasks: tuple[Task, ...]) -> None:
    outcome = made(registry, backbone, request(registry, tasks))
    examples = load_examples(tasks[0], "train").examples
    asked = [PromptedTask(outcome.model, task, index) for index, task in enumerate(tasks)]
    for one, said in zip(asked, predict_many(asked, examples, max_tokens=200), strict=True):
        alone = predict(one.model, one.task, examples, task_index=one.task_index)
        assert said.texts == alone.texts
        for ours, theirs in zip(said.rows, alone.rows, strict=True):
            assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
            assert ours.attention == pytest.approx(theirs.attention, abs=1e-5)
