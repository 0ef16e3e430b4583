"""Every contender does the work that its name says: the losses and scores are the same numbers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptAttention, PromptMixture, paper_temperature
from attempt_cli.prompted import PromptedModel
from benchmarks import authors, ours, peers
from benchmarks.rows import bucketed_batches, drawn_rows, padded, random_batches
from tests.models import save_llama, save_t5

LENGTH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def rows(backbone: FrozenBackbone) -> list[EncodedRow]:
    return drawn_rows([4, 9, 6, 5, 7], backbone.vocabulary_size)


def test_peft_and_ours_have_one_loss_under_one_prompt(
    folder: Path, backbone: FrozenBackbone, rows: list[EncodedRow]
) -> None:
    pytest.importorskip("peft")
    model = ours.prompted(backbone, LENGTH)
    assert model.mixture is not None
    peft = peers.peft_model(peers.fresh_model(str(folder), backbone.device, torch.float32), LENGTH)
    prompt = next(parameter for parameter in peft.parameters() if parameter.requires_grad)
    with torch.no_grad():
        prompt.copy_(model.mixture.target_prompts[0] * model.scale)
    first = float(ours.training("ours", model, rows).steps[0]())
    assert peers.peft_training("PEFT", peft, rows, backbone.pad_id).steps[0]() == pytest.approx(first, rel=1e-4)
    assert not torch.equal(prompt, model.mixture.target_prompts[0] * model.scale), "PEFT's step did not train"


@pytest.mark.parametrize(("placement", "kept"), [("before", False), ("after", False), ("after", True)])
def test_the_bare_pass_computes_the_same_positions_as_ours(
    folder: Path, backbone: FrozenBackbone, rows: list[EncodedRow], placement: str, kept: bool
) -> None:
    plain = peers.fresh_model(str(folder), backbone.device, torch.float32, "eager").requires_grad_(False)
    bare = peers.bare_training("bare", plain, rows, LENGTH, placement, kept=kept)
    ids = torch.randint(backbone.vocabulary_size, (LENGTH,), generator=torch.Generator().manual_seed(0))
    model = PromptedModel(backbone, PromptMixture(backbone.embed(ids)[None]), 1.0, placement)
    expected = float(ours.training("ours", model, rows).steps[0]())
    assert bare.steps[0]() == pytest.approx(expected, rel=1e-4)
    assert bare.steps[0]() == pytest.approx(expected, rel=1e-4), "the kept keys and values were changed by a step"


@pytest.mark.parametrize("cache", ["none", "first epoch", "kept"])
def test_cached_steps_read_each_input_once(backbone: FrozenBackbone, rows: list[EncodedRow], cache: ours.Cache) -> None:
    contender = ours.training("ours", ours.prompted(backbone, LENGTH, placement="after"), rows, cache=cache)
    for _ in range(2):
        for step in contender.steps:
            step()
    store = backbone.input_cache
    backbone.input_cache = None
    misses = None if store is None else (store.misses, store.hits)
    # an epoch's first step fills the group; five rows ask for it one by one
    assert misses == {"none": None, "first epoch": (5, 4), "kept": (5, 9)}[cache]


@pytest.mark.parametrize("share", [False, True])
def test_the_harness_way_gives_our_scores(
    folder: Path, backbone: FrozenBackbone, rows: list[EncodedRow], share: bool
) -> None:
    labels = backbone.label_tokens(["good", "bad"])
    assert [len(word) for word in labels] == [1, 1]
    plain = peers.fresh_model(str(folder), backbone.device, torch.float32)
    theirs = peers.harness_scoring("theirs", plain, rows, labels, backbone.pad_id, share=share)
    ordered = sorted(rows, key=lambda row: (-len(row.input_ids), row.input_ids))
    scores, _ = PromptedModel(backbone).score_labels(ordered, labels)
    assert theirs.steps[0]() == pytest.approx(scores.flatten().tolist(), rel=1e-4)


def test_many_tasks_on_a_single_input(backbone: FrozenBackbone, rows: list[EncodedRow]) -> None:
    models = [ours.prompted(backbone, LENGTH, placement="after") for _ in range(4)]
    labels = backbone.label_tokens(["good", "bad"])
    ours.many_tasks("four", models, [rows[:1], rows], labels).steps[0]()
    single, _ = models[0].score_labels(rows[:1], labels)
    for scores, _ in ours.score_many(models, rows[:1], [labels] * 4):
        torch.testing.assert_close(scores, single)


def test_the_released_mixture_is_ours_where_there_are_no_pads() -> None:
    generator = torch.Generator().manual_seed(0)
    sources, target = torch.randn(4, LENGTH, 8, generator=generator), torch.randn(LENGTH, 8, generator=generator)
    embeddings = torch.randn(2, 5, 8, generator=generator)
    theirs = authors.AuthorsMixture(sources, target, rank=4)
    attention = PromptAttention(8, 4, paper_temperature(8))
    attention.load_state_dict({name: value for name, value in theirs.state_dict().items() if "." in name})
    expected, _ = PromptMixture(target[None], sources, attention)(torch.zeros(2, dtype=torch.long), embeddings.amax(1))
    torch.testing.assert_close(theirs(embeddings), expected)


@pytest.mark.parametrize("dtype", peers.DTYPES.values())
def test_the_released_arrangement_and_the_bare_pass_train_a_t5(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = save_t5(tmp_path / "t5", dropout_rate=0.0)
    plain = authors.plain_t5(saved, torch.device("cpu"), dtype)
    rows = drawn_rows([4, 9, 6], 100)
    before = [weight.clone() for weight in plain.parameters()]
    for sources in (0, 2):
        step = authors.authors_training("theirs", plain, rows, LENGTH, sources, width=12).steps[0]
        losses = [step() for _ in range(8)]
        assert min(losses[1:]) < losses[0]
    authors.bare_t5_training("bare", plain, bucketed_batches(rows), LENGTH).steps[0]()
    assert all(torch.equal(old, new) for old, new in zip(before, plain.parameters(), strict=True))
    assert all(weight.grad is None for weight in plain.parameters())


def test_batches_hold_every_row_once() -> None:
    rows = drawn_rows([random.Random(0).randrange(1, 30) for _ in range(37)], 90)
    for batches in (bucketed_batches(rows), random_batches(rows)):
        assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
        assert sorted(map(len, batches)) == [5, 16, 16]


def test_pads_stand_where_they_are_asked_for() -> None:
    assert padded([[1], [2, 3]], 0).tolist() == [[1, 0], [2, 3]]
    assert padded([[1], [2, 3]], 0, left=True).tolist() == [[0, 1], [2, 3]]
    assert padded([[1]], 9, width=3).tolist() == [[1, 9, 9]]
