"""`--deterministic`: only operations with equal bits run, during the training alone, and the record says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.determinism import equal_bits, prepare_equal_bits
from attempt_registry import Registry
from tests.training.requests import request_for, trained
from tests.training.toy import toy_rows, write_csv

SETTINGS = {"prompt_length": 4, "steps": 2, "batch_size": 8, "eval_every": 0}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    train = write_csv(tmp_path / "train.csv", toy_rows(16, 0))
    return task_from_files(train=train, input="{text} label:", label="mood", name="toy")


class Asks(Listener):
    """Notes whether only such operations run."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self.found.append(torch.are_deterministic_algorithms_enabled())


def test_a_training_and_nothing_else_is_deterministic(backbone: FrozenBackbone, task: Task, tmp_path: Path) -> None:
    registry, seen = Registry.open(tmp_path / "registry"), []
    for wanted in (None, True):
        listener = Asks()
        config = make_config(None, deterministic=wanted, **SETTINGS)
        outcome = trained(registry, backbone, request_for(task, config=config, name="own"), listener=listener)
        assert listener.found == [wanted is True] * 2
        assert not torch.are_deterministic_algorithms_enabled()
        record = registry.prompt(outcome.prompt)
        assert record.settings["training"].get("deterministic") == wanted
        seen.append(record.sha256)
    assert seen[0] == seen[1]  # on a CPU they are the same without it


def test_it_is_part_of_a_training_s_identity_only_where_it_is_asked_for(backbone: FrozenBackbone, task: Task) -> None:
    keys = [
        request_for(task, config=make_config(None, deterministic=wanted, **SETTINGS), name="own").key(backbone)
        for wanted in (None, False, True)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_an_operation_without_equal_bits_is_named(
    backbone: FrozenBackbone, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def atomic(*_: object) -> None:
        raise RuntimeError("adding_cuda does not have a deterministic implementation, but you set …")

    monkeypatch.setattr(PromptedModel, "log_likelihood", atomic)
    request = request_for(task, config=make_config(None, deterministic=True, **SETTINGS), name="own")
    with pytest.raises(AttemptError, match=r"cannot have equal bits here: .*adding_cuda") as raised:
        trained(Registry.open(tmp_path / "registry"), backbone, request)
    assert raised.value.hint == "Train without --deterministic."
    with pytest.raises(RuntimeError, match="out of memory"), equal_bits(True):
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_workspaces_of_products_have_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare_equal_bits()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_equal_bits()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
