"""Asks the Hugging Face hub once, briefly, whether it answers."""

from __future__ import annotations

from attempt_cli.errors import first_line


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
