"""Whether the Hugging Face hub answers at all, asked once and briefly."""

from __future__ import annotations

from attempt_cli.errors import first_line


def why_the_hub_is_silent(repository: str, file: str, kind: str = "model") -> str | None:
    """Why the hub cannot be asked for a repository, or None where it answers.

    Left to itself the library asks six times for each of several files: half a minute until the error, and a full
    minute even where everything is in its cache.

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
    except Exception as error:  # of httpx, requests or the library's own offline switch, as its versions go
        return f"no answer from {constants.ENDPOINT} ({first_line(error)})"
    return None
