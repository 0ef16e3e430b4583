"""Trained weights instead of prompts: their places, training in fp32, and a complete release."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.backbones.tuned import TunedWeights, adapter_parts
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel
from tests.models import LAYERS, WEIGHT_METHODS, WIDTH, save_llama, save_t5, tune

KINDS = ("llama", "t5", "t5-untied", "gpt2")


@pytest.fixture(params=[(kind, dtype) for kind in KINDS for dtype in ("float32", "bfloat16")], ids="-".join)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FrozenBackbone:
    kind, dtype = request.param
    return load_backbone(str(folders[kind]), device="cpu", dtype=dtype)


def test_bitsandbytes_gives_no_advice_where_peft_imports_it() -> None:
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def rows(backbone: FrozenBackbone) -> list[EncodedRow]:
    words = [backbone.target_tokens(word, end=False) for word in ("yes", "no", "good")]
    return backbone.encode(["it is good label:", "the text was bad one two label:", "five label:"], words, 64)


def fresh_fingerprint(backbone: FrozenBackbone) -> str:
    vars(backbone).pop("fingerprint", None)
    return backbone.fingerprint


def anatomy(model: nn.Module) -> list[object]:
    """Every module, tensor and hook of a model, by identity and place."""
    return [
        (name, id(module), module.training, [(key, id(weight)) for key, weight in module._parameters.items()],
         list(module._modules), len(module._forward_hooks))
        for name, module in model.named_modules()
    ] + [sorted(vars(model))]  # fmt: skip


def trained_once(model: PromptedModel) -> None:
    """One large step on the rows' own targets."""
    optimizer = torch.optim.SGD(model.trained.parameters(), lr=0.5)
    (-model.log_likelihood(rows(model.backbone)).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_after_the_release_nothing_is_left(backbone: FrozenBackbone, method: str) -> None:
    bare = PromptedModel(backbone)
    labels = backbone.label_tokens(["yes", "no"])
    before = bare.score_labels(rows(backbone), labels)[0]
    print_, parts = fresh_fingerprint(backbone), anatomy(backbone.model)
    tensors = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    model = PromptedModel(backbone, tuned=tune(backbone, method, 0))
    trained_once(model)
    during = model.score_labels(rows(backbone), labels)[0]
    assert not torch.equal(during, before), "the trained weights are not used"
    if method == "fine-tuning":
        assert fresh_fingerprint(backbone) != print_
    model.release()
    model.release()
    assert fresh_fingerprint(backbone) == print_
    assert anatomy(backbone.model) == parts
    found = backbone.model.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert torch.equal(bare.score_labels(rows(backbone), labels)[0], before)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_the_first_pass_is_near_the_frozen_model(backbone: FrozenBackbone, method: str) -> None:
    # in the library's layers, which trained weights run in: others round bf16 in other places
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "_own_layers", None)
        before = PromptedModel(backbone).log_likelihood(rows(backbone))
    model = PromptedModel(backbone, tuned=tune(backbone, method, 0))
    try:
        found = model.log_likelihood(rows(backbone)).detach()
    finally:
        model.release()
    if method == "hyperformer":  # its layer norm makes the adapters' outputs large, and γ starts near a tenth
        assert (found - before).abs().max() < 0.3 * before.abs().max()
        return
    torch.testing.assert_close(found, before, rtol=0.02, atol=0.02 if backbone.dtype == torch.float32 else 0.3)
    if method not in ("adapter", "adapterdrop", "adapterfusion", "hyperdecoder") and backbone.dtype == torch.float32:
        torch.testing.assert_close(found, before)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_all_that_is_trained_is_fp32_and_gets_a_gradient(backbone: FrozenBackbone, method: str) -> None:
    model = PromptedModel(backbone, tuned=tune(backbone, method, 0))
    try:
        trained_once(model)  # LoRA's first matrix has no gradient while its second is zero
        model.log_likelihood(rows(backbone)).sum().backward()
        frozen = [weight for weight in backbone.model.parameters() if weight.is_leaf and not weight.requires_grad]
    finally:
        model.release()
    assert list(model.trained.param_groups()) == ["weights"]
    for name, tensor in model.trained.named_parameters():
        assert tensor.dtype == torch.float32, name
        assert tensor.grad is not None, name
        assert tensor.grad.dtype == torch.float32, name
    assert all(weight.grad is None for weight in frozen)


