"""Many targets at once (ATTEMPT-m): one shared G, one target prompt a task, batches that mix tasks.

The same training without its target prompts is the attention prior: G trained on the source tasks, to start from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attempt_cli.artefacts import load_attention, mixing_settings, prompt_in_units, remember_backbone, versions
from attempt_cli.backbones.base import EncodedRow, FrozenBackbone
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.backbones.tuned import tune
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.schema import task_fields
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import encode_examples
from attempt_cli.method import PromptMixture, SharedPrompt
from attempt_cli.training.build import offset_positions, prompt_module
from attempt_cli.training.config import WEIGHT_METHODS, TrainingConfig
from attempt_cli.training.gradient import trained_tensors
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.loop import Listener, Trained
from attempt_cli.training.order import task_shares
from attempt_cli.training.processes import Processes
from attempt_cli.training.recipes import (
    checkpoint_path,
    plan_input_cache,
    released_on_failure,
    run_training,
    settled_placement,
    training_task,
    validation_rows,
    validation_score,
)
from attempt_registry import Attention, Composition, Prompt, Registry
from attempt_registry.add import checked_tags
from attempt_registry.names import check_name

KINDS = ("targets", "attention", "shared")


@dataclass(frozen=True)
class ManyRequest:
    """What is to be trained on several tasks at once.

    Args:
        tasks: the tasks; no two of one name.
        name: of what is kept. With one task its target prompt has this name, with several `NAME.TASK`.
        config: the settings; its method says how a prompt is recorded.
        keep: "targets": target prompts, G and the composition; "attention": G alone (the attention prior); "shared":
            one prompt for all tasks, without sources (SPoT-generic; with the method mpt every task's low-rank factors
            are trained with it, and only P* is kept), or with a weight method one set of weights, of which only the
            run is kept.
        sources: source prompts in order; none for "shared".
        init_from: where each task's prompt starts; None samples the vocabulary. Empty: None for all.
        attention_from: a trained G to start from.
        onto: a composition whose G and targets stay as they are, and which gets these tasks' targets besides.
        train_rows: given training rows of each task (few-shot); empty takes the tasks' own.
        max_rows_per_task: no task counts for more rows in an epoch.
        sampling_temperature: 1 samples tasks in proportion to their rows; more evens them out.
        train_limit: a random sample of so many training rows of each task.
        data_dir, command, note, tags: as in `recipes.Request`.
    """

    tasks: tuple[Task, ...]
    name: str
    config: TrainingConfig
    keep: str = "targets"
    sources: tuple[Prompt, ...] = ()
    init_from: tuple[Prompt | None, ...] = ()
    attention_from: Attention | None = None
    onto: Composition | None = None
    train_rows: tuple[Rows, ...] = ()
    max_rows_per_task: int | None = None
    sampling_temperature: float = 1.0
    train_limit: int | None = None
    data_dir: Path | None = None
    command: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()

    @property
    def indistinct(self) -> bool:
        """Whether all tasks' rows get one prompt, so that all are task 0 to the model."""
        return self.keep == "shared" and self.config.method != "mpt"

    def prompt_name(self, task: Task) -> str:
        """Under which a task's target prompt is kept."""
        alone = self.keep == "shared" or (len(self.tasks) == 1 and self.onto is None)
        return self.name if alone else f"{self.name}.{task.name}"


@dataclass(frozen=True)
class ManyOutcome:
    """What a training on several tasks left in the registry.

    Args:
        prompts: the task of each target prompt -> its full name; under "shared" all name one prompt. Empty where no
            prompt is kept.
        composition, attention: full names, or None.
        model: the trained model; task i's target prompt is number i.
        trained: how it went.
        rows: training rows of each task.
        trained_parameters: how many numbers were trained.
        run: the run's id.
    """

    prompts: dict[str, str]
    composition: str | None
    attention: str | None
    model: PromptedModel
    trained: Trained
    rows: dict[str, int]
    trained_parameters: int
    run: int

    @property
    def parameters_per_task(self) -> float:
        """Trained numbers a task: d·m + (2rd + 2d)/N for N targets that share G."""
        return self.trained_parameters / len(self.rows)

    def release(self) -> None:
        """Takes trained weights out of the backbone; prompts leave nothing there."""
        self.model.release()


@dataclass(frozen=True)
class _Part:
    task: Task
    rows: Rows
    validation: Rows | None
    encoded: list[EncodedRow]


