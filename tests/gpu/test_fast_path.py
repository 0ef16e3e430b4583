"""A GPU's own way through the layers: the library's numbers and gradients, in few kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from attempt_cli.backbones import llama
from attempt_cli.backbones.attention import causal_mask, joined_mask
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.norms import FrozenNorm, fuse_norms
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.processes import Processes
from tests.backbones.test_llama import TOLERANCE, off, results
from tests.gpu.test_steps import model_on
from tests.pretend_cuda import PretendGpu
from tests.training import tiny

Load = Callable[[str, str], FrozenBackbone]


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_scores_and_gradients_are_those_of_the_library_s_layers_and_of_two_passes(
    gpu: PretendGpu, folders: dict[str, Path], dtype: str, placement: str
) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cuda", dtype=dtype)
    assert isinstance(backbone, DecoderOnlyBackbone)
    assert backbone._own_layers is not None
    assert not backbone.shares_prompts(10)
    own = [one.cpu() for one in results_on(backbone, placement)]
    backbone.use_own_attention(True, layers=False)
    backbone.__dict__["_two_passes_pay"] = True
    there = [one.cpu() for one in results_on(backbone, placement)]
    here = results(load_backbone(str(folders["llama"]), device="cpu", dtype=dtype), placement)
    for found, library, cpu, bound in zip(own, there, here, TOLERANCE[dtype], strict=True):
        assert off(found, library) < bound
        assert off(found, cpu) < bound


def results_on(backbone: FrozenBackbone, placement: str) -> tuple[Tensor, Tensor]:
    """`results` with the prompt on the backbone's device."""
    with pytest.MonkeyPatch.context() as patch:
        drawn = torch.randn
        patch.setattr(torch, "randn", lambda *size, **given: drawn(*size, **given).to(backbone.device))
        return results(backbone, placement)


@pytest.mark.parametrize(("kind", "placement", "most"), [("llama", "before", 140), ("llama", "after", 190)])
def test_a_step_launches_few_kernels(gpu: PretendGpu, load: Load, kind: str, placement: str, most: int) -> None:
    backbone = load(kind, "cuda")
    model, rows = model_on(backbone, placement, 0), tiny.encoded(backbone, 8)
    gpu.clear()
    gradient_step(model, rows, make_config(None, batch_size=8), Processes())
    assert gpu.kernels.total() < most


def test_a_large_model_s_shared_prompt_has_a_pass_of_its_own(
    gpu: PretendGpu, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for large, shares in ((1 << 40, False), (1, True)):
        monkeypatch.setattr("attempt_cli.backbones.base.LARGE_ON_GPU", large)
        assert load("llama", "cuda").shares_prompts(10) == shares
    assert load("llama", "cpu").shares_prompts(10)


def test_layers_whose_gradient_differs_give_way_to_the_library_s(
    gpu: PretendGpu, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = llama._turn_in_place
    # right forth and wrong back: scores alone would not show it
    monkeypatch.setattr(llama, "_turn_in_place", lambda x, cos, sin, direction: turn(x, cos, sin, 1))
    backbone = load("llama", "cuda")
    assert isinstance(backbone, DecoderOnlyBackbone)
    assert backbone._own_layers is None
    assert backbone.placements == ("after", "before")


# --- masks


@pytest.mark.parametrize("padded", [False, True])
def test_a_joined_mask_is_the_two_side_by_side(padded: bool) -> None:
    own = causal_mask(3, torch.float32, torch.device("cpu"))
    past = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, -9, -9, -9]])[:, None, None] if padded else None
    joined = joined_mask(own, past, 5)
    before = torch.zeros(1, 1, 3, 5) if past is None else past.expand(-1, -1, 3, -1)
    assert torch.equal(joined, torch.cat([before, own.expand(len(before), -1, -1, -1)], dim=-1))
    assert joined.stride(-2) % 8 == 0


# --- norms


class OneMore(T5LayerNorm):
    """Gemma's: weights are told from 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.weight) / self.weight


def test_only_norms_of_the_known_formula_are_fused(gpu: PretendGpu) -> None:
    model = nn.ModuleList([T5LayerNorm(8), OneMore(8), nn.LayerNorm(8)]).requires_grad_(False)
    for norm in model:
        norm.weight.copy_(torch.rand(8) + 0.5)
    model = model.to("cuda")
    fuse_norms(model)
    assert ["forward" in vars(norm) for norm in model] == [True, False, False]


def test_a_fused_norm_has_the_library_s_gradient_and_trains_as_the_library_s(gpu: PretendGpu) -> None:
    norm: Any = T5LayerNorm(8).requires_grad_(False)
    norm.weight.copy_(torch.rand(8) + 0.5)
    norm = norm.to("cuda")
    x = torch.randn(3, 5, 8).to("cuda").requires_grad_()
    found = []
    for fused in (False, True):
        if fused:
            fuse_norms(nn.ModuleList([norm]))
        gpu.clear()
        y = norm(x)
        found.append(torch.stack([y.detach(), torch.autograd.grad((y * y.detach()).sum(), x)[0]]).cpu())
        assert ("rms norm" in gpu.kernels) == fused
    torch.testing.assert_close(*found)
    norm.weight.requires_grad_()
    gpu.clear()
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert "rms norm" not in gpu.kernels


def test_norms_on_the_cpu_are_the_library_s(load: Load) -> None:
    assert not any("forward" in vars(module) for module in load("t5", "cpu").model.modules())
    y = FrozenNorm.apply(torch.ones(2, 4), torch.ones(4), 0.0)  # type: ignore[no-untyped-call]
    assert torch.equal(y, torch.ones(2, 4))
