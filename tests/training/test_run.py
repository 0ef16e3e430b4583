"""From rows to records: what a training leaves in the registry, and what is refused before it begins."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli import __version__
from attempt_cli.artefacts import load_composition, load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import predict
from attempt_cli.listener import Listener
from attempt_cli.method import paper_temperature, rms_temperature
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.build import build_model
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.initial import frequent_words, vocabulary_prompt
from attempt_cli.training.request import Request, checkpoint_path, load_task_rows
from attempt_cli.training.run import train
from attempt_registry import Registry, RegistryError
from tests.models import save_llama
from tests.training.requests import request_for
from tests.training.requests import trained as made
from tests.training.toy import toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"prompt_length": 4, "steps": 3, "batch_size": 8, "learning_rate": 0.1}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "kept")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    files = {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
        for seed, (name, count) in enumerate((("train", 30), ("validation", 10), ("test", 16)))
    }
    return task_from_files(**files, input="{text} label:", label="mood", name="toy")  # type: ignore[arg-type]


def source(registry: Registry, backbone: FrozenBackbone, task: Task, name: str, **settings: Any) -> None:
    config = TrainingConfig(**(QUICK | {"eval_every": 0} | settings))
    made(registry, backbone, request_for(task, kind="source", name=name, config=config))


@pytest.fixture
def sources(registry: Registry, backbone: FrozenBackbone, task: Task) -> Registry:
    """The registry with the sources `one` and `two`."""
    for seed, name in enumerate(("one", "two")):
        source(registry, backbone, task, name, seed=seed)
    return registry


def request(registry: Registry, task: Task, method: str, **changes: Any) -> Request:
    sources = tuple(registry.prompt(name) for name in ("one", "two"))
    config = TrainingConfig(method=method, **QUICK, attention_rank=5, eval_every=1, seed=7)  # type: ignore[arg-type]
    made = request_for(
        task,
        name=f"toy-{method}",
        config=config,
        sources=sources if method == "attempt" else (),
        init_from=() if method == "prompt-tuning" else (sources[1],),
        note="a note",
        tags=("one-tag",),
    )
    return replace(made, **changes)


# --- where a prompt starts


def test_a_prompt_starts_from_embeddings_of_words(backbone: FrozenBackbone) -> None:
    words = [backbone.tokenizer.convert_ids_to_tokens(i) for i in frequent_words(backbone)]
    assert "Ġgood" in words
    assert all(word[0] == "Ġ" and word[1:].isalpha() for word in words)
    prompt = vocabulary_prompt(backbone, 6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        table = backbone.embed(torch.tensor(frequent_words(backbone))).float()
    found = [(row == table).all(dim=1).nonzero().tolist() for row in prompt]
    assert all(len(place) == 1 for place in found)
    assert len({place[0][0] for place in found}) == 6  # no word twice, as long as there are enough
    assert torch.equal(prompt, vocabulary_prompt(backbone, 6, torch.Generator().manual_seed(0)))
    assert not torch.equal(prompt, vocabulary_prompt(backbone, 6, torch.Generator().manual_seed(1)))
    assert vocabulary_prompt(backbone, 500, torch.Generator().manual_seed(0)).shape == (500, backbone.width)


@pytest.mark.parametrize("units", ["rms", "raw"])
@pytest.mark.parametrize("method", ["prompt-tuning", "spot", "attempt"])
def test_before_the_first_step(
    sources: Registry, backbone: FrozenBackbone, task: Task, method: str, units: str
) -> None:
    asked = request(sources, task, method)
    asked = replace(asked, config=asked.config.model_copy(update={"units": units}))
    model = build_model(sources, backbone, asked)
    assert model.mixture is not None
    entering = model.mixture.target_prompts.detach()[0] * model.scale
    if method == "prompt-tuning":
        start = vocabulary_prompt(backbone, 4, torch.Generator().manual_seed(7))
    else:
        two = sources.prompt("two")
        start = torch.from_numpy(sources.prompt_tensor(two).copy()) * two.embedding_scale
    torch.testing.assert_close(entering, start)
    assert model.scale == (backbone.embedding_rms if units == "rms" else 1.0)
    assert (model.mixture.attention is not None) == (method == "attempt")
    if model.mixture.attention is not None:
        expected = rms_temperature(backbone.width) if units == "rms" else paper_temperature(backbone.width)
        assert model.mixture.attention.temperature == expected
        assert model.mixture.attention.rank == 5
        assert model.mixture.source_prompts is not None
        one = sources.prompt("one")
        mixed = model.mixture.source_prompts[0] * model.scale
        torch.testing.assert_close(mixed, torch.from_numpy(sources.prompt_tensor(one).copy()) * one.embedding_scale)


# --- what is recorded


@pytest.mark.parametrize("method", ["prompt-tuning", "spot", "attempt"])
def test_what_a_target_leaves_in_the_registry(
    sources: Registry, backbone: FrozenBackbone, task: Task, method: str
) -> None:
    outcome = made(sources, backbone, request(sources, task, method), command="attempt train-target toy")
    prompt = sources.prompt(f"toy-{method}")
    assert (prompt.ref, prompt.kind, prompt.method, prompt.task) == (f"toy-{method}@1", "target", method, "toy")
    assert (prompt.length, prompt.width, prompt.dtype) == (4, backbone.width, "float32")
    assert (prompt.backbone, prompt.fingerprint) == (backbone.name, backbone.fingerprint)
    assert prompt.embedding_scale == backbone.embedding_rms
    assert (prompt.seed, prompt.note, prompt.tags) == (7, "a note", ("one-tag",))
    parents = {"prompt-tuning": (), "spot": ("two@1",), "attempt": ("two@1", "one@1")}[method]
    assert prompt.parents == parents
    assert prompt.settings["task"]["name"] == "toy"
    assert prompt.settings["training"]["learning_rate"] == 0.1
    assert prompt.settings["init_from"] == ("vocabulary" if method == "prompt-tuning" else "two@1")
    assert prompt.settings["dtype"] == "float32"
    assert prompt.numbers["steps"] == 3
    assert set(prompt.numbers["validation"]) == {"accuracy"}
    m, d, r = 4, backbone.width, 5
    trained = m * d + (2 * r * d + 2 * d if method == "attempt" else 0)
    assert outcome.trained_parameters == trained

    run = sources.run(outcome.run)
    rows = load_examples(task, "train")
    assert run.command == "attempt train-target toy"
    assert run.rows["train"] == {"origin": rows.origin, "sha256": rows.sha256, "n": 30}
    assert run.rows["validation"]["n"] == 10
    assert run.seed == 7
    assert run.budget == {
        "steps": 3,
        "rows_per_step": 8,
        "processes": 1,
        "training_rows": 30,
        "trained_parameters": trained,
    }
    assert run.versions["attempt"] == __version__
    assert run.versions["torch"] == torch.__version__
    assert run.versions["python"] == platform.python_version()
    assert run.inputs == tuple(f"prompt:{parent}" for parent in parents)
    artefacts = [f"prompt:{prompt.ref}"]
    if method == "attempt":
        artefacts += ["attention:toy-attempt@1", "composition:toy-attempt@1"]
        composition = sources.composition("toy-attempt")
        assert (composition.sources, composition.targets) == (("one@1", "two@1"), ("toy-attempt@1",))
        assert composition.attention == "toy-attempt@1"
        attention = sources.attention("toy-attempt")
        assert (attention.rank, attention.width, attention.level) == (r, d, "instance")
        assert attention.temperature == rms_temperature(d)
        assert attention.parents == ("one@1", "two@1")
    else:
        assert (outcome.composition, outcome.attention, sources.compositions()) == (None, None, [])
    assert run.artefacts == tuple(artefacts)
    assert sources.verify() == []
    assert sources.backbone(backbone.fingerprint).width == d


@pytest.mark.parametrize("method", ["prompt-tuning", "spot", "attempt"])
def test_what_is_loaded_again_predicts_the_same(
    sources: Registry, backbone: FrozenBackbone, llama: Path, task: Task, method: str
) -> None:
    outcome = made(sources, backbone, request(sources, task, method))
    again = Registry.open(sources.folder)
    fresh = load_backbone(str(llama), device="cpu", dtype="float32")
    if outcome.composition:
        loaded = load_composition(again, fresh, again.composition(outcome.composition))
        assert loaded.sources == ("one@1", "two@1")
    else:
        loaded = load_prompt(again, fresh, again.prompt(outcome.prompt))
    examples = load_examples(task, "test").examples
    ours, theirs = (predict(model, task, examples).rows for model in (outcome.model, loaded.model))
    for one, other in zip(ours, theirs, strict=True):
        assert one.text == other.text
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.attention is None) == (method != "attempt")
        if one.attention is not None:
            assert one.attention == pytest.approx(other.attention, abs=1e-5)
    bare = predict(PromptedModel(fresh), task, examples).rows
    assert any(
        row.probabilities != pytest.approx(none.probabilities, abs=1e-3) for row, none in zip(ours, bare, strict=True)
    )


def test_the_same_request_makes_the_next_version(sources: Registry, backbone: FrozenBackbone, task: Task) -> None:
    refs = [made(sources, backbone, request(sources, task, "attempt")) for _ in range(2)]
    assert [outcome.composition for outcome in refs] == ["toy-attempt@1", "toy-attempt@2"]
    first, second = (sources.prompt(outcome.prompt) for outcome in refs)
    assert first.sha256 == second.sha256  # equal settings, equal numbers: one file


def test_a_record_that_fails_leaves_nothing_half_done(
    sources: Registry, backbone: FrozenBackbone, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object, **named: object) -> None:
        raise RegistryError("no space left on the disk")

    asked = request(sources, task, "attempt")
    monkeypatch.setattr(Registry, "add_run", failing)
    with pytest.raises(RegistryError, match="no space left"):
        train(sources, backbone, asked)
    monkeypatch.undo()
    assert [prompt.name for prompt in sources.prompts()] == ["one", "two"]
    assert sources.attentions() == []
    assert sources.compositions() == []
    assert len(sources.runs()) == 2
    # the training itself is not lost
    steps: list[int] = []

    class Steps(Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            steps.append(step)

    outcome = train(sources, backbone, asked, resume=True, listener=Steps())
    assert outcome is not None
    assert steps == []


def test_when_it_is_done_nothing_is_left_of_its_checkpoints(
    registry: Registry, backbone: FrozenBackbone, task: Task
) -> None:
    config = TrainingConfig(**QUICK, eval_every=1)
    asked = request_for(task, kind="source", name="a", config=config)
    key = asked.on(backbone).key(backbone)
    folder = registry.folder / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"{key}.4711.partial").write_bytes(b"a process was killed while it wrote this")
    (folder / "of-another-training.safetensors").write_bytes(b"")
    made(registry, backbone, asked)
    assert [file.name for file in folder.iterdir()] == ["of-another-training.safetensors"]


# --- rows


def test_without_evaluation_no_row_is_held_out(backbone: FrozenBackbone, registry: Registry, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "rows.csv", toy_rows(30))
    task = task_from_files(train=train, input="{text} label:", label="mood", name="toy")
    config = TrainingConfig(**QUICK)
    outcome = made(registry, backbone, request_for(task, kind="source", name="a", config=config))
    assert outcome.rows["toy"] == 27
    assert registry.run(1).rows["validation"]["n"] == 3
    without = config.model_copy(update={"eval_every": 0})
    outcome = made(registry, backbone, request_for(task, kind="source", name="b", config=without))
    assert outcome.rows["toy"] == 30
    assert "validation" not in registry.run(2).rows
    assert load_task_rows(task, config).task == task


def test_a_sample_of_rows(backbone: FrozenBackbone, registry: Registry, task: Task) -> None:
    config = TrainingConfig(**QUICK, eval_rows=4)
    outcome = made(registry, backbone, request_for(task, kind="source", name="a", config=config, limit=12))
    assert outcome.rows["toy"] == 12
    assert registry.run(1).rows["train"]["sha256"] == load_examples(task, "train", limit=12, seed=0).sha256
    assert registry.run(1).rows["validation"]["n"] == 4


def test_long_rows_are_cut_and_counted(backbone: FrozenBackbone, registry: Registry, tmp_path: Path) -> None:
    rows = toy_rows(12)
    for row in rows[:3]:
        row["text"] = "it was " * 60 + row["text"]
    task = task_from_files(
        train=write_csv(tmp_path / "long.csv", rows), input="{text} label:", label="mood", name="long"
    )
    config = TrainingConfig(**QUICK, eval_every=0, max_length=40)
    (note, cut) = made(registry, backbone, request_for(task, kind="source", name="a", config=config)).notes
    assert note == "no validation rows were looked at: the last step is kept"
    assert cut.startswith("3 of 12 training inputs were longer than the limit")


# --- what is refused before anything is trained


def refused(registry: Registry, backbone: FrozenBackbone, asked: Request) -> str:
    """The message; nothing was trained or recorded."""
    before = len(registry.runs())
    with pytest.raises((AttemptError, RegistryError)) as failure:
        train(registry, backbone, asked, listener=_NoStep())
    assert len(registry.runs()) == before
    assert not (registry.folder / "checkpoints").exists() or not list((registry.folder / "checkpoints").iterdir())
    return str(failure.value)


class _NoStep(Listener):
    def start(self, step: int, total: int) -> None:
        raise AssertionError("the training began")


def test_parts_that_do_not_fit_are_told_all_at_once(sources: Registry, backbone: FrozenBackbone, task: Task) -> None:
    source(sources, backbone, task, "long", prompt_length=6)
    asked = request(sources, task, "attempt")
    wrong = replace(asked, sources=(*asked.sources, sources.prompt("long"), asked.sources[0]))
    message = refused(sources, backbone, wrong)
    assert "'long@1' has 6 tokens, --prompt-length is 4" in message
    assert "'one@1' is named twice in --sources" in message
    wrong = replace(asked, config=asked.config.model_copy(update={"attention_rank": 24}))
    assert "--attention-rank 24 is not below the width 24" in refused(sources, backbone, wrong)
    assert "ATTEMPT needs source prompts" in refused(sources, backbone, replace(asked, sources=()))
    spot = replace(request(sources, task, "spot"), init_from=())
    assert "SPoT needs a prompt to start from: --init-from NAME" in refused(sources, backbone, spot)


def test_a_prompt_longer_than_the_model_sees(registry: Registry, backbone: FrozenBackbone, task: Task) -> None:
    config = TrainingConfig(**(QUICK | {"prompt_length": 125}))
    message = refused(registry, backbone, request_for(task, kind="source", name="a", config=config))
    assert "--prompt-length 125 leaves no room in 128 positions" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "my prompt"}, "'my prompt' cannot be a name"),
        ({"name": "all"}, "options use the word"),
        ({"tags": ("a,b",)}, "'a,b' cannot be a tag"),
    ],
)
def test_names_that_the_registry_would_refuse_after_hours(
    sources: Registry, backbone: FrozenBackbone, task: Task, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(sources, backbone, request(sources, task, "attempt", **changes))


def test_a_source_that_is_named_twice(sources: Registry, backbone: FrozenBackbone, task: Task) -> None:
    asked = request(sources, task, "attempt", sources=tuple(sources.prompt(name) for name in ("one", "two", "one")))
    assert "'one@1' is named twice" in refused(sources, backbone, asked)


def test_a_source_of_another_model_of_the_same_width(sources: Registry, task: Task, tmp_path: Path) -> None:
    other = load_backbone(str(save_llama(tmp_path / "other", intermediate_size=32)), device="cpu", dtype="float32")
    message = refused(sources, other, request(sources, task, "attempt"))
    assert "'two@1' was trained for tiny (" in message
    assert "the backbone here is other (" in message


# --- which checkpoint is whose


def test_a_training_s_key_depends_on_all_that_its_result_depends_on(
    sources: Registry, backbone: FrozenBackbone, task: Task
) -> None:
    asked = request(sources, task, "attempt")
    key = asked.key(backbone)
    (rows,) = asked.tasks
    changed = [
        replace(asked, name="another").key(backbone),
        replace(asked, sources=asked.sources[::-1]).key(backbone),
        replace(asked, init_from=asked.sources[:1]).key(backbone),
        replace(asked, tasks=(replace(rows, task=task.model_copy(update={"input": "{text}:"})),)).key(backbone),
        replace(asked, tasks=(replace(rows, train=load_examples(task, "train", limit=8)),)).key(backbone),
        replace(asked, tasks=(replace(rows, validation=None),)).key(backbone),
        asked.key(backbone, processes=2),
    ]
    for change in ({"seed": 8}, {"steps": 4}, {"learning_rate": 0.2}, {"units": "raw"}, {"eval_every": 2}):
        other = replace(asked, config=asked.config.model_copy(update=change))
        changed.append(other.key(backbone))
    assert len({key, *changed}) == 1 + len(changed)
    assert replace(asked, note="another", tags=()).key(backbone) == key
    assert checkpoint_path(sources, key).parent == sources.folder / "checkpoints"
