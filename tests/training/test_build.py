"""What a method starts from."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.method import BuildInputs
from attempt_cli.training.build import attempt
from attempt_cli.training.config import make_config


@pytest.mark.parametrize("constant", [False, True])
def test_a_balanced_start_is_the_prompt_that_is_started_from(constant: bool) -> None:
    """Equation 4 with flat attention gives that prompt; without the option it is far from it."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(2, 5, 12, generator=generator)
    sources = torch.randn(3, 5, 12, generator=generator)
    tasks, pooled = torch.tensor([1, 0, 1]), torch.randn(3, 12, generator=generator)

    def mixed(balanced_start: bool) -> torch.Tensor:
        config = make_config(None, method="attempt", constant_attention=constant, balanced_start=balanced_start)
        mixture = attempt(BuildInputs(config, prompts, sources, generator, positions=8))
        if mixture.attention is not None:  # h = 0: all weights are equal
            for tensor in mixture.attention.parameters():
                tensor.data.zero_()
        return mixture(tasks, pooled)[0].detach()

    torch.testing.assert_close(mixed(True), prompts[tasks])
    assert (mixed(False) - prompts[tasks]).abs().mean() > 0.3
