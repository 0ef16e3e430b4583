"""The prompt after the input: the numbers and gradients of [X ; P ; y] in one plain pass, with a cache and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past, causal_mask
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.kernels import Shape, choose_kernel
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptAttention, PromptMixture
from attempt_cli.prompted import PromptedModel, score_many
from attempt_cli.training.memory import activation_bytes
from tests.backbones.plain import greedy, plain_model
from tests.backbones.test_scores import close, rows_of
from tests.models import save_llama, save_mistral

DECODERS = ("llama", "gpt2")
LABELS = ("yes", "no", "nothing", "entailment", "entailed")


@pytest.fixture(params=DECODERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prompted(
    backbone: FrozenBackbone, length: int = 3, *, seed: int = 0, sources: int = 0, tasks: int = 1
) -> PromptedModel:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tasks + sources, length, backbone.width, generator=generator)
    if not sources:
        return PromptedModel(backbone, PromptMixture(drawn), 0.7, "after")
    mixer = PromptAttention(backbone.width, 4, 3.0, generator=generator)
    return PromptedModel(backbone, PromptMixture(drawn[:tasks], drawn[tasks:], mixer), 0.7, "after")


def plain(folder: Path, row: EncodedRow, prompt: Tensor) -> Tensor:
    """Returns log p(y | [X ; P]) of one row by one plain pass over all of it."""
    model = plain_model(folder)
    table = model.get_input_embeddings().weight
    prefix = torch.cat([table[row.input_ids], prompt])
    target = torch.tensor(row.target_ids, dtype=torch.long)
    logits = model(inputs_embeds=torch.cat([prefix, table[target]])[None]).logits[0, len(prefix) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, target[:, None]).sum()


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("cached", [False, True])
def test_scores_and_gradients_are_those_of_one_plain_pass(
    backbone: FrozenBackbone, folder: Path, length: int, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = prompted(backbone, length, sources=2), rows_of(backbone, end=True)
    if cached:
        monkeypatch.setattr(backbone, "input_cache", InputCache(1 << 20))
        assert backbone.input_cache is not None
        backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        model.log_likelihood(rows)
    assert model.mixture is not None
    ours = model.log_likelihood(rows)
    ours.sum().backward()
    gradients = [p.grad.clone() for p in model.mixture.parameters() if p.grad is not None]
    model.mixture.zero_grad()
    batch = backbone.collate(rows)
    prompts, _ = model.prompts(batch, backbone.embed(batch.input_ids), None)
    assert prompts is not None
    theirs = torch.stack([plain(folder, row, prompt) for row, prompt in zip(rows, prompts, strict=True)])
    close(ours, theirs)
    theirs.sum().backward()
    for gradient, parameter in zip(gradients, model.mixture.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-3)
    if cached:
        assert backbone.input_cache is not None
        assert backbone.input_cache.hits >= len(rows)


def test_a_row_scores_the_same_alone_and_in_any_batch(backbone: FrozenBackbone) -> None:
    model, rows = prompted(backbone), rows_of(backbone)
    whole = model.log_likelihood(rows).detach()
    close(torch.cat([model.log_likelihood([row]).detach() for row in rows]), whole)
    close(model.log_likelihood(rows[::-1]).detach().flip(0), whole)


def test_label_words_score_as_targets_do(backbone: FrozenBackbone) -> None:
    model, rows = prompted(backbone, sources=2), rows_of(backbone)
    labels = backbone.label_tokens(LABELS)
    scores, weights = model.score_labels(rows, labels)
    assert weights is not None
    close(weights.sum(dim=1), torch.ones(len(rows)))
    for j, label in enumerate(labels):
        close(scores[:, j], model.log_likelihood([EncodedRow(row.input_ids, label) for row in rows]).detach())


def spied_passes(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets the number of suffixes of each later scoring behind inputs."""
    suffixes: list[int] = []
    own = backbone.label_log_likelihoods

    def noted(*arguments: object) -> Tensor:
        past = arguments[4] if len(arguments) > 4 else None
        if isinstance(past, Past):
            suffixes.append(past.suffixes)
        return own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "label_log_likelihoods", noted)
    return suffixes


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_an_input_read_once_serves_many_prompts(
    backbone: FrozenBackbone, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of two lengths, with words of one token and of several, before and after, with several target prompts."""
    monkeypatch.setattr("attempt_cli.backbones.decoder_only.choose_kernel", lambda _: kernel)
    rows = rows_of(backbone)
    models = [
        prompted(backbone, 3, seed=1),
        prompted(backbone, 3, seed=2, sources=2),
        prompted(backbone, 3, seed=3, sources=1, tasks=2),
        prompted(backbone, 5, seed=4),
        PromptedModel(backbone, prompted(backbone, 3, seed=5).mixture, 0.7, "before"),
        PromptedModel(backbone),
    ]
    words = [("yes", "no"), LABELS, ("good", "bad"), ("no", "yes", "it"), LABELS, ("yes", "no")]
    labels = [backbone.label_tokens(names) for names in words]
    reads = 0
    read = backbone.read

    def counted(rows: list[EncodedRow], states: bool) -> object:
        nonlocal reads
        reads += 1
        return read(rows, states)

    backbone.read = counted  # type: ignore[method-assign,assignment]
    try:
        answers = score_many(models, rows, labels, task_ids=[0, 0, 1, 0, 0, 0])
        narrow = score_many(models, rows, labels, task_ids=[0, 0, 1, 0, 0, 0], max_tokens=1)
        monkeypatch.setattr(type(backbone), "most_positions", 1)
        passes = spied_passes(backbone, monkeypatch)
        slow_beyond = score_many(models, rows, labels, task_ids=[0, 0, 1, 0, 0, 0])
    finally:
        del backbone.read  # type: ignore[method-assign]
    assert reads == 3
    assert passes == [1] * 4  # one pass per prompt that is placed after the input
    for model, label, (scores, weights), *others in zip(models, labels, answers, narrow, slow_beyond, strict=True):
        task = 1 if model.mixture is not None and len(model.mixture.target_prompts) == 2 else 0
        alone, own = model.score_labels([replace(row, task=task) for row in rows], label)
        close(scores, alone)
        for again, _ in others:
            close(again, alone)
        assert (weights is None) == (own is None)
        if weights is not None and own is not None:
            close(weights, own)


def test_generation_goes_on_from_input_and_prompt(backbone: FrozenBackbone, folder: Path) -> None:
    model, rows = prompted(backbone), [row for row in rows_of(backbone) if len(row.input_ids) > 2]
    assert model.mixture is not None
    prompt = model.mixture.target_prompts[0].detach() * 0.7
    table = plain_model(folder).get_input_embeddings().weight
    texts, _ = model.generate(rows, 5)
    for row, text in zip(rows, texts, strict=True):
        whole = torch.cat([table[row.input_ids], prompt])
        written = greedy(plain_model(folder), [], whole, backbone.end_id, 5)
        assert text == backbone.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_texts_go_on_from_inputs_that_are_kept(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = prompted(backbone, sources=2), rows_of(backbone)
    once = [model.generate([row], 5)[0][0] for row in rows]
    monkeypatch.setattr(backbone, "input_cache", InputCache(1 << 20))
    assert backbone.input_cache is not None
    backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
    assert model.generate(rows, 5)[0] == once
    monkeypatch.setattr(backbone, "_read_group", lambda group: pytest.fail(f"{group} is read again"))
    widths = list[int]()
    hook = backbone.model.base_model.register_forward_pre_hook(
        lambda _, arguments, given: widths.append(given["position_ids"].shape[1]),
        with_kwargs=True,
    )
    try:
        assert model.generate(rows, 5)[0] == once
    finally:
        hook.remove()
    assert widths[0] == model.prompt_length
    assert set(widths[1:]) == {1}


def test_both_kernels_agree(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(backbone, end=True)
    found = {}
    for kernel in ("plain", "sdpa"):
        monkeypatch.setattr("attempt_cli.backbones.decoder_only.choose_kernel", lambda *_, kernel=kernel: kernel)
        for placement in ("before", "after"):
            model = prompted(backbone, 4, sources=2)
            model = PromptedModel(backbone, model.mixture, model.scale, placement)
            assert model.mixture is not None
            scores = model.log_likelihood(rows)
            scores.sum().backward()
            found[kernel, placement] = scores.detach(), model.mixture.target_prompts.grad
    for placement in ("before", "after"):
        for ours, theirs in zip(found["plain", placement], found["sdpa", placement], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    assert not torch.allclose(found["plain", "before"][0], found["plain", "after"][0], atol=0.1)


def test_the_kernel_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attempt_cli.backbones import kernels

    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(kernels, "_measured_kernel", lambda shape: measured.append(shape.keys) or "sdpa")
    kernels._kept_kernel.cache_clear()

    def chosen(keys: int, backward: bool = True) -> str:
        return choose_kernel(Shape(torch.device("cpu"), torch.float32, 4, 2, 6, keys, backward))

    assert chosen(64) == "plain"  # too short to be worth a measurement
    assert [chosen(keys) for keys in (65, 100, 128)] == ["sdpa"] * 3
    kernels._kept_kernel.cache_clear()  # another process
    assert chosen(128) == "sdpa"
    assert measured == [128]
    assert chosen(128, backward=False) == "sdpa"  # scoring has its own measurement
    assert measured == [128, 128]
    (tmp_path / "attention-kernels.json").write_text("{damaged")
    kernels._kept_kernel.cache_clear()
    assert chosen(128) == "sdpa"
    assert measured == [128, 128, 128]
    kernels._kept_kernel.cache_clear()


def test_a_real_measurement_names_a_kernel() -> None:
    from attempt_cli.backbones.kernels import _measured_kernel

    for backward in (True, False):
        shape = Shape(torch.device("cpu"), torch.float32, 4, 2, 6, 16, backward)
        assert _measured_kernel(shape) in ("plain", "sdpa")
    mask = causal_mask(3, torch.float32, torch.device("cpu"))[0, 0]
    assert (mask == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_an_encoder_decoder_reads_prompt_and_input_as_one(backbones: dict[str, FrozenBackbone]) -> None:
    t5 = backbones["t5"]
    assert (t5.placements, t5.check_placement(None)) == (("before",), "before")
    with pytest.raises(AttemptError, match="cannot have the prompt after the input: an encoder reads"):
        t5.check_placement("after")


def test_layers_with_a_window_are_not_asked_to_look_beyond_it(tmp_path: Path) -> None:
    folder = save_mistral(tmp_path / "mistral", sliding_window=24)
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = prompted(backbone)
    short = EncodedRow(backbone.encode(["it is"], None, 64)[0].input_ids[:3], backbone.target_tokens("yes", end=False))
    close(model.log_likelihood([short])[0], plain(folder, short, model.mixture.target_prompts[0] * 0.7))  # type: ignore[union-attr]
    long = EncodedRow(short.input_ids * 9, short.target_ids)
    with pytest.raises(AttemptError, match=r"longer than the .* can read in two parts"):
        model.log_likelihood([long])


def test_texts_are_written_below_beyond_and_across_a_window(tmp_path: Path) -> None:
    folder = save_mistral(tmp_path / "mistral", sliding_window=24)
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = prompted(backbone)
    assert model.mixture is not None
    ids = backbone.encode(["it is"], None, 64)[0].input_ids[:3]
    table, prompt = plain_model(folder).get_input_embeddings().weight, model.mixture.target_prompts[0].detach() * 0.7
    for lengths in ((3, 9), (3, 18), (3, 39)):  # inside, across the window while it is written, beyond it
        rows = [EncodedRow((ids * 13)[:length], []) for length in lengths]
        for row, text in zip(rows, model.generate(rows, 8)[0], strict=True):
            whole = torch.cat([table[row.input_ids], prompt])
            written = greedy(plain_model(folder), [], whole, backbone.end_id, 8)
            assert text == backbone.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_texts_are_the_same_while_layers_are_checkpointed(backbone: FrozenBackbone) -> None:
    model, rows = prompted(backbone, sources=2), rows_of(backbone)
    texts = model.generate(rows, 5)[0]
    layers = [layer for layer in backbone.model.modules() if getattr(layer, "gradient_checkpointing", None) is not None]
    backbone.checkpoint_gradients(True)
    try:
        with backbone.as_loaded():
            assert not any(layer.gradient_checkpointing for layer in layers)
            assert model.generate(rows, 5)[0] == texts
        assert backbone.checkpointed
        assert any(layer.gradient_checkpointing for layer in layers)
    finally:
        backbone.checkpoint_gradients(False)


def test_an_architecture_that_our_attention_does_not_fit_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attempt_cli.backbones import attention

    def wrong(*arguments: object, **others: object) -> Tensor:
        return attention._sdpa(*arguments) * 1.5  # type: ignore[arg-type]

    monkeypatch.setitem(attention.KERNELS, "plain", wrong)
    backbone = load_backbone(str(save_llama(tmp_path / "llama")), device="cpu", dtype="float32")
    assert backbone.placements == ("before",)
    assert backbone.model.config._attn_implementation == "sdpa"
    with pytest.raises(AttemptError, match="cannot have the prompt after the input: its attention"):
        backbone.check_placement("after")


@pytest.mark.parametrize("placement", ["before", "after"])
def test_layers_computed_twice_give_the_same_gradient(backbone: FrozenBackbone, placement: str) -> None:
    rows = rows_of(backbone, end=True)
    model = PromptedModel(backbone, prompted(backbone, sources=2).mixture, 0.7, placement)
    assert model.mixture is not None
    found = []
    for on in (False, True):
        model.mixture.zero_grad()
        if on:
            backbone.checkpoint_gradients(True)
        try:
            model.log_likelihood(rows).sum().backward()
            kept = activation_bytes(model, rows)
        finally:
            backbone.checkpoint_gradients(False)
        found.append((model.mixture.target_prompts.grad, kept))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    assert found[1][1] < found[0][1] / 2
    assert not any(module.training for module in backbone.model.modules())


def test_long_targets_are_projected_in_parts(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, model = rows_of(backbone, end=True), prompted(backbone, sources=2)
    assert model.mixture is not None
    found = []
    for at_once in (256, 3):
        monkeypatch.setattr("attempt_cli.backbones.base.PROJECTED_AT_ONCE", at_once)
        model.mixture.zero_grad()
        scores = model.log_likelihood(rows)
        scores.sum().backward()
        found.append((scores.detach(), model.mixture.target_prompts.grad))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_in_bf16_after_is_as_near_to_fp32_as_one_plain_pass_is(folders: dict[str, Path]) -> None:
    """Ragged rows, cached and not: the error of the fast path is that of the dtype, not of the path."""
    exact = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    rounded = load_backbone(str(folders["llama"]), device="cpu", dtype="bfloat16")
    rows = rows_of(exact, end=True)
    scores, gradients = [], []
    for backbone, placement, cache in (
        (exact, "after", False),
        (rounded, "after", False),
        (rounded, "after", True),
        (rounded, "before", False),
    ):
        model = PromptedModel(backbone, prompted(backbone, 4, sources=2).mixture, 0.7, placement)
        if cache:
            backbone.input_cache = InputCache(1 << 20)
            backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
        assert model.mixture is not None
        found = model.log_likelihood(rows)
        found.sum().backward()
        scores.append(found.detach())
        gradients.append(model.mixture.target_prompts.grad)
    truth, fast, kept, _ = scores
    torch.testing.assert_close(fast, truth, rtol=0.05, atol=1.0)
    torch.testing.assert_close(kept, truth, rtol=0.05, atol=1.0)
    for gradient in gradients[1:3]:
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), gradients[0].flatten(), dim=0) > 0.99
