"""Reads YAML: fast, safe, and with `no` as the word "no"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from attempt_cli.errors import AttemptError


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which only true and false are truth values (`labels: {0: no}` means the word), and keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
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
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
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
