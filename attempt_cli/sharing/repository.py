"""Speaks with the hub: finds a repository, commits files to it, downloads some of them; its errors become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.errors import AttemptError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# as the hub has it: letters, digits, dashes, dots, underscores; neither dash nor dot at an end
_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
_PLACE = re.compile(rf"({_PART}/{_PART})(?:@(.+))?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,199}", re.ASCII)
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
# of a repository with more files than this the rest is not listed: ours have a handful
MOST_FILES = 10_000


@dataclass(frozen=True)
class Place:
    """A repository on the hub.

    Args:
        repository: "owner/name".
        revision: a branch, a tag or a commit's hash; None is the main branch.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def url(self) -> str:
        """The address of its page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repository}"


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


@contextmanager
def hub_errors(place: Place) -> Iterator[None]:
    """Turns the errors of the hub's library into ours.

    Raises:
        AttemptError: says what is wrong with the place, the token or the connection.
    """
    try:
        yield
    except AttemptError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):  # of this machine: a full disk
            raise
        raise _told(place, error) from error
    except Exception as error:  # of huggingface_hub, httpx or the offline switch, depending on the library's version
        raise _told(place, error) from error


def _told(place: Place, error: BaseException) -> AttemptError:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return AttemptError("the hub is switched off by HF_HUB_OFFLINE", "Unset it and try again.")
    if isinstance(error, ValueError) and not isinstance(error, errors.HfHubHTTPError):  # of names and the front matter
        return AttemptError(f"the hub would not take this: {_short(error)}", "Change what it names.")
    causes = [error]  # transfers wrap what went wrong
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    answered = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    if answered is not None:
        return _answered(place, answered)
    silent = next((cause for cause in causes if "Connect" in type(cause).__name__), causes[0])
    return AttemptError(
        f"no answer from {constants.ENDPOINT} ({first_line(silent)})", "Check the connection and try again."
    )


def _answered(place: Place, error: Any) -> AttemptError:
    from huggingface_hub import constants, errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return AttemptError(f"'{place.repository}' asks for consent first", f"Give it on {place.url}, then try again.")
    if isinstance(error, errors.RevisionNotFoundError):
        return AttemptError(f"'{place.repository}' has no revision '{place.revision}'", f"{place.url} shows all.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return unknown_repository(place)
    if status == 401:
        return AttemptError("the hub does not accept the token", LOG_IN)
    if status == 403:
        return AttemptError(
            f"the token may not do that with '{place.repository}'",
            "Use a token that may write there (`hf auth login`), or name a repository of your own.",
        )
    if status in (409, 412):
        return AttemptError(f"somebody else changed '{place.repository}' meanwhile", "Push again.")
    return AttemptError(f"{constants.ENDPOINT} answers with status {status} ({_short(error)})", "Try again later.")


def _short(error: BaseException) -> str:
    """Returns what the hub or its library says, as one line."""
    return " ".join(str(getattr(error, "server_message", None) or error).split())[:200]


def unknown_repository(place: Place) -> AttemptError:
    """Returns the error for a repository that does not exist, or that is hidden: the hub tells them alike."""
    return AttemptError(
        f"the hub has no model repository '{place.repository}' that you may read",
        f"Check the name. If it is private: {LOG_IN[0].lower()}{LOG_IN[1:]}",
    )


def _api() -> HfApi:
    from huggingface_hub import HfApi

    from attempt_cli import __version__

    return HfApi(library_name="attempt", library_version=__version__)
