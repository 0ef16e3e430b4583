"""docs/extending.md: its module, row and test are a method, as they stand there; the other examples work, too."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from attempt_cli.backbones.shapes import backbone_shapes
from attempt_cli.data import metrics
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.example import Example
from attempt_cli.experiments.methods import METHODS as COMPARED
from attempt_cli.experiments.parameters import Counting
from attempt_cli.experiments.report import COLUMNS
from attempt_cli.training import methods

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
MODULE, ROW, TEST, WEIGHTS, METRIC = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
TASK, TABLE = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)


def test_the_method_is_its_module_its_row_and_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("attempt_cli.method.gain")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(MODULE, module.__dict__)
    (name, row), *others = eval(f"{{{ROW}}}", vars(methods).copy()).items()
    assert others == []
    monkeypatch.setitem(methods.METHODS, name, row)
    tests: dict[str, Any] = {}
    exec(TEST, tests)
    ran = [test() for test_name, test in tests.items() if test_name.startswith("test_")]
    assert ran == [None]
    assert f"{name} {row.help}" in methods.method_help()
    base = backbone_shapes()["t5-base"]
    assert Counting(name).formula(base) == Counting(name).count(base) == 768


def test_the_method_of_weights_is_the_one_in_the_code() -> None:
    source = (Path(__file__).parents[1] / "attempt_cli/backbones/tuned.py").read_text("utf-8")
    for function in WEIGHTS.strip().split("\n\n\n"):
        assert function in source


def test_the_task_loads(tmp_path: Path) -> None:
    path = tmp_path / "trec.yaml"
    path.write_text(TASK)
    assert len(load_task(path).label_words) == 6


def test_the_metric_computes() -> None:
    names = vars(metrics).copy()
    exec(METRIC, names)
    examples = [Example("", target, None, (), None, row) for row, target in enumerate(("yes", "yes", "no"))]
    assert names["balanced_accuracy"](["yes", "no", "no"], examples, ("no", "yes")) == 0.75


def test_the_table_names_what_there_is() -> None:
    (table,) = yaml.safe_load(TABLE).values()
    assert set(table["methods"]) <= set(COMPARED)
    assert set(table["columns"]) <= set(COLUMNS)
    assert all(load_task(task) for task in table["tasks"])
