"""Speaks with the hub: finds a repository, commits files to it, downloads some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.errors import AttemptError
from attempt_cli.hub import LOG_IN, Place, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# as the hub has it: letters, digits, dashes, dots, underscores; neither dash nor dot at an end
_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
_PLACE = re.compile(rf"({_PART}/{_PART})(?:@(.+))?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,199}", re.ASCII)
# of a repository with more files than this the rest is not listed: ours have a handful
MOST_FILES = 10_000


@dataclass(frozen=True)
class State:
    """What is in a repository at a commit.

    Args:
        commit: its hash.
        private: whether others cannot see it.
        sizes: the name of each file -> its bytes.
    """

    commit: str
    private: bool
    sizes: Mapping[str, int]


def parse_place(text: str) -> Place:
    """Reads `owner/name` or `owner/name@revision`.

    Raises:
        AttemptError: it is neither.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise AttemptError(f"'{text}' is no repository of the hub", "Write OWNER/NAME or OWNER/NAME@REVISION.")
    if found[2] is not None and not _REVISION.fullmatch(found[2]):
        raise AttemptError(f"'{found[2]}' is no revision", "Name a branch, a tag or a commit of the repository.")
    return Place(found[1], found[2])


def require_token() -> None:
    """Refuses to go on without a token of the hub.

    Raises:
        AttemptError: there is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise AttemptError("nothing can be pushed without a token of the hub", f"{LOG_IN} `--dry-run` needs none.")


def find_state(place: Place) -> State | None:
    """Returns what is in a repository; None where there is none that the user may see.

    Raises:
        AttemptError: the hub cannot be reached, or has no such revision.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api = _api()
    with hub_errors(place):
        try:
            info = api.repo_info(place.repository, revision=place.revision)
            listed = api.list_repo_tree(place.repository, revision=info.sha, recursive=True)
            # folders have no size
            files = [entry for entry in islice(listed, MOST_FILES) if getattr(entry, "size", None) is not None]
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        sizes = {entry.path: int(getattr(entry, "size", 0)) for entry in files}
        return State(str(info.sha), bool(info.private), sizes)


def create(place: Place, private: bool) -> State:
    """Creates a repository; returns what the hub put into it.

    Raises:
        AttemptError: the hub cannot be reached, or the token may not do that.
    """
    with hub_errors(place):
        _api().create_repo(place.repository, private=private, exist_ok=True)
    made = find_state(Place(place.repository))
    if made is None:
        raise AttemptError(f"the hub made no repository '{place.repository}'", "Look at its page and try again.")
    return made


def create_branch(place: Place) -> None:
    """Creates the branch that a place names, from the main one.

    Raises:
        AttemptError: the hub cannot be reached, or the token may not do that.
    """
    with hub_errors(place):
        _api().create_branch(place.repository, branch=str(place.revision), exist_ok=True)


def commit(place: Place, folder: Path, state: State, stale: frozenset[str], message: str) -> str:
    """Commits all files of a folder at once, or nothing.

    `upload_folder` would make several commits where it streams: a reader could meet half of an upload.

    Args:
        place: the repository and branch.
        folder: its files keep their names.
        state: what is there; if another commit was made meanwhile, nothing is committed.
        stale: files of an earlier push that are to go.
        message: the commit's.

    Returns:
        The commit's hash; where nothing would change, that of the newest one.

    Raises:
        AttemptError: the upload failed or was refused; the repository is as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    operations: list[Any] = [CommitOperationAdd(file.relative_to(folder).as_posix(), str(file)) for file in files]
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    with hub_errors(place), bars_on_terminals_only():
        made = _api().create_commit(
            place.repository,
            operations,
            commit_message=message,
            revision=place.revision,
            parent_commit=state.commit,
        )
    return str(made.oid)


def download(place: Place, commit: str, names: Mapping[str, int], folder: Path) -> None:
    """Downloads some files of a commit, and nothing else.

    Args:
        place: the repository.
        commit: its hash.
        names: file -> its bytes as they were listed; names without a folder and without wildcards.
        folder: where to.

    Raises:
        AttemptError: the download failed, or a file is not what was listed.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(place), bars_on_terminals_only():
        snapshot_download(place.repository, revision=commit, allow_patterns=list(names), local_dir=folder)
    for name, size in names.items():
        file = folder / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size != size:
            raise AttemptError(f"'{name}' of {place} did not arrive as the hub lists it", "Pull it again.")


def _api() -> HfApi:
    from huggingface_hub import HfApi

    from attempt_cli import __version__

    return HfApi(library_name="attempt", library_version=__version__)