def train_many(
    registry: Registry,
    backbone: FrozenBackbone,
    request: ManyRequest,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    processes: Processes | None = None,
    look: Callable[[PromptedModel], None] | None = None,
) -> ManyOutcome | None:
    """Trains on several tasks at once and records what the request keeps.

    A target prompt gets gradient only from its own task's rows, G from all (section 3.4 of the paper). The step is
    kept at which the mean over tasks of their first metric was best.

    Args:
        look: as in `train_prompt`.

    Returns:
        What was recorded; None on the processes that only helped.

    Raises:
        AttemptError: rows, prompts or settings do not fit; or see `training.loop.train`.
    """
    processes = processes or Processes()
    request = _checked(backbone, request)
    if processes.is_main:
        remember_backbone(registry, backbone)
    model = _build(registry, backbone, request)
    with released_on_failure(model):
        return _train(registry, model, request, resume, listener, processes, look)


def _train(
    registry: Registry,
    model: PromptedModel,
    request: ManyRequest,
    resume: bool,
    listener: Listener | None,
    processes: Processes,
    look: Callable[[PromptedModel], None] | None,
) -> ManyOutcome | None:
    """The training itself, and its record; see `train_many`."""
    backbone, config = model.backbone, request.config
    parts, missing = _parts(model, request)
    encoded = [row for part in parts for row in part.encoded]
    counts = [len(part.encoded) for part in parts]
    shares = task_shares(counts, request.max_rows_per_task, request.sampling_temperature)
    groups = [number for number, count in enumerate(counts) for _ in range(count)]
    total = config.total_steps(sum(shares), processes.count)
    config = config.model_copy(update={"steps": total, "epochs": None})
    request = replace(request, config=config)
    looked_at = [
        row
        for part in parts
        if part.validation is not None
        for row in encode_examples(model, part.task, part.validation.examples, config.max_length)
    ]
    plan_input_cache(model, config, encoded, looked_at)
    key = _key(request, backbone, parts, processes.count)

    def evaluate(trained: PromptedModel) -> tuple[dict[str, float], float]:
        scores: dict[str, float] = {}
        likelihoods = []
        for index, part in enumerate(parts):
            if part.validation is None:
                continue
            number = 0 if request.indistinct else index
            metrics, likelihood = validation_score(
                trained, part.task, part.validation.examples, config, task_index=number
            )
            scores |= {f"{part.task.name} {name}": value for name, value in metrics.items()}
            scores.setdefault("mean", 0.0)
            scores["mean"] += next(iter(metrics.values())) / sum(p.validation is not None for p in parts)
            likelihoods.append(likelihood)
        mean = scores.pop("mean")
        return {"mean": mean, **scores}, sum(likelihoods) / len(likelihoods)

    trained = run_training(
        model,
        encoded,
        config,
        evaluate=evaluate if any(part.validation is not None for part in parts) else None,
        checkpoint=checkpoint_path(registry, key),
        key=key,
        resume=resume,
        listener=listener,
        processes=processes,
        mix=(groups, shares),
    )
    if not processes.is_main:
        model.release()
        return None
    trained.warnings.extend(missing)
    if look is not None:
        look(model)
    outcome = _record(registry, backbone, request, model, trained, parts, processes)
    for file in checkpoint_path(registry, key).parent.glob(f"{key}.*"):
        file.unlink(missing_ok=True)
    return outcome


def _parts(model: PromptedModel, request: ManyRequest) -> tuple[list[_Part], list[str]]:
    """Rows of every task, each told which target prompt is its own."""
    parts, missing = [], []
    config = request.config
    for index, given in enumerate(request.tasks):
        task = training_task(given, config)
        rows = (
            request.train_rows[index]
            if request.train_rows
            else load_examples(task, "train", data_dir=request.data_dir, limit=request.train_limit, seed=config.seed)
        )
        validation, problems = (None, []) if request.train_rows else validation_rows(task, config, request.data_dir)
        missing += [f"{task.name}: {problem}" for problem in problems]
        number = 0 if request.indistinct else index
        encoded = [replace(row, task=number) for row in encode_examples(model, task, rows.examples, config.max_length)]
        parts.append(_Part(task, rows, validation, encoded))
    return parts, missing


