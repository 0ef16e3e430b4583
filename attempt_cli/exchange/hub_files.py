"""Downloads what an address such as hf://OWNER/REPO@REVISION/FOLDER names, at a pinned revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.hub import Place, hub_errors

# what readers may open; weights of whole models and code are not fetched
PATTERNS = ("adapter_config.json", "adapter_model.safetensors", "attempt.json", "*.npy", "*.pt", "*.attempt")
LARGEST = 1 << 30  # bytes together


def downloaded(address: str) -> tuple[Path, dict[str, Any]]:
    """Fetches a repository's prompts into the hub's cache.

    Args:
        address: "hf://OWNER/REPO", with "@REVISION" and a path in it where these are meant.

    Returns:
        The folder or file, and what a record says of where it comes from.

    Raises:
        AttemptError: the address is none, the hub does not answer, or the files are too large.
    """
    from huggingface_hub import HfApi, parse_hf_uri, snapshot_download

    try:
        uri = parse_hf_uri(address)
    except ValueError as error:
        raise AttemptError(
            f"'{address}' is no address of the hub ({first_line(error)[:300]})",
            "Write hf://OWNER/REPO or hf://OWNER/REPO@REVISION/FOLDER.",
        ) from None
    kind, inside = str(uri.type), uri.path_in_repo.strip("/")
    at: Any = {"repo_type": kind, "revision": uri.revision}
    with hub_errors(Place(uri.id, uri.revision, kind)), bars_on_terminals_only():
        revision = HfApi().repo_info(uri.id, **at).sha
        under = [f"{inside}/{pattern}" if inside else pattern for pattern in PATTERNS]
        allowed = [*under, inside] if Path(inside).suffix else under
        what: Any = {"repo_type": kind, "revision": revision, "allow_patterns": allowed}
        files: Any = snapshot_download(uri.id, dry_run=True, **what)
        if sum(file.file_size for file in files) > LARGEST:
            raise AttemptError(f"{address} has more than {LARGEST} bytes of prompts", "Name a folder or file in it.")
        folder = Path(snapshot_download(uri.id, **what))
    path = folder / inside
    if not path.exists():
        raise AttemptError(f"there is no prompt at {address}", "Look at the repository's files.")
    return path, {"repository": uri.id, "repository_type": kind, "revision": revision}
