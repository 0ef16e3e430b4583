"""Train a source prompt, train a target prompt: from a task's rows to records in the registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attempt_cli.artefacts import mixing_settings, prompt_in_units, remember_backbone, versions
from attempt_cli.backbones.base import EncodedRow, FrozenBackbone
from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.backbones.tuned import tune
from attempt_cli.data.metrics import score
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.schema import task_fields
from attempt_cli.data.task import Example, RowError, Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import encode_examples, predict
from attempt_cli.method import PromptMixture, SharedPrompt
from attempt_cli.training.build import offset_positions, offsets_shape, prompt_module
from attempt_cli.training.config import PLACED_BEFORE, WEIGHT_METHODS, TrainingConfig
from attempt_cli.training.gradient import trained_tensors
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.loop import Listener, Trained, train
from attempt_cli.training.memory import largest_batch
from attempt_cli.training.processes import Processes
from attempt_registry import Attention, Prompt, Registry
from attempt_registry.add import check_one_placement, checked_tags
from attempt_registry.names import check_name


@dataclass(frozen=True)
class Request:
    """What is to be trained.

    Args:
        task: the task.
        kind: "source" or "target".
        name: under which the prompt (and G and the composition) are kept.
        config: the settings.
        sources: ATTEMPT's source prompts, in order.
        init_from: the prompt that the new one starts from; None samples the vocabulary.
        train_rows: these rows instead of the task's own (few-shot).
        validation_rows: with `train_rows`: what chooses the checkpoint; None keeps the last step.
        train_limit: a random sample of so many training rows.
        data_dir: rows in the hub's layout.
        command: as it was typed, for the record.
        note, tags: for the record.
        largest_batch: as many rows a batch as fit in memory, instead of the configuration's.
    """

    task: Task
    kind: str
    name: str
    config: TrainingConfig
    sources: tuple[Prompt, ...] = ()
    init_from: Prompt | None = None
    train_rows: Rows | None = None
    validation_rows: Rows | None = None
    train_limit: int | None = None
    data_dir: Path | None = None
    command: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    largest_batch: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a training left in the registry.

    Args:
        prompt: the prompt's full name; None where no prompt was trained (weights, DePT): then the run alone is kept,
            and `model` is all that can predict, until `release`.
        composition: ATTEMPT's composition, else None.
        attention: ATTEMPT's G, else None.
        model: the trained model, ready to predict.
        trained: how it went.
        truncated: training rows longer than the limit.
        rows: training rows.
        trained_parameters: how many numbers were trained.
        run: the run's id.
    """

    prompt: str | None
    composition: str | None
    attention: str | None
    model: PromptedModel
    trained: Trained
    truncated: int
    rows: int
    trained_parameters: int
    run: int

    def release(self) -> None:
        """Takes trained weights out of the backbone, which is the frozen one again; prompts leave nothing there."""
        self.model.release()


@dataclass
class _Silent:
    """A listener that says nothing."""

    def start(self, step: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self, step: int, loss: float, rows_per_second: float) -> None: ...

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None: ...


def train_prompt(
    registry: Registry,
    backbone: FrozenBackbone,
    request: Request,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    processes: Processes | None = None,
    look: Callable[[PromptedModel], None] | None = None,
) -> Outcome | None:
    """Trains what the request says and records it.

    Args:
        look: is shown the trained model before it is recorded: after a kill in there, --resume trains no step again and
            records nothing twice.

    Returns:
        What was recorded; None on the processes that only helped.

    Raises:
        AttemptError: rows, prompts or settings do not fit; or see `training.loop.train`.
    """
    processes = processes or Processes()
    request = placed(backbone, request)
    task, config = training_task(request.task, request.config), request.config
    _check(backbone, request)
    rows = request.train_rows or load_examples(
        task, "train", data_dir=request.data_dir, limit=request.train_limit, seed=config.seed
    )
    if request.train_rows is not None:
        validation, missing = (request.validation_rows if config.eval_every != 0 else None), list[str]()
    else:
        validation, missing = validation_rows(task, config, request.data_dir)
    if processes.is_main:
        remember_backbone(registry, backbone)
    model = build_model(registry, backbone, request)
    with released_on_failure(model):
        encoded = encode_examples(model, task, rows.examples, config.max_length)
        if request.largest_batch:
            request = with_largest_batch(model, request, encoded)
            config = request.config
        looked_at = (
            encode_examples(model, task, validation.examples, config.max_length) if validation is not None else []
        )
        plan_input_cache(model, config, encoded, looked_at)
        key = training_key(request, backbone, rows, validation, processes.count)

        def evaluate(trained: PromptedModel) -> tuple[dict[str, float], float]:
            assert validation is not None
            return validation_score(trained, task, validation.examples, config)

        trained = run_training(
            model,
            encoded,
            config,
            evaluate=evaluate if validation is not None else None,
            checkpoint=checkpoint_path(registry, key),
            key=key,
            resume=resume,
            listener=listener,
            processes=processes,
        )
        if not processes.is_main:
            model.release()
            return None
        trained.warnings.extend(missing)
        if look is not None:
            look(model)
        outcome = _record(registry, backbone, request, model, trained, rows, validation, processes)
        for file in checkpoint_path(registry, key).parent.glob(f"{key}.*"):  # and what a kill left of writing it
            file.unlink(missing_ok=True)
        return replace(outcome, truncated=sum(row.truncated > 0 for row in encoded))


