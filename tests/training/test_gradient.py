"""One step: what is trained, at which speed, and that the gradient knows nothing of how rows are cut into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 11  # of 3 to 12 tokens and more: no two batches are alike


@pytest.fixture
def rows(backbone: FrozenBackbone) -> list[EncodedRow]:
    return tiny.encoded(backbone, ROWS)


def gradients(
    model: PromptedModel, rows: Sequence[EncodedRow], processes: Processes | None = None, **settings: int
) -> dict[str, Tensor]:
    """The gradient of one step by name, and the loss as `loss`."""
    assert model.mixture is not None
    model.mixture.zero_grad()
    loss = gradient_step(model, rows, TrainingConfig(**settings), processes or Processes())  # type: ignore[arg-type]
    found = {name: parameter.grad.clone() for name, parameter in model.mixture.named_parameters()}  # type: ignore[union-attr]
    return found | {"loss": loss}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=lambda text, of=name: f"{of}: {text}"
        )


def test_the_loss_is_the_mean_over_target_tokens(backbone: FrozenBackbone, rows: list[EncodedRow]) -> None:
    model = tiny.model(backbone, sources=2)
    assert model.mixture is not None
    tokens = sum(len(row.target_ids) for row in rows)
    assert tokens > ROWS + 3  # rows count by their tokens, not each once
    total = sum(-model.log_likelihood([row]).sum() for row in rows) / tokens  # every row alone
    total.backward()  # type: ignore[union-attr]
    plain = {name: parameter.grad.clone() for name, parameter in model.mixture.named_parameters()}  # type: ignore[union-attr]
    assert_equal(gradients(model, rows), plain | {"loss": total.detach()})  # type: ignore[union-attr]
    assert all(tensor.abs().max() > 0 for tensor in plain.values())


@pytest.mark.parametrize("max_tokens", [1, 40, 75])
def test_micro_batches_under_a_token_budget_give_the_same_gradient(
    backbone: FrozenBackbone, rows: list[EncodedRow], max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(backbone, sources=2)
    whole = gradients(model, rows)
    sizes = []
    plain = PromptedModel.log_likelihood

    def counted(self: PromptedModel, some: Sequence[EncodedRow], *others: Tensor) -> Tensor:
        sizes.append(len(some))
        return plain(self, some, *others)

    monkeypatch.setattr(PromptedModel, "log_likelihood", counted)
    assert_equal(gradients(model, rows, max_tokens=max_tokens), whole)
    assert sum(sizes) == ROWS
    assert len(sizes) == ROWS if max_tokens == 1 else 1 < len(sizes) < ROWS


@dataclass(frozen=True)
class Alone(Processes):
    """A process whose others are run one after the other: the test itself adds up."""

    def sum_(self, tensors: Sequence[Tensor]) -> None: ...


@pytest.mark.parametrize("count", [2, 3])
def test_rows_spread_over_processes_give_the_same_gradient(
    backbone: FrozenBackbone, rows: list[EncodedRow], count: int
) -> None:
    model = tiny.model(backbone, sources=2)
    parts = [gradients(model, rows, Alone(index, count)) for index in range(count)]
    assert_equal({name: sum(part[name] for part in parts) for name in parts[0]}, gradients(model, rows))  # type: ignore[misc]


def test_a_process_without_rows_adds_nothing(backbone: FrozenBackbone, rows: list[EncodedRow]) -> None:
    found = gradients(tiny.model(backbone, sources=2), rows[:1], Alone(1, 2))
    assert all(bool((tensor == 0).all()) for tensor in found.values())


@pytest.mark.parametrize("sources", [0, 2])
def test_every_group_of_the_optimiser_holds_the_tensors_it_should(backbone: FrozenBackbone, sources: int) -> None:
    mixture = tiny.model(backbone, sources=sources).mixture
    assert mixture is not None
    optimizer = make_optimizer(mixture, TrainingConfig(learning_rate=0.5, attention_learning_rate=0.25))
    names = {id(parameter): name for name, parameter in mixture.named_parameters()}
    groups = {group["name"]: sorted(names[id(p)] for p in group["params"]) for group in optimizer.param_groups}
    expected = {"prompts": ["target_prompts"]}
    if sources:
        weights = ["down.weight", "norm.bias", "norm.weight", "up.weight"]
        expected["attention"] = [f"attention.{name}" for name in weights]
    assert groups == expected
    assert {group["name"]: group["peak"] for group in optimizer.param_groups} == {
        "prompts": 0.5,
        **({"attention": 0.25} if sources else {}),
    }
    m, d, r = tiny.LENGTH, backbone.width, tiny.RANK
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert trained == m * d + (2 * r * d + 2 * d if sources else 0)
    assert trained == sum(p.numel() for p in mixture.parameters() if p.requires_grad)


def test_each_learning_rate_takes_effect_on_its_own_tensors(
    backbone: FrozenBackbone, rows: list[EncodedRow], tmp_path: Path
) -> None:
    """Adam's first step moves a number by the learning rate, whatever its gradient."""
    model = tiny.model(backbone, sources=2)
    assert model.mixture is not None
    before = {name: tensor.detach().clone() for name, tensor in model.mixture.named_parameters()}
    speeds = {"learning_rate": 0.02, "attention_learning_rate": 0.005, "weight_decay": 0.0}
    tiny.run(model, rows, tmp_path / "state", steps=1, eval_every=0, **speeds)
    for name, tensor in model.mixture.named_parameters():
        moved = (tensor.detach() - before[name]).abs()
        assert float(moved.median()) == pytest.approx(0.02 if name == "target_prompts" else 0.005, rel=0.05), name


def test_nothing_but_prompts_and_attention_changes(
    backbone: FrozenBackbone, rows: list[EncodedRow], tmp_path: Path
) -> None:
    def digest() -> str:
        content = hashlib.sha256()
        for name, tensor in sorted(backbone.model.state_dict().items()):
            content.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return content.hexdigest()

    model = tiny.model(backbone, sources=2)
    assert model.mixture is not None
    assert model.mixture.source_prompts is not None
    frozen, sources = digest(), model.mixture.source_prompts.clone()
    before = {name: tensor.detach().clone() for name, tensor in model.mixture.named_parameters()}
    tiny.run(model, rows, tmp_path / "state", steps=5, eval_every=0, learning_rate=0.1, attention_learning_rate=0.1)
    assert digest() == frozen
    assert torch.equal(model.mixture.source_prompts, sources)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.mixture.named_parameters())
    assert not backbone.model.training
