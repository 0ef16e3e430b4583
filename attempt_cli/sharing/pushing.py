"""Pushes a prompt or a composition to the hub: makes the folder, shows it, commits it, and pins the commit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange.exporting import export_records
from attempt_cli.exchange.folders import PROVENANCE
from attempt_cli.exchange.provenance import portable_settings, public_source
from attempt_cli.hub import Place
from attempt_cli.sharing import repository
from attempt_cli.sharing.card import HUB_ID, LICENSE, Subject, model_card
from attempt_cli.sharing.files import ADAPTER, BUNDLE, CARD, FROM_THE_HUB, OURS
from attempt_cli.sharing.references import record_push
from attempt_cli.sharing.repository import State
from attempt_cli.sharing.results import FOLDER, results_yaml
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.record import RecordedEvaluation
    from attempt_cli.session import Session
    from attempt_registry import Backbone, Registry


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or with a dry run would be.

    Args:
        name: the full name of the prompt or composition.
        repository: "owner/name".
        url: the address of its page.
        commit: the commit that holds it; None after a dry run.
        private: whether others cannot see it.
        peft: whether the folder is an adapter of PEFT.
        files: file -> its bytes.
        card: the text of README.md.
    """

    name: str
    repository: str
    url: str
    commit: str | None
    private: bool
    peft: bool
    files: dict[str, int]
    card: str

    def record(self) -> dict[str, Any]:
        """Returns the push as JSON holds it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Publication:
    """What the user says of a push.

    Args:
        public: let others see the repository.
        license: of the prompt, an identifier of the hub's list, such as "apache-2.0".
        data_licence: of the rows; None takes what the task says.
        message: of the commit.
    """

    public: bool = False
    license: str | None = None
    data_licence: str | None = None
    message: str | None = None

    def check(self) -> None:
        """Refuses a licence that the hub has no place for.

        Raises:
            ArgumentsError: it is no identifier.
        """
        if self.license is not None and not LICENSE.fullmatch(self.license):
            raise ArgumentsError(
                f"'{self.license[:60]}' is no licence of the hub's list",
                "Give an identifier such as apache-2.0, mit, cc-by-4.0 or other.",
            )


def push_record(
    session: Session,
    record: Prompt | Composition,
    place: Place,
    publication: Publication,
    *,
    dry_run: bool = False,
) -> Pushed:
    """Pushes a record; see `api.sharing.push`."""
    publication.check()
    if not dry_run:
        repository.require_token()
    start = time.perf_counter()
    with made_folder(session, record, place, publication) as folder:
        card = (folder / CARD).read_text("utf-8")
        names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        files = {name: file.stat().st_size for name, file in names.items()}
        commit, private = None, not publication.public
        if not dry_run:
            state = _ready(place, publication.public)
            commit, private = _commit(session, record, place, publication, folder, state, set(files)), state.private
    pushed = Pushed(record.ref, place.repository, place.url, commit, private, ADAPTER[0] in files, files, card)
    if commit is not None:
        kept = {"repository": place.repository, "revision": commit, "private": private}
        record_push(session, record, kept, time.perf_counter() - start)
    return pushed


@contextmanager
def made_folder(
    session: Session, record: Prompt | Composition, place: Place, publication: Publication
) -> Iterator[Path]:
    """Yields a folder with all files of the repository; it is gone afterwards.

    Raises:
        AttemptError: a file of the registry is missing or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="attempt-push-") as temporary:
        folder = Path(temporary) / "repository"
        peft = True
        try:
            export_records(session, [record], folder, "peft", for_others=True)
        except AttemptError as error:
            session.listener.note(f"It is no adapter of PEFT: {error.message}.")
            folder.mkdir(exist_ok=True)
            peft = False
        export_records(session, [record], folder / BUNDLE, "bundle", for_others=True)
        subject = describe(session.store, record, place, publication, peft)
        (folder / CARD).write_text(model_card(subject), "utf-8")
        results = results_yaml(subject.evaluations, subject.known_tasks)
        if results is not None:
            (folder / FOLDER).mkdir()
            (folder / FOLDER / f"{record.name}.yaml").write_text(results, "utf-8")
        yield folder