def _checked(backbone: FrozenBackbone, request: ManyRequest) -> ManyRequest:
    """The request with its placement settled; refuses what does not fit, all problems at once."""
    check_name(request.name)
    checked_tags(request.tags)
    if request.config.method in WEIGHT_METHODS:
        request = replace(request, config=request.config.model_copy(update={"placement": "before"}))
    names = [task.name for task in request.tasks]
    problems = [f"the task '{name}' is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if request.keep not in KINDS:
        raise ValueError(f"keep is one of {KINDS}, not {request.keep!r}")
    if request.keep == "shared" and request.sources:
        problems.append("one prompt for all tasks is not mixed from sources")
    if request.keep != "shared" and not request.sources:
        problems.append("ATTEMPT needs source prompts: --sources a,b,c or --sources all")
    if request.onto is not None:
        there = [
            ref
            for ref in request.onto.targets
            if ref.partition("@")[0] in {request.prompt_name(task) for task in request.tasks}
        ]
        problems += [f"'{request.onto.ref}' has the target {ref} already" for ref in there]
    starts = [prompt for prompt in request.init_from if prompt is not None]
    for prompt in (*request.sources, *starts):
        if prompt.length != request.config.prompt_length:
            problems.append(
                f"'{prompt.ref}' has {prompt.length} tokens, --prompt-length is {request.config.prompt_length}"
            )
    given = request.attention_from
    if given is not None and given.fingerprint != backbone.fingerprint:
        problems.append(f"the attention '{given.ref}' was trained for {given.backbone}, not for {backbone.name}")
    if given is None and request.config.attention_rank is not None and request.config.attention_rank >= backbone.width:
        problems.append(f"--attention-rank {request.config.attention_rank} is not below the width {backbone.width}")
    for task in request.tasks:
        backbone.label_tokens(task.label_words)
    if problems:
        raise AttemptError("this cannot be trained:\n  " + "\n  ".join(dict.fromkeys(problems)))
    return replace(request, config=settled_placement(backbone, request.config, [*request.sources, *starts], given))


def _build(registry: Registry, backbone: FrozenBackbone, request: ManyRequest) -> PromptedModel:
    """The model before the first step: a prompt a task (or one for all), the frozen sources, G."""
    config, given = request.config, request.attention_from
    if config.method in WEIGHT_METHODS:
        return PromptedModel(backbone, tuned=tune(backbone, config.method, config.seed))
    scale = backbone.embedding_rms if config.units == "rms" else 1.0
    if given is not None:  # G reads inputs and prompts in the units that it was trained in
        scale = float(given.settings.get("embedding_scale", scale))
    generator = torch.Generator().manual_seed(config.seed)
    initial = []
    for index in range(1 if request.indistinct else len(request.tasks)):
        start = request.init_from[index] if request.init_from else None
        if start is not None:
            initial.append(prompt_in_units(registry, backbone, start, scale))
        else:
            initial.append(vocabulary_prompt(backbone, config.prompt_length, generator).float() / scale)
    sources = attention = None
    if request.sources:
        sources = torch.stack([prompt_in_units(registry, backbone, prompt, scale) for prompt in request.sources])
        config = config.model_copy(update={"method": "attempt"})  # whatever the prompts are recorded as
        if given is not None:
            # with `onto` the other targets' mixtures stay what they are
            attention = load_attention(registry, given).requires_grad_(request.onto is None)
            config = config.model_copy(update={"level": given.level})
    positions = max(offset_positions(backbone, task, config) for task in request.tasks)
    mixture = prompt_module(
        config, torch.stack(initial), sources, generator=generator, positions=positions, attention=attention
    )
    placement = backbone.check_placement(config.placement)
    return PromptedModel(backbone, mixture.to(backbone.device), scale, placement)


def _key(request: ManyRequest, backbone: FrozenBackbone, parts: Sequence[_Part], processes: int) -> str:
    """Names the training by all that its result depends on."""
    identity: dict[str, Any] = {
        "name": request.name,
        "keep": request.keep,
        "tasks": [task_fields(part.task) | {"format": part.task.format} for part in parts],
        "config": request.config.model_dump(exclude={"compile"}),  # an unfinished training goes on either way
        "backbone": [backbone.fingerprint, str(backbone.dtype)],
        "sources": [prompt.sha256 for prompt in request.sources],
        "init_from": [prompt.sha256 if prompt else None for prompt in request.init_from],
        "attention": request.attention_from.sha256 if request.attention_from else None,
        "onto": request.onto.ref if request.onto else None,
        "sampling": [request.max_rows_per_task, request.sampling_temperature],
        "rows": [[part.rows.sha256, part.validation.sha256 if part.validation else None] for part in parts],
        "processes": processes,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _record(
    registry: Registry,
    backbone: FrozenBackbone,
    request: ManyRequest,
    model: PromptedModel,
    trained: Trained,
    parts: Sequence[_Part],
    processes: Processes,
) -> ManyOutcome:
    """Prompts, G, composition and run become visible together, or not at all."""
    mixture, config = model.mixture, request.config
    identity: dict[str, Any] = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
    sources = tuple(prompt.ref for prompt in request.sources)
    inputs = [f"prompt:{ref}" for ref in sources]
    if request.attention_from is not None:
        inputs.append(f"attention:{request.attention_from.ref}")
    training = config.model_dump(exclude_none=True)
    settings = {
        "tasks": [part.task.name for part in parts],
        "keep": request.keep,
        "training": training,
        "total_steps": trained.total,
        "max_rows_per_task": request.max_rows_per_task,
        "sampling_temperature": request.sampling_temperature,
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }
    trained_parameters = sum(tensor.numel() for tensor in trained_tensors(model.trained))
    tensors: Any = ()
    if isinstance(mixture, SharedPrompt) and request.keep == "shared":
        tensors = mixture.shared_prompt.detach().cpu().numpy()[None]
    elif mixture is not None:
        tensors = mixture.target_prompts.detach().cpu().numpy()
    prompts: dict[str, str] = {}
    attention_ref = request.attention_from.ref if request.onto and request.attention_from else None
    composition_ref = None
    artefacts = []
    with registry.transaction():
        for index, part in enumerate(parts if request.keep != "attention" and mixture is not None else ()):
            if request.keep == "shared" and index:
                prompts[part.task.name] = prompts[parts[0].task.name]
                continue
            start = request.init_from[index] if request.init_from else None
            prompt = registry.add_prompt(
                tensors[index],
                name=request.prompt_name(part.task),
                kind="source" if request.keep == "shared" else "target",
                method=config.method,
                task="+".join(p.task.name for p in parts) if request.keep == "shared" else part.task.name,
                task_version=part.task.version,
                embedding_scale=model.scale,
                placement=model.placement,
                settings={
                    **settings,
                    "task": task_fields(part.task),
                    "format": part.task.format,
                    "init_from": start.ref if start else "vocabulary",
                },
                numbers=trained.numbers,
                seed=config.seed,
                note=request.note,
                tags=request.tags,
                parents=tuple(dict.fromkeys([*([start.ref] if start else []), *sources])),
                **identity,
            )
            prompts[part.task.name] = prompt.ref
            artefacts.append(f"prompt:{prompt.ref}")
        if isinstance(mixture, PromptMixture) and mixture.attention is not None and request.onto is None:
            grown = [f"attention:{request.attention_from.ref}"] if request.attention_from else []
            attention = registry.add_attention(
                {name: tensor.detach().cpu().numpy() for name, tensor in mixture.attention.state_dict().items()},
                name=request.name,
                rank=mixture.attention.rank,
                level=mixture.level,
                temperature=mixture.attention.temperature,
                width=backbone.width,
                placement=model.placement,
                settings={"embedding_scale": model.scale, "training": training, "tasks": settings["tasks"]},
                seed=config.seed,
                note=request.note,
                parents=(*sources, *grown),
                **identity,
            )
            attention_ref = attention.ref
            artefacts.append(f"attention:{attention.ref}")
        if isinstance(mixture, PromptMixture) and request.keep == "targets":
            composition = registry.add_composition(
                name=request.onto.name if request.onto else request.name,
                sources=sources,
                attention=attention_ref,
                targets=(*(request.onto.targets if request.onto else ()), *prompts.values()),
                settings=mixing_settings(mixture, sources, model.scale),
                note=request.note,
                **identity,
            )
            composition_ref = composition.ref
            artefacts.append(f"composition:{composition.ref}")
        run = registry.add_run(
            command=request.command,
            settings=settings,
            rows={
                part.task.name: {"origin": part.rows.origin, "sha256": part.rows.sha256, "n": len(part.rows.examples)}
                for part in parts
            },
            seed=config.seed,
            budget={
                "steps": trained.state.step,
                "rows_per_step": config.rows_per_step(processes.count),
                "processes": processes.count,
                "trained_parameters": trained_parameters,
            },
            numbers=trained.numbers,
            versions=versions(),
            duration=trained.state.seconds,
            artefacts=artefacts,
            inputs=inputs,
        )
    counts = {part.task.name: len(part.rows.examples) for part in parts}
    return ManyOutcome(prompts, composition_ref, attention_ref, model, trained, counts, trained_parameters, run.id)
