"""The command `attempt`: global options, the list of commands, and how failures are told."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import re
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli import __version__
from attempt_cli.cli.output import Output, leave, say
from attempt_cli.errors import AttemptError
from attempt_registry.errors import nearest_names

if TYPE_CHECKING:
    from attempt_cli.cli.options import BackboneOptions
    from attempt_cli.session import Session
    from attempt_registry import Registry

# command -> the module of attempt_cli.cli that defines `command`; imported only when it is used or listed
COMMANDS = {
    "train-source": "train_source",
    "train-target": "train_target",
    "train-attention": "train_attention",
    "compose": "compose",
    "eval": "eval",
    "compare": "compare",
    "inspect": "inspect",
    "rank-sources": "rank_sources",
    "fewshot": "fewshot",
    "sweep": "sweep",
    "reproduce": "reproduce",
    "predict": "predict",
    "export": "export",
    "import": "import_",
    "push": "push",
    "pull": "pull",
    "serve": "serve",
    "registry": "registry",
    "tasks": "tasks",
    "backbone": "backbone",
    "demo": "demo",
}


@dataclass
class Settings:
    """The global options, as every command gets them (`@click.pass_obj`)."""

    registry_path: Path | None = None
    data_dir: Path | None = None
    debug: bool = False
    output: Output = field(default_factory=Output)

    def registry(self) -> Registry:
        """Opens the registry that the options or the environment name."""
        from attempt_registry import Registry

        return Registry.open(self.registry_path)

    def session(self, where: BackboneOptions | None = None, **more: Any) -> Session:
        """Makes the session of a command: its registry, its rows and the backbone that its options choose.

        Args:
            where: the backbone options.
            more: further fields of the session; without a listener, remarks go to the output.
        """
        from attempt_cli.cli.options import typed_command
        from attempt_cli.cli.progress import NoteListener
        from attempt_cli.session import Session

        chosen: dict[str, Any] = vars(where) if where else {}
        more.setdefault("listener", NoteListener(self.output))
        return Session(self.registry(), self.data_dir, command=typed_command(), **chosen, **more)


# the hint of a value that nothing could take, wherever it came from
LOOK = "Look for it in the options, the task and the rows."

# global options that may stand behind the command too, and how many values each takes
GLOBAL_OPTIONS = {"--registry": 1, "--data-dir": 1, "--format": 1, "--debug": 0}


class _BrokenPipeError(Exception):
    """A pipe whose other end is gone; click would make an exit with 1 of Python's own exception, without a word."""


class AttemptGroup(click.Group):
    """Commands are imported when they are named, so that `attempt --help` stays fast."""

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)  # prints --help
        except BrokenPipeError as error:
            raise _BrokenPipeError from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _BrokenPipeError from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the global options from wherever they stand: `attempt registry list --format json` is meant as such."""
        front: list[str] = []
        rest: list[str] = []
        words = iter(args)
        for word in words:
            name, equals, _ = word.partition("=")
            if word == "--":
                rest += [word, *words]
            elif name in GLOBAL_OPTIONS:
                value = next(words, None) if GLOBAL_OPTIONS[name] and not equals else ""
                if value is None:
                    raise click.UsageError(f"Option '{word}' requires an argument.", ctx)
                front += [word, value] if GLOBAL_OPTIONS[name] and not equals else [word]
            else:
                rest.append(word)
        return super().parse_args(ctx, front + rest)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"attempt_cli.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = nearest_names(args[0], COMMANDS) if args[0] not in COMMANDS else []
        if near and not args[0].startswith("-"):
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean {' or '.join(near)}?", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=AttemptGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="attempt")
@click.option(
    "--registry",
    "registry_path",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ATTEMPT_REGISTRY",
    help="The registry's folder. [default: the user's data folder]",
)
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="ATTEMPT_DATA",
    help="A folder of rows in the hub's layout; what is not there comes from the Hugging Face hub.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "quiet"]),
    default="table",
    show_default=True,
    help="For people, for programs, or names alone.",
)
@click.option("--debug", is_flag=True, envvar="ATTEMPT_DEBUG", help="Show the traceback of a failure.")
@click.pass_context
def attempt(ctx: click.Context, registry_path: Path | None, data_dir: Path | None, format_: str, debug: bool) -> None:
    """Soft prompts for many tasks on one frozen language model.

    Train source prompts on large tasks, then mix them for a new one (ATTEMPT, Asai et al., EMNLP 2022):

    \b
      attempt train-source sst2
      attempt train-target rte --sources all
      attempt eval --tasks rte
      attempt registry list
    """
    ctx.obj = Settings(registry_path, data_dir, debug, Output(format_))


def main() -> None:
    """Runs the command line; exit 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    _prepare_streams()
    try:
        code = attempt(standalone_mode=False)  # what a command gave to ctx.exit, else None
        if isinstance(code, int) and code:
            sys.exit(code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show(usage := io.StringIO())
        say(usage.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("Stopped.", err=True)
        sys.exit(130)
    except _BrokenPipeError as error:
        _end_broken_pipe(error)
    except AttemptError as error:
        _fail(error.message, error.hint, error, error.exit_code)
    except OSError as error:
        hint = "Free some space or check the folder's permissions, then run the command again."
        hint = "Check what was typed." if error.errno == errno.ENAMETOOLONG else hint
        _fail(_os_error_text(error), hint, error)
    except OverflowError as error:
        _fail(f"a number is too large ({error})", LOOK, error)
    except RecursionError as error:
        _fail("something that was read is nested too deeply", "Look for many brackets in the task and the rows.", error)
    except UnicodeError as error:
        _fail(f"a text cannot be encoded or decoded ({error})", LOOK, error)
    except Exception as error:
        lacking = isinstance(error, RuntimeError) and re.search("(out of|allocate) memory", str(error))
        if lacking or isinstance(error, MemoryError):
            hint = "Give a lower --max-tokens or a shorter --max-length."
            _fail("there is not enough memory for a batch", hint, error)
        if isinstance(error, ValueError) and "integer string conversion" in str(error):
            _fail("a number has too many digits", LOOK, error)
        hint = "This is a defect in attempt. `--debug` shows where it happened."
        _fail(f"{type(error).__name__}: {error}", hint, error)


def _prepare_streams() -> None:
    """Makes text in pipes and files UTF-8, and lets no character that a console cannot show end a command.

    An output that was closed (`>&-`) becomes the null device: else the first file that is opened would take its number,
    and what is printed would go into it. A closed input stays closed, and whoever reads it says so.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None and name != "stdin":
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            with contextlib.suppress(OSError):  # a file that became a terminal meanwhile
                stream.reconfigure(encoding=encoding, errors="strict" if name == "stdin" else "backslashreplace")


def _end_broken_pipe(error: _BrokenPipeError) -> None:
    """Ends with 0 where the reader of stdout (head, less) went away; another pipe that broke is a failure."""
    try:
        sys.stdout.write("\n")  # the one way to learn whether it was stdout
        sys.stdout.flush()
    except BrokenPipeError:
        leave(sys.stdout)
        sys.exit(0)
    _fail("another process ended before its time", "Run the command again; `--debug` shows where it happened.", error)


def _fail(message: str, hint: str | None, error: BaseException, exit_code: int = 1) -> None:
    if "--debug" in sys.argv or os.environ.get("ATTEMPT_DEBUG"):
        message, hint = "".join(traceback.format_exception(error)).rstrip(), None
        exit_code = 1
    elif exit_code in (1, 2):
        message = f"Error: {message}"
    say(message, err=True)
    if hint:
        say(hint, err=True)
    sys.exit(exit_code)


def _os_error_text(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
