"""Names places on the Hugging Face hub, asks briefly whether it answers, and turns its errors into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attempt_cli.errors import AttemptError, first_line

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."


def why_the_hub_is_silent(repository: str, file: str, kind: str = "model") -> str | None:
    """Returns why the hub cannot be reached for a repository, or None when it answers.

    The library by itself asks six times for each of several files: half a minute until the error, and a full minute
    even when everything is in its cache.

    Args:
        repository: its id.
        file: one that such repositories have.
        kind: "model" or "dataset".
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind))
    except HfHubHTTPError as error:
        status = error.response.status_code
        return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None
    except Exception as error:  # of httpx, requests or the offline switch, depending on the library's version
        return f"no answer from {constants.ENDPOINT} ({first_line(error)})"
    return None


@dataclass(frozen=True)
class Place:
    """A repository on the hub.

    Args:
        repository: "owner/name".
        revision: a branch, a tag or a commit's hash; None is the main branch.
        kind: "model" or "dataset".
    """

    repository: str
    revision: str | None = None
    kind: str = "model"

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def url(self) -> str:
        """The address of its page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repository}"


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
        f"the hub has no {place.kind} repository '{place.repository}' that you may read",
        f"Check the name. If it is private: {LOG_IN[0].lower()}{LOG_IN[1:]}",
    )