def test_small_steps_add_up_in_a_bf16_backbone(folders: dict[str, Path]) -> None:
    """A step of 3e-4 on a weight near 1 is lost in bf16; twenty of them are not."""
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="bfloat16")
    model = PromptedModel(backbone, tuned=tune(backbone, "fine-tuning", 0))
    before = model.log_likelihood(rows(backbone)).sum().item()
    optimizer = torch.optim.AdamW(model.trained.parameters(), lr=3e-4, weight_decay=0)
    for _ in range(20):
        (-model.log_likelihood(rows(backbone)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.log_likelihood(rows(backbone)).sum().item()
    model.release()
    assert after > before + 0.5


def test_a_tied_weight_stays_one(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["gpt2"]), device="cpu", dtype="float32")
    tuned = tune(backbone, "fine-tuning", 0)
    assert sum(weight.numel() for weight in tuned.parameters()) == backbone.parameter_count
    assert backbone.model.get_input_embeddings().weight is backbone.model.get_output_embeddings().weight
    tuned.release()


# --- their places


def test_bitfit_has_a_bias_a_linear_layer(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    tuned = tune(backbone, "bitfit", 0)
    count = sum(bias.numel() for bias in tuned.parameters())
    tuned.release()
    keys = WIDTH // 4 * 2  # two of four heads
    assert count == LAYERS * (WIDTH + 2 * keys + WIDTH + 2 * 40 + WIDTH)  # q k v o, gate up down; no output layer
    assert all(not bias.any() for bias in tuned.parameters())


def test_adapters_of_t5_stand_behind_self_attention_and_feed_forward(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "deep", num_layers=5)
    model = load_backbone(str(folder), device="cpu", dtype="float32").model
    parts = adapter_parts(model, torch.Generator())
    assert len(parts) == 2 * 5 * 2
    assert not any("EncDecAttention" in name for name in parts)
    dropped = adapter_parts(model, torch.Generator(), drop=True)
    assert {name.split(".")[2] for name in dropped} == {"2", "3", "4"}  # two of five go, in both stacks
    assert {name.split(".")[0] for name in dropped} == {"encoder", "decoder"}


def test_adapterdrop_is_the_papers_five_of_twelve(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "deep", num_hidden_layers=12)
    model = load_backbone(str(folder), device="cpu", dtype="float32").model
    kept = {int(name.split(".")[2]) for name in adapter_parts(model, torch.Generator(), drop=True)}
    assert kept == set(range(5, 12))


def test_the_seed_draws_what_starts_from_numbers(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")

    def drawn(method: str, seed: int) -> list[torch.Tensor]:
        tuned = tune(backbone, method, seed)
        tuned.release()
        return [tensor.detach().clone() for tensor in tuned.parameters()]

    for method in ("adapter", "lora"):
        torch.rand(3)  # whatever else was drawn
        assert all(map(torch.equal, drawn(method, 1), drawn(method, 1)))
        assert not all(map(torch.equal, drawn(method, 1), drawn(method, 2)))


# --- one at a time


def test_two_trainings_cannot_hold_one_backbone(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    held = PromptedModel(backbone, tuned=tune(backbone, "bitfit", 0))
    with pytest.raises(RuntimeError, match="release them first"):
        tune(backbone, "lora", 0)
    with pytest.raises(RuntimeError, match="holds weights of another training"):
        PromptedModel(backbone).log_likelihood(rows(backbone))
    held.release()
    PromptedModel(backbone).log_likelihood(rows(backbone))
    with pytest.raises(RuntimeError, match="holds no trained weights"):
        held.log_likelihood(rows(backbone))


def test_without_peft_the_error_says_how_to_get_it(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(AttemptError, match="needs the peft library") as failure:
        tune(backbone, "lora", 0)
    assert "pip install 'attempt-cli[peft]'" in str(failure.value.hint)
    assert backbone.tuned is None


def test_an_architecture_that_peft_does_not_know(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    parts = anatomy(backbone.model)
    known = backbone.model.config.model_type
    type(backbone.model.config).model_type = "nobody-knows-it"
    try:
        with pytest.raises(AttemptError, match="peft does not know where ia3 belongs"):
            tune(backbone, "ia3", 0)
    finally:
        type(backbone.model.config).model_type = known
    assert anatomy(backbone.model) == parts
    assert backbone.tuned is None


def test_layers_of_other_names_have_no_adapters() -> None:
    class Config:
        model_type = "own"

    class Other(nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"mixer": nn.Linear(4, 4)})])

    with pytest.raises(AttemptError, match="does not know where adapters belong in the architecture own"):
        adapter_parts(Other(), torch.Generator())


def test_compiled_layers_are_refused(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    backbone.compile_layers(True)
    with pytest.raises(RuntimeError, match="are compiled"):
        tune(backbone, "bitfit", 0)
    assert backbone.tuned is None


def test_the_face_of_tuned_weights(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["t5"]), device="cpu", dtype="float32")
    tuned = tune(backbone, "lora", 0)
    assert isinstance(tuned, TunedWeights)
    assert set(tuned.state_dict()) == {name for name, _ in tuned.named_parameters()}
    assert all("lora_" in name for name in tuned.state_dict())
    tuned.release()
