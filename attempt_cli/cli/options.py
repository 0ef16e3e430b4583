"""Defines the options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from attempt_cli.name_lists import listed
from attempt_cli.placement import PLACEMENTS

if TYPE_CHECKING:
    from attempt_cli.changes import Changes

Command = TypeVar("Command", bound=Callable[..., Any])


def stacked(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Joins several options into one decorator, in the order in which help shows them."""

    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def option_group(keyword: str, kind: type, *decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Joins several options into one value, which the command gets.

    Args:
        keyword: the command's parameter.
        kind: a dataclass with a field for each option, of the same name; a field without an option is None.
        decorators: the options, in the order in which help shows them.
    """
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def grouped(*arguments: Any, **given: Any) -> Any:
            given[keyword] = kind(**{name: given.pop(name, None) for name in names})
            return function(*arguments, **given)

        return stacked(*decorators)(cast(Command, grouped))

    return decorate


@dataclasses.dataclass(frozen=True)
class BackboneOptions:
    """Which backbone, and where it computes."""

    backbone: str | None
    device: str | None
    dtype: str | None
    quantize: str | None = None


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """Where inputs that were read are kept, and how many."""

    input_cache: str | None
    input_cache_dir: Path | None

    def arguments(self) -> dict[str, Any]:
        """Returns them as a `Session` takes them.

        Raises:
            AttemptError: the size is no size.
        """
        from attempt_cli.byte_sizes import parse_size

        size = parse_size(self.input_cache) if self.input_cache is not None else None
        return {"input_cache": size, "input_cache_dir": self.input_cache_dir}


where_options = option_group(
    "where",
    BackboneOptions,
    click.option(
        "--backbone",
        help="Alias, hub id, folder or GGUF file. [default: $ATTEMPT_BACKBONE, else the prompts' own, else t5-base]",
    ),
    click.option("--device", help="cuda, auto (layers over all GPUs), mps or cpu. [default: the best there is]"),
    click.option("--dtype", help="bfloat16 or float32. [default: bfloat16 where the processor is faster in it]"),
    click.option(
        "--quantize",
        type=click.Choice(["nf4", "int8"]),
        help="Keep the layers' weights in 4 or 8 bits, with bitsandbytes: larger models in the same memory.",
    ),
)

cache_options = option_group(
    "cache",
    CacheOptions,
    click.option(
        "--input-cache",
        help="With prompts after the input: memory for inputs that were read, kept across epochs, e.g. 4GiB; 0 for "
        "none. [default: a quarter of the memory]",
    ),
    click.option(
        "--input-cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep them in files here instead; later trainings on the same rows find them.",
    ),
)

# options of a training that other commands have, too
prompt_length_option = click.option(
    "--prompt-length", type=int, help="m, the prompt's tokens. [default: 20, or the sources' own]"
)
placement_option = click.option(
    "--placement",
    type=click.Choice(PLACEMENTS),
    help="The prompt before the input (the paper), or after it: then an input is read once, without gradient. "
    "[default: the sources' own, else after on decoder-only backbones, before on encoder-decoders]",
)
max_length_option = click.option("--max-length", type=int, help="Input tokens of a row. [default: the task's]")
bank_option = click.option(
    "--bank",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="The most trainings of prompts in one pass through the model; 1 trains each alone.",
)
eval_every_option = click.option(
    "--eval-every", type=int, help="Steps between evaluations, 0 for none. [default: ten in all]"
)
learning_rate_option = click.option("--learning-rate", type=float, help="Learning rate of prompts. [default: 0.03]")
attention_rate_option = click.option(
    "--attention-learning-rate", type=float, help="Learning rate of G, of factors, of offsets. [default: 0.01]"
)
weight_rate_option = click.option(
    "--weight-learning-rate", type=float, help="Learning rate of weights (fine-tuning … ia3). [default: 3e-4]"
)
attention_rank_option = click.option(
    "--attention-rank", type=int, help="r, the width inside G. [default: 100, at most half the width]"
)
temperature_option = click.option(
    "--temperature", type=float, help="T of G's softmax. [default: e·√d in RMS units, the paper's e·d in raw ones]"
)

# what G reads, and how its scores become weights
shape_options = stacked(
    click.option(
        "--attention-input",
        type=click.Choice(["words", "last", "mean"]),
        help="What G reads of an input: its word embeddings, max-pooled; or the frozen model's last hidden state of "
        "its last token, or their mean. These cost nothing with the prompt after the input. [default: words]",
    ),
    click.option("--attention-top", type=click.IntRange(min=1), help="So many prompts have a weight. [default: all]"),
    click.option("--cosine", is_flag=True, default=None, help="Scores are cosines; T is trained, from 0.1."),
)

# how fast a comparison's methods learn, and how sharply G chooses
rate_options = stacked(learning_rate_option, attention_rate_option, weight_rate_option, temperature_option)

chat_template_option = click.option(
    "--chat-template/--no-chat-template",
    default=None,
    help="Input and prompt inside the user's turn of the tokenizer's chat template, or not. [default: as the prompts "
    "that are used, else not]",
)

# of the train commands: settings, what is kept, and where it is computed
training_options = stacked(
    click.option("--steps", type=int, help="Optimiser steps. [default: 500]"),
    click.option("--epochs", type=float, help="Passes over the training rows, instead of --steps."),
    prompt_length_option,
    placement_option,
    chat_template_option,
    click.option("--batch-size", help="Rows of a batch, per process; `auto`: as many as fit. [default: 16]"),
    click.option("--accumulate", type=int, help="Batches of an optimiser step. [default: 1]"),
    learning_rate_option,
    click.option("--weight-decay", type=float, help="[default: 1e-5]"),
    click.option("--warmup-steps", type=int, help="[default: a tenth of the steps, at most 500]"),
    click.option("--clip-norm", type=float, help="Largest norm of the gradient of all that is trained. [default: 1.0]"),
    click.option(
        "--units",
        type=click.Choice(["rms", "raw"]),
        help="Prompts in units of the backbone's embedding RMS, or as they are (the paper). [default: rms]",
    ),
    max_length_option,
    click.option("--max-tokens", type=int, help="Positions computed at once, pads included. [default: 8192]"),
    click.option(
        "--gradient-checkpointing",
        is_flag=True,
        default=None,
        help="Compute layers twice rather than keep them: long inputs in little memory.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Layers through torch.compile, or not; --no-compile also launches no CUDA graphs. "
        "[default: measured in trainings of more than 20 minutes, on a GPU of more than 5]",
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        default=None,
        help="On a GPU: the same numbers to the bit each time, by slower kernels. On a CPU they are without it.",
    ),
    click.option("--train-limit", type=int, help="Train on a random sample of at most this many rows."),
    eval_every_option,
    click.option("--eval-rows", type=int, help="Validation rows looked at in training. [default: 200]"),
    click.option("--patience", type=int, help="Stop after this many evaluations without improvement."),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--preset", help="Settings to start from: `paper`."),
    cache_options,
    click.option("--name", help="The name in the registry."),
    click.option("--note", default="", help="A remark to keep with it."),
    click.option("--tag", "tags", multiple=True, help="A tag; may be given several times."),
    click.option("--resume", is_flag=True, help="Continue from the checkpoint of the same command, if there is one."),
    where_options,
)

sampling_options = stacked(
    click.option(
        "--max-rows-per-task",
        type=click.IntRange(min=1),
        help="Of several tasks: none counts for more rows in an epoch.",
    ),
    click.option(
        "--sampling-temperature",
        type=click.FloatRange(min=1),
        default=1.0,
        show_default=True,
        help="Of several tasks: 1 samples them in proportion to their rows, more evens them out.",
    ),
)

max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Positions computed at once, pads included; lower where memory is short.",
)


def limit_option(default: int | None) -> Callable[[Command], Command]:
    """Makes the option of a sample of rows."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help="A random sample of at most N rows.",
    )


