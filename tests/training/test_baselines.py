"""The baselines and the mixture's variants on the one runner: trained, recorded, resumed, loaded, refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.artefacts import load_composition, load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import encode_examples, predict
from attempt_cli.method import DecomposedPrompt, PromptMixture, SharedPrompt, decomposed_shape
from attempt_cli.method.parts import MODULES
from attempt_cli.prompted import PromptedModel, generate_each, score_many
from attempt_cli.training.build import build_model, offset_positions
from attempt_cli.training.config import TrainingConfig, make_config
from attempt_cli.training.gradient import trained_tensors
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.memory import activation_bytes
from attempt_cli.training.methods import METHODS
from attempt_cli.training.request import Request
from attempt_cli.training.run import train
from attempt_registry import Prompt, Registry
from tests.models import save_t5
from tests.training import tiny
from tests.training.requests import request_for
from tests.training.requests import trained as made
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"prompt_length": 8, "steps": 4, "batch_size": 8, "learning_rate": 0.1, "max_length": 16}
BESIDE_PROMPTS = [name for name, method in METHODS.items() if not method.kept]
PROMPTS_ALONE = [name for name, method in METHODS.items() if method.kept and "composition" not in method.takes]
VARIANTS: dict[str, dict[str, Any]] = {
    "token": {"level": "token"},
    "constant": {"constant_attention": True},
    "no target": {"with_target": False},
    "learned T": {"learned_temperature": True},
    "token, no target, learned T": {"level": "token", "with_target": False, "learned_temperature": True},
    "last states": {"attention_input": "last"},
    "mean states": {"attention_input": "mean"},
    "top": {"attention_top": 1},
    "cosine": {"cosine": True},
    "evidence": {"evidence": True},
    "one norm": {"one_norm": True},
    "all of it": {"attention_input": "last", "attention_top": 2, "cosine": True, "evidence": True, "one_norm": True},
}


@pytest.fixture(autouse=True)
def _backbone_is_frozen_again(backbone: FrozenBackbone) -> Iterator[None]:
    """A test that fails in the middle does not fail those after it, which share the backbone."""
    yield
    if backbone.tuned is not None:
        backbone.tuned.release()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    files = {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
        for seed, (name, count) in enumerate((("train", 30), ("validation", 10), ("test", 16)))
    }
    return task_from_files(**files, input="{text} label:", label="mood", name="toy")  # type: ignore[arg-type]


@pytest.fixture
def registry(tmp_path: Path, backbone: FrozenBackbone, task: Task) -> Registry:
    """With the sources `one` and `two`."""
    opened = Registry.open(tmp_path / "kept")
    for seed, name in enumerate(("one", "two")):
        config = TrainingConfig(**QUICK, eval_every=0, seed=seed)
        train(opened, backbone, request_for(task, kind="source", name=name, config=config))
    return opened


def request(registry: Registry, task: Task, method: str, **settings: Any) -> Request:
    config = TrainingConfig(method=method, **(QUICK | {"eval_every": 2, "seed": 3} | settings))  # type: ignore[arg-type]
    row, kept = METHODS[method], tuple(registry.prompt(name) for name in ("one", "two"))
    sources = kept if "sources" in row.takes else ()
    start = kept[:1] if row.first_source or row.needs == ("init_from",) else ()
    tasks = [task, *(task.model_copy(update={"name": f"toy-{number}"}) for number in range(1, row.least_tasks))]
    return request_for(*tasks, name=f"toy-{method}", config=config, sources=sources, init_from=start)


def scores(model: PromptedModel, task: Task) -> torch.Tensor:
    said = predict(model, task, load_examples(task, "test").examples, max_length=QUICK["max_length"])
    return torch.tensor([row.probabilities for row in said.rows], dtype=torch.float64)


# --- what is no prompt


@pytest.mark.parametrize("method", BESIDE_PROMPTS)
def test_what_is_no_prompt_leaves_a_run(registry: Registry, backbone: FrozenBackbone, task: Task, method: str) -> None:
    before = scores(PromptedModel(backbone), task)
    prompts = len(list(registry.prompts()))
    outcome = made(registry, backbone, request(registry, task, method, weight_learning_rate=0.02, eval_every=0))
    assert (outcome.prompt, outcome.composition, outcome.attention) == (None, None, None)
    assert not torch.equal(scores(outcome.model, task), before)
    outcome.release()
    assert torch.equal(scores(PromptedModel(backbone), task), before)
    assert len(list(registry.prompts())) == prompts
    run = registry.run(outcome.run)
    assert run.settings["training"]["method"] == method
    assert run.budget["trained_parameters"] == outcome.trained_parameters > 0
    assert run.artefacts == ()
    assert outcome.trained_parameters == sum(tensor.numel() for tensor in trained_tensors(outcome.model.trained))
    computed, real = outcome.trained.state.positions
    assert computed >= real > 0
    assert not list((registry.folder / "checkpoints").glob("*"))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(registry: Registry, backbone: FrozenBackbone, task: Task, method: str) -> None:
    settings = {"steps": 40, "eval_every": 0, "weight_learning_rate": 0.02, "attention_learning_rate": 0.05}
    outcome = made(registry, backbone, request(registry, task, method, **settings))
    outcome.release()
    losses = outcome.trained.state.losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert outcome.trained.warnings == []


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(registry: Registry, backbone: FrozenBackbone, task: Task, method: str) -> None:
    asked = request(registry, task, method, weight_learning_rate=0.02)
    whole = made(registry, backbone, asked)
    expected = scores(whole.model, task)
    whole.release()
    with pytest.raises(TrainingStoppedError):
        train(registry, backbone, asked, listener=tiny.Recorder(interrupt_at=3))
    assert backbone.tuned is None, "a training that was stopped left its weights in the backbone"
    recorder = tiny.Recorder()
    resumed = made(registry, backbone, asked, resume=True, listener=recorder)
    found = scores(resumed.model, task)
    resumed.release()
    assert recorder.steps == [4]
    assert torch.equal(found, expected)
    assert resumed.trained.state.losses == whole.trained.state.losses


def test_the_best_step_of_weights_is_kept(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    """With a rate that ruins the model at once, the start is best, and the trained model is the frozen one."""
    before = scores(PromptedModel(backbone), task)
    asked = request(registry, task, "fine-tuning", weight_learning_rate=30.0, eval_every=1, warmup_steps=0)
    outcome = made(registry, backbone, asked)
    found = scores(outcome.model, task)
    outcome.release()
    if outcome.trained.state.best_step == 0:
        assert torch.equal(found, before)
    else:
        assert not torch.equal(found, before)


def test_weights_that_do_not_move_are_told(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    outcome = made(registry, backbone, request(registry, task, "fine-tuning", weight_learning_rate=1e-9))
    outcome.release()
    assert "the weights hardly moved" in "\n".join(outcome.trained.warnings)
    assert "raise --weight-learning-rate (now 1e-09)" in "\n".join(outcome.trained.warnings)


@pytest.mark.parametrize("method", BESIDE_PROMPTS)
def test_encoder_decoders_train_alike(tmp_path: Path, registry: Registry, task: Task, method: str) -> None:
    backbone = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="bfloat16")
    before = scores(PromptedModel(backbone), task)
    outcome = made(registry, backbone, request(registry, task, method, weight_learning_rate=0.02, eval_every=0))
    assert not torch.equal(scores(outcome.model, task), before)
    outcome.release()
    assert torch.equal(scores(PromptedModel(backbone), task), before)


def test_gradient_checkpointing_changes_nothing(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    for method in ("fine-tuning", "adapter", "lora"):
        found = []
        for on in (False, True):
            asked = request(registry, task, method, weight_learning_rate=0.02, eval_every=0, gradient_checkpointing=on)
            outcome = made(registry, backbone, asked)
            found.append(scores(outcome.model, task))
            outcome.release()
        torch.testing.assert_close(found[0], found[1])


def test_casts_of_trained_weights_are_no_activations(
    tmp_path: Path, registry: Registry, task: Task, llama: Path
) -> None:
    """In bf16 every pass casts the weights anew; a batch's memory is counted without them."""
    backbone = load_backbone(str(llama), device="cpu", dtype="bfloat16")
    model = build_model(registry, backbone, request(registry, task, "fine-tuning").on(backbone))
    row = encode_examples(model, task, load_examples(task, "train").examples[:1], 16)
    one, two = activation_bytes(model, row), activation_bytes(model, row * 2)
    model.release()
    weights = 2 * backbone.parameter_count
    assert 2 * one - two < weights / 4, "what does not grow with the rows is no activation"


