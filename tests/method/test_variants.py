"""The paper's variants as settings of the mixture: against `reference.py`, by hand, and what holds for any numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attempt_cli.method import PromptAttention, PromptMixture, constant_weights, pool_input
from tests.method import reference
from tests.method.reference import LearnedTemperature, Variant
from tests.method.test_by_hand import SOURCES, TARGET, attention_of
from tests.method.test_parity import BATCHES, Case, D, R, gradients_of, make, padded

VARIANTS = {
    "instance": Variant(),
    "token": Variant(token=True),
    "no target": Variant(with_target=False),
    "token, no target": Variant(token=True, with_target=False),
}
WITH_SOURCES = [name for name in BATCHES if name != "no source"]


def settings_of(variant: Variant) -> dict[str, Any]:
    return {"level": "token" if variant.token else "instance", "with_target": variant.with_target}


def mixture_of(case: Case, variant: Variant, *, learned: bool) -> PromptMixture:
    p = case.parameters
    attention = PromptAttention(D, R, case.temperature, learned_temperature=learned)
    with torch.no_grad():
        for parameter, values in (
            (attention.down.weight, p.down),
            (attention.up.weight, p.up),
            (attention.norm.weight, p.gain),
            (attention.norm.bias, p.bias),
        ):
            parameter.copy_(torch.from_numpy(values))
    targets, sources = torch.from_numpy(p.targets), torch.from_numpy(case.sources)
    mixture = PromptMixture(targets, sources, attention, **settings_of(variant)).double()
    if learned:  # float32 cannot hold log T exactly
        with torch.no_grad():
            mixture.attention.log_temperature.fill_(math.log(case.temperature))
    return mixture


@pytest.mark.parametrize("batch", WITH_SOURCES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed temperature", "learned temperature"])
def test_values_and_gradients_are_those_of_the_equations(batch: str, name: str, learned: bool) -> None:
    case, variant = make(batch), VARIANTS[name]
    parameters = case.parameters
    if learned:
        parameters = LearnedTemperature(**vars(parameters), log_temperature=np.array([math.log(case.temperature)]))

    def expected(p: reference.Parameters) -> tuple[reference.Array, reference.Array]:
        return reference.variant_prompts(case.inputs, case.task_ids, case.sources, p, case.temperature, variant)

    def loss(p: reference.Parameters) -> float:
        prompts, weights = expected(p)
        return float((prompts * case.towards).sum() + (weights * case.towards_weights).sum())

    mixture = mixture_of(case, variant, learned=learned)
    prompts, weights = mixture(torch.tensor(case.task_ids), pool_input(*padded(case, torch.float64)))
    for ours, theirs in zip((prompts, weights), expected(parameters), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-12, atol=1e-12)

    (
        (prompts * torch.from_numpy(case.towards)).sum() + (weights * torch.from_numpy(case.towards_weights)).sum()
    ).backward()
    ours = gradients_of(mixture)
    if learned:
        ours["log_temperature"] = mixture.attention.log_temperature.grad.view(1)
    if not variant.with_target:
        assert ours.pop("targets") is None
    for parameter, gradient in reference.numeric_gradients(loss, parameters).items():
        if parameter in ours:
            np.testing.assert_allclose(ours[parameter].numpy(), gradient, rtol=1e-8, atol=1e-8, err_msg=parameter)
            # there is something to compare, but where a source alone has all the attention whatever G says
            assert np.abs(gradient).max() > 1e-6 or (len(case.sources) == 1 and not variant.with_target)
        else:
            assert np.abs(gradient).max() < 1e-9  # nothing but rounding


@pytest.mark.parametrize("batch", WITH_SOURCES)
def test_given_weights_are_what_is_mixed(batch: str) -> None:
    case = make(batch)
    a = np.linspace(0.1, 0.7, len(case.sources) + 1)
    targets, sources = torch.from_numpy(case.parameters.targets), torch.from_numpy(case.sources)
    mixture = PromptMixture(targets, sources, fixed_weights=torch.from_numpy(a)).double()
    prompts, weights = mixture(torch.tensor(case.task_ids))
    expected = [reference.mix(a, case.sources, case.parameters.targets[task]) for task in case.task_ids]
    np.testing.assert_allclose(prompts.detach().numpy(), np.stack(expected), rtol=1e-6, atol=1e-6)  # a is kept in fp32
    np.testing.assert_allclose(weights.numpy(), np.tile(a, (len(case.task_ids), 1)), rtol=1e-6)


def ln2_attention() -> PromptAttention:
    """h / T = (ln 2, 0, 0), whatever the input: W_up is nought, and the bias is (2 ln 2, 0, 0) with T = 2."""
    return attention_of([[1.0, 1.0, 1.0]], [[0.0]] * 3, [1.0] * 3, [2 * math.log(2), 0.0, 0.0], 2.0)


def test_token_level_by_hand() -> None:
    # the exponentials are 2 to the first entry of a prompt's row
    # row 1: P_1 2, P_2 1/2, target 1, sum 7/2: (4, 1, 2)/7; row 2: P_1 1, P_2 4, target 2, sum 7: (1, 4, 2)/7
    mixture = PromptMixture(TARGET, SOURCES, ln2_attention(), level="token")
    prompts, weights = mixture(torch.tensor([0]), torch.randn(1, 3))
    torch.testing.assert_close(weights, torch.tensor([[2.5, 2.5, 2.0]]) / 7)  # the means over the two rows
    # row 1: (9·(0, 1, 1) + 4·(1, 0, 2) + (-1, 1, 0))/7; row 2: (9·(1, 0, -3) + (0, 3, -1) + 4·(2, -2, 4))/7
    torch.testing.assert_close(prompts, torch.tensor([[[3.0, 10.0, 17.0], [17.0, -5.0, -12.0]]]) / 7)


def test_without_the_target_by_hand() -> None:
    # keys (1, 3, 2) and (2, 1, 4): exponentials 2 and 4, so P_1/3 + 2 P_2/3, and the target is nowhere
    mixture = PromptMixture(TARGET, SOURCES, ln2_attention(), with_target=False)
    prompts, weights = mixture(torch.tensor([0]), torch.randn(1, 3))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 2.0, 0.0]]) / 3)
    torch.testing.assert_close(prompts, torch.tensor([[[-1.0, 2.0, 2.0], [4.0, -1.0, 7.0]]]) / 3)


def test_constant_weights_by_hand() -> None:
    assert constant_weights(4).tolist() == [0.25, 0.25, 0.25, 0.25, 0.0]
    # P_target + P_1/2 + P_2/2, the same for every row, and no input is asked for
    mixture = PromptMixture(TARGET, SOURCES, fixed_weights=constant_weights(2))
    prompts, weights = mixture(torch.tensor([0, 0]))
    torch.testing.assert_close(prompts, torch.tensor([[[0.0, 1.5, 2.0], [2.0, 0.5, -1.5]]]).expand(2, -1, -1))
    assert weights.tolist() == [[0.5, 0.5, 0.0]] * 2
    # without the target: the mean of the sources
    mean, _ = PromptMixture(TARGET, SOURCES, fixed_weights=constant_weights(2), with_target=False)(torch.tensor([0]))
    torch.testing.assert_close(mean[0], SOURCES.mean(dim=0))


@pytest.mark.parametrize("name", VARIANTS)
def test_one_source_is_enough(name: str) -> None:
    variant = VARIANTS[name]
    mixture = PromptMixture(TARGET, SOURCES[:1], ln2_attention(), **settings_of(variant))
    prompts, weights = mixture(torch.tensor([0]), torch.randn(1, 3))
    assert weights.shape == (1, 2)
    assert weights.sum().item() == pytest.approx(1)
    if not variant.with_target:  # all the attention is the source's
        torch.testing.assert_close(prompts, SOURCES[:1])


def drawn(variant: Variant, *, sources: int = 4) -> tuple[PromptMixture, Tensor, Tensor]:
    """Three tasks, the middle one without rows."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    attention = PromptAttention(8, 3, 2.0, learned_temperature=True, generator=generator)
    with torch.no_grad():
        for parameter in (attention.down.weight, attention.up.weight, attention.norm.bias):
            parameter.add_(normal(*parameter.shape))
    mixture = PromptMixture(normal(3, 5, 8), normal(sources, 5, 8), attention, **settings_of(variant))
    return mixture.double(), torch.tensor([2, 0, 2, 0, 0]), normal(5, 8).double()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_of_sources_and_of_rows_is_irrelevant(name: str) -> None:
    mixture, task_ids, pooled = drawn(VARIANTS[name])
    prompts, weights = mixture(task_ids, pooled)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5).double())
    order, rows = [2, 0, 3, 1], [4, 2, 0, 1, 3]
    other = PromptMixture(
        mixture.target_prompts, mixture.source_prompts[order], mixture.attention, **settings_of(VARIANTS[name])
    ).double()
    other_prompts, other_weights = other(task_ids[rows], pooled[rows])
    torch.testing.assert_close(other_prompts, prompts[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other_weights, weights[rows][:, [*order, -1]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["instance", "token"])
@pytest.mark.parametrize("tasks", [3, 9], ids=["fewer tasks than rows", "more tasks than rows"])
def test_a_target_prompt_learns_from_its_own_rows_and_g_from_all(name: str, tasks: int) -> None:
    mixture, task_ids, pooled = drawn(VARIANTS[name])
    if tasks > 3:
        mixture.target_prompts = torch.nn.Parameter(mixture.target_prompts.detach().repeat(3, 1, 1))
    trained = [mixture.target_prompts, *mixture.attention.parameters()]
    together = torch.autograd.grad(mixture(task_ids, pooled)[0].square().sum(), trained)
    apart = [torch.zeros_like(tensor) for tensor in trained]
    for task in (0, 2):
        rows = task_ids == task
        gradients = torch.autograd.grad(mixture(task_ids[rows], pooled[rows])[0].square().sum(), trained)
        assert {index for index in range(tasks) if gradients[0][index].any()} == {task}
        assert all(gradient.any() for gradient in gradients[1:])
        for total, gradient in zip(apart, gradients, strict=True):
            total += gradient
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_without_the_target_its_prompts_are_not_read(name: str) -> None:
    mixture, task_ids, pooled = drawn(VARIANTS[name])
    before = mixture(task_ids, pooled)
    with torch.no_grad():
        mixture.target_prompts.fill_(float("nan"))
    after = mixture(task_ids, pooled)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other) == (not VARIANTS[name].with_target)


def test_a_learned_temperature_is_a_positive_parameter_and_its_logarithm_is_the_state() -> None:
    assert "log_temperature" not in PromptAttention(4, 2, 3.0).state_dict()
    module = PromptAttention(4, 2, 3.0, learned_temperature=True)
    assert module.state_dict()["log_temperature"].item() == pytest.approx(math.log(3))
    assert module.temperature == pytest.approx(3)
    with torch.no_grad():
        module.log_temperature.sub_(100)
    assert 0 < module.temperature < 1e-30
    module.temperature = 5.0
    other = PromptAttention(4, 2, 1.0, learned_temperature=True)
    other.load_state_dict(module.state_dict())
    assert other.temperature == pytest.approx(5)


def test_with_or_without_learning_the_same_temperature_is_the_same_module() -> None:
    made = [
        PromptAttention(6, 2, 4.0, learned_temperature=learned, generator=torch.Generator().manual_seed(0))
        for learned in (False, True)
    ]
    x_hat, sources, targets = torch.randn(3, 6), torch.randn(2, 6), torch.randn(3, 6)
    one, other = (module(x_hat, sources, targets) for module in made)
    torch.testing.assert_close(one, other)


def test_source_keys_are_computed_once() -> None:
    mixture, task_ids, pooled = drawn(Variant())
    expected = mixture(task_ids, pooled)[1]
    mixture.source_prompts = mixture.source_prompts + 1  # the keys do not follow
    assert torch.equal(mixture(task_ids, pooled)[1], expected)


class Largest(TorchDispatchMode):
    """The largest number of entries of a tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() // tensor.element_size() > self.entries:
                self.entries = tensor.untyped_storage().nbytes() // tensor.element_size()
        return result


@pytest.mark.parametrize("name", VARIANTS)
def test_no_tensor_has_rows_and_sources_and_entries_of_prompts(name: str) -> None:
    b, t, m, d = 5, 7, 6, 8
    mixture = PromptMixture(
        torch.randn(1, m, d), torch.randn(t, m, d), PromptAttention(d, 2, 1.0), **settings_of(VARIANTS[name])
    )
    with Largest() as largest:
        prompts, _ = mixture(torch.zeros(b, dtype=torch.long), torch.randn(b, d))
        prompts.sum().backward()
    assert largest.entries <= t * m * d  # what the sources have themselves


def param_groups_of(mixture: PromptMixture) -> dict[str, set[str]]:
    names = {id(tensor): name for name, tensor in mixture.named_parameters()}
    groups = mixture.param_groups()
    held = [id(tensor) for tensors in groups.values() for tensor in tensors]
    trained = [id(tensor) for tensor in mixture.parameters() if tensor.requires_grad]
    assert sorted(held) == sorted(trained)  # every trained tensor, and each once
    return {group: {names[id(tensor)] for tensor in tensors} for group, tensors in groups.items()}


def test_every_trained_tensor_has_one_speed() -> None:
    prompts = {"target_prompts"}
    attention = {f"attention.{name}.weight" for name in ("down", "up", "norm")} | {"attention.norm.bias"}
    assert param_groups_of(PromptMixture(TARGET)) == {"prompts": prompts}
    assert param_groups_of(PromptMixture(TARGET, SOURCES, PromptAttention(3, 2, 1.0))) == {
        "prompts": prompts,
        "attention": attention,
    }
    learned = PromptAttention(3, 2, 1.0, learned_temperature=True)
    assert param_groups_of(PromptMixture(TARGET, SOURCES, learned, level="token")) == {
        "prompts": prompts,
        "attention": attention | {"attention.log_temperature"},
    }
    assert param_groups_of(PromptMixture(TARGET, SOURCES, PromptAttention(3, 2, 1.0), with_target=False)) == {
        "attention": attention
    }
    assert param_groups_of(PromptMixture(TARGET, SOURCES, fixed_weights=constant_weights(2))) == {"prompts": prompts}
    settled = PromptMixture(TARGET, SOURCES, PromptAttention(3, 2, 1.0).requires_grad_(False))
    assert param_groups_of(settled) == {"prompts": prompts}
    assert param_groups_of(settled.requires_grad_(False)) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": PromptAttention(3, 2, 1.0), "fixed_weights": constant_weights(2)}, "not both"),
        ({"source_prompts": None, "fixed_weights": constant_weights(2)}, "come together"),
        ({"source_prompts": None, "with_target": False}, "at least one source"),
        (
            {"attention": PromptAttention(3, 2, 1.0), "source_prompts": SOURCES[:0], "with_target": False},
            "at least one",
        ),
        (
            {"attention": PromptAttention(3, 2, 1.0), "level": "word"},
            "the level is 'word'; it is one of instance, token",
        ),
        ({"fixed_weights": constant_weights(2), "level": "token"}, "the token level is the attention module's"),
        ({"source_prompts": None, "level": "token"}, "the token level is the attention module's"),
        ({"fixed_weights": constant_weights(3)}, r"fixed weights are 3 finite numbers.*not \[0\.3"),
        ({"fixed_weights": torch.tensor([0.5, float("nan"), 0.0])}, "fixed weights are 3 finite numbers"),
        ({"fixed_weights": torch.tensor([0.5, 0.25, 0.25]), "with_target": False}, r"fixed weight is 0\.25; it is 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptMixture(**{"target_prompts": TARGET, "source_prompts": SOURCES, **settings})


def test_constant_weights_need_a_source() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        constant_weights(0)


def test_the_reference_s_variants_begin_with_its_equations_3_and_4() -> None:
    case = make("ragged, three tasks")
    arguments = (case.inputs, case.task_ids, case.sources, case.parameters, case.temperature)
    for one, other in zip(
        reference.instance_prompts(*arguments), reference.variant_prompts(*arguments, Variant()), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_variants_differ() -> None:
    found = []
    for variant in VARIANTS.values():
        mixture, task_ids, pooled = drawn(variant)
        found.append(mixture(task_ids, pooled)[0])
    for index, one in enumerate(found):
        assert all(not torch.allclose(one, other) for other in found[index + 1 :])