def split_option(default: str, *names: str, help: str) -> Callable[[Command], Command]:
    """Makes the option of the split that a command reads."""
    return click.option("--split", type=click.Choice(names), default=default, show_default=True, help=help)


seed_option = click.option(
    "--seed",
    type=click.IntRange(-(2**63), 2**63 - 1),  # what a run can hold
    default=0,
    show_default=True,
    help="The seed of the sample.",
)


@dataclasses.dataclass(frozen=True)
class MixtureOptions:
    """Changes to compositions, as they are typed."""

    add: str | None
    drop: str | None
    only: str | None
    weights: str | None

    def changes(self) -> Changes:
        """Reads the changes.

        Raises:
            click.UsageError: a weight without a name or without a number.
        """
        from attempt_cli.changes import Changes

        forced = numbers_by_name("--weights", self.weights, "mnli=.5") if self.weights is not None else {}
        add, drop, only = (split_names(text) if text is not None else () for text in (self.add, self.drop, self.only))
        return Changes(add, drop, only, forced)


change_options = option_group(
    "mixture",
    MixtureOptions,
    click.option("--add", help="Source prompts that the compositions mix as well, comma separated."),
    click.option("--drop", help="Sources to leave out of the mixture."),
    click.option("--only", help="The only sources to keep in the mixture."),
    click.option(
        "--weights",
        help="Forced weights instead of the attention's, e.g. mnli=.5,target=.5; sources without one get 0.",
    ),
)


def typed_options(context: click.Context, names: Iterable[str]) -> list[str]:
    """Returns the options among these that were typed, by their names in the command, as they are typed."""
    typed = [
        option
        for option in context.command.params
        if option.name in names
        and option.name is not None
        and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    ]
    return [option.opts[-1] for option in typed]


def refuse_options(context: click.Context, names: Iterable[str], where: str) -> None:
    """Refuses options that were typed and say nothing.

    Raises:
        UsageError: naming them.
    """
    if typed := typed_options(context, names):
        raise click.UsageError(f"{' and '.join(typed)} {'says' if len(typed) == 1 else 'say'} nothing {where}")


def split_names(text: str) -> list[str]:
    """Returns the names of a comma list."""
    names = listed(text)
    if not names:
        raise click.UsageError(f"'{text}' names nothing")
    return names


def numbers_by_name(option: str, text: str, example: str) -> dict[str, float]:
    """Returns the numbers of a comma list of NAME=NUMBER.

    Raises:
        click.UsageError: a part without a name or without a number, or a name that has two.
    """
    found: dict[str, float] = {}
    for part in split_names(text):
        name, _, number = (side.strip() for side in part.partition("="))
        if name in found:
            raise click.UsageError(f"{option}: '{name}' has two numbers")
        try:
            found[name] = float(number)
        except ValueError:
            raise click.UsageError(f"{option}: '{part}' is not a name and a number, as in {example}") from None
    return found


def names_or_all(text: str | None) -> str | list[str] | None:
    """Returns the names of a comma list; "all" and None as they are."""
    return text if text is None or text.strip() == "all" else split_names(text)


def typed_command() -> str:
    """Returns the command line as it was typed, for the record."""
    import shlex

    return shlex.join(["attempt", *sys.argv[1:]])