@contextmanager
def released_on_failure(model: PromptedModel) -> Iterator[None]:
    """A training that fails or is stopped leaves nothing in the backbone, which others share."""
    try:
        yield
    except BaseException:
        model.release()
        raise


def placed(backbone: FrozenBackbone, request: Request) -> Request:
    """The request with its placement settled: as asked for, else where its source prompts stand, else the default.

    Methods that change how the input is read have it before.

    Raises:
        AttemptError: the backbone cannot have it, or a prompt that is to be mixed or started from stands elsewhere.
    """
    config, prompts = request.config, [*request.sources, *([request.init_from] if request.init_from else [])]
    if config.placement is None and config.method in PLACED_BEFORE:
        config = config.model_copy(update={"placement": "before"})
    return replace(request, config=settled_placement(backbone, config, prompts))


def settled_placement(
    backbone: FrozenBackbone, config: TrainingConfig, prompts: Sequence[Prompt], attention: Attention | None = None
) -> TrainingConfig:
    """The settings with the placement that prompts, attention and backbone agree on; see `placed`."""
    parts: list[Prompt | Attention] = [*prompts, *([attention] if attention else [])]
    check_one_placement(parts)
    placement = backbone.check_placement(config.placement or (parts[0].placement if parts else None))
    if parts and parts[0].placement != placement:
        raise AttemptError(
            f"'{parts[0].ref}' was trained {parts[0].placement} the input, --placement is {placement}",
            f"Leave --placement out, or train source prompts with --placement {placement}.",
        )
    return config.model_copy(update={"placement": placement})


def run_training(
    model: PromptedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    *,
    listener: Listener | None,
    **arguments: Any,
) -> Trained:
    """`training.loop.train` with the backbone's layers as the settings want them, for so long."""
    backbone = model.backbone
    if config.gradient_checkpointing:
        backbone.checkpoint_gradients(True)
    try:
        return train(model, rows, config, listener=listener or _Silent(), **arguments)
    finally:  # the backbone serves other trainings, too
        if config.gradient_checkpointing:
            backbone.checkpoint_gradients(False)
        if backbone.compiled:
            backbone.compile_layers(False)


def with_largest_batch(model: PromptedModel, request: Request, encoded: Sequence[EncodedRow]) -> Request:
    """The request with as many rows a batch, and positions computed at once, as the free memory takes."""
    rows = largest_batch(model, encoded)
    longest = max(len(row.input_ids) + len(row.target_ids) for row in encoded) + model.prompt_length
    update = {"batch_size": rows, "max_tokens": max(request.config.max_tokens, rows * longest)}
    return replace(request, config=request.config.model_copy(update=update))


def plan_input_cache(
    model: PromptedModel, config: TrainingConfig, encoded: Sequence[EncodedRow], looked_at: Sequence[EncodedRow]
) -> None:
    """Keeps the inputs of rows that are read more than once: those of validation, then those of training."""
    cache = model.backbone.input_cache
    if cache is None or model.placement != "after":
        return
    again = config.total_steps(len(encoded)) * config.rows_per_step() > len(encoded)
    cache.plan([looked_at, encoded if again else []], model.backbone.cache_bytes_per_token)


def validation_rows(task: Task, config: TrainingConfig, data_dir: Path | None) -> tuple[Rows | None, list[str]]:
    """The rows that choose the checkpoint, if any are wanted, and what to say when they cannot be had.

    Raises:
        AttemptError: --eval-every asks for them or they are in files of one's own, and they cannot be had.
    """
    if config.eval_every == 0:
        return None, []
    try:
        rows = load_examples(task, "validation", data_dir=data_dir, limit=config.eval_rows, seed=config.seed)
    except AttemptError as error:
        if config.eval_every is not None or task.files or isinstance(error, RowError):
            raise
        # a folder often holds the training rows only (MNLI's validation is a split of its own): train all the same
        return None, [f"no validation rows were found, the last step is kept ({error.message})"]
    return rows, []


def training_task(task: Task, config: TrainingConfig) -> Task:
    """The task as it is trained: without validation no training rows are held out of one's own files."""
    if config.eval_every == 0 and task.files and task.split_rule == "held-out":
        return replace(task, split_rule="own")
    return task


