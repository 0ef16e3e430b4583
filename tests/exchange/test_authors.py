"""The ATTEMPT authors' files: a real one, a made-up run against their own formula, and files that are traps."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import attempt_cli
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange.authors import read_tensor
from attempt_cli.method import paper_temperature
from attempt_cli.session import Session
from attempt_registry import Backbone
from tests.exchange.conftest import add_prompt

REAL = Path(__file__).parents[3] / "shared" / "reference" / "record_prefix_embeddings.pt"


@pytest.mark.skipif(not REAL.exists(), reason="the authors' file is not here")
def test_a_real_file(tmp_path: Path) -> None:
    session = Session(tmp_path / "registry", backbone="t5-base")
    session.store.remember_backbone(Backbone("t5-base", "f" * 16, "encoder-decoder", 768, 3.0, 1, "t5-base"))
    (prompt,) = attempt_cli.import_from(REAL, session=session).prompts
    assert (prompt.ref, prompt.task, prompt.kind, prompt.length) == ("record@1", "record", "source", 100)
    assert (prompt.embedding_scale, prompt.placement) == (1.0, "before")
    tensor = session.store.prompt_tensor(prompt)
    assert np.linalg.norm(tensor) == pytest.approx(281.33, abs=0.01)  # as its README says


def save_run(folder: Path, backbone: FrozenBackbone, tasks: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Saves a run as the authors' code does: targets of a shared G are views into one storage."""
    generator = torch.Generator().manual_seed(1)
    m, r, d = 5, 7, backbone.width
    tensors = {
        "attn_W_down": torch.randn(r, d, generator=generator) / 5,
        "attn_W_up": torch.randn(d, r, generator=generator) / 5,
        "layer_norm_weight": torch.ones(d),
        "layer_norm_bias": torch.zeros(d),
    }
    targets = torch.randn(len(tasks or [""]), m, d, generator=generator) * 2
    for number, task in enumerate(tasks or [""]):
        tensors["prefix_embeddings" + (f"_{task}" if task else "")] = targets[number]
    folder.mkdir()
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return tensors


def test_a_run_mixes_as_the_authors_formula_says(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    backbone = session.load_backbone()
    saved = save_run(tmp_path / "run", backbone)
    sources = [
        add_prompt(session, name, kind="source", seed=seed, embedding_scale=1.0) for seed, name in enumerate("ab")
    ]
    added = attempt_cli.import_from(tmp_path / "run", task="moods", name="mine", sources="a,b", session=session)
    assert [record.ref for record in (*added.prompts, *added.attentions, *added.compositions)] == ["mine@1"] * 3
    assert added.attentions[0].temperature == paper_temperature(backbone.width)
    assert added.compositions[0].sources == ("a@1", "b@1")
    model = attempt_cli.load("mine", session=session).load().model
    (row,) = backbone.encode(["the text is good"], [[3]], 64)
    batch = backbone.collate([row])
    embeddings = backbone.embed(batch.input_ids)
    prompts, weights = model.prompts(batch, embeddings, None)
    # P_t + sum_j a_j P_j, a = softmax(max-pooled P_j . LN(W_up SiLU(W_down max-pooled X)) / (d e)), in float64
    own = [torch.tensor(session.store.prompt_tensor(source)).double() for source in sources]
    own.append(saved["prefix_embeddings"].double())
    pooled = embeddings[0].double().amax(dim=0)
    hidden = saved["attn_W_up"].double() @ torch.nn.functional.silu(saved["attn_W_down"].double() @ pooled)
    query = torch.nn.functional.layer_norm(hidden, hidden.shape)
    scores = torch.stack([prompt.amax(dim=0) @ query for prompt in own]) / (backbone.width * np.e)
    a = scores.softmax(dim=0)
    expected = own[-1] + sum(weight * prompt for weight, prompt in zip(a, own, strict=True))
    assert weights is not None
    assert prompts is not None
    torch.testing.assert_close(weights[0].double(), a, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(prompts[0].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_run_of_several_tasks(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    saved = save_run(tmp_path / "run", session.load_backbone(), ["mrpc", "rte"])
    with pytest.raises(ArgumentsError, match="several tasks under one attention"):
        attempt_cli.import_from(tmp_path / "run", session=session)
    added = attempt_cli.import_from(tmp_path / "run", name="both", session=session)
    assert [(prompt.ref, prompt.task) for prompt in added.prompts] == [("both.mrpc@1", "mrpc"), ("both.rte@1", "rte")]
    for prompt in added.prompts:  # each its own part of the shared storage
        np.testing.assert_array_equal(
            session.store.prompt_tensor(prompt), saved[f"prefix_embeddings_{prompt.task}"].numpy()
        )
    assert not added.compositions


def test_a_run_without_a_part_of_g_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    save_run(tmp_path / "run", session.load_backbone())
    (tmp_path / "run" / "attn_W_up.pt").unlink()
    with pytest.raises(AttemptError, match=r"no attn_W_up\.pt"):
        attempt_cli.import_from(tmp_path / "run", task="moods", session=session)
    assert session.store.prompts() == []


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_traps(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    torch.save(torch.zeros(1).expand(1 << 20, 1 << 20), tmp_path / "wide.pt")  # a view of four bytes
    torch.save({"prompt": torch.zeros(2, 3)}, tmp_path / "dict.pt")
    torch.save(torch.zeros(2, 3, dtype=torch.int64), tmp_path / "numbers.pt")
    torch.save(torch.zeros(2, 3).to_sparse(), tmp_path / "sparse.pt")
    torch.save(torch.zeros(4 << 20), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in whole.infolist():
            for number in range(8):
                bomb.writestr(f"{member.filename}{number or ''}", whole.read(member))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 20
    says = {
        "trap": "cannot be read",
        "old": "cannot be read",
        "wide": r"\[1048576, 1048576\]",
        "dict": "holds dict",
        "numbers": "int64",
        "sparse": "holds Tensor",
        "bomb": "unpacked it has more than",
    }
    for name, text in says.items():
        with pytest.raises(AttemptError, match=text):
            read_tensor(tmp_path / f"{name}.pt")
    assert not (tmp_path / "sprung").exists()
    buffer = io.BytesIO()
    torch.save(torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16)), buffer)
    (tmp_path / "fine.pt").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_tensor(tmp_path / "fine.pt"), np.ones((2, 3), np.float32))
