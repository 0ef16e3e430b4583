"""What is to be trained, what a training leaves, and what is refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.data.example import RowError
from attempt_cli.data.fields import task_fields
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.keys import content_key
from attempt_cli.late_imports import imported
from attempt_cli.training.config import TrainingConfig
from attempt_registry import Attention, Composition, Prompt, Registry
from attempt_registry.add import check_one_placement, check_plain, checked_tags
from attempt_registry.references import check_name, check_seen

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.backbones.chat import ChatFrame
    from attempt_cli.prompted import PromptedModel
    from attempt_cli.training.loop import Trained

KEPT = ("targets", "attention", "shared")


@dataclass(frozen=True)
class TaskRows:
    """A task with the rows that it is trained on.

    Args:
        task: the task.
        train: the training rows.
        validation: the rows that choose the checkpoint; None keeps the last step.
        sampled: whether the training rows are a sample, so that a record names each of them.
        note: why there are no validation rows, where some were wanted.
    """

    task: Task
    train: Rows
    validation: Rows | None = None
    sampled: bool = False
    note: str = ""


def load_task_rows(
    task: Task, config: TrainingConfig, *, data_dir: Path | None = None, limit: int | None = None
) -> TaskRows:
    """Loads the rows that a task is trained on, and those that choose its checkpoint, if any are wanted.

    Args:
        task: the task.
        config: says whether validation rows are wanted, how many, and the seed of samples.
        data_dir: rows in the hub's layout.
        limit: a random sample of at most this many training rows.

    Raises:
        AttemptError: training rows that cannot be found; validation rows that --eval-every asks for, or that are in
            files of one's own, and cannot be found; a row that does not fit the task.
    """
    if config.eval_every == 0 and task.files and task.split_rule == "held-out":
        task = task.model_copy(update={"split_rule": "own"})  # without validation no training rows are held out
    train = load_examples(task, "train", data_dir=data_dir, limit=limit, seed=config.seed)
    if config.eval_every == 0:
        return TaskRows(task, train, sampled=limit is not None)
    try:
        validation = load_examples(task, "validation", data_dir=data_dir, limit=config.eval_rows, seed=config.seed)
    except AttemptError as error:
        if config.eval_every is not None or task.files or isinstance(error, RowError):
            raise
        # a folder often holds the training rows only (MNLI's validation is a split of its own): train all the same
        note = f"no validation rows were found, the last step is kept ({error.message})"
        return TaskRows(task, train, None, limit is not None, note)
    return TaskRows(task, train, validation, limit is not None)


@dataclass(frozen=True)
class Request:
    """What is to be trained, on one task or on several at once.

    Args:
        tasks: the tasks with their rows; no two of one name.
        name: of what is kept. With one task its prompt has this name, with several `NAME.TASK`.
        config: the settings, with the method.
        kind: "source" or "target".
        keep: "targets": each task's prompt, G and the composition; "attention": G alone (the attention prior);
            "shared": one prompt for all tasks, without sources (SPoT-generic; with the method mpt every task's
            low-rank factors are trained with it, and only P* is kept), or with a weight method one set of weights.
        sources: source prompts, in order.
        init_from: where each task's prompt starts; None samples the vocabulary. Empty: None for all.
        attention_from: a trained G to start from.
        onto: a composition whose G and targets stay as they are, and which gets these tasks' targets besides.
        max_rows_per_task: no task counts for more rows in an epoch.
        sampling_temperature: 1 samples tasks in proportion to their rows; more evens them out.
        largest_batch: use as many rows a batch as fit in memory, instead of the configuration's.
        note, tags: for the record.
    """

    tasks: tuple[TaskRows, ...]
    name: str
    config: TrainingConfig
    kind: str = "target"
    keep: str = "targets"
    sources: tuple[Prompt, ...] = ()
    init_from: tuple[Prompt | None, ...] = ()
    attention_from: Attention | None = None
    onto: Composition | None = None
    max_rows_per_task: int | None = None
    sampling_temperature: float = 1.0
    largest_batch: bool = False
    note: str = ""
    tags: tuple[str, ...] = ()

    @property
    def starts(self) -> tuple[Prompt | None, ...]:
        """Where each task's prompt starts."""
        return self.init_from or (None,) * len(self.tasks)

    @property
    def used(self) -> list[Prompt]:
        """The prompts that are mixed or started from, each once."""
        return list(dict.fromkeys([*self.sources, *(start for start in self.starts if start is not None)]))

    @property
    def one_prompt(self) -> bool:
        """Whether all tasks' rows get one prompt, so that all are task 0 to the model."""
        return self.keep == "shared" and not self.config.row.factors

    @property
    def joins_banks(self) -> bool:
        """Whether it can be trained in a bank: it trains a prompt, and no step depends on the order of its rows."""
        given = self.config.method_settings or {}
        apart = any(given[name] for name, setting in self.config.row.settings.items() if setting.apart)
        return self.config.row.banks and not apart

    def task_index(self, number: int) -> int:
        """Returns the prompt's index in the model for the task of that number."""
        return 0 if self.one_prompt else number

    def prompt_name(self, task: Task) -> str:
        """Returns the name under which a task's prompt is kept."""
        alone = self.keep == "shared" or (len(self.tasks) == 1 and self.onto is None)
        return self.name if alone else f"{self.name}.{task.name}"

    def check(self, quantize: str | None = None) -> None:
        """Refuses what can be seen to be wrong without a backbone: names, tags, settings and prompts.

        Args:
            quantize: how the backbone's weights are to be quantised when they are loaded.

        Raises:
            AttemptError: every problem, one a line.
            RegistryError: a name or a tag that the registry would refuse after the training.
        """
        for name in dict.fromkeys([self.name, *(self.prompt_name(rows.task) for rows in self.tasks)]):
            check_name(name)
        for rows in self.tasks:
            check_seen(rows.task.name, "a task")
        checked_tags(self.tags)
        if self.keep not in KEPT:
            raise ValueError(f"keep is one of {KEPT}, not {self.keep!r}")
        config, method = self.config, self.config.row
        problems = [*config.conflicts(), *self._wrong_prompts()]
        if method.trains_weights and quantize:
            problems.append(f"{config.method} trains weights, not those that --quantize {quantize} keeps")
        names = [rows.task.name for rows in self.tasks]
        if len(names) < method.least_tasks:
            problems.append(
                f"{method.title} is trained on {method.least_tasks} tasks at the least, not on {len(names)}"
            )
        problems += [f"the task '{name}' is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        if self.keep == "shared" and self.sources:
            problems.append("one prompt for all tasks is not mixed from sources")
        elif self.keep != "shared":
            given = {"sources": bool(self.sources), "init_from": any(start is not None for start in self.starts)}
            problems += [text] if (text := method.missing(given)) else []
        if self.onto is not None:
            ours = {self.prompt_name(rows.task) for rows in self.tasks}
            there = [ref for ref in self.onto.targets if ref.partition("@")[0] in ours]
            problems += [f"'{self.onto.ref}' has the target {ref} already" for ref in there]
        parts = self._parts
        if config.chat_template is not None:
            problems += [
                f"'{part.ref}' was trained {'inside' if part.chat_template else 'outside of'} a chat template, "
                f"--{'' if config.chat_template else 'no-'}chat-template asks for the other"
                for part in parts
                if config.chat_template != (part.chat_template is not None)
            ]
        _refuse(problems)
        check_plain(self.used)
        check_one_placement(parts)

    @property
    def _parts(self) -> list[Prompt | Attention]:
        return [*self.used, *([self.attention_from] if self.attention_from else [])]

    def _wrong_prompts(self) -> list[str]:
        """Lists prompts that the method cannot use or that differ in length."""
        config, method = self.config, self.config.row
        if self.used and not method.takes:
            return [f"{config.method} starts from no prompt"]
        problems = [
            f"'{prompt.ref}' has {prompt.length} tokens, --prompt-length is {config.prompt_length}"
            for prompt in self.used
            if prompt.length != config.prompt_length
        ]
        named = [prompt.ref for prompt in self.sources]
        return problems + [
            f"'{ref}' is named twice in --sources" for ref in dict.fromkeys(named) if named.count(ref) > 1
        ]

    def on(self, backbone: FrozenBackbone) -> Request:
        """Returns the request with placement and chat template settled: as asked, else as its prompts, else default.

        Raises:
            AttemptError: what does not fit the backbone, every problem in one message.
        """
        config, method, given = self.config, self.config.row, self.attention_from
        problems = []
        rank = config.attention_rank if "attention_rank" in method.options and given is None else None
        if rank is not None and rank >= backbone.width:
            problems.append(f"--attention-rank {rank} is not below the width {backbone.width}")
        if given is not None and given.fingerprint != backbone.fingerprint:
            problems.append(f"the attention '{given.ref}' was trained for {given.backbone}, not for {backbone.name}")
        if method.trains_weights and backbone.quantization:
            problems.append(f"{config.method} trains weights, not those that --quantize {backbone.quantization} keeps")
        if method.trains_weights and backbone.spread:
            problems.append(f"{config.method} trains weights, and those of {backbone.name} are on several GPUs")
        positions = backbone.max_positions
        if positions is not None and config.prompt_length >= positions - 8 and not method.trains_weights:
            problems.append(f"--prompt-length {config.prompt_length} leaves no room in {positions} positions")
        _refuse(problems)
        parts = self._parts
        frame = self._frame(backbone, parts)
        for rows in self.tasks:
            backbone.label_tokens(rows.task.label_words, frame)  # refuses words that the backbone cannot tell apart
        settled = replace(self, config=config.model_copy(update={"chat_template": True if frame else None}))
        if method.check:
            imported(method.check)(backbone, settled)
        wanted = config.placement or (parts[0].placement if parts else None)
        if wanted is None and len(method.placements) == 1:
            wanted = method.placements[0]
        placement = backbone.check_placement(wanted)
        if parts and parts[0].placement != placement:
            raise AttemptError(
                f"'{parts[0].ref}' was trained {parts[0].placement} the input, --placement is {placement}",
                f"Leave --placement out, or train source prompts with --placement {placement}.",
            )
        return replace(settled, config=settled.config.model_copy(update={"placement": placement}))

    def _frame(self, backbone: FrozenBackbone, parts: Sequence[Prompt | Attention]) -> ChatFrame | None:
        """Returns the chat template of the training: as asked for, else that of its prompts.

        Raises:
            AttemptError: its prompts were trained in another one, or the backbone has none.
        """
        from attempt_cli.artefacts import chat_frame_of

        if parts:
            return chat_frame_of(backbone, parts[0])
        return backbone.chat_frame if self.config.chat_template else None

    def key(self, backbone: FrozenBackbone, processes: int = 1) -> str:
        """Names the training by all that its result depends on: a command finds its own checkpoint, and no other's."""
        identity: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "keep": self.keep,
            "tasks": [
                {
                    "task": task_fields(rows.task) | {"format": rows.task.format},
                    "train": rows.train.sha256,
                    "validation": rows.validation.sha256 if rows.validation else None,
                }
                for rows in self.tasks
            ],
            # compiled or not, an unfinished training continues; the chat template counts by its text
            "config": self.config.identity(),
            "backbone": [backbone.fingerprint, backbone.precision],
            "sources": [prompt.sha256 for prompt in self.sources],
            "init_from": [start.sha256 if start else None for start in self.starts],
            "attention": self.attention_from.sha256 if self.attention_from else None,
            "onto": self.onto.ref if self.onto else None,
            "sampling": [self.max_rows_per_task, self.sampling_temperature],
            "processes": processes,
        }
        if self.config.chat_template:
            identity["chat_template"] = backbone.chat_frame.text
        return content_key(identity)


