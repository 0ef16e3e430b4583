"""A tokenizer's chat template, as what stands around an input: tokens before it and behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from attempt_cli.errors import AttemptError, first_line

PLACE = "{input}"  # stands for the input in a rendered template
# Templates that name the day get the one that Llama 3.2's names where it cannot know it: a prompt belongs to one text.
DATE = (
    "{%- macro strftime_now(form) -%}{{ form | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') "
    "| replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') }}{%- endmacro -%}"
)
# The template and its tokens must be the same around all of these; they end and begin with unlike characters.
PROBES = ("one two three", "Is it good?\n\n(It is: 5)", '"text" 2.0', "was it bad!")
ANSWER = "yes"


@dataclass(frozen=True)
class ChatFrame:
    """A rendered chat template: one user turn, and the beginning of the assistant's.

    Args:
        text: the whole template, with PLACE where the input stands.
        head: tokens before the input, with the template's own system turn where it has one.
        tail: tokens behind the input, up to where the answer begins.
        cue: the text right before an answer, from the last control token on.
        lead: what the template puts between it and an answer: nothing, or a space.
        end_id: the token that ends the assistant's turn.
    """

    text: str
    head: tuple[int, ...]
    tail: tuple[int, ...]
    cue: str
    lead: str
    end_id: int


def chat_frame(tokenizer: Any, name: str) -> ChatFrame:
    """Renders a tokenizer's chat template once.

    Dates in it are a fixed one, and models that think are told not to: label words stand at the answer's beginning.

    Args:
        tokenizer: the tokenizer.
        name: the backbone's name, for messages.

    Raises:
        AttemptError: there is no template, it cannot be rendered, or an input in it is not a text of its own: the
            template changes it, or tokens reach over its ends.
    """
    if not tokenizer.chat_template:
        raise AttemptError(
            f"the tokenizer of {name} has no chat template",
            "Leave --chat-template out, or name an instruct backbone, such as smollm2-135m.",
        )
    try:
        text = _rendered(tokenizer, PLACE)
        around = {_around(tokenizer, probe) for probe in PROBES}
        answered = _rendered(tokenizer, PROBES[0], ANSWER)
    except Exception as error:  # templates are programs, and fail as programs do
        raise AttemptError(
            f"the chat template of {name} cannot be rendered: {first_line(error)}", "Leave --chat-template out."
        ) from error
    if len(around) != 1 or None in around or text.count(PLACE) != 1:
        raise AttemptError(
            f"the chat template of {name} changes its text, or has tokens that depend on it",
            "Leave --chat-template out.",
        )
    ((head, tail),) = (pair for pair in around if pair is not None)
    asked = _rendered(tokenizer, PROBES[0])
    between = answered.removeprefix(asked).partition(ANSWER)[0] if answered.startswith(asked) else ""
    control = _control(tokenizer)
    behind = _tokens(tokenizer, answered.rpartition(ANSWER)[2])
    return ChatFrame(
        text,
        head,
        tail,
        cue=re.split("|".join(map(re.escape, control.values())), asked)[-1] if control else asked,
        lead=between if between.isspace() else "",
        end_id=next((token for token in behind if token in control), tokenizer.eos_token_id),
    )


def no_chat(name: str) -> AttemptError:
    """Returns the error for an encoder-decoder."""
    return AttemptError(
        f"{name} is an encoder-decoder, which has no chat template",
        "Leave --chat-template out, or name an instruct backbone, such as smollm2-135m.",
    )


def _rendered(tokenizer: Any, content: str, answer: str | None = None) -> str:
    turns = [{"role": "user", "content": content}]
    turns += [{"role": "assistant", "content": answer}] if answer is not None else []
    template = tokenizer.get_chat_template()
    rendered: str = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=answer is None,
        enable_thinking=False,
        chat_template=DATE + template if "strftime_now" in template else template,
    )
    return rendered


def _around(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the tokens around a text in the rendered template; None unless its own tokens are there once."""
    whole, own = _tokens(tokenizer, _rendered(tokenizer, text)), _tokens(tokenizer, text)
    places = [i for i in range(len(whole) - len(own) + 1) if whole[i : i + len(own)] == own]
    if len(places) != 1:
        return None
    return tuple(whole[: places[0]]), tuple(whole[places[0] + len(own) :])


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _control(tokenizer: Any) -> dict[int, str]:
    return {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
