"""Reads YAML: fast, safe, and with `no` as the word "no"."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from attempt_cli.errors import AttemptError

# no task needs more; a few nested aliases make billions
MOST_VALUES = 200_000


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which only true and false are truth values (`labels: {0: no}` means the word), and keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' appears twice", key.start_mark)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_TaskLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or letter in "tTfF"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Any:
    """Reads a YAML file into plain Python values.

    Raises:
        AttemptError: the file is missing, is not text, or is not YAML (with the line).
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_TaskLoader)
    except FileNotFoundError:
        raise AttemptError(f"no file '{path}'", "`attempt tasks list` shows the tasks that need no file.") from None
    except IsADirectoryError:
        raise AttemptError(f"'{path}' is a folder, not a task file", "Name the YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise AttemptError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})", "Save it as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise AttemptError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or error})",
            "Put quotes around a text that has a colon or a brace in it.",
        ) from None
    except OSError:
        raise
    except Exception as error:  # PyYAML's constructors of dates and numbers raise what Python raises
        raise AttemptError(
            f"{path}: not valid YAML ({str(error)[:200]})", "Put quotes around a text that looks like a number or date."
        ) from None
    if _size(content, {}) > MOST_VALUES:
        raise AttemptError(
            f"{path} holds more than {MOST_VALUES:,} values, or one that holds itself",
            "Write the values out instead of `&name` and `*name`.",
        )
    return content


def _size(value: Any, known: dict[int, float]) -> float:
    """Counts the values in a value as they would be printed: what an alias repeats counts each time.

    Args:
        value: what YAML holds.
        known: the sizes of the lists and mappings that were seen, by identity; filled here.
    """
    if not isinstance(value, (list, dict, set, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # met again inside itself, it has no end
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]