def build_model(registry: Registry, backbone: FrozenBackbone, request: Request) -> PromptedModel:
    """The model before the first step: initial prompts, frozen sources, a fresh G; or weights in the backbone."""
    config = request.config
    if config.method in WEIGHT_METHODS:
        return PromptedModel(backbone, tuned=tune(backbone, config.method, config.seed))
    scale = backbone.embedding_rms if config.units == "rms" else 1.0
    generator = torch.Generator().manual_seed(config.seed)
    if request.init_from is not None:
        initial = prompt_in_units(registry, backbone, request.init_from, scale)
    else:
        initial = vocabulary_prompt(backbone, config.prompt_length, generator).float() / scale
    sources: Tensor | None = None
    if request.sources:
        sources = torch.stack([prompt_in_units(registry, backbone, prompt, scale) for prompt in request.sources])
    positions = offset_positions(backbone, request.task, config)
    mixture = prompt_module(config, initial[None], sources, generator=generator, positions=positions)
    return PromptedModel(backbone, mixture.to(backbone.device), scale, backbone.check_placement(config.placement))


def validation_score(
    model: PromptedModel, task: Task, examples: Sequence[Example], config: TrainingConfig, task_index: int = 0
) -> tuple[dict[str, float], float]:
    """The task's metrics, and the log-likelihood per row, which tells equal metrics apart."""
    said = predict(
        model, task, examples, task_index=task_index, max_length=config.max_length, max_tokens=config.max_tokens
    )
    likelihoods = [row.log_likelihood for row in said.rows if row.log_likelihood is not None]
    if not likelihoods:  # free text was generated, its own answer not yet scored
        encoded = [replace(row, task=task_index) for row in encode_examples(model, task, examples, config.max_length)]
        lengths = [len(row.input_ids) + len(row.target_ids) for row in encoded]
        with torch.no_grad():
            least = model.backbone.least_positions
            for indices in by_length(lengths, model.overhead(max(lengths)), config.max_tokens, least=least):
                likelihoods += model.log_likelihood([encoded[i] for i in indices]).tolist()
    return score(task, said.texts, examples), sum(likelihoods) / len(likelihoods)


