"""`attempt.json`, beside an export: task, placement, backbone and settings, which other formats have no place for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.exchange.folders import PROVENANCE

if TYPE_CHECKING:
    from attempt_cli.exchange.content import Array, Content
    from attempt_registry import Backbone, Prompt

# settings of a prompt that mean something outside its registry
KEPT_SETTINGS = ("task", "format", "training", "chat_template")
VERSION = 1
# the folders of an absolute path, on any system; no part of an address such as https://…
_FOLDERS = re.compile(r"(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"=,:/\\]+[/\\])*(?=[^\s/\\])")
LARGEST = 4 << 20  # bytes of a description; a task with hundreds of labels has a few thousand


def write(folder: Path, format: str, prompts: Sequence[Prompt], backbone: Backbone) -> None:
    """Writes the file beside what a format wrote.

    Args:
        folder: holds the format's files; their hashes are recorded.
        format: the format's name.
        prompts: what was exported, in the format's order.
        backbone: theirs.
    """
    from attempt_cli import __version__

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    said = {
        "version": VERSION,
        "made_by": f"attempt {__version__}",
        "format": format,
        "backbone": asdict(replace(backbone, source=public_source(backbone))),
        # all fields of the records: what a format has no place for is at least said here
        "prompts": [prompt_fields(prompt) for prompt in prompts],
        "files": {file.relative_to(folder).as_posix(): file_hash(file) for file in files},
    }
    (folder / PROVENANCE).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """Returns the fields of a record that mean something outside its registry."""
    fields = {"ref": prompt.ref, **asdict(prompt)}
    del fields["id"]
    return fields | {"settings": portable_settings(prompt.settings)}


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings whose task names its rows' files without their folders, which are nobody else's business."""
    task = settings.get("task")
    if not isinstance(task, dict) or not isinstance(task.get("files"), dict):
        return dict(settings)
    files, said = {}, str(task.get("description", ""))
    for split, file in task["files"].items():
        files[split] = PurePath(str(file).replace("\\", "/")).name
        said = said.replace(str(file), files[split])
    described = {"description": said} if "description" in task else {}
    return {**settings, "task": {**task, **described, "files": files}}


