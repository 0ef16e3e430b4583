"""What leaves this machine names none of its folders, and nothing else in it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import attempt_cli
from attempt_cli.exchange.provenance import portable_texts, public_source
from attempt_cli.session import Session
from attempt_registry import Backbone
from tests.exchange.conftest import add_prompt


@pytest.mark.parametrize(
    ("text", "portable"),
    [
        ("/home/me/rows/train.csv: all 60 rows", "train.csv: all 60 rows"),
        ("attempt eval --test-file=/home/me/a.csv", "attempt eval --test-file=a.csv"),
        ("'/home/me/a.csv', \"/b/c.csv\"", "'a.csv', \"c.csv\""),
        (r"C:\Users\me\a.csv and D:/x/b.csv", "a.csv and b.csv"),
        ("~/rows/a.csv", "a.csv"),
        ("hf://someone/rows/a.csv", "hf://someone/rows/a.csv"),
        ("https://a.example/b/c.csv", "https://a.example/b/c.csv"),
        ("nyu-mll/glue rte: validation", "nyu-mll/glue rte: validation"),
        ("data/rows.csv ./a/b ../c/d", "data/rows.csv ./a/b ../c/d"),
        ("1/2, yes/no, a / b, //", "1/2, yes/no, a / b, //"),
    ],
)
def test_texts(text: str, portable: str) -> None:
    assert portable_texts({"a": [text, 1, None]}) == {"a": [portable, 1, None]}


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("google-t5/t5-base", "google-t5/t5-base"),
        ("/home/me/models/tiny", "tiny"),
        (r"C:\models\tiny", "tiny"),
        ("/a/tiny", "tiny"),
        ("package/Model.gguf", "Model.gguf"),
        ("../secret", "secret"),
        ("tiny", "tiny"),
    ],
)
def test_the_place_of_a_backbone(source: str, public: str) -> None:
    assert public_source(Backbone("x", "f", "decoder-only", 3, 0.1, 1, source)) == public


@pytest.mark.parametrize("to", ["bundle", "npy"])
def test_an_export_names_no_folder_of_this_machine(
    to: str, sessions: Callable[..., Session], folders: dict[str, Path], tmp_path: Path
) -> None:
    session = sessions("llama")
    add_prompt(session, placement="after")
    exported = attempt_cli.export("moods", tmp_path / "out", to=to, session=session)
    for name in exported.files:
        file = tmp_path / "out" if to == "bundle" else tmp_path / "out" / name
        assert str(folders["llama"].parent).encode() not in file.read_bytes(), name