def training_key(
    request: Request, backbone: FrozenBackbone, rows: Rows, validation: Rows | None, processes: int
) -> str:
    """Names a training by all that its result depends on: the same command finds its own checkpoint, and no other's."""
    identity: dict[str, Any] = {
        "name": request.name,
        "kind": request.kind,
        "task": task_fields(request.task) | {"format": request.task.format},
        "config": request.config.model_dump(exclude={"compile"}),  # an unfinished training goes on either way
        "backbone": [backbone.fingerprint, str(backbone.dtype)],
        "sources": [prompt.sha256 for prompt in request.sources],
        "init_from": request.init_from.sha256 if request.init_from else None,
        "rows": rows.sha256,
        "validation": validation.sha256 if validation else None,
        "processes": processes,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def checkpoint_path(registry: Registry, key: str) -> Path:
    """Where a training of this key keeps its state."""
    return registry.folder / "checkpoints" / f"{key}.safetensors"


def _check(backbone: FrozenBackbone, request: Request) -> None:
    """Refuses requests whose parts do not fit, all problems at once."""
    check_name(request.name)  # before the training, not after it
    checked_tags(request.tags)
    config = request.config
    problems = config.conflicts()
    if config.method in PLACED_BEFORE and (request.sources or request.init_from):
        problems.append(f"{config.method} starts from no prompt")
    if config.method == "dept":
        offsets_shape(backbone.width, config.prompt_length, offset_positions(backbone, request.task, config))
    if config.method == "attempt" and not request.sources:
        problems.append("ATTEMPT needs source prompts: --sources a,b,c or --sources all")
    backbone.label_tokens(request.task.label_words)  # refuses words that the backbone cannot tell apart
    if config.method == "spot" and request.init_from is None:
        problems.append("SPoT starts from a source prompt: --init-from NAME")
    for prompt in (*request.sources, *([request.init_from] if request.init_from else [])):
        if prompt.length != config.prompt_length:
            problems.append(f"'{prompt.ref}' has {prompt.length} tokens, --prompt-length is {config.prompt_length}")
    named = [prompt.ref for prompt in request.sources]
    problems += [f"'{ref}' is named twice in --sources" for ref in dict.fromkeys(named) if named.count(ref) > 1]
    rank = config.attention_rank if config.method == "attempt" else None  # others have no G
    if rank is not None and rank >= backbone.width:
        problems.append(f"--attention-rank {rank} is not below the width {backbone.width}")
    positions = backbone.max_positions
    if positions is not None and config.prompt_length >= positions - 8 and config.method not in WEIGHT_METHODS:
        problems.append(f"--prompt-length {config.prompt_length} leaves no room in {positions} positions")
    if problems:
        raise AttemptError("this cannot be trained:\n  " + "\n  ".join(dict.fromkeys(problems)))


def _record(
    registry: Registry,
    backbone: FrozenBackbone,
    request: Request,
    model: PromptedModel,
    trained: Trained,
    rows: Rows,
    validation: Rows | None,
    processes: Processes,
) -> Outcome:
    """Prompt, G, composition and run become visible together, or not at all."""
    config, task = request.config, training_task(request.task, request.config)
    sources = tuple(prompt.ref for prompt in request.sources)
    parents = tuple(dict.fromkeys([*([request.init_from.ref] if request.init_from else []), *sources]))
    settings = {
        "task": task_fields(task),
        "format": task.format,
        "training": config.model_dump(exclude_none=True),
        "total_steps": trained.total,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "init_from": _start(request),
    }
    trained_parameters = sum(tensor.numel() for tensor in trained_tensors(model.trained))
    budget = {
        "steps": trained.state.step,
        "rows_per_step": config.rows_per_step(processes.count),
        "processes": processes.count,
        "training_rows": len(rows.examples),
        "trained_parameters": trained_parameters,
    }
    row_record = {"train": {"origin": rows.origin, "sha256": rows.sha256, "n": len(rows.examples)}}
    if request.train_rows is not None:  # a sample: which rows is part of the result
        row_record["train"]["rows"] = [example.row for example in rows.examples]
    if validation is not None:
        row_record["validation"] = {
            "origin": validation.origin,
            "sha256": validation.sha256,
            "n": len(validation.examples),
        }
    with registry.transaction():
        kept = _record_prompt(registry, request, model, settings, trained.numbers, parents)
        run = registry.add_run(
            command=request.command,
            settings=settings,
            rows=row_record,
            seed=config.seed,
            budget=budget,
            numbers=trained.numbers,
            versions=versions(),
            duration=trained.state.seconds,
            artefacts=[f"{kind}:{ref}" for kind, ref in kept.items()],
            inputs=[f"prompt:{ref}" for ref in parents],
        )
    return Outcome(
        kept.get("prompt"),
        kept.get("composition"),
        kept.get("attention"),
        model,
        trained,
        0,
        len(rows.examples),
        trained_parameters,
        run.id,
    )


def _start(request: Request) -> str:
    """What the training started from, in words or as a prompt's full name."""
    if request.config.method in WEIGHT_METHODS:
        return "the backbone"
    if request.config.method == "mpt" and request.sources:
        return "the mean of the sources"
    return request.init_from.ref if request.init_from else "vocabulary"


def _record_prompt(
    registry: Registry,
    request: Request,
    model: PromptedModel,
    settings: dict[str, Any],
    numbers: dict[str, Any],
    parents: tuple[str, ...],
) -> dict[str, str]:
    """Records the prompt, and G and the composition where sources are mixed.

    Returns:
        Each record's full name by its kind; none where what was trained is no prompt.
    """
    mixture, backbone, config = model.mixture, model.backbone, request.config
    if not isinstance(mixture, PromptMixture | SharedPrompt):
        return {}
    sources = tuple(prompt.ref for prompt in request.sources)
    identity: dict[str, Any] = {"backbone": backbone.name, "fingerprint": backbone.fingerprint, "note": request.note}
    prompt = registry.add_prompt(
        mixture.target_prompts[0].detach().cpu().numpy(),
        name=request.name,
        kind=request.kind,
        method=config.method,
        task=request.task.name,
        task_version=request.task.version,
        embedding_scale=model.scale,
        placement=model.placement,
        settings=settings,
        numbers=numbers,
        seed=config.seed,
        tags=request.tags,
        parents=parents,
        **identity,
    )
    kept = {"prompt": prompt.ref}
    if isinstance(mixture, SharedPrompt) or mixture.source_prompts is None:
        return kept
    if mixture.attention is not None:
        attention = registry.add_attention(
            {name: tensor.detach().cpu().numpy() for name, tensor in mixture.attention.state_dict().items()},
            name=request.name,
            rank=mixture.attention.rank,
            level=mixture.level,
            temperature=mixture.attention.temperature,
            width=backbone.width,
            placement=model.placement,
            settings={"embedding_scale": model.scale, "training": settings["training"]},
            seed=config.seed,
            parents=sources,
            **identity,
        )
        kept["attention"] = attention.ref
    composition = registry.add_composition(
        name=request.name,
        sources=sources,
        attention=kept.get("attention"),
        targets=(prompt.ref,),
        settings=mixing_settings(mixture, sources, model.scale),
        **identity,
    )
    return {**kept, "composition": composition.ref}
