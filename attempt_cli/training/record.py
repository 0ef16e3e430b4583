"""Records a training: prompts, G, the composition and the run become visible together, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from attempt_cli.artefacts import OF_G, mixing_settings, told_of, versions
from attempt_cli.data.fields import task_fields
from attempt_cli.evaluation.record import rows_record
from attempt_cli.method import PromptMixture
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.gradient import trained_tensors
from attempt_cli.training.loop import Trained
from attempt_cli.training.request import Outcome, Request, TaskRows
from attempt_registry import Prompt, Registry


def record_training(
    registry: Registry,
    request: Request,
    model: PromptedModel,
    trained: Trained,
    *,
    command: str,
    processes: int,
) -> Outcome:
    """Writes what the request keeps of a training, in one transaction.

    Args:
        registry: where to.
        request: what was asked for.
        model: what was trained.
        trained: how it went.
        command: as it was typed.
        processes: how many processes shared the training.
    """
    return _Recorder(registry, request, model, trained).record(command, processes)


class _Recorder:
    def __init__(self, registry: Registry, request: Request, model: PromptedModel, trained: Trained) -> None:
        self.registry, self.request, self.model, self.trained = registry, request, model, trained
        backbone, config = model.backbone, request.config
        self.sources = tuple(prompt.ref for prompt in request.sources)
        self.identity: dict[str, Any] = {
            "backbone": backbone.name,
            "fingerprint": backbone.fingerprint,
            "note": request.note,
        }
        self.training = config.model_dump(exclude_none=True)
        self.settings: dict[str, Any] = {
            "training": self.training,
            "total_steps": trained.total,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            **told_of(backbone),
        }
        self.frame = {} if model.frame is None else {"chat_template": model.frame.text}
        self.settings |= self.frame
        if request.keep != "targets":
            self.settings["keep"] = request.keep
        if len(request.tasks) > 1:
            self.settings |= {
                "tasks": [rows.task.name for rows in request.tasks],
                "max_rows_per_task": request.max_rows_per_task,
                "sampling_temperature": request.sampling_temperature,
            }

    def record(self, command: str, processes: int) -> Outcome:
        request, config, trained = self.request, self.request.config, self.trained
        inputs = [f"prompt:{ref}" for ref in self._parents(*request.starts)]
        if request.attention_from is not None:
            inputs.append(f"attention:{request.attention_from.ref}")
        trained_parameters = sum(tensor.numel() for tensor in trained_tensors(self.model.trained))
        counts = {rows.task.name: len(rows.train.examples) for rows in request.tasks}
        alone = len(request.tasks) == 1
        own = {**self.settings, **self._task_settings(0)} if alone else self.settings
        with self.registry.transaction():
            prompts = self._add_prompts() if config.row.kept and request.keep != "attention" else {}
            attention = self._add_attention()
            composition = self._add_composition(attention, prompts)
            kept = [("prompt", ref) for ref in dict.fromkeys(prompts.values())]
            kept += [("attention", attention)] if attention and request.onto is None else []
            kept += [("composition", composition)] if composition else []
            run = self.registry.add_run(
                command=command,
                settings=own,
                rows=_rows_record(request.tasks),
                seed=config.seed,
                budget={
                    "steps": trained.state.step,
                    "rows_per_step": config.rows_per_step(processes),
                    "processes": processes,
                    "training_rows": sum(counts.values()),
                    "trained_parameters": trained_parameters,
                },
                numbers=trained.numbers,
                versions=versions(),
                duration=trained.state.seconds,
                artefacts=[f"{kind}:{ref}" for kind, ref in kept],
                inputs=inputs,
            )
        return Outcome(
            request, prompts, composition, attention, self.model, trained, counts, trained_parameters, run.id
        )

    def _parents(self, *starts: Prompt | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(start.ref for start in starts if start is not None), *self.sources]))

    def _task_settings(self, number: int) -> dict[str, Any]:
        task, start = self.request.tasks[number].task, self.request.starts[number]
        return {
            "task": task_fields(task),
            "format": task.format,
            "init_from": start.ref if start is not None else self.request.config.row.start,
        }

    def _add_prompts(self) -> dict[str, str]:
        """Records a prompt for each task, or one for all; returns each task's full name of it."""
        request, mixture = self.request, self.model.mixture
        assert mixture is not None
        names = [rows.task.name for rows in request.tasks]
        shared = request.keep == "shared"
        tensors: np.ndarray[Any, Any] = mixture.kept_prompts(shared).detach().cpu().numpy()
        prompts: dict[str, str] = {}
        for number, rows in enumerate(request.tasks[: 1 if shared else None]):
            prompt = self.registry.add_prompt(
                tensors[number],
                name=request.prompt_name(rows.task),
                kind=request.kind,
                method=request.config.method,
                task="+".join(names) if shared else rows.task.name,
                task_version=rows.task.version,
                embedding_scale=self.model.scale,
                placement=self.model.placement,
                settings={**self.settings, **self._task_settings(number)},
                numbers=self.trained.numbers,
                seed=request.config.seed,
                tags=request.tags,
                parents=self._parents(request.starts[number]),
                parts={name: part.detach().cpu().numpy() for name, part in mixture.kept_parts(number).items()},
                **self.identity,
            )
            prompts[rows.task.name] = prompt.ref
        return dict.fromkeys(names, next(iter(prompts.values()))) if shared else prompts

    def _add_attention(self) -> str | None:
        """Records the trained G, if there is one; returns its full name, or that of the G that stays as it is."""
        request, mixture, given = self.request, self.model.mixture, self.request.attention_from
        if request.onto is not None:
            return given.ref if given else None
        if not isinstance(mixture, PromptMixture) or mixture.attention is None:
            return None
        settings: dict[str, Any] = {"embedding_scale": self.model.scale, "training": self.training, **self.frame}
        plain = {"reads": "words", "top": None, "cosine": False}
        own = {name: getattr(mixture.attention, name) for name in OF_G}
        settings |= {name: value for name, value in own.items() if value != plain[name]}
        if mixture.prior is not None:
            settings["evidence"] = True
        if "tasks" in self.settings:
            settings["tasks"] = self.settings["tasks"]
        return self.registry.add_attention(
            {name: tensor.detach().cpu().numpy() for name, tensor in mixture.attention.state_dict().items()},
            name=request.name,
            rank=mixture.attention.rank,
            level=mixture.level,
            temperature=mixture.attention.temperature,
            width=self.model.backbone.width,
            placement=self.model.placement,
            settings=settings,
            seed=request.config.seed,
            parents=(*self.sources, *([f"attention:{given.ref}"] if given else [])),
            **self.identity,
        ).ref

    def _add_composition(self, attention: str | None, prompts: dict[str, str]) -> str | None:
        """Records how sources and targets are mixed, where they are; returns the composition's full name."""
        request, mixture, onto = self.request, self.model.mixture, self.request.onto
        mixes = isinstance(mixture, PromptMixture) and mixture.source_prompts is not None
        if not mixes or request.keep != "targets":
            return None
        assert isinstance(mixture, PromptMixture)
        settings = mixing_settings(mixture, self.sources, self.model.scale, list(prompts.values()))
        if onto is not None and "prior" in onto.settings:  # the other targets keep theirs
            settings["prior"] = {**onto.settings["prior"], **settings.get("prior", {})}
        return self.registry.add_composition(
            name=onto.name if onto else request.name,
            sources=self.sources,
            attention=attention,
            targets=(*(onto.targets if onto else ()), *prompts.values()),
            settings=settings,
            **self.identity,
        ).ref


def _rows_record(tasks: tuple[TaskRows, ...]) -> dict[str, Any]:
    """Returns what a run says of the rows it used: one task's by split, those of several by task.

    Which rows a sample holds is part of the result: their numbers are kept.
    """
    records = [
        {
            "train": rows_record(rows.train, numbers=rows.sampled),
            **({"validation": rows_record(rows.validation, numbers=False)} if rows.validation is not None else {}),
        }
        for rows in tasks
    ]
    if len(tasks) == 1:
        return records[0]
    return {rows.task.name: {**record.pop("train"), **record} for rows, record in zip(tasks, records, strict=True)}
