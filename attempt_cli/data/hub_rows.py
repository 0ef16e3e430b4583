"""Loads rows from the Hugging Face hub through `datasets`, and says what to do when it cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attempt_cli.bars import bars_on_terminals_only
from attempt_cli.data.readers import read_parquet_table
from attempt_cli.data.task import HubDataset
from attempt_cli.errors import AttemptError
from attempt_cli.hub import why_the_hub_is_silent

if TYPE_CHECKING:
    import pyarrow

WAYS_OUT = (
    "Ways out: --data-dir FOLDER (or ATTEMPT_DATA) with <hub path>/<config>/<split>.parquet in it, "
    "or --train-file with rows of your own."
)
# the hub's own parquet copies: the way to data sets whose repository holds a loading script, which `datasets` no
# longer runs
PARQUET_BRANCH = "refs/convert/parquet"


def load_hub_table(task_name: str, hub: HubDataset, official: str, looked_in: str = "") -> pyarrow.Table:
    """Loads an official split as an Arrow table, from the hub or its cache on this machine.

    Args:
        task_name: for messages.
        hub: the data set and its configuration.
        official: the split, e.g. "validation_matched".
        looked_in: what was tried before, for the message: "no file '…', and ".

    Raises:
        AttemptError: says what is missing and why, and what else to try.
    """
    try:
        return _load(hub, official)
    except Exception as error:  # of datasets, huggingface_hub, httpx or pyarrow
        what = f"'{official}' of {hub.path}" + (f" ({hub.config})" if hub.config else "")
        copy = (
            f" Or a copy of the task (`attempt tasks show {task_name} --yaml`) with another split_rule."
            if looked_in
            else ""
        )
        message = f"rows of task '{task_name}': {looked_in}{what}: {_reason(error, hub)}"
        raise AttemptError(message, WAYS_OUT + copy) from error


@bars_on_terminals_only()
def _load(hub: HubDataset, official: str) -> pyarrow.Table:
    """Loads the split from the repository itself, else from the hub's parquet copy of it."""
    from datasets import config, load_dataset
    from huggingface_hub import constants

    if why_the_hub_is_silent(hub.path, "README.md", "dataset"):  # then only the cache is asked
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True

    try:
        return load_dataset(hub.path, hub.config, split=official).with_format("arrow")[:]
    except Exception as error:
        try:
            return _load_parquet_copy(hub, official, local_only=isinstance(error, ConnectionError))
        except Exception:
            raise error from None  # the first failure is the one that says why


def _load_parquet_copy(hub: HubDataset, official: str, local_only: bool) -> pyarrow.Table:
    from huggingface_hub import snapshot_download

    inside = f"{hub.config or 'default'}/{official}"
    folder = snapshot_download(
        hub.path,
        repo_type="dataset",
        revision=PARQUET_BRANCH,
        allow_patterns=f"{inside}/*.parquet",
        local_files_only=local_only,
    )
    return read_parquet_table(sorted((Path(folder) / inside).glob("*.parquet")))[1]


def _reason(error: Exception, hub: HubDataset) -> str:
    """Says in one line why the rows could not be loaded."""
    first = (str(error) or type(error).__name__).strip().split("\n")[0]
    if isinstance(error, ConnectionError) or "Connect" in type(error).__name__ or "Timeout" in type(error).__name__:
        return "the Hugging Face hub cannot be reached"
    if type(error).__name__ == "DatasetNotFoundError":
        return f"the hub has no data set '{hub.path}' that you may read"
    return f"the hub did not give them ({first})"
