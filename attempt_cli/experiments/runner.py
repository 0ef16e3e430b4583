"""Fills the cells of a grid: trains or only scores, and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from attempt_cli.artefacts import bare, load_prompt, new_differences, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import ChatFrame
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.machine import machine_name
from attempt_cli.data.fields import task_fields
from attempt_cli.errors import AttemptError, StoppedError, first_line
from attempt_cli.evaluation.evaluate import Evaluation, evaluate_many
from attempt_cli.evaluation.prediction import PromptedTask, Reading, encode_examples
from attempt_cli.evaluation.record import record_evaluation, rows_record
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec, finished_cells, prepared_artefacts
from attempt_cli.experiments.choices import Choices, Search
from attempt_cli.experiments.instead import INSTEAD, Asked
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.experiments.plan import Plan
from attempt_cli.keys import content_key
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig, make_config
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.request import Outcome, Request, TaskRows
from attempt_cli.training.run import train, train_together
from attempt_registry import Registry, RegistryError


class Runner:
    """Fills cells one after the other; keeps the backbone and the rows, which the next cell may need.

    Args:
        plan: what all cells share.
        finished, prepared: the results that are there, by key; without them those of the registry, if the plan resumes.
    """

    def __init__(
        self,
        plan: Plan,
        finished: Mapping[str, Cell] | None = None,
        prepared: Mapping[str, tuple[str, float]] | None = None,
    ) -> None:
        self.plan = plan
        self.registry = Registry.open(plan.registry)
        self.choices = Choices(plan, self.registry)
        if finished is None:
            finished = finished_cells(self.registry) if plan.resume else {}
        if prepared is None:
            prepared = prepared_artefacts(self.registry) if plan.resume else {}
        self.finished, self.prepared = dict(finished), dict(prepared)
        self._backbones: dict[str, FrozenBackbone | AttemptError] = {}
        self._told: set[tuple[str, str]] = set()

    def run(self, spec: CellSpec, listener: Listener | None = None) -> CellResult:
        """Returns the cell's results: those that are finished, else new ones.

        Raises:
            AttemptError: what the cell needs is missing or does not fit.
            TrainingStoppedError: stopped by a signal; the checkpoint is written.
        """
        listener = listener or Listener()
        begun = self._begun(spec, listener)
        return begun if isinstance(begun, CellResult) else self._trained(begun, listener)

    def run_many(self, specs: Sequence[CellSpec], listener: Listener | None = None) -> list[CellResult | AttemptError]:
        """Returns each cell's results, or why it failed; those of prompts are trained in one pass where that can be.

        Args:
            specs: cells of one affinity.
            listener: is told how it goes.

        Raises:
            TrainingStoppedError: stopped by a signal; the checkpoints are written.
        """
        listener = listener or Listener()
        found: dict[int, CellResult | AttemptError] = {}
        together: dict[int, _Training] = {}
        for number, spec in enumerate(specs):
            try:
                begun = self._begun(spec, listener)
                if isinstance(begun, CellResult):
                    found[number] = begun
                elif begun.request.joins_banks and len(specs) > 1:
                    together[number] = begun
                else:
                    found[number] = self._trained(begun, listener)
            except StoppedError:
                raise
            except AttemptError as error:
                found[number] = error
        if together:
            results = self._trained_together(list(together.values()), listener)
            found |= {number: results[place] for place, number in enumerate(together)}
        return [found[number] for number in range(len(specs))]

    def request(self, spec: CellSpec, listener: Listener) -> tuple[Request, Search | None]:
        """Returns what a cell trains, and the search for its start where its method has one; that is trained once."""
        rows = self.choices.rows(spec)
        search = self._search(spec, rows[0], listener) if METHODS[spec.method].source == "nearest" else None
        return self.choices.request(spec, rows, self._backbone(spec.backbone), search), search

    def stop(self) -> None:
        """Does nothing: signals reach a training in this process by themselves."""

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def use_backbone(self, name: str, backbone: FrozenBackbone) -> None:
        """Takes a backbone that is loaded already, under the name of the specifications."""
        self._backbones = {name: backbone}

    def _untrained(self, spec: CellSpec, rows: TaskRows) -> Cell:
        """Scores the bare backbone or the best source as it stands: that depends on no steps and no seed."""
        backbone, settings = self._backbone(spec.backbone), self.plan.settings
        sources = self.choices.sources(spec) if METHODS[spec.method].uses_sources else ()
        max_length = settings.get("max_length")
        start = self.choices.best_source(backbone, rows, sources, max_length) if sources else None
        if start is None:
            loaded = bare(backbone, chat_template=self.choices.in_chat(spec))
        else:
            loaded = load_prompt(self.registry, backbone, start)
        identity = self._asked(rows, backbone, max_length, loaded.model.frame)
        identity["start"] = start.sha256 if start else None
        key = content_key(identity)
        if key in self.finished:
            return self._for(spec, self.finished[key])
        config = make_config(None, **{name: value for name, value in settings.items() if "max_" in name})
        (result,) = self._read([PromptedTask(loaded.model, rows.task)], config)
        return self._recorded(spec, rows, config, key, result, loaded.name, loaded.inputs, model=loaded.model)

    def _instead(self, spec: CellSpec, rows: TaskRows) -> Cell:
        """Answers the test rows without training a prompt or weights; records an evaluation for each answer to a row.

        Demonstrations in several orders are several models: each order's run can be compared, the cell has the mean.
        """
        way = INSTEAD[spec.method]
        way.check(rows.task)
        backbone, settings = self._backbone(spec.backbone), self.plan.settings
        config = make_config(None, **{name: value for name, value in settings.items() if "max_" in name})
        test, in_chat = self.choices.test_rows(rows.task), self.choices.in_chat(spec)
        identity = self._asked(rows, backbone, config.max_length, backbone.chat_frame if in_chat else None)
        identity |= {"instead": spec.method, **way.identity(rows, spec.seed)}
        key = content_key(identity)
        if key in self.finished:
            return self._for(spec, self.finished[key])
        reading: Reading = {"max_length": config.max_length, "max_tokens": config.max_tokens}
        found = way.answer(Asked(backbone, rows, test, spec.seed, reading, in_chat))
        scores = [one.score for one in found.results]
        several = len(scores) > 1
        cell = Cell(
            task=rows.task.name,
            method=spec.method,
            seed=spec.seed,
            score=found.score,
            interval=found.interval,
            n=len(test.examples),
            prompt=found.name,
            steps=0,
            backbone=backbone.name,
            trained_parameters=found.trained_parameters,
            seconds=round(found.training_seconds + sum(one.predictions.seconds for one in found.results), 1),
            key=key,
            extra_tokens=found.extra_tokens,
            training_seconds=round(found.training_seconds, 1),
            orders=scores if several else None,
            dtype=backbone.precision.replace("torch.", ""),
            machine=machine_name(backbone.device),
        )
        cell = self._for(spec, cell)
        if not several:
            self._keep(spec, rows, config, cell, found.results[0])
            return cell
        for number, result in enumerate(found.results, start=1):
            name = f"{found.name}, order {number} of {len(scores)}"
            one = replace(cell, score=result.score, interval=result.interval, orders=None, key="", prompt=name)
            self._keep(spec, rows, config, one, result)
        self.registry.add_run(
            command=self.plan.command,
            settings={"method": spec.method, "cell": key, "task": task_fields(rows.task), "format": rows.task.format},
            rows={"train": rows_record(rows.train), "test": rows_record(test)},
            seed=spec.seed,
            numbers=asdict(cell),
            versions=versions(),
            duration=cell.seconds,
        )
        self.finished[key] = cell
        return cell

    def _asked(
        self, rows: TaskRows, backbone: FrozenBackbone, max_length: int | None, frame: ChatFrame | None
    ) -> dict[str, Any]:
        """Returns what the result of every cell without training depends on, for its key."""
        identity = {
            "task": task_fields(rows.task) | {"format": rows.task.format},
            "test": self.choices.test_rows(rows.task).sha256,
            "backbone": [backbone.fingerprint, backbone.precision],
            "max_length": max_length,
        }
        return identity if frame is None else identity | {"chat_template": frame.text}

    def _begun(self, spec: CellSpec, listener: Listener) -> CellResult | _Training:
        """Returns what a cell is to train; the result of one that trains nothing, or is finished."""
        self.choices.turn_to(spec)
        if spec.kind in PREPARED:
            return CellResult(artefact=self._prepared(spec, listener))
        rows = self.choices.rows(spec)
        for one in rows:
            self.choices.test_rows(one.task)  # missing ones are found before a backbone is loaded
        if spec.method in INSTEAD:
            return CellResult((self._instead(spec, rows[0]),))
        if METHODS[spec.method].uses_sources:
            sources = self.choices.sources(spec)
            for remark in new_differences(self.registry, self._backbone(spec.backbone), sources, self._told):
                listener.note(remark)
        if not METHODS[spec.method].trains:
            return CellResult((self._untrained(spec, rows[0]),))
        backbone = self._backbone(spec.backbone)
        request, search = self.request(spec, listener)
        training = request.key(backbone)
        keys = [
            content_key(
                {
                    "training": training,
                    "method": spec.method,
                    **({"searched": search.steps} if search else {}),
                    "task": one.task.name,
                    "test": self.choices.test_rows(one.task).sha256,
                }
            )
            for one in rows
        ]
        if all(key in self.finished for key in keys):
            return _result(spec, tuple(self._for(spec, self.finished[key]) for key in keys))
        return _Training(spec, rows, request, keys, search)

    def _trained(self, one: _Training, listener: Listener) -> CellResult:
        """Trains a cell's model, or that of several tasks, and scores it on the test rows of each task."""
        request, results = one.request, list[Evaluation]()

        def score(model: PromptedModel) -> None:
            results.extend(self._scored([model], [one], number)[0] for number in range(len(one.rows)))

        try:
            outcome = train(
                self.registry,
                self._backbone(one.spec.backbone),
                request,
                command=self.plan.command,
                resume=self.plan.resume,
                listener=listener,
                on_trained=score,
            )
        except TrainingStoppedError as error:
            raise TrainingStoppedError(
                f"{error.message.split(';')[0]} of {request.name}", "What was finished is in the registry."
            ) from None
        assert outcome is not None
        try:
            return self._kept(one, outcome, results, listener)
        finally:
            outcome.release()

    def _trained_together(self, trainings: Sequence[_Training], listener: Listener) -> list[CellResult | AttemptError]:
        """Trains the models of several cells in one pass, and scores them on one reading of the test rows."""
        found: dict[int, CellResult | AttemptError] = {}
        scores: dict[int, list[Evaluation]] = {}

        def score(models: Mapping[int, PromptedModel]) -> None:
            own = [trainings[number] for number in models]
            for task in range(len(own[0].rows)):
                for number, result in zip(models, self._scored(list(models.values()), own, task), strict=True):
                    scores.setdefault(number, []).append(result)

        outcomes = train_together(
            self.registry,
            self._backbone(trainings[0].spec.backbone),
            [one.request for one in trainings],
            command=self.plan.command,
            resume=self.plan.resume,
            listener=listener,
            on_trained=score,
        )
        try:
            for number, outcome in outcomes:
                if isinstance(outcome, AttemptError):
                    found[number] = outcome
                else:
                    found[number] = self._kept(trainings[number], outcome, scores[number], listener)
        except AttemptError:
            raise
        except Exception as error:  # memory that does not hold all of them, or one that is ill: each on its own, then
            listener.note(f"{first_line(error)}: {len(trainings) - len(found)} cells are trained one by one.")
            for number, one in enumerate(trainings):
                if number not in found:
                    found[number] = self._alone(one, listener)
        return [found[number] for number in range(len(trainings))]

    def _alone(self, one: _Training, listener: Listener) -> CellResult | AttemptError:
        """Trains a cell's model as if there were no others; returns why that failed."""
        try:
            return self._trained(one, listener)
        except StoppedError:
            raise
        except Exception as error:
            return error if isinstance(error, AttemptError) else AttemptError(first_line(error))

    def _kept(self, one: _Training, outcome: Outcome, results: Sequence[Evaluation], listener: Listener) -> CellResult:
        """Records the cells of a training that has ended."""
        for warning in outcome.trained.warnings:
            listener.note(f"Warning: {one.spec}: {warning}")
        cells = [
            self._recorded(
                one.spec,
                rows,
                one.request.config,
                key,
                result,
                *named(outcome, rows.task.name),
                outcome,
                search=one.search,
            )
            for rows, key, result in zip(one.rows, one.keys, results, strict=True)
        ]
        return _result(one.spec, tuple(cells))

    def _search(self, spec: CellSpec, rows: TaskRows, listener: Listener) -> Search:
        """Trains the prompt that a start is searched with, once; returns the source that is nearest to it."""
        request = self.choices.search(spec, rows)
        made, seconds = self._once(spec, request, "prompt", listener, here=True)
        steps = request.config.total_steps(len(rows.train.examples))
        return Search(self.choices.nearest(self.registry.prompt(made), self.choices.sources(spec)), steps, seconds)

    def _scored(self, models: Sequence[PromptedModel], trainings: Sequence[_Training], number: int) -> list[Evaluation]:
        """Scores models on the test rows of the task of a number, as `_read` does."""
        config, task = trainings[0].request.config, trainings[0].rows[number].task
        prompted = [
            PromptedTask(model, task, one.request.task_index(number))
            for model, one in zip(models, trainings, strict=True)
        ]
        return self._read(prompted, config)

    def _read(self, prompted: Sequence[PromptedTask], config: TrainingConfig) -> list[Evaluation]:
        """Scores models of a task on its test rows, which are read once for all models with prompts after the input."""
        model, task = prompted[0].model, prompted[0].task
        backbone, limit, test = model.backbone, config.max_length, self.choices.test_rows(task)
        if backbone.input_cache is not None and model.placement == "after":
            backbone.input_cache.pin(
                f"{test.sha256} {limit} {model.prompt_length} {model.around}",
                lambda: encode_examples(model, task, test.examples, limit),
                backbone.cache_bytes_per_token,
            )
        return evaluate_many(prompted, test.examples, max_length=limit, max_tokens=config.max_tokens)

    def _recorded(
        self,
        spec: CellSpec,
        rows: TaskRows,
        config: TrainingConfig,
        key: str,
        result: Evaluation,
        prompt: str,
        inputs: Sequence[str],
        outcome: Outcome | None = None,
        model: PromptedModel | None = None,
        search: Search | None = None,
    ) -> Cell:
        """Records the cell of a score, with the rows that were trained on; returns it.

        Of a training on several tasks each has its share of steps and time; those of a search count.
        """
        weights, count = result.mean_attention, len(spec.tasks)
        numbers = outcome.trained.numbers if outcome else {}
        names = [*(source.ref for source in outcome.request.sources), "target"] if outcome else []
        model = outcome.model if outcome else model
        steps = (outcome.trained.state.step if outcome else 0) + (search.steps if search else 0)
        training = numbers.get("seconds", 0.0) + (search.seconds if search else 0.0)
        validated = outcome.trained.state.best_score if outcome else None
        backbone = self._backbone(spec.backbone)
        cell = Cell(
            task=rows.task.name,
            method=spec.method,
            seed=spec.seed,
            score=result.score,
            interval=result.interval,
            n=result.n,
            prompt=prompt,
            steps=round(steps / count),
            attention=None if weights is None else dict(zip(names, weights, strict=True)),
            backbone=backbone.name,
            trained_parameters=round(outcome.parameters_per_task) if outcome else 0,
            peak_memory=numbers.get("peak_memory"),
            seconds=round(training / count + result.predictions.seconds, 1),
            bank=numbers.get("bank", 1),
            validation_score=_finite(validated, 0),
            validation_log_likelihood=_finite(validated, 1),
            swept=dict(spec.swept) or None,
            moved=numbers.get("moved"),
            key=key,
            extra_tokens=extra_tokens(model) if model is not None else 0,
            training_seconds=round(training / count, 1),
            dtype=backbone.precision.replace("torch.", ""),
            machine=machine_name(backbone.device),
        )
        cell = self._for(spec, cell)
        self._keep(spec, rows, config, cell, result, inputs)
        return cell

    def _keep(
        self,
        spec: CellSpec,
        rows: TaskRows,
        config: TrainingConfig,
        cell: Cell,
        result: Evaluation,
        inputs: Sequence[str] = (),
    ) -> None:
        """Writes a cell to the registry as a run that can be compared; one with a key is not filled again."""
        record_evaluation(
            self.registry,
            rows.task,
            self.choices.test_rows(rows.task),
            result,
            {**asdict(cell), "metrics": result.metrics, "model": cell.prompt},
            command=self.plan.command,
            seed=spec.seed,
            settings={
                "method": spec.method,
                **({"cell": cell.key} if cell.key else {}),
                "training": config.model_dump(exclude_none=True),
            },
            budget={"steps": cell.steps},
            other_rows={"train": rows_record(rows.train)},
            inputs=inputs,
        )
        if cell.key:
            self.finished[cell.key] = cell

    def _for(self, spec: CellSpec, cell: Cell) -> Cell:
        """Returns a cell as the specification's: an untrained one counts for every seed and number of rows."""
        sources = len(self.choices.sources(spec)) if METHODS[spec.method].uses_sources else None
        return replace(cell, seed=spec.seed, k=spec.k, sources=sources)

    def _prepared(self, spec: CellSpec, listener: Listener) -> str:
        """Trains on the source tasks of a target what it starts from, once; its key is a hash of all it depends on.

        Returns:
            The full name of the attention (the prior), or of the prompt of all source tasks.
        """
        kind = "attention" if spec.kind == "attention" else "prompt"
        return self._once(spec, self.choices.preparation(spec), kind, listener)[0]

    def _once(
        self, spec: CellSpec, request: Request, kind: str, listener: Listener, *, here: bool = False
    ) -> tuple[str, float]:
        """Trains what others start from, unless it is there: returns its full name, and the seconds that it took.

        Args:
            here: it has to be in this very registry.
        """
        backbone, plan = self._backbone(spec.backbone), self.plan
        key = request.key(backbone)
        if key in self.prepared and not (here and self._lacks_prompt(self.prepared[key][0])):
            return self.prepared[key]
        outcome = train(self.registry, backbone, request, command=plan.command, resume=plan.resume, listener=listener)
        assert outcome is not None
        made = outcome.attention if kind == "attention" else outcome.prompt
        assert made is not None
        seconds = float(outcome.trained.numbers.get("seconds", 0.0))
        self.registry.add_run(
            command=plan.command,
            settings={"prepared": key, "training": request.config.model_dump(exclude_none=True)},
            seed=spec.seed,
            numbers={"made": made, "seconds": seconds},
            versions=versions(),
            inputs=[f"{kind}:{made}"],
        )
        self.prepared[key] = made, seconds
        return made, seconds

    def _lacks_prompt(self, ref: str) -> bool:
        """Tells whether a prompt is in another registry alone: an actor has its own."""
        try:
            self.registry.prompt(ref)
        except RegistryError:
            return True
        return False

    def _backbone(self, name: str) -> FrozenBackbone:
        """Returns the backbone, loaded once; one that cannot be loaded is not tried again for every cell."""
        plan = self.plan
        if name not in self._backbones:
            self._backbones.clear()  # one at a time in memory
            try:
                loaded = load_backbone(name, device=plan.device, dtype=plan.dtype, quantize=plan.quantize)
                loaded.keep_inputs(plan.input_cache)
                self._backbones[name] = loaded
            except AttemptError as error:
                self._backbones[name] = error
        found = self._backbones[name]
        if isinstance(found, AttemptError):
            raise found
        return found