def portable_texts(value: Any) -> Any:
    """Returns what a run says of its command and rows with file names where absolute paths stood."""
    if isinstance(value, Mapping):
        return {name: portable_texts(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable_texts(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def read(folder: Path, format: str) -> dict[str, Any] | None:
    """Reads the file beside an export; None where there is none.

    Raises:
        AttemptError: it is damaged, or describes other files than those beside it.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    hint = f"Copy the folder again, or import it without {PROVENANCE}."
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        said = json.loads(path.read_text("utf-8"))
        json.dumps(said, ensure_ascii=False).encode()  # halves of characters cannot be kept
        if said["version"] != VERSION:
            raise AttemptError(f"{path} is of another version ({str(said['version'])[:20]})", "Update attempt.")
        if said["format"] != format:
            raise ValueError(f"it describes the format {str(said['format'])[:40]!r}")
        for name, sha256 in said["files"].items():
            file = folder / name
            if PurePath(name).name != name or not file.is_file() or file_hash(file) != sha256:
                raise ValueError(f"{name[:60]!r} is another file now")
        for part, kind in (("backbone", dict), ("prompts", list)):
            if not isinstance(said[part], kind):
                raise ValueError(f"'{part}' is no {kind.__name__}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AttemptError(f"{path} does not describe what lies beside it ({error})"[:400], hint) from None
    found: dict[str, Any] = said
    return found


def written_as(path: Path) -> str | None:
    """Returns the format that the file beside an export names; None where there is none, or it cannot be read."""
    file = (path if path.is_dir() else path.parent) / PROVENANCE
    try:
        said = json.loads(file.read_text("utf-8")) if file.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    format = said.get("format") if isinstance(said, dict) else None
    return format if isinstance(format, str) else None


def content(said: Mapping[str, Any], tensors: Sequence[Array], folder: Path) -> Content:
    """Makes drafts of prompts that are read as they enter the model, from what the file beside them says.

    Args:
        said: what `read` returned.
        tensors: [length, width] each, in the file's order.
        folder: theirs, for messages.

    Raises:
        AttemptError: a field has the wrong type, or describes no task.
    """
    from attempt_cli.exchange.content import Content, PromptDraft

    origin = str(folder / PROVENANCE)
    if len(said["prompts"]) != len(tensors):
        raise AttemptError(f"{origin} describes another number of prompts", "Copy the folder again.")
    drafts, refs = [], []
    for tensor, fields in zip(tensors, said["prompts"], strict=True):
        of = checked_fields(fields, origin)
        settings = {name: of["settings"][name] for name in KEPT_SETTINGS if name in of["settings"]}
        kept = {
            name: of[name] for name in ("name", "task", "kind", "task_version", "placement", "numbers", "seed", "note")
        }
        drafts.append(PromptDraft(tensor, settings=settings, tags=tuple(of["tags"]), **kept))
        refs.append(f"{of['name']}@{fields.get('version')}")
    name, fingerprint = (said["backbone"].get(field) for field in ("name", "fingerprint"))
    if not isinstance(name, str) or not isinstance(fingerprint, str):
        raise AttemptError(f"{origin} names no backbone", "Copy the folder again.")
    return Content(tuple(drafts), origin={"exported_from": refs}, backbone=name, fingerprint=fingerprint)


# The fields of records, and their types in JSON. A record's new field is said here; one that older files lack has a
# default in `PromptDraft` and stands in `LATER`.
TYPES: dict[str, dict[str, tuple[type, ...]]] = {
    "prompt": {
        "name": (str,),
        "kind": (str,),
        "method": (str,),
        "task": (str,),
        "task_version": (int, type(None)),
        "embedding_scale": (float, int),
        "placement": (str,),
        "sha256": (str,),
        "settings": (dict,),
        "numbers": (dict,),
        "seed": (int, type(None)),
        "note": (str,),
        "tags": (list,),
        "parents": (list,),
    },
    "attention": {
        "name": (str,),
        "rank": (int,),
        "level": (str,),
        "temperature": (float, int),
        "placement": (str,),
        "sha256": (str,),
        "settings": (dict,),
        "seed": (int, type(None)),
        "note": (str,),
        "parents": (list,),
    },
    "composition": {
        "name": (str,),
        "sources": (list,),
        "attention": (str, type(None)),
        "targets": (list,),
        "settings": (dict,),
        "note": (str,),
    },
    "run": {
        "command": (str,),
        "settings": (dict,),
        "rows": (dict,),
        "seed": (int, type(None)),
        "budget": (dict,),
        "numbers": (dict,),
        "versions": (dict,),
        "duration": (float, int),
        "created": (str,),
        "artefacts": (list,),
        "inputs": (list,),
    },
}
LATER: set[str] = set()
# what a record has besides: it follows from the others, or is of the registry that it left
BESIDE = {"ref", "version", "backbone", "fingerprint", "placement", "length", "width", "dtype", "created", "sha256"}


def checked_fields(fields: Any, origin: str, kind: str = "prompt") -> dict[str, Any]:
    """Returns a record's fields from outside, checked; its task's files have no folders.

    Raises:
        AttemptError: a field is missing, has the wrong type, or describes no task.
    """
    from attempt_cli.data.fields import task_from_fields

    if not isinstance(fields, dict):
        raise AttemptError(f"{origin} does not describe a {kind}", "Copy it again.")
    says = [name for name, value in fields.items() if value not in (None, "", [], {})]
    if unknown := [name for name in says if name not in TYPES[kind] and name not in BESIDE]:
        # it may change what the record means: a prompt that is placed otherwise, for instance
        raise AttemptError(
            f"{origin} says '{unknown[0][:60]}' of a {kind}, which this version does not know", "Update attempt."
        )
    types = {name: of for name, of in TYPES[kind].items() if name in fields or name not in LATER}
    for name, of in types.items():
        value = fields.get(name, ...)
        wrong = type(value) not in of or (type(value) is int and abs(value) >= 2**63)
        if wrong or (type(value) is list and not all(isinstance(item, str) for item in value)):
            raise AttemptError(f"{origin} does not describe a {kind}: look at its '{name}'", "Copy it again.")
    checked = {name: fields[name] for name in types}
    if "settings" in checked:
        checked["settings"] = portable_settings(checked["settings"])
        if isinstance(checked["settings"].get("task"), dict):
            task_from_fields(checked["settings"]["task"], f"{origin}, in its task,", Path.cwd())
            checked["settings"]["task"] = _with_rows_here(checked["settings"]["task"])
    return checked


def backbone_of_fields(fields: Mapping[str, Any], origin: str) -> Backbone:
    """Returns a backbone as another registry recorded it; what uses it compares the fingerprint of the real one.

    Raises:
        AttemptError: a field has the wrong type, or names a folder of this machine.
    """
    from attempt_registry import Backbone
    from attempt_registry.references import check_seen

    kinds = {"name": str, "fingerprint": str, "architecture": str, "source": str}
    numbers = {"width": int, "parameters": int, "embedding_rms": float}
    given: dict[str, Any] = {name: fields.get(name) for name in (*kinds, *numbers)}
    wrong = next((name for name, kind in (kinds | numbers).items() if type(given[name]) is not kind), None)
    wrong = wrong or next((name for name in numbers if not 0 < given[name] < 2**63), None)
    if wrong is None and given["architecture"] not in ("decoder-only", "encoder-decoder"):
        wrong = "architecture"
    if wrong is not None:
        raise AttemptError(f"{origin} does not describe a backbone: look at its '{wrong}'", "Copy it again.")
    for name in ("name", "source"):
        check_seen(given[name], "the name of a backbone")
    backbone = Backbone(**given)
    return replace(backbone, source=public_source(backbone))


def public_source(backbone: Backbone) -> str:
    """Returns a backbone's hub id, else the name of its file or folder without the folders above."""
    place = PurePath(backbone.source.replace("\\", "/"))
    on_the_hub = len(place.parts) == 2 and not place.is_absolute() and ".." not in place.parts
    return backbone.source if on_the_hub and place.suffix != ".gguf" else place.name


def _with_rows_here(task: dict[str, Any]) -> dict[str, Any]:
    """Returns the task of that name that comes with the package, where it is the same: its rows' files are here."""
    from attempt_cli.data.catalogue import load_task, task_names
    from attempt_cli.data.fields import task_fields

    if task["name"] not in task_names():
        return task
    own = task_fields(load_task(task["name"]))
    return own if portable_settings({"task": own})["task"] == task else task


def file_hash(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
