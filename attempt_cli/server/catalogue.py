"""What is served: the prompts and compositions of one backbone, by name, as the registry has them now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attempt_cli.data.catalogue import task_names
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.models import TrainedModel, find_model
from attempt_cli.evaluation.serving import ServedTask, served_tasks
from attempt_registry.errors import RegistryError, nearest_names
from attempt_registry.records import Composition, Prompt
from attempt_registry.references import KINDS

if TYPE_CHECKING:
    from attempt_cli.session import Session

# models whose tensors stay in memory; what is asked for more rarely is loaded again
KEPT_MODELS = 1000
# with more names none is compared with an unknown one: it would hold up everybody
COMPARED_NAMES = 5000


class UnknownModelError(AttemptError):
    """A name that is not served; the hint lists the nearest."""


class Catalogue:
    """The models that requests can name. It belongs to one thread: that of the event loop.

    A name is that of a prompt or composition, of both what was made last, with a version ("rte@2") or without one (the
    newest); of a composition with several targets "name:task".

    Args:
        session: says where the registry is.
        names: only these; without any, all that belong to the backbone.
        fingerprint: of the backbone.
    """

    def __init__(self, session: Session, names: Sequence[str], fingerprint: str) -> None:
        self.session = session
        self.only = tuple(names)
        self.fingerprint = fingerprint
        self._state: object = None
        self._found: dict[str, ServedTask] = {}
        self._listed: dict[str, ServedTask] | None = None
        self._kept: OrderedDict[tuple[str, int], TrainedModel] = OrderedDict()

    def __getitem__(self, name: str) -> ServedTask:
        """Finds what a request names.

        Raises:
            UnknownModelError: nothing of that name is served.
            AttemptError: the model serves several tasks and none is named, or its record is damaged.
        """
        self._follow()
        if name not in self._found:
            found = self._tasks_of(name)
            if len(found) > 1:
                raise AttemptError(f"'{name}' serves several tasks", f"Name one: {', '.join(found)}.")
            if len(self._found) >= KEPT_MODELS:
                self._found.clear()
            self._found[name] = next(iter(found.values()))
        return self._found[name]

    def all(self) -> dict[str, ServedTask]:
        """Returns everything that is served, by the names that requests use; the newest version of each."""
        self._follow()
        if self._listed is None:
            self._listed = {}
            for name in self._names():
                try:
                    self._listed |= self._tasks_of(name)
                except AttemptError:  # a damaged record, a target prompt that was removed: asked for, it says so
                    continue
        return self._listed

    def lineage(self, served: ServedTask) -> dict[str, Any]:
        """Returns where a model comes from, and what was made of it."""
        record = served.model.record
        assert record is not None
        found = self.session.store.lineage(record.ref, kind=served.model.kind)
        return {
            "parents": list(found.parents),
            "removed": list(found.removed),
            "children": list(found.children),
            "compositions": [one.ref for one in found.compositions],
        }

    def _follow(self) -> None:
        """Forgets what was found if the registry has changed since."""
        state = self.session.store.state()
        if state != self._state:
            self._state, self._listed = state, None
            self._found.clear()

    def _names(self) -> Sequence[str]:
        if self.only:
            return self.only
        store = self.session.store
        # targets of ATTEMPT come with their compositions, which have their names
        records = [*store.prompts(backbone=self.fingerprint), *store.compositions(backbone=self.fingerprint)]
        return list(dict.fromkeys(record.name for record in records))

    def _tasks_of(self, name: str) -> dict[str, ServedTask]:
        """Returns what a name stands for: one task, or several as "name:task"."""
        plain, task = name, None
        before, colon, after = name.rpartition(":")
        if colon and before not in KINDS:
            plain, task = before, after
        if self.only and plain not in self.only:
            raise self._unknown(name)
        try:
            model = find_model(self.session, plain)
        except RegistryError:
            if plain in self._names():
                raise  # it is there, and damaged
            raise self._unknown(name) from None
        if model.record is None or model.record.fingerprint != self.fingerprint:
            raise self._unknown(name)
        model = self._same(model, model.record)
        # without target prompts any task that comes with the package; none that a client names by a file's path
        known = {prompt.task for prompt in model.targets} if model.targets else set(task_names())
        if task is not None and task not in known:
            raise self._unknown(name)
        found = served_tasks(model, task)
        return {name if len(found) == 1 else f"{plain}:{one.task.name}": one for one in found}

    def _same(self, model: TrainedModel, record: Prompt | Composition) -> TrainedModel:
        """Returns the model of the same record that was found before, whose tensors are loaded."""
        key = (model.kind, record.id)
        kept = self._kept.get(key)
        if kept is None or kept.record != record:
            kept = self._kept[key] = model
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT_MODELS:
            self._kept.popitem(last=False)
        return kept

    def _unknown(self, name: str) -> UnknownModelError:
        all_names = self.all()
        near = nearest_names(name[:200], all_names) if len(all_names) <= COMPARED_NAMES else []
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return UnknownModelError(f"no model named '{name[:200]}' is served", f"{hint}GET /v1/models lists all.")
