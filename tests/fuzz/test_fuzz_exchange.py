"""Changed bytes in what is imported: each is taken, or refused with a clear error, and then nothing is added."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from attempt_registry import Backbone
from tests.fuzz.test_fuzz_models import COUNT, bounded, mutated

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


KINDS: list[Callable[[Path], tuple[Path, Path]]] = [bundle, provenance, adapter_config, adapter_tensors, authors]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_imports(make: Callable[[Path], tuple[Path, Path]], tmp_path: Path) -> None:
    path, file = make(tmp_path)
    data = file.read_bytes()
    session = session_in(tmp_path / "to")
    task = ["x", "y"] if make.__name__.startswith("adapter") else []
    attempt_cli.import_from(path, task=task, session=session)  # whole, it is taken
    draw = random.Random(make.__name__)
    refused = 0
    for number in range(COUNT // 10 or 60):
        changed = mutated(data, draw)
        file.write_bytes(changed)
        before = session.store.count(attempt_cli.Prompt, {})
        prefix = {"prefix": f"n{number}-"} if make is bundle else {}
        try:
            with bounded():
                attempt_cli.import_from(path, task=task, session=session, **prefix)
        except AttemptError:
            refused += 1
            assert session.store.count(attempt_cli.Prompt, {}) == before
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} of {changed!r}")
    assert refused
