"""G on the model's states, and evidence as a prior: from training to what a composition serves."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attempt_cli
from attempt_cli.artefacts import load_composition, load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache, RecentInputs
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.table import load_table
from attempt_cli.changes import Changes, changed
from attempt_cli.composing import joined
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.inside import row_attention
from attempt_cli.evaluation.prediction import encode_examples, predict
from attempt_cli.exchange.importing import check_mixing
from attempt_cli.prompted import PromptedModel, generate_each
from attempt_cli.session import Session
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.evidence import WORST
from attempt_cli.training.request import Outcome
from attempt_registry import Registry
from tests.models import save_chat, save_t5
from tests.training.requests import request_for, trained
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"prompt_length": 4, "steps": 3, "batch_size": 8, "learning_rate": 0.1, "eval_every": 0}
STATES = {"attention_input": "last"}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    train = write_csv(tmp_path / "train.csv", toy_rows(20))
    task = task_from_files(train=train, test=train, input="{text} label:", label="mood", name="toy")
    return task.model_copy(update={"split_rule": "own"})


@pytest.fixture(autouse=True)
def _no_cache(backbone: FrozenBackbone) -> Iterator[None]:
    yield
    backbone.input_cache = None


def made(registry: Registry, backbone: FrozenBackbone, task: Task, name: str = "toy", **settings: Any) -> Outcome:
    """A target with two sources, which are trained first where they are missing."""
    for seed, source in enumerate(("one", "two")):
        if not registry.versions(source, kind="prompt"):
            own = {**QUICK, **({"placement": settings["placement"]} if "placement" in settings else {})}
            own |= {"chat_template": True} if settings.get("chat_template") else {}
            config = TrainingConfig(**own, seed=seed)
            trained(registry, backbone, request_for(task, kind="source", name=source, config=config))
    config = TrainingConfig(**{**QUICK, "method": "attempt", "attention_rank": 3, **settings})
    sources = tuple(registry.prompt(one) for one in ("one", "two"))
    request = request_for(task, name=name, config=config, sources=sources, init_from=(sources[0],))
    return trained(registry, backbone, request)


def rows_of(model: PromptedModel, task: Task) -> list[Any]:
    return encode_examples(model, task, [task.render(row, number) for number, row in enumerate(toy_rows(20))])


# --- states


def test_kept_inputs_come_with_their_states(backbone: FrozenBackbone, task: Task, tmp_path: Path) -> None:
    rows = rows_of(PromptedModel(backbone), task)
    whole = backbone.states(rows)
    folder = tmp_path / "kept"
    caches = [None, InputCache(1 << 20), InputCache(20_000), RecentInputs(1 << 20), InputCache(1 << 20, folder=folder)]
    caches.append(InputCache(1 << 20, folder=folder))  # whose files are there already
    for cache in caches:
        backbone.input_cache = cache
        if cache is not None and not isinstance(cache, RecentInputs):
            cache.plan([rows], backbone.cache_bytes_per_token)
        for _ in range(2):
            past = backbone.read(rows, True)
            assert past is not None
            assert past.states is not None
            assert torch.allclose(past.states, whole, atol=1e-5)
            assert past.states.shape == (20, 2, backbone.width)
        plain = backbone.read(rows)
        assert plain is not None
        assert plain.states is None


def test_kept_inputs_spare_the_pass_for_states(backbone: FrozenBackbone, task: Task) -> None:
    rows = rows_of(PromptedModel(backbone), task)
    backbone.input_cache = InputCache(1 << 20)
    backbone.input_cache.plan([rows], backbone.cache_bytes_per_token)
    backbone.read(rows, True)
    calls: list[object] = []
    hidden = backbone._hidden  # type: ignore[attr-defined]
    backbone._hidden = lambda *a, **b: calls.append(a) or hidden(*a, **b)  # type: ignore[attr-defined]
    try:
        backbone.read(rows, True)
        assert calls == []
    finally:
        del backbone._hidden  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["after", "before", "chat", "t5"])
@pytest.mark.parametrize("reads", ["last", "mean"])
def test_x_hat_is_the_frozen_model_s_state_everywhere(
    backbone: FrozenBackbone, task: Task, tmp_path: Path, kind: str, reads: str
) -> None:
    settings: dict[str, Any] = {"attention_input": reads}
    if kind in ("chat", "t5"):
        folder = save_chat(tmp_path / kind) if kind == "chat" else save_t5(tmp_path / kind)
        backbone = load_backbone(str(folder), device="cpu", dtype="float32")
        settings |= {"chat_template": True} if kind == "chat" else {}
    else:
        settings["placement"] = kind
    registry = Registry.open(tmp_path / "registry")
    outcome = made(registry, backbone, task, **settings)
    assert outcome.composition is not None
    loaded = load_composition(registry, backbone, registry.composition(outcome.composition)).model
    rows = rows_of(loaded, task)
    mixture = loaded.mixture
    assert mixture is not None
    # by hand: the library's own states, scaled to a mean square of 1
    expected = []
    for row in rows:
        with torch.no_grad():
            base = backbone.model.get_encoder() if kind == "t5" else backbone.model.base_model
            states = base(input_ids=torch.tensor([row.input_ids])).last_hidden_state[0].double()
        x = states[-1] if reads == "last" else states.mean(dim=0)
        expected.append(x / (x**2).mean().sqrt())
    _, weights = mixture(torch.zeros(20, dtype=torch.long), torch.stack(expected).float())
    examples = [task.render(row, number) for number, row in enumerate(toy_rows(20))]
    found = predict(loaded, task, examples)
    assert weights is not None
    for row, own in zip(found.rows, weights, strict=True):
        assert row.attention == pytest.approx(own.tolist(), abs=1e-4)
    assert torch.allclose(row_attention(loaded, task, examples), weights, atol=1e-4)
    texts, mixed = generate_each([loaded] * 3, rows[:3], [0] * 3, 2)
    assert texts == loaded.generate(rows[:3], 2)[0]
    assert torch.allclose(torch.stack([one for one in mixed if one is not None]), weights[:3], atol=1e-4)
    # and it is not what the paper's G would say
    plain = load_composition(registry, backbone, registry.composition(outcome.composition)).model
    assert plain.mixture is not None
    assert plain.mixture.attention is not None
    plain.mixture.attention.reads = "words"
    assert not torch.allclose(row_attention(plain, task, examples), weights, atol=1e-4)


def test_an_embedding_table_has_no_states(backbone: FrozenBackbone, llama: Path, task: Task, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    outcome = made(registry, backbone, task, **STATES)
    table = load_table(str(llama), registry.backbone(backbone.fingerprint))
    with pytest.raises(AttemptError, match="G of 'toy@1' reads the model's hidden states"):
        load_composition(registry, table, registry.composition(outcome.composition or ""))


# --- evidence


def test_the_prior_is_the_likelihood_of_training_rows(backbone: FrozenBackbone, task: Task, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    outcome = made(registry, backbone, task, evidence=True, steps=1, attention_learning_rate=1e-12)
    assert outcome.composition is not None
    prior = registry.composition(outcome.composition).settings["prior"]["toy@1"]
    train = [task.render(row, number) for number, row in enumerate(toy_rows(20))]
    sample = random.Random(0).sample(train, 16)
    sums = {}
    for name in ("one@1", "two@1"):
        model = load_prompt(registry, backbone, registry.prompt(name)).model
        words = model.label_tokens(task.label_words)
        total = 0.0
        for example in sample:
            (row,) = encode_examples(model, task, [example])
            both = [float(model.log_likelihood([replace(row, target_ids=word)]).detach()) for word in words]
            assert example.label is not None
            total += both[example.label] - math.log(sum(map(math.exp, both)))
        sums[name] = total
    best = max(sums.values())
    expected = {name: max(total - best, -WORST) for name, total in sums.items()}
    expected["target"] = expected["one@1"]  # it starts there
    assert prior == pytest.approx(expected, abs=1e-3)
    assert outcome.trained_parameters == 4 * 24 + 2 * 3 * 24 + 2 * 24 + 3


def test_a_prior_goes_with_its_composition_alone(backbone: FrozenBackbone, task: Task, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    outcome = made(registry, backbone, task, evidence=True, one_norm=True)
    assert outcome.composition is not None
    composition = registry.composition(outcome.composition)
    examples = [task.render(row, number) for number, row in enumerate(toy_rows(6))]

    def weights(changes: Changes) -> torch.Tensor:
        loaded = load_composition(registry, backbone, changed(registry, composition, changes)).model
        return row_attention(loaded, task, examples)

    whole = weights(Changes())
    left = weights(Changes(drop=["one"]))  # a softmax over fewer of the same scores
    assert torch.allclose(left, whole[:, 1:] / whole[:, 1:].sum(dim=1, keepdim=True), atol=1e-5)
    with pytest.raises(AttemptError, match="toy would have nothing of the kind"):
        changed(registry, composition, Changes(add=["toy"]))
    assert changed(registry, composition, Changes(add=["toy"], weights={"toy": 1.0})).sources[-1] == "toy@1"
    parts = [registry.prompt(name) for name in ("one", "two")]
    with pytest.raises(AttemptError, match="trained beside a prior on its sources"):
        joined(registry, "again", parts, [registry.prompt("toy")], None, Changes())


def test_another_registry_gets_prior_and_norm_under_its_own_names(
    backbone: FrozenBackbone, llama: Path, task: Task, tmp_path: Path
) -> None:
    def session(folder: str) -> Session:
        return Session(registry=tmp_path / folder, backbone=str(llama), device="cpu", dtype="float32")

    here, there = session("registry"), session("other")
    settings: dict[str, Any] = {"evidence": True, "one_norm": True, "cosine": True, "attention_top": 2, **STATES}
    made(here.store, backbone, task, **settings)
    attempt_cli.export("composition:toy", tmp_path / "toy.attempt", to="bundle", session=here)
    attempt_cli.import_from(tmp_path / "toy.attempt", prefix="their-", session=there)
    ours, theirs = here.store.composition("toy"), there.store.composition("their-toy")
    assert set(theirs.settings["prior"]) == {"their-toy@1"}
    assert theirs.sources == ("their-one@1", "their-two@1")
    texts = [row["text"] for row in toy_rows(5)]
    first = attempt_cli.load("composition:toy", session=here).predict(texts)
    second = attempt_cli.load("composition:their-toy", session=there).predict(texts)
    for one, other in zip(first, second, strict=True):
        assert one.probabilities == other.probabilities
        assert list((one.attention or {}).values()) == list((other.attention or {}).values())
    broken = {**ours.settings, "prior": {"toy@1": {"one@1": 0.0}}}
    with pytest.raises(AttemptError, match="do not say how it mixes"):
        check_mixing(broken, ours.sources, "it")
