"""Changed bytes in what is imported: each is taken, or refused with a clear error, and then nothing is added."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save, save_file

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from attempt_registry import Backbone
from tests.fuzz.damage import damaged, inputs, tried

WIDTH = 3
KNOWN = {"backbone": "tiny", "fingerprint": "f" * 16}


def session_in(folder: Path) -> Session:
    session = Session(folder, backbone="tiny")
    session.store.remember_backbone(Backbone(*KNOWN.values(), "decoder-only", WIDTH, 0.1, 1, "made in the test"))
    return session


def filled(folder: Path) -> Session:
    """A registry with a composition, without a backbone's weights."""
    session = session_in(folder)
    more = {"kind": "source", "method": "mpt", "task": "t", "task_version": 1, "embedding_scale": 0.5, **KNOWN}
    for name in ("a", "b"):
        session.store.add_prompt(
            np.full((2, WIDTH), 1.5, np.float32), name=name, settings={"steps": 3}, numbers={"x": 1}, seed=0, **more
        )
    shapes = {"down.weight": (2, WIDTH), "up.weight": (WIDTH, 2), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    g = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    session.store.add_attention(
        g, name="g", rank=2, level="instance", temperature=1.0, width=WIDTH, settings={}, seed=0, **KNOWN
    )
    session.store.add_composition(name="mix", sources=["a"], targets=["b"], attention="g", **KNOWN)
    return session


def bundle(folder: Path) -> tuple[Path, Path]:
    attempt_cli.export("mix", folder / "x.attempt", to="bundle", session=filled(folder / "from"))
    return folder / "x.attempt", folder / "x.attempt"


def provenance(folder: Path) -> tuple[Path, Path]:
    attempt_cli.export("a", folder / "adapter", to="peft", session=filled(folder / "from"))
    return folder / "adapter", folder / "adapter" / "attempt.json"


def adapter(folder: Path, name: str) -> tuple[Path, Path]:
    folder = folder / "adapter"
    folder.mkdir()
    config = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"prompt_embeddings": (4, WIDTH), "prefix_task_cols": (2, 4, 1), "prefix_task_rows": (2, 1, WIDTH)}
    save_file({key: np.ones(shape, np.float32) for key, shape in tensors.items()}, folder / "adapter_model.safetensors")
    return folder, folder / name


def adapter_config(folder: Path) -> tuple[Path, Path]:
    return adapter(folder, "adapter_config.json")


def adapter_tensors(folder: Path) -> tuple[Path, Path]:
    return adapter(folder, "adapter_model.safetensors")


def authors(folder: Path) -> tuple[Path, Path]:
    torch.save(torch.ones(4, WIDTH), folder / "rte_prefix_embeddings.pt")
    return folder / "rte_prefix_embeddings.pt", folder / "rte_prefix_embeddings.pt"


# what a well-formed description may hold in place of what it should
JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**30, float("inf"), float("nan")),
    *("", "x", "../x", "a@1", "a@0", "attention:g@1", "\ud800", "\x1b[31m"),
    *([], [1], ["a@1"], [[[]]], {}, {"a@1": "x"}, {"task": {}}, {"weights": [1]}, {"init_from": ["x"]}),
    *({"weights": {"a@1": -1, "target": 1}}, {"embedding_scale": "1"}, {"embedding_scale": 1, "with_target": 3}),
]


def replaced(value: Any, draw: random.Random) -> Any:
    """The same document with junk in one place."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        return {**value, name: replaced(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], replaced(value[at], draw), *value[at + 1 :]]
    return draw.choice(JUNK)


def resealed(data: bytes, draw: random.Random) -> bytes:
    """A bundle with junk in its records and a right checksum."""
    length = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["attempt_bundle"])
    manifest = replaced(document["manifest"], draw)
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    changed = json.dumps({"manifest": manifest, "sha256": hashlib.sha256(text).hexdigest()})
    return save(load(data), {"attempt_bundle": changed})


def junk(data: bytes, draw: random.Random) -> bytes:
    """A JSON file with junk in one place."""
    return json.dumps(replaced(json.loads(data), draw)).encode()


Make = Callable[[Path], tuple[Path, Path]]


def outcomes(make: Make, change: Callable[[bytes, random.Random], bytes], folder: Path, count: int) -> list[bool]:
    """Imports changed files; tells of each whether it was taken. What is refused adds nothing."""
    path, file = make(folder)
    data = file.read_bytes()
    session = session_in(folder / "to")
    task = ["x", "y"] if make in (adapter_config, adapter_tensors) else []
    attempt_cli.import_from(path, task=task, session=session)  # whole, it is taken
    draw = random.Random(change.__name__ + make.__name__)
    found = []
    for number in range(count):
        changed = change(data, draw)
        file.write_bytes(changed)
        before = session.store.count(attempt_cli.Prompt, {})
        more = {"task": task, "session": session, **({"prefix": f"n{number}-"} if make is bundle else {})}
        found.append(tried(partial(attempt_cli.import_from, path, **more), folder, (AttemptError,), changed))
        assert found[-1] or session.store.count(attempt_cli.Prompt, {}) == before
    assert session.store.verify() == []
    return found


@pytest.mark.parametrize(("make", "change"), [(bundle, resealed), (provenance, junk), (adapter_config, junk)])
def test_well_formed_junk(make: Make, change: Callable[[bytes, random.Random], bytes], tmp_path: Path) -> None:
    found = outcomes(make, change, tmp_path, inputs(8, 100))
    assert any(found)
    assert not all(found)


@pytest.mark.parametrize("make", [bundle, provenance, adapter_config, adapter_tensors, authors])
def test_imports(make: Make, tmp_path: Path) -> None:
    assert not all(outcomes(make, damaged, tmp_path, inputs(8, 60)))
