"""T5's layers with their own backward pass: the library's numbers and gradients, in both dtypes, for ragged batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptMixture
from attempt_cli.prompted import PromptedModel
from tests.backbones.plain import fresh_model
from tests.backbones.test_llama import TOLERANCE, check_trained_weights, off
from tests.backbones.test_scores import rows_of
from tests.models import save_t5

KINDS: dict[str, dict[str, Any]] = {
    "T5 1.0": {},
    "T5 1.1": {"tied": False, "feed_forward_proj": "gated-gelu"},
}


def loaded(folder: Path, dtype: str = "float32") -> EncoderDecoderBackbone:
    backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
    assert isinstance(backbone, EncoderDecoderBackbone)
    assert backbone._own_layers is not None
    return backbone


def results(backbone: EncoderDecoderBackbone, length: int = 3) -> tuple[Tensor, Tensor]:
    """Returns log-likelihoods of ragged rows' targets, and their sum's gradient in the prompt."""
    prompts = torch.randn(1, length, backbone.width, generator=torch.Generator().manual_seed(1))
    model = PromptedModel(backbone, PromptMixture(prompts), 0.7)
    scores = model.log_likelihood(rows_of(backbone, end=True))
    scores.sum().backward()  # type: ignore[no-untyped-call]
    (prompt,) = model.trained.parameters()
    assert prompt.grad is not None
    return scores.detach(), prompt.grad


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_and_gradients_are_those_of_the_library_s_layers(tmp_path: Path, kind: str) -> None:
    backbone = loaded(save_t5(tmp_path / "t5", **KINDS[kind]))
    own = results(backbone)
    backbone.use_own_layers(False)
    library = results(backbone)
    for found, wanted, bound in zip(own, library, TOLERANCE["float32"], strict=True):
        assert off(found, wanted) < bound
    assert not torch.equal(own[1], library[1])  # two ways, not one


@pytest.mark.parametrize("kind", list(KINDS))
def test_in_bf16_they_are_as_near_to_the_exact_numbers_as_the_library_s(tmp_path: Path, kind: str) -> None:
    folder = save_t5(tmp_path / "t5", **KINDS[kind])

    def states(backbone: EncoderDecoderBackbone) -> list[Tensor]:
        """Returns the decoder's hidden states of ragged rows, and a projection's gradient in the encoder's input."""
        draw = torch.Generator().manual_seed(0)
        sequence = torch.randn(16, 9, backbone.width, generator=draw).to(backbone.dtype).requires_grad_()
        ids = torch.randint(1, backbone.vocabulary_size, (16, 4), generator=draw)
        rows = [EncodedRow([1] * length, [2]) for length in torch.randint(3, 10, (16,), generator=draw).tolist()]
        batch = backbone.collate([*rows[:-1], EncodedRow([1] * 9, [2])])
        hidden = backbone._decode(ids, *backbone._encode(batch, sequence, None))
        onto = torch.randn(hidden.shape, generator=draw)
        (gradient,) = torch.autograd.grad((hidden.float() * onto).sum(), sequence)
        return [hidden.detach().float(), gradient.float()]

    exact = states(loaded(folder))
    backbone = loaded(folder, "bfloat16")
    own = states(backbone)
    backbone.use_own_layers(False)
    library = states(backbone)
    for found, theirs, wanted in zip(own, library, exact, strict=True):
        assert off(found, wanted) < 1.3 * off(theirs, wanted)


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_prompts_longer_than_the_distances_with_buckets_of_their_own(
    tmp_path: Path, kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attempt_cli.backbones.encoder_decoder.choose_kernel", lambda shape: kernel)
    backbone = loaded(save_t5(tmp_path / "t5", **KINDS[kind]))
    own = results(backbone, 100)
    backbone.use_own_layers(False)
    library = results(backbone, 100)
    for found, wanted in zip(own, library, strict=True):
        assert off(found, wanted) < 1e-4


def test_label_words_are_scored_as_by_the_library_s_layers(tmp_path: Path) -> None:
    backbone = loaded(save_t5(tmp_path / "t5"))
    model = PromptedModel(backbone)
    labels = [backbone.target_tokens(text, end=True) for text in ("two", "five six", "seven")]
    own = model.score_labels(rows_of(backbone, end=True), labels)[0]
    backbone.use_own_layers(False)
    torch.testing.assert_close(own, model.score_labels(rows_of(backbone, end=True), labels)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 200])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_bias_of_distances_is_the_library_s(tmp_path: Path, length: int, side: str) -> None:
    backbone = loaded(save_t5(tmp_path / "t5"))
    assert backbone._own_layers is not None
    stack = getattr(backbone._own_layers, side)
    for known in (1, length):  # a short one that was asked for before is no bound
        stack.bias(known)
    assert torch.equal(stack.bias(length), stack._attention.compute_bias(length, length))


def test_no_weight_is_kept_twice_and_all_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", **KINDS["T5 1.1"])
    backbone, stored = loaded(folder), dict(fresh_model(folder).named_parameters())
    block: Any = backbone.model.decoder.block[0].layer
    own, across, dense = block[0].SelfAttention, block[1].EncDecAttention, block[2].DenseReluDense
    for parts in ((own.q, own.k, own.v), (across.k, across.v), (dense.wi_0, dense.wi_1)):
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    for name, weight in backbone.model.named_parameters():
        assert torch.equal(weight, stored[name]), name


@pytest.mark.parametrize(
    "changes", [{"feed_forward_proj": "silu"}, {"feed_forward_proj": "gated-silu"}, {"feed_forward_proj": "gelu"}]
)
def test_other_activations_are_left_to_the_library(tmp_path: Path, changes: dict[str, str]) -> None:
    backbone = load_backbone(str(save_t5(tmp_path / "t5", **changes)), device="cpu", dtype="float32")
    assert isinstance(backbone, EncoderDecoderBackbone)
    assert backbone._own_layers is None


def test_layers_whose_numbers_differ_give_way_to_the_library_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attempt_cli.backbones.t5._added", lambda bias, mask: 2 * bias)
    backbone = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32")
    assert isinstance(backbone, EncoderDecoderBackbone)
    assert backbone._own_layers is None


@pytest.mark.parametrize("method", ["lora", "bitfit", "fine-tuning"])
def test_trained_weights_run_in_the_library_s_layers_and_leave_nothing(tmp_path: Path, method: str) -> None:
    backbone = loaded(save_t5(tmp_path / "t5"))
    check_trained_weights(backbone, method, lambda: results(backbone))


def test_checkpointed_layers_are_the_library_s(tmp_path: Path) -> None:
    backbone = loaded(save_t5(tmp_path / "t5"))
    own = results(backbone)
    backbone.checkpoint_gradients(True)
    assert not backbone._frozen_layers_run
    checkpointed = results(backbone)
    backbone.checkpoint_gradients(False)
    assert off(checkpointed[1], own[1]) < 1e-4
