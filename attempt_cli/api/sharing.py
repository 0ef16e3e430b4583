"""Pushes what was trained to the Hugging Face hub, and pulls what others pushed."""

from __future__ import annotations

from collections.abc import Sequence

from attempt_cli.evaluation.models import named_record
from attempt_cli.exchange.importing import Options
from attempt_cli.name_lists import listed
from attempt_cli.session import Session
from attempt_cli.sharing.pulling import Pulled, pull_place
from attempt_cli.sharing.pushing import Publication, Pushed, push_record
from attempt_cli.sharing.repository import parse_place

__all__ = ["Pulled", "Pushed", "pull", "push"]


def push(
    name: str,
    repository: str,
    *,
    public: bool = False,
    license: str | None = None,
    data_licence: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    session: Session | None = None,
) -> Pushed:
    """Pushes a prompt or a composition to the hub in one commit; the backbone is not loaded.

    Args:
        name: of a composition or a prompt.
        repository: "owner/name" or "owner/name@branch"; made where it is missing.
        public: let others see the repository.
        license: of the prompt, an identifier of the hub's list such as "apache-2.0".
        data_licence: of the rows it was trained on, for the card; None takes what the task says.
        message: of the commit.
        dry_run: only say what would be pushed; nothing is sent, and no token is needed.
        session: says where the registry is.

    Returns:
        What was pushed; its commit is recorded, too.

    Raises:
        RegistryError: there is no such prompt or composition.
        AttemptError: no token, or one that may not write there; a repository that holds something else, or that others
            can see; no connection. Nothing was pushed then.

        attempt.push("reviews", "me/reviews-prompt", dry_run=True).files
    """
    session = session or Session()
    place = parse_place(repository)
    record = named_record(session.store, name)
    return push_record(session, record, place, Publication(public, license, data_licence, message), dry_run=dry_run)


def pull(
    repository: str,
    *,
    task: str | Sequence[str] = (),
    name: str | None = None,
    prefix: str = "",
    note: str = "",
    tags: Sequence[str] = (),
    session: Session | None = None,
) -> Pulled:
    """Adds a prompt or a composition from the hub to the registry; only data is fetched, and no code in it is run.

    Args:
        repository: "owner/name" or "owner/name@revision"; a branch, a tag or a commit.
        task: what it was trained for, where the repository does not say (an adapter that PEFT wrote).
        name: its name in the registry; None takes its own.
        prefix: goes before the names of all that `push` wrote, ancestors included.
        note, tags: for the record of an adapter that PEFT wrote.
        session: says where the registry is; its backbone, where it names one, is the prompts'.

    Returns:
        What was added, with the commit that it came from.

    Raises:
        AttemptError: there is no such repository or revision, it holds no prompt, its files are damaged, or they belong
            to a backbone that is not recorded here; or its names are taken by other records. Nothing was added then.

        attempt.pull("me/reviews-prompt").name
    """
    options = Options(task=tuple(listed(task)), name=name, prefix=prefix, note=note, tags=tuple(listed(tags)))
    return pull_place(session or Session(), parse_place(repository), options)