def checkpoint_path(registry: Registry, key: str) -> Path:
    """Returns the file in which a training of this key keeps its state."""
    return registry.folder / "checkpoints" / f"{key}.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What a training left in the registry.

    Args:
        request: what was asked for, with the settings as they were used.
        prompts: the task of each prompt -> its full name; one prompt for all tasks stands under each of them. Empty
            where no prompt is kept (weights, an attention prior): then `model` is all that can predict, until
            `release`.
        composition, attention: full names, or None.
        model: the trained model, ready to predict; task i's prompt is number i.
        trained: how it went.
        rows: training rows of each task.
        trained_parameters: how many numbers were trained.
        run: the run's id.
        notes: what the user should know of the rows.
        test: the score on test rows of a model that cannot be kept, and its run; of several tasks one for each, by
            name; None without one.
    """

    request: Request
    prompts: dict[str, str]
    composition: str | None
    attention: str | None
    model: PromptedModel
    trained: Trained
    rows: dict[str, int]
    trained_parameters: int
    run: int
    notes: Sequence[str] = ()
    test: dict[str, Any] | None = None

    @property
    def prompt(self) -> str | None:
        """The full name of the prompt, where there is one."""
        return next(iter(self.prompts.values()), None)

    @property
    def parameters_per_task(self) -> float:
        """The trained numbers a task: d·m + (2rd + 2d)/N for N targets that share G."""
        return self.trained_parameters / len(self.rows)

    def release(self) -> None:
        """Takes trained weights out of the backbone, which is the frozen one again; prompts leave nothing there."""
        self.model.release()


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise AttemptError("this cannot be trained:\n  " + "\n  ".join(dict.fromkeys(problems)))
