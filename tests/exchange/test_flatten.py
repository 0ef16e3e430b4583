"""A composition as one plain prompt: the mean of its rows' prompts, its scores, its lineage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attempt_cli
from attempt_cli.data.own_files import task_from_files
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptAttention, rms_temperature
from attempt_cli.session import Session
from attempt_registry import Composition
from tests.exchange.conftest import add_prompt
from tests.training.toy import toy_rows, write_csv

ORIGIN = {"origin": "/home/someone/rows/x.csv: all 3 rows", "n": 3}


def mixture(session: Session, *, placement: str = "before", level: str = "instance", **task: Any) -> Composition:
    """Adds a random composition `mix` of two sources and a target, as a training does."""
    backbone = session.load_backbone()
    for seed, name in enumerate("ab"):
        add_prompt(session, name, kind="source", seed=seed, placement=placement)
    add_prompt(session, "mix", method="attempt", seed=9, placement=placement, parents=["a", "b"], **task)
    generator = torch.Generator().manual_seed(4)
    temperature = rms_temperature(backbone.width)
    g = PromptAttention(backbone.width, 3, temperature, generator=generator)
    for linear in (g.down, g.up):
        torch.nn.init.normal_(linear.weight, std=0.5, generator=generator)
    known = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
    session.store.add_attention(
        {name: tensor.detach().numpy() for name, tensor in g.state_dict().items()},
        name="mix",
        rank=3,
        level=level,
        temperature=temperature,
        width=backbone.width,
        settings={"embedding_scale": backbone.embedding_rms},
        seed=0,
        placement=placement,
        parents=["a", "b"],
        **known,
    )
    session.store.add_run(
        command="made in a test", settings={}, rows={"train": ORIGIN}, seed=0, budget={"steps": 1}, numbers={},
        versions={},
        duration=1.0, artefacts=["prompt:mix@1", "attention:mix@1"], inputs=["prompt:a@1", "prompt:b@1"],
    )  # fmt: skip
    return session.store.add_composition(
        name="mix", sources=["a", "b"], attention="mix", targets=["mix"],
        settings={"embedding_scale": backbone.embedding_rms}, **known,
    )  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
        for seed, (name, count) in enumerate((("train", 30), ("validation", 12)))
    }


def of_rows(rows: dict[str, Path]) -> dict[str, Any]:
    """The task of the toy rows, as a prompt's settings hold it."""
    from attempt_cli.data.fields import task_fields

    task = task_from_files(train=rows["train"], validation=rows["validation"], input="{text} label:", label="mood")
    return {"task": task.name, "settings": {"task": task_fields(task), "format": "words"}}


@pytest.mark.parametrize(("placement", "level"), [("before", "instance"), ("after", "token")])
def test_it_is_the_mean_of_the_rows_prompts(
    placement: str, level: str, sessions: Callable[..., Session], rows: dict[str, Path]
) -> None:
    session = sessions()
    mixture(session, placement=placement, level=level, **of_rows(rows))
    (made,) = attempt_cli.flatten("plain", "mix", session=session)
    backbone, model = session.load_backbone(), attempt_cli.load("mix", session=session).load().model
    expected = []
    for row in toy_rows(30, 0):
        (one,) = backbone.encode([f"{row['text']} label:"], [[3]], 64)
        batch = backbone.collate([one])
        expected.append(model.prompts(batch, backbone.embed(batch.input_ids), None)[0])
    entering = session.store.prompt_tensor(made.prompt) * made.prompt.embedding_scale
    np.testing.assert_allclose(entering, torch.cat(expected).mean(dim=0).numpy(), atol=1e-5)
    assert made.n == 30
    assert sum(made.attention.values()) == pytest.approx(1)
    assert made.prompt.placement == placement
    assert (made.comparison.n, made.comparison.split) == (12, "validation")
    assert [made.comparison.first.model, made.comparison.second.model] == ["mix@1", "plain@1"]
    assert made.prompt.parents == ("composition:mix@1",)
    lineage = session.store.lineage("plain")
    assert {"composition:mix@1", "a@1", "b@1", "attention:mix@1", "mix@1"} <= set(lineage.parents)
    (run,) = lineage.made_by
    assert (run.rows["train"]["n"], run.rows["validation"]["n"]) == (30, 12)
    assert session.store.verify() == []


def test_rows_of_a_file_are_split(sessions: Callable[..., Session], rows: dict[str, Path], tmp_path: Path) -> None:
    session = sessions()
    mixture(session, **of_rows(rows))
    other = write_csv(tmp_path / "other.csv", toy_rows(40, 7))
    (made,) = attempt_cli.flatten("plain", "mix", rows=other, session=session)
    assert (made.n, made.comparison.n) == (36, 4)
    (run,) = session.store.lineage("plain").made_by
    assert not set(run.rows["train"]["rows"]) & set(run.rows["validation"]["rows"])


def test_what_cannot_be_flattened_is_refused(sessions: Callable[..., Session]) -> None:
    session = sessions()
    add_prompt(session, "alone")
    attempt_cli.compose("lone", targets="alone", session=session)
    with pytest.raises(AttemptError, match="mixes no sources"):
        attempt_cli.flatten("plain", "lone", session=session)
    with pytest.raises(AttemptError, match="no composition named 'mixx'"):
        attempt_cli.flatten("plain", "mixx", session=session)


def test_the_flattened_prompt_is_exported(
    sessions: Callable[..., Session], rows: dict[str, Path], tmp_path: Path
) -> None:
    session = sessions()
    mixture(session, **of_rows(rows))
    with pytest.raises(AttemptError, match="mixes a prompt of its own for every input"):
        attempt_cli.export("mix", tmp_path / "adapter", to="peft", session=session)
    attempt_cli.flatten("plain", "mix", session=session)
    assert (
        "adapter_model.safetensors"
        in attempt_cli.export("plain", tmp_path / "adapter", to="peft", session=session).files
    )
