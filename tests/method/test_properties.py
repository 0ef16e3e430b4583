"""Properties that hold for any numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attempt_cli.method import PromptAttention, PromptMixture, pool_input


@dataclass
class Batch:
    mixture: PromptMixture  # in float64
    embeddings: Tensor  # [b, l, d]
    lengths: Tensor  # [b]
    task_ids: Tensor  # [b]

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.embeddings.shape[1]) < self.lengths[:, None]

    def __call__(self) -> tuple[Tensor, Tensor]:
        prompts, weights = self.mixture(self.task_ids, pool_input(self.embeddings, self.mask))
        assert weights is not None
        return prompts, weights


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    b, longest, m, n, t = (draw(st.integers(1, most)) for most in (5, 7, 4, 3, 5))
    d = draw(st.integers(2, 9))
    r = draw(st.integers(1, d - 1))
    spread = draw(st.sampled_from([0.1, 1.0, 30.0]))  # Llama's embeddings to T5's
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    attention = PromptAttention(d, r, draw(st.sampled_from([0.5, 3.0, 25.0])), generator=generator)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(normal(*parameter.shape))
    mixture = PromptMixture(spread * normal(n, m, d), spread * normal(t, m, d), attention).double()
    return Batch(
        mixture,
        spread * normal(b, longest, d).double(),
        torch.randint(1, longest + 1, (b,), generator=generator),
        torch.randint(0, n, (b,), generator=generator),
    )


given_batches = given(batches())
few = settings(max_examples=40, deadline=None)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@few
@given_batches
def test_weights_are_a_distribution_over_the_sources_and_the_target(batch: Batch) -> None:
    _, weights = batch()
    assert weights.shape == (len(batch.task_ids), len(batch.mixture.source_prompts) + 1)
    assert bool((weights >= 0).all())
    close(weights.sum(dim=1), torch.ones(len(weights)).double())


@few
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_sources_permutes_the_weights_and_not_the_mixture(batch: Batch, random: object) -> None:
    prompts, weights = batch()
    order = list(range(len(batch.mixture.source_prompts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    batch.mixture.source_prompts = batch.mixture.source_prompts[order]
    batch.mixture.source_keys = batch.mixture.source_keys[order]
    shuffled_prompts, shuffled_weights = batch()
    close(shuffled_prompts, prompts)
    close(shuffled_weights, weights[:, [*order, -1]])


@few
@given(batches(), st.integers(0, 3), st.sampled_from([-1e6, 0.0, 1e6]))
def test_padding_and_batch_mates_are_irrelevant(batch: Batch, more: int, pad: float) -> None:
    prompts, weights = batch()
    # whatever the pads hold, and whatever their number
    mask = batch.mask
    batch.embeddings = batch.embeddings.masked_fill(~mask[..., None], pad)
    extra = torch.full((len(mask), more, batch.embeddings.shape[2]), pad).double()
    batch.embeddings = torch.cat([batch.embeddings, extra], dim=1)
    padded_prompts, padded_weights = batch()
    close(padded_prompts, prompts)
    close(padded_weights, weights)
    # each row alone, without pads
    for i, length in enumerate(batch.lengths.tolist()):
        alone = Batch(
            batch.mixture, batch.embeddings[i : i + 1, :length], batch.lengths[i : i + 1], batch.task_ids[i : i + 1]
        )
        prompt, weight = alone()
        close(prompt, prompts[i : i + 1])
        close(weight, weights[i : i + 1])


@few
@given_batches
def test_the_mixture_is_the_target_plus_a_weighted_sum_that_holds_the_target_again(batch: Batch) -> None:
    prompts, weights = batch()
    for i, task in enumerate(batch.task_ids.tolist()):
        target = batch.mixture.target_prompts[task]
        expected = target + sum(
            (a * p for a, p in zip(weights[i], [*batch.mixture.source_prompts, target], strict=True)),
            start=torch.zeros_like(target),
        )
        close(prompts[i], expected)


@few
@given_batches
def test_a_target_prompt_gets_gradient_only_from_its_own_rows(batch: Batch) -> None:
    towards = torch.randn(batch()[0].shape, generator=torch.Generator().manual_seed(1)).double()
    together = torch.autograd.grad((batch()[0] * towards).sum(), batch.mixture.target_prompts)[0]
    for task in range(len(together)):
        rows = (batch.task_ids == task).nonzero()[:, 0]
        if len(rows) == 0:
            assert not together[task].any()
            continue
        own = Batch(batch.mixture, batch.embeddings[rows], batch.lengths[rows], batch.task_ids[rows])
        gradient = torch.autograd.grad((own()[0] * towards[rows]).sum(), batch.mixture.target_prompts)[0]
        close(gradient[task], together[task])
        others = [i for i in range(len(together)) if i != task]
        assert not gradient[others].any()


@few
@given_batches
def test_a_mixed_batch_is_its_tasks_apart_and_g_learns_from_all_of_them(batch: Batch) -> None:
    parameters = list(batch.mixture.attention.parameters())
    together = torch.autograd.grad(batch()[0].sum(), parameters)
    apart = [torch.zeros_like(p) for p in parameters]
    for task in batch.task_ids.unique().tolist():
        rows = (batch.task_ids == task).nonzero()[:, 0]
        own = Batch(batch.mixture, batch.embeddings[rows], batch.lengths[rows], batch.task_ids[rows])
        for total, gradient in zip(apart, torch.autograd.grad(own()[0].sum(), parameters), strict=True):
            total += gradient
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@few
@given_batches
def test_without_sources_the_mixture_is_the_target_prompt(batch: Batch) -> None:
    targets = batch.mixture.target_prompts.detach()
    prompts, weights = PromptMixture(targets)(batch.task_ids)
    assert weights is None
    assert torch.equal(prompts, targets.float()[batch.task_ids])


@few
@given_batches
def test_prompts_inputs_and_temperature_in_another_unit_give_the_same_weights_in_the_keys(batch: Batch) -> None:
    # the query does not depend on the prompts' unit; scores do, and a temperature in the same unit undoes it
    _, weights = batch()
    mixture = batch.mixture
    with torch.no_grad():
        mixture.target_prompts.mul_(8.0)
    mixture.source_prompts = mixture.source_prompts * 8.0
    mixture.source_keys = mixture.source_keys * 8.0
    mixture.attention.temperature *= 8.0
    close(batch()[1], weights)
