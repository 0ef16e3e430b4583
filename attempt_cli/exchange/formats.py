"""The formats that prompts leave and enter the registry in, a row each. What differs between formats is said here.

The command line's choices and help, the refusals before any work, and the order in which a file or folder is recognised
are derived from this table. A format is one module and one row. Nothing heavy is imported before a format is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attempt_cli.errors import unknown_name
from attempt_cli.late_imports import imported
from attempt_cli.placement import PLACEMENTS


@dataclass(frozen=True)
class Format:
    """What a format can express, and who writes and reads it.

    Args:
        title: the format's name in messages.
        help: what an export writes, for `--help`; empty for what is only read.
        write: "module:function" that writes it; it takes an `exporting.Selection` and a path, and returns nothing. The
            path is a new, empty folder, or with `file` the name of a file. Beside what it writes in a folder,
            `provenance.write` puts what the format itself cannot say.
        recognises: "module:function" that tells from a path, at little cost, whether this format lies there.
        read: "module:function" that returns the `content.Content` of a path; it takes the path and the
            `importing.Options`.
        file: whether an export is one file rather than a folder.
        plain: whether it holds plain prompts [m, d] alone; others hold compositions, too.
        several: whether an export may hold more than one prompt.
        loads: whether an export loads the backbone, in a dtype that can be chosen.
        placements: where a prompt may stand.
        in_chat: whether a prompt may stand inside the user's turn of a chat template.
        options: fields of `importing.Options` that its reader reads.
    """

    title: str
    help: str = ""
    write: str = ""
    recognises: str = ""
    read: str = ""
    file: bool = False
    plain: bool = True
    several: bool = False
    loads: bool = False
    placements: tuple[str, ...] = PLACEMENTS
    in_chat: bool = True
    options: tuple[str, ...] = ("task", "name", "kind", "note", "tags")


# In the order in which they are recognised.
FORMATS: dict[str, Format] = {
    "peft": Format(
        "PEFT",
        "an adapter folder that PeftModel.from_pretrained loads",
        write="attempt_cli.exchange.peft:write",
        recognises="attempt_cli.exchange.peft:recognises",
        read="attempt_cli.exchange.peft:read",
        placements=("before",),
        in_chat=False,
    ),
    "npy": Format(
        "NumPy",
        "the matrix as it enters the model, as a .npy file in a folder",
        write="attempt_cli.exchange.npy:write",
        recognises="attempt_cli.exchange.npy:recognises",
        read="attempt_cli.exchange.npy:read",
    ),
    "bundle": Format(
        "a bundle",
        "one file for another registry, with attention, composition, ancestors and runs",
        write="attempt_cli.exchange.bundle:write",
        recognises="attempt_cli.exchange.bundle:recognises",
        read="attempt_cli.exchange.bundle:read",
        file=True,
        plain=False,
        several=True,
        options=("name", "prefix"),
    ),
    "authors": Format(
        "the ATTEMPT authors' .pt files",
        recognises="attempt_cli.exchange.authors:recognises",
        read="attempt_cli.exchange.authors:read",
        options=("task", "name", "kind", "sources", "note", "tags"),
    ),
    "vocabulary": Format(
        "a model with prompts as tokens",
        "a copy of the model with prompts as added tokens, for whatever serves the model by plain text",
        write="attempt_cli.exchange.vocabulary:write",
        several=True,
        loads=True,
    ),
    "vocabulary-delta": Format(
        "prompts as tokens",
        "those tokens and their embeddings alone, for an untouched model",
        write="attempt_cli.exchange.vocabulary:write_delta",
        several=True,
        loads=True,
    ),
    "vllm": Format(
        "vLLM",
        "the prompt as a torch file, and a request that vLLM's server answers (--enable-prompt-embeds)",
        write="attempt_cli.exchange.vllm:write",
    ),
}
TARGETS = tuple(name for name, format in FORMATS.items() if format.write)


def find_target(name: str) -> Format:
    """Returns the row of a format that can be written.

    Raises:
        AttemptError: there is none of that name, with the nearest.
    """
    if name not in TARGETS:
        raise unknown_name("export format", name, TARGETS, "attempt export --help")
    return FORMATS[name]


def recognised(path: Path) -> str | None:
    """Returns the name of the format that lies at a path; None where none does."""
    return next((name for name, row in FORMATS.items() if row.read and imported(row.recognises)(path)), None)


def target_help() -> str:
    """Returns one sentence on all formats that can be written, for `--to`."""
    return "; ".join(f"{name}: {FORMATS[name].help}" for name in TARGETS) + "."
