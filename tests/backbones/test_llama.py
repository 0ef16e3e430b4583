"""Layers with their own backward pass: the library's numbers and gradients, in both dtypes, for ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.llama import LlamaLayers
from attempt_cli.backbones.load import load_backbone
from attempt_cli.method import PromptMixture
from attempt_cli.prompted import PromptedModel
from tests.backbones.plain import fresh_model
from tests.backbones.test_scores import rows_of
from tests.models import save_gpt2, save_llama, tune

# an error of a few roundings: of fp32, and of bf16's 8 bits through two layers
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (0.03, 0.15)}


@pytest.fixture
def llama(folders: dict[str, Path]) -> FrozenBackbone:
    """One to change at will."""
    return load_backbone(str(folders["llama"]), device="cpu", dtype="float32")


def results(backbone: FrozenBackbone, placement: str) -> tuple[Tensor, Tensor]:
    """Returns log-likelihoods of ragged rows' targets, and their sum's gradient in the prompt."""
    prompts = torch.randn(1, 3, backbone.width, generator=torch.Generator().manual_seed(1))
    model = PromptedModel(backbone, PromptMixture(prompts), 0.7, placement)
    scores = model.log_likelihood(rows_of(backbone, end=True))
    scores.sum().backward()  # type: ignore[no-untyped-call]
    (prompt,) = model.trained.parameters()
    assert prompt.grad is not None
    return scores.detach(), prompt.grad


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_scores_and_gradients_are_those_of_the_library_s_layers(
    folders: dict[str, Path], dtype: str, placement: str
) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype=dtype)
    own = results(backbone, placement)
    backbone.use_own_attention(True, layers=False)
    library = results(backbone, placement)
    for found, wanted, bound in zip(own, library, TOLERANCE[dtype], strict=True):
        assert off(found, wanted) < bound
    assert dtype == "float32" or not torch.equal(own[1], library[1])  # two ways, not one


def test_in_bf16_they_are_as_near_to_the_exact_gradient_as_the_library_s(folders: dict[str, Path]) -> None:
    exact = results(load_backbone(str(folders["llama"]), device="cpu", dtype="float32"), "before")[1]
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="bfloat16")
    own = results(backbone, "before")[1]
    backbone.use_own_attention(True, layers=False)
    library = results(backbone, "before")[1]
    assert off(own, exact) < 1.5 * off(library, exact)


def test_no_weight_is_kept_twice(llama: FrozenBackbone) -> None:
    layer: Any = llama.model.base_model.layers[0]
    for parts in (
        (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
        (layer.mlp.gate_proj, layer.mlp.up_proj),
    ):
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_the_checkpoint_s_file_does_not_stay_in_memory_beside_the_joined_weights(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")  # no weight is converted: all were mapped
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert results(backbone, "before")[0].isfinite().all()


def test_a_kept_key_keeps_nothing_else_in_memory(llama: FrozenBackbone) -> None:
    assert isinstance(llama, DecoderOnlyBackbone)
    keep: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        llama._hidden(torch.randn(2, 5, llama.width), keep=keep)
    for key, value in keep:
        for tensor in (key, value):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_layers_whose_numbers_differ_give_way_to_the_library_s(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attempt_cli.backbones.llama._turn", lambda x, cos, sin, out: out.copy_(x))
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    assert isinstance(backbone, DecoderOnlyBackbone)
    assert backbone._own_layers is None
    assert backbone.placements == ("after", "before")


def test_the_joined_weights_are_those_of_the_checkpoint(llama: FrozenBackbone, folders: dict[str, Path]) -> None:
    stored = dict(fresh_model(folders["llama"]).named_parameters())
    for name, weight in llama.model.named_parameters():
        assert torch.equal(weight, stored[name]), name


def check_trained_weights(
    backbone: FrozenBackbone, method: str, results_of: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    """Checks that trained weights change the scores while they are in the model, and nothing once they are released."""
    before = results_of()
    tuned = tune(backbone, method, 0)
    for parameter in tuned.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model = PromptedModel(backbone, tuned=tuned)
    rows = rows_of(backbone, end=True)
    changed = model.log_likelihood(rows).detach()
    model.release()
    frozen = PromptedModel(backbone).log_likelihood(rows).detach()
    assert not torch.allclose(changed, frozen, atol=1e-3)
    for one, other in zip(before, results_of(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["lora", "bitfit", "fine-tuning"])
def test_trained_weights_run_in_the_library_s_layers_and_leave_nothing(llama: FrozenBackbone, method: str) -> None:
    assert isinstance(llama, DecoderOnlyBackbone)
    check_trained_weights(llama, method, lambda: results(llama, "before"))


def test_checkpointed_layers_are_the_library_s(llama: FrozenBackbone) -> None:
    own = results(llama, "before")
    llama.checkpoint_gradients(True)
    assert llama.checkpointed
    checkpointed = results(llama, "before")
    llama.checkpoint_gradients(False)
    assert not llama.checkpointed
    assert off(checkpointed[1], own[1]) < 1e-4


@pytest.mark.parametrize(
    ("save", "fitting"),
    [
        (lambda folder: save_llama(folder), True),
        (lambda folder: save_llama(folder, attention_bias=True), False),
        (lambda folder: save_llama(folder, mlp_bias=True), False),
        (lambda folder: save_llama(folder, hidden_act="gelu"), False),
        (lambda folder: save_gpt2(folder), False),
    ],
    ids=["llama", "attention bias", "feed-forward bias", "gelu", "gpt2"],
)
def test_other_architectures_keep_the_library_s_layers(tmp_path: Path, save: Any, fitting: bool) -> None:
    folder = save(tmp_path / "model")
    assert LlamaLayers.fits(fresh_model(folder).base_model) == fitting
    load_backbone(str(folder), device="cpu", dtype="float32")  # its scores are checked against plain passes
