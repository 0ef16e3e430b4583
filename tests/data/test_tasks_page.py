"""docs/tasks.md against the code: every field, its default and example, and every block."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from attempt_cli.cli.main import main
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.check import check_rows
from attempt_cli.data.metrics import METRICS
from attempt_cli.data.prepare import PREPARATIONS
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
FIELDS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.split("## Every field")[1].split("\n## ")[0].splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].startswith("`") and len(cells) == 5
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_field_is_in_the_table_in_order() -> None:
    assert list(FIELDS) == list(Task.model_fields)


@pytest.mark.parametrize("name", Task.model_fields)
def test_the_default_and_the_example_of_a_field(name: str) -> None:
    _, default, _, example = FIELDS[name]
    field = Task.model_fields[name]
    assert field.description
    value = field.get_default(call_default_factory=True)
    assert default == ("required" if field.is_required() else f"`{value}`" if value else "none")
    if field.exclude:
        return
    given = yaml.safe_load(example.strip("`"))
    assert list(given) == [name]
    with pytest.raises(ValidationError) as failure:  # other fields are missing
        Task.model_validate(given)
    assert not [problem for problem in failure.value.errors() if problem["loc"][0] == name]


def test_every_metric_and_preparation_is_explained() -> None:
    table = [line.split("|")[1] for line in section("Metrics").splitlines() if line.startswith("| `")]
    named = re.findall(r"`(\w+)`", " ".join(table))
    assert named == list(METRICS)
    rows = [line.split("|")[1:4] for line in section("Preparations").splitlines() if line.startswith("| `")]
    assert {name.strip(" `"): tuple(re.findall(r"`(\w+)`", reads)) for name, reads, _ in rows} == {
        name: preparation.reads for name, preparation in PREPARATIONS.items()
    }


def write_rows(path: Path, fields: dict[str, Any], columns: tuple[str, ...]) -> None:
    """Writes 20 rows for each label value."""
    answers = {fields["answers"]: ["red", "the red key"]} if "answers" in fields else {}
    labels = [{fields.get("label", "label"): value} for value in fields.get("labels", {})] or [answers]
    rows = [{column: f"{column} {n}" for column in columns} | given for n in range(20) for given in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("block", YAML, ids=lambda block: yaml.safe_load(block)["name"])
def test_every_task_of_the_page_loads_and_its_rows_render(block: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(block)
    task, fields = load_task(path), yaml.safe_load(block)
    for file in task.files.values():
        write_rows(file, fields, task.columns())
    assert [found.problems for found in check_rows(task, None)] == [[]] * len(task.files)
    for split in ("train", "validation", "test"):
        assert load_examples(task, split).examples


def test_the_blocks_show_each_kind_of_task() -> None:
    fields = [set(yaml.safe_load(block)) for block in YAML]
    assert len(fields) == 3
    assert [len(some & {"labels", "answers", "target"}) for some in fields] == [1, 1, 1]
    assert {"prepare", "group", "splits", "reference"} <= fields[2]


def test_the_commands_on_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.S) if "tasks check" in block)
    for line in block.splitlines():
        command, _, target = line.partition(" > ")
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()  # a failure exits
        if target:
            Path(target).write_text(capsys.readouterr().out)


def test_the_python_block_makes_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "reviews.csv", {"label": "mood", "labels": {"bad": "", "good": ""}}, ("text",))
    found: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)[0], found)
    assert (found["task"].name, found["task"].label_words) == ("reviews", ("bad", "good"))
