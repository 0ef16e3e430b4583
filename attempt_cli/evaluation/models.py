"""Finds the prompt or composition that a name or a task means, and turns it into a model that predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.changes import Changes, changed
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.data.task import Task
    from attempt_cli.session import Session
    from attempt_registry import Registry


@dataclass(frozen=True)
class TrainedModel:
    """A prompt or a composition on its backbone, or the bare backbone.

    Its record is there at once; its tensors, and with them the backbone, are loaded when they are first needed.

    Args:
        record: from the registry, with the changes applied; None is the bare backbone.
        session: says where the registry and the backbone are.
        changes: the changes to a composition; its name shows them.
        chat_template: the bare backbone reads inside its tokenizer's chat template; a prompt does as it was trained.
    """

    record: Prompt | Composition | None
    session: Session = field(repr=False, compare=False)
    changes: Changes = field(default_factory=Changes)
    chat_template: bool = False
    _kept: dict[str, Loaded] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The full name, e.g. "rte-attempt@1 drop sst2"; "no prompt" for the bare backbone."""
        if self.record is None:
            return "no prompt, in the chat template" if self.chat_template else "no prompt"
        return f"{self.record.ref} {self.changes}" if self.changes else self.record.ref

    @property
    def kind(self) -> str:
        """ "none", "prompt" or "composition"."""
        if self.record is None:
            return "none"
        return "composition" if isinstance(self.record, Composition) else "prompt"

    @property
    def sources(self) -> tuple[str, ...]:
        """The full names of the sources that it mixes."""
        return self.record.sources if isinstance(self.record, Composition) else ()

    @cached_property
    def targets(self) -> tuple[Prompt, ...]:
        """The target prompts: those of a composition, or the prompt itself."""
        if isinstance(self.record, Composition):
            return tuple(self.session.store.prompt(ref) for ref in self.record.targets)
        return (self.record,) if self.record is not None else ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that its target prompts were trained for; none where sources alone are mixed for any task."""
        return tuple(trained_task(prompt.settings, prompt.task) for prompt in self.targets)

    def target_for(self, task: str) -> Prompt | None:
        """Returns the target prompt that serves a task; a single one serves any (transfer), sources alone need none.

        Raises:
            AttemptError: there are several target prompts and none is the task's.
        """
        for prompt in self.targets:
            if prompt.task == task:
                return prompt
        if len(self.targets) <= 1:
            return self.targets[0] if self.targets else None
        raise AttemptError(
            f"the composition '{self.name}' has no target prompt for the task '{task}'",
            f"It has: {', '.join(prompt.task for prompt in self.targets)}.",
        )

    def with_changes(self, changes: Changes | None) -> TrainedModel:
        """Returns the composition with other sources or weights; the same model where nothing changes.

        Raises:
            ArgumentsError: the model is no composition.
            AttemptError: see `changes.changed`.
        """
        if not changes:
            return self
        if not isinstance(self.record, Composition):
            raise ArgumentsError(
                f"'{self.name}' is a prompt: --add, --drop, --only and --weights change compositions",
                "Name a composition: `attempt registry list --what compositions` shows them.",
            )
        return TrainedModel(changed(self.session.store, self.record, changes), self.session, changes)

    def load(self, backbone: FrozenBackbone | None = None) -> Loaded:
        """Loads the tensors onto a backbone, or onto the session's; once for a backbone.

        Raises:
            AttemptError: the backbone is another than the prompts'.
        """
        if backbone is None:
            backbone = self.session.load_backbone(records_of([self]))
        kept = self._kept.get("loaded")
        if kept is None or kept.model.backbone is not backbone:
            self._kept["loaded"] = kept = self._load(backbone)
        return kept

    def _load(self, backbone: FrozenBackbone) -> Loaded:
        from attempt_cli.artefacts import bare, load_composition, load_prompt

        if self.record is None:
            return bare(backbone, chat_template=self.chat_template)
        if isinstance(self.record, Prompt):
            return load_prompt(self.session.store, backbone, self.record)
        return replace(load_composition(self.session.store, backbone, self.record), name=self.name)


def find_model(session: Session, name: str, *, chat_template: bool = False) -> TrainedModel:
    """Finds the composition or prompt of a name; of both, what was made last. `none` is the bare backbone.

    Raises:
        RegistryError: there is neither; the error says the nearest names of both.
        ArgumentsError: `chat_template` for a prompt or composition.
    """
    if name == "none":
        return TrainedModel(None, session, chat_template=chat_template)
    if chat_template:
        raise ArgumentsError(f"'{name}' is used as it was trained", "Leave the chat template to it.")
    return TrainedModel(named_record(session.store, name), session)


def named_record(registry: Registry, name: str) -> Prompt | Composition:
    """Finds the record of the composition or prompt of that name; errors as in `find_model`."""
    from attempt_registry.errors import RegistryError, unknown_name_text

    kinds = registry.kinds_of(name)
    found: list[Prompt | Composition] = []
    if "composition" in kinds:
        found.append(registry.composition(name))
    if "prompt" in kinds:
        found.append(registry.prompt(name))
    if found:
        # a target of ATTEMPT and its composition are made together and share a name: the composition is meant
        alone = [isinstance(record, Prompt) and record.method == "attempt" for record in found]
        return max(zip(found, alone, strict=True), key=lambda pair: (not pair[1], _age(pair[0])))[0]
    known = [*registry.names(kind="composition"), *registry.names(kind="prompt")]
    raise RegistryError(
        *unknown_name_text("prompt or composition", name, dict.fromkeys(known), "attempt registry list")
    )


def model_for_task(session: Session, wanted: Task) -> TrainedModel:
    """Finds what was trained or composed last for a task and the session's backbone.

    Few-shot runs are experiments and do not count; a target of ATTEMPT counts through its composition. Tasks from files
    may have one name by chance: what was trained with other labels, another template or other rows is of another task.

    Raises:
        AttemptError: nothing was trained for the task, or only for another one of its name.
    """
    registry, backbone, task = session.store, session.backbone_name, wanted.name
    experiments = {prompt.ref for prompt in registry.prompts(task=task, backbone=backbone, tag="fewshot")}
    found: list[Prompt | Composition] = [
        *(
            record
            for record in registry.compositions(task=task, backbone=backbone)
            if not experiments & set(record.targets)
        ),
        *(
            record
            for record in registry.prompts(task=task, backbone=backbone)
            if record.ref not in experiments and record.method != "attempt"
        ),
    ]
    namesakes: list[tuple[str, str]] = []
    for record in sorted(found, key=_age, reverse=True):
        model = TrainedModel(record, session)
        differs = next((_differences(p, wanted) for p in model.targets if p.task == task), [])
        if not differs:
            return model
        namesakes.append((record.ref, ", ".join(differs)))
    if namesakes:
        ref, differences = namesakes[0]
        raise AttemptError(
            f"'{ref}' was trained for another task of the name '{task}': it differs in {differences}",
            f"Name what is meant: --prompt or --composition {ref}, which brings its own labels and template to files.",
        )
    where = f" for {backbone}" if backbone else ""
    raise AttemptError(
        f"nothing was trained for the task '{task}'{where}",
        f"Train it: `attempt train-target {task} --sources all`, or score the bare model with `--prompt none`.",
    )


def _differences(prompt: Prompt, task: Task) -> list[str]:
    """Lists what sets a task from files apart from the one of the same name that a prompt was trained for."""
    from attempt_cli.data.fields import task_fields

    own = prompt.settings.get("task")
    if not isinstance(own, dict) or not own.get("files") or not task.files:
        return []
    now = task_fields(task)
    differs = [name for name in ("input", "labels", "answers", "target", "prepare") if own.get(name) != now.get(name)]
    trained, given = own["files"].get("train"), now["files"].get("train")
    return [*differs, "its training rows"] if trained and given and trained != given else differs


def _age(record: Prompt | Composition) -> tuple[str, bool, int]:
    return record.created, isinstance(record, Composition), record.id


def records_of(models: Sequence[TrainedModel]) -> list[Prompt | Composition]:
    """Returns the models' records, for `Session.load_backbone`.

    Raises:
        AttemptError: they belong to several backbones: no single one can serve them.
    """
    records = [model.record for model in models if model.record is not None]
    for record in records[1:]:
        if record.fingerprint != records[0].fingerprint:
            raise AttemptError(
                f"'{records[0].ref}' was trained for {records[0].backbone} ({records[0].fingerprint}), "
                f"'{record.ref}' for {record.backbone} ({record.fingerprint})",
                "Name models of one backbone: `attempt registry list --backbone NAME` shows what fits.",
            )
    return records


def note_lone_targets(models: Sequence[TrainedModel], note: Callable[[str], None]) -> None:
    """Remarks on every target of ATTEMPT that is used without its mixture."""
    for record in {model.name: model.record for model in models}.values():
        if isinstance(record, Prompt) and record.method == "attempt":
            note(lone_target_text(record))


def lone_target_text(prompt: Prompt) -> str:
    """Says that a target of ATTEMPT is used without its mixture."""
    return (
        f"Note: '{prompt.ref}' was trained by ATTEMPT inside a mixture; alone it is not what was trained. "
        f"Its composition: `attempt registry show {prompt.ref}`."
    )


def trained_task(settings: Mapping[str, Any] | None, name: str) -> Task:
    """Reads the task that a prompt was trained for from its record: the task's own files may no longer exist.

    Raises:
        AttemptError: the record does not hold its task (a prompt from outside) and no task has its name.
    """
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.data.fields import task_from_fields

    fields = (settings or {}).get("task")
    if not isinstance(fields, dict):
        return load_task(name)
    task = task_from_fields(fields, f"the record of the task '{name}'", Path.cwd())
    return task.with_format(str((settings or {}).get("format", "words")))


def own_tasks(models: Sequence[TrainedModel]) -> tuple[Task, ...]:
    """Returns the tasks that the first model other than the bare backbone was trained for.

    Raises:
        ArgumentsError: there is none, or it mixes sources for any task.
    """
    first = next((model for model in models if model.record is not None), None)
    if first is None:
        raise ArgumentsError("name a task, or a prompt or composition", "`attempt tasks list` shows the tasks.")
    if not first.tasks:
        raise ArgumentsError(
            f"'{first.name}' mixes sources for any task: name one with --task", "`attempt tasks list` shows them."
        )
    return first.tasks


def trained_length(prompt: Prompt | None) -> int | None:
    """Returns the longest input that a prompt was trained with; None where its record does not say."""
    length: int | None = ((prompt.settings.get("training") or {}) if prompt else {}).get("max_length")
    return length


def as_trained(
    task: Task, prompt: Prompt | None, text_format: str | None, note: Callable[[str], None]
) -> tuple[Task, int | None]:
    """Gives a task the text format and the length limit that a prompt was trained with.

    Args:
        task: the task.
        prompt: its target prompt, if there is one.
        text_format: the format that the user chose instead.
        note: is told where the task differs from the prompt's own.
    """
    from attempt_cli.data.fields import task_fields

    if prompt is None:
        return (task.with_format(text_format) if text_format else task), None
    trained = prompt.settings.get("format", task.format)
    chosen = text_format or (trained if task.reference or trained == "words" else task.format)
    if text_format and text_format != trained:
        note(f"Note: '{prompt.ref}' was trained under the text format '{trained}', not '{text_format}'.")
    if prompt.task != task.name:  # another task's limit does not apply to this one's rows
        return task.with_format(chosen), None
    own = prompt.settings.get("task")
    if isinstance(own, dict):
        now = task_fields(task)
        differs = [name for name in ("input", "labels", "prepare") if own.get(name) != now.get(name)]
        if differs:
            note(f"Note: '{prompt.ref}' was trained on another '{task.name}': it differs in {', '.join(differs)}.")
    return task.with_format(chosen), trained_length(prompt)