@dataclass(frozen=True)
class _Training:
    """What a cell is to train, its rows, the key of each task's result, and the search that came before."""

    spec: CellSpec
    rows: Sequence[TaskRows]
    request: Request
    keys: Sequence[str]
    search: Search | None = None


def _finite(numbers: Sequence[float] | None, place: int) -> float | None:
    """Returns one of the numbers that chose a step; None where none were taken, or it is none that JSON has."""
    return numbers[place] if numbers is not None and math.isfinite(numbers[place]) else None


def _result(spec: CellSpec, cells: tuple[Cell, ...]) -> CellResult:
    return CellResult(cells, cells[0].prompt if spec.kind == "source" else None)


def named(outcome: Outcome, task: str) -> tuple[str, list[str]]:
    """Returns the full name of what a training left for a task, its run where nothing is kept; and its parts' names."""
    if not outcome.prompts:
        return f"{outcome.request.name} (run {outcome.run})", []
    prompt, composition = outcome.prompts[task], outcome.composition
    name = f"{prompt} of {composition}" if len(outcome.rows) > 1 else composition or prompt
    return name, [f"prompt:{prompt}", *([f"composition:{composition}"] if composition else [])]


def extra_tokens(model: PromptedModel) -> int:
    """Returns the tokens that a model's prompt adds to every query; a chat template's are not counted."""
    return model.mixture.length if model.mixture is not None else 0


def record_failure(registry: Registry, command: str, spec: CellSpec, error: str, seconds: float) -> None:
    """Records as a run that a cell failed, and why."""
    registry.add_run(
        command=command,
        settings={"method": spec.method, "failed": asdict(spec)},
        seed=spec.seed,
        numbers={"failed": error},
        versions=versions(),
        duration=seconds,
    )