def describe(
    registry: Registry, record: Prompt | Composition, place: Place, publication: Publication, peft: bool
) -> Subject:
    """Collects what the card says."""
    backbone = registry.backbone(record.fingerprint)
    names = (record.targets or record.sources) if isinstance(record, Composition) else ()
    prompts = tuple(registry.prompt(name) for name in names) or ((record,) if isinstance(record, Prompt) else ())
    base, revision = base_model(backbone)
    return Subject(
        record=record,
        repository=place.repository,
        backbone=backbone,
        base_model=base,
        revision=revision,
        peft=peft,
        prompts=prompts,
        tasks=tuple(map(_task, prompts)),
        evaluations=tuple(_evaluations(registry, record)),
        license=publication.license,
        data_licence=publication.data_licence,
    )


def base_model(backbone: Backbone) -> tuple[str | None, str | None]:
    """Returns the hub id of a backbone and the commit of it that is in use here, as far as they are known."""
    from huggingface_hub import try_to_load_from_cache

    from attempt_cli.backbones.names import aliases

    alias = aliases().get(backbone.name)
    base = str(alias["hub"]) if alias else public_source(backbone)
    if not HUB_ID.fullmatch(base):
        return None, None
    if backbone.source != base:  # its weights are from a file or folder: what is in the cache says nothing of them
        return base, None
    cached = try_to_load_from_cache(base, "config.json")
    return base, Path(cached).parent.name if isinstance(cached, str) else None


def _task(prompt: Prompt) -> Task | None:
    from attempt_cli.evaluation.models import trained_task

    try:
        return trained_task(portable_settings(prompt.settings), prompt.task)
    except AttemptError:  # of a prompt from elsewhere
        return None


def _evaluations(registry: Registry, record: Prompt | Composition) -> Iterator[RecordedEvaluation]:
    """Yields the newest evaluation of each task and split."""
    from attempt_cli.evaluation.record import evaluations

    kind = "composition" if isinstance(record, Composition) else "prompt"
    seen = set()
    for evaluation in evaluations(registry, kind, record.ref):
        if (evaluation.task, evaluation.split) not in seen and evaluation.metrics:
            seen.add((evaluation.task, evaluation.split))
            yield evaluation


def _ready(place: Place, public: bool) -> State:
    """Returns the state of the branch to push to; creates the repository and the branch where they are missing.

    Raises:
        AttemptError: the repository holds something else, or others would see what was not meant for them.
    """
    whole = Place(place.repository)
    state = repository.find_state(whole)
    if state is None:
        state = repository.create(whole, private=not public)
    if not state.private and not public:
        raise AttemptError(
            f"'{place.repository}' is public: everybody would see the prompt",
            "Agree with --public, name another repository, or make it private on its page.",
        )
    if place.revision is not None:
        repository.create_branch(place)
        state = repository.find_state(place) or state
    others = sorted(set(state.sizes) - FROM_THE_HUB)
    if others and not {BUNDLE, PROVENANCE} & set(others):
        raise AttemptError(
            f"'{place}' holds something else: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}",
            "Name another repository.",
        )
    return state


def _commit(
    session: Session,
    record: Prompt | Composition,
    place: Place,
    publication: Publication,
    folder: Path,
    state: State,
    names: set[str],
) -> str:
    ours = {name for name in state.sizes if name in OURS or name.startswith(f"{FOLDER}/")}
    if publication.public and state.private:
        session.listener.note(f"'{place.repository}' stays private: its page lets you change that.")
    message = publication.message or f"Push {record.ref}"
    return repository.commit(place, folder, state, frozenset(ours - names), message)