# --- DePT and MPT


def test_dept_has_the_budget_of_a_prompt(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    asked = request(registry, task, "dept").on(backbone)
    model = build_model(registry, backbone, asked)
    mixture = model.mixture
    assert isinstance(mixture, DecomposedPrompt)
    assert model.placement == "before"
    short, rank = decomposed_shape(backbone.width, 8, 16)
    assert mixture.target_prompts.shape == (1, short, backbone.width)
    assert mixture.left_factors.shape == (1, 16, rank)
    count = sum(tensor.numel() for tensor in trained_tensors(mixture))
    assert 0.8 * 8 * backbone.width < count <= 8 * backbone.width


def test_dept_adds_its_offsets_to_the_input(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    """Against a model that is given the changed embeddings by hand."""
    model = build_model(registry, backbone, request(registry, task, "dept").on(backbone))
    mixture = model.mixture
    assert isinstance(mixture, DecomposedPrompt)
    torch.nn.init.normal_(mixture.right_factors, generator=torch.Generator().manual_seed(0))
    rows = encode_examples(model, task, load_examples(task, "test").examples[:5], 16)
    found = model.log_likelihood(rows).detach()
    batch = backbone.collate(rows)
    table = (mixture.left_factors[0] @ mixture.right_factors[0] * model.scale).detach()
    embeddings = backbone.embed(batch.input_ids) + table[: batch.input_ids.shape[1]]
    prompts = (mixture.target_prompts * model.scale).detach().expand(5, -1, -1)
    torch.testing.assert_close(found, backbone.target_log_likelihood(batch, embeddings, prompts))
    alone = torch.cat([model.log_likelihood([row]) for row in rows]).detach()
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_budget_that_leaves_no_offsets_is_refused(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    with pytest.raises(AttemptError, match="cannot have the budget of a prompt of 2 tokens") as failure:
        train(registry, backbone, request(registry, task, "dept", prompt_length=2))
    assert "--prompt-length" in str(failure.value.hint)


def test_positions_of_dept_are_the_longest_input(backbone: FrozenBackbone, task: Task) -> None:
    assert offset_positions(backbone, task, TrainingConfig(max_length=16)) == 16
    assert offset_positions(backbone, task.model_copy(update={"max_length": 77}), TrainingConfig()) == 77
    assert (
        offset_positions(backbone, task.model_copy(update={"max_length": 500}), TrainingConfig())
        == backbone.max_positions
    )


def test_mpt_starts_from_the_mean_and_keeps_a_prompt(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    asked = request(registry, task, "mpt")
    model = build_model(registry, backbone, asked.on(backbone))
    assert isinstance(model.mixture, SharedPrompt)
    sources = [torch.from_numpy(registry.prompt_tensor(p).copy()) * p.embedding_scale for p in asked.sources]
    torch.testing.assert_close(model.mixture.target_prompts[0] * model.scale, (sources[0] + sources[1]) / 2)
    groups = model.mixture.param_groups()
    assert {name: len(tensors) for name, tensors in groups.items()} == {"prompts": 1, "attention": 2}
    outcome = made(registry, backbone, asked)
    assert outcome.prompt is not None
    assert outcome.composition is None
    kept = registry.prompt(outcome.prompt)
    assert (kept.method, kept.settings["init_from"]) == ("mpt", "the mean of the sources")
    assert kept.parents == ("one@1", "two@1")
    loaded = load_prompt(registry, backbone, kept)
    torch.testing.assert_close(scores(loaded.model, task), scores(outcome.model, task))


@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if row.kept and "composition" not in row.takes]
)
def test_a_kept_prompt_is_loaded_as_it_was_trained(
    registry: Registry, backbone: FrozenBackbone, task: Task, method: str
) -> None:
    outcome = made(registry, backbone, request(registry, task, method))
    assert outcome.prompt is not None
    loaded = load_prompt(registry, backbone, registry.prompt(outcome.prompt))
    assert torch.equal(scores(loaded.model, task), scores(outcome.model, task))


def test_what_is_more_than_a_prompt_answers_beside_others_as_alone(
    registry: Registry, backbone: FrozenBackbone, task: Task
) -> None:
    """Models that add to the input, route it or do neither, in one pass: labels and texts, all rows and some."""
    names = ("dept", "adept", "smop", "pt-moe", "prompt-tuning", "dept")
    methods = dict.fromkeys(names)
    settings = {"placement": "before", "learning_rate": 0.3, "attention_learning_rate": 0.3, "eval_every": 0}
    kept = {name: made(registry, backbone, request(registry, task, name, **settings)).prompt for name in methods}
    models = [load_prompt(registry, backbone, registry.prompt(kept[name] or "")).model for name in names]
    labels = models[0].label_tokens(task.label_words)
    rows = encode_examples(models[0], task, load_examples(task, "test").examples[:6], 16)
    alone = [model.score_labels(rows, labels)[0] for model in models]
    assert len({tuple(map(tuple, scores.tolist())) for scores in alone}) == len(methods)
    asked = [[0, 2], [1], [2, 3, 4], [0, 5], [0, 1, 2], [4]]
    for those in (None, asked):
        found = score_many(models, rows, [labels] * len(models), asked=those)
        for number, (scores, weights) in enumerate(found):
            expected = alone[number] if those is None else alone[number][those[number]]
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
            assert weights is None
    for width in {model.prompt_length for model in models}:
        some = [number for number, model in enumerate(models) if model.prompt_length == width]
        own = [rows[number] for number in some]
        texts, _ = generate_each([models[number] for number in some], own, [0] * len(some), 3)
        assert texts == [models[n].generate([row], 3)[0][0] for n, row in zip(some, own, strict=True)]


@pytest.mark.parametrize("method", sorted(MODULES))
def test_what_is_more_than_a_prompt_neither_mixes_nor_starts(
    registry: Registry, backbone: FrozenBackbone, task: Task, method: str
) -> None:
    outcome = made(registry, backbone, request(registry, task, method, placement="before", eval_every=0))
    prompt = registry.prompt(outcome.prompt or "")
    assert set(prompt.parts) == set(registry.prompt_parts(prompt)) == set(MODULES[method].from_parts(*parts_of(
        registry, prompt)).kept_parts(0))  # fmt: skip
    asked = request(registry, task, "spot", prompt_length=prompt.length)
    with pytest.raises(AttemptError, match=rf"{prompt.ref} \({method}\) is more than a prompt") as failure:
        train(registry, backbone, replace(asked, init_from=(prompt,)))
    assert "eval, predict, serve" in str(failure.value.hint)
    with pytest.raises(AttemptError, match="is more than a prompt"):
        registry.add_composition(
            name="mixed", sources=(), targets=(prompt.ref,), backbone=prompt.backbone, fingerprint=prompt.fingerprint
        )


def parts_of(registry: Registry, prompt: Prompt) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parts = {name: torch.tensor(part) for name, part in registry.prompt_parts(prompt).items()}
    return torch.tensor(registry.prompt_tensor(prompt)), parts


@pytest.mark.parametrize("method", sorted(MODULES))
def test_encoder_decoders_keep_it_alike(tmp_path: Path, registry: Registry, task: Task, method: str) -> None:
    backbone = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32")
    before = scores(PromptedModel(backbone), task)
    outcome = made(registry, backbone, request(registry, task, method, eval_every=0))
    assert not torch.equal(scores(outcome.model, task), before)
    loaded = load_prompt(registry, backbone, registry.prompt(outcome.prompt or ""))
    assert torch.equal(scores(loaded.model, task), scores(outcome.model, task))


# --- the mixture's variants


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_loaded_as_it_was_trained(
    registry: Registry, backbone: FrozenBackbone, task: Task, variant: str
) -> None:
    settings = VARIANTS[variant]
    outcome = made(registry, backbone, request(registry, task, "attempt", attention_rank=5, eval_every=0, **settings))
    assert outcome.composition is not None
    composition = registry.composition(outcome.composition)
    loaded = load_composition(registry, backbone, composition).model
    assert torch.equal(scores(loaded, task), scores(outcome.model, task))
    trained, back = outcome.model.mixture, loaded.mixture
    assert isinstance(trained, PromptMixture)
    assert isinstance(back, PromptMixture)
    assert (trained.level, trained.with_target) == (back.level, back.with_target)
    assert trained.level == settings.get("level", "instance")
    assert trained.with_target == settings.get("with_target", True)
    assert (trained.fixed_weights is not None) == ("constant_attention" in settings)
    plain = build_model(registry, backbone, request(registry, task, "attempt", attention_rank=5).on(backbone))
    assert not torch.equal(scores(plain, task), scores(loaded, task))
    if outcome.attention is not None:
        kept = registry.attention(outcome.attention)
        assert kept.level == trained.level
        assert trained.attention is not None
        if settings.get("learned_temperature"):
            assert back.attention is not None
            assert trained.attention.temperature == back.attention.temperature
            assert trained.attention.temperature != TrainingConfig().temperature
    else:
        assert composition.settings["weights"] == {"one@1": 0.5, "two@1": 0.5, "target": 0.0}


def test_without_the_target_only_g_is_trained(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    asked = request(registry, task, "attempt", attention_rank=5, with_target=False)
    outcome = made(registry, backbone, asked)
    d = backbone.width
    assert outcome.trained_parameters == 2 * 5 * d + 2 * d
    assert outcome.prompt is not None
    start = torch.from_numpy(registry.prompt_tensor(registry.prompt("one")).copy())
    kept = torch.from_numpy(registry.prompt_tensor(registry.prompt(outcome.prompt)).copy())
    assert torch.equal(kept, start)


def test_constant_attention_trains_the_target_only(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    outcome = made(registry, backbone, request(registry, task, "attempt", constant_attention=True))
    assert outcome.trained_parameters == 8 * backbone.width
    assert outcome.attention is None


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "attempt", "constant_attention": True, "with_target": False}, "leaves nothing to train"),
        ({"method": "attempt", "constant_attention": True, "level": "token"}, "--level token is the attention's"),
        ({"method": "attempt", "constant_attention": True, "learned_temperature": True}, "--learned-temperature is"),
        ({"method": "spot", "level": "token"}, "--level token only goes with --method attempt, not with spot"),
        ({"method": "attempt", "balanced_start": True, "with_target": False}, "--no-target has none"),
        ({"method": "lora", "with_target": False}, "--no-target only goes with --method attempt, not with lora"),
        ({"method": "dept", "placement": "after"}, "--placement after is not for it"),
        ({"method": "smop", "prompt_length": 3}, "--prompt-length 3 has no 4 parts: lower --smop-prompts"),
        ({"method": "bitfit", "placement": "after"}, "--placement after is not for it"),
        ({"method": "lora", "compile": True}, "--compile does not go with lora"),
        (
            {"method": "spot", "compile": True, "gradient_checkpointing": True},
            "--compile does not go with --gradient-checkpointing",
        ),
    ],
)
def test_settings_that_cannot_be_meant_together(
    registry: Registry, backbone: FrozenBackbone, task: Task, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AttemptError, match=problem):
        make_config(None, **settings)
    asked = request(registry, task, settings["method"])  # a copy with an update is not validated, the request is
    unchecked = replace(asked, config=asked.config.model_copy(update=settings))
    with pytest.raises(AttemptError, match=problem):
        train(registry, backbone, unchecked)
    assert backbone.tuned is None


def test_weights_start_from_no_prompt(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    asked = replace(request(registry, task, "lora", placement="before"), init_from=(registry.prompt("one"),))
    with pytest.raises(AttemptError, match=r"was trained after|lora starts from no prompt"):
        train(registry, backbone, asked)


def test_a_training_that_fails_leaves_the_backbone_frozen(
    registry: Registry, backbone: FrozenBackbone, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **others: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("attempt_cli.training.loop.save_checkpoint", broken)
    with pytest.raises(OSError, match="the disk is full"):
        train(registry, backbone, request(registry, task, "fine-tuning"))
    assert backbone.tuned is None
