"""The model card and the file of results: what they say, and that foreign text in them stays text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from attempt_cli.data.catalogue import load_task
from attempt_cli.evaluation.pairing import PerRow
from attempt_cli.evaluation.record import RecordedEvaluation
from attempt_cli.sharing.card import HUB_METRICS, Subject, model_card
from attempt_cli.sharing.markup import block, code, plain, table
from attempt_cli.sharing.results import results_yaml
from attempt_registry import Backbone, Prompt
from tests.registry.conftest import add, backbone, registry

__all__ = ["add", "backbone", "registry"]

Add = Callable[..., Prompt]
EVALUATION = RecordedEvaluation(
    run=3,
    model="rte@1",
    kind="prompt",
    task="rte",
    settings={},
    split="test",
    rows={"n": 138, "sha256": "ab"},
    per_row=PerRow({"accuracy": [1, 0]}),
    metrics={"accuracy": 0.61},
    interval=(0.52, 0.69),
    created="2026-11-28T07:51:06Z",
)


@pytest.fixture
def subject(add: Add, backbone: Backbone) -> Subject:
    settings = {"training": {"steps": 40, "learning_rate": 0.3}, "dtype": "float32"}
    prompt = add("rte", settings=settings, placement="before", seed=7, method="spot", parents=())
    return Subject(
        prompt,
        "me/rte-prompt",
        backbone,
        "google-t5/t5-base",
        "c0ffee",
        peft=True,
        prompts=(prompt,),
        tasks=(load_task("rte"),),
        evaluations=(EVALUATION,),
    )


def test_the_front_matter_is_what_the_hub_reads(subject: Subject) -> None:
    card = ModelCard(model_card(replace(subject, license="apache-2.0")))
    assert card.data.to_dict() == {
        "base_model": "google-t5/t5-base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "license": "apache-2.0",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy"],
        "tags": ["base_model:adapter:google-t5/t5-base", "soft-prompt", "prompt-tuning", "attempt"],
    }
    bare = ModelCard(model_card(replace(subject, base_model=None, peft=False, tasks=(None,), evaluations=())))
    assert bare.data.to_dict() == {
        "pipeline_tag": "text-generation",
        "tags": ["soft-prompt", "prompt-tuning", "attempt"],
    }


def test_the_card_says_what_the_registry_knows(subject: Subject) -> None:
    text = model_card(subject)
    assert "| base model | `google-t5/t5-base`, revision `c0ffee` |" in text
    assert "| seed | 7 |" in text
    assert "| `rte` | test | accuracy | 0.610 | 0.520 to 0.690 | 138 |" in text
    assert '"learning_rate": 0.3' in text
    assert "hypothesis: {sentence2}" in text
    assert "`nyu-mll/glue`, configuration `rte`" in text
    assert "Licence of the rows: not stated." in text
    assert "Licence of the rows: CC-BY 4.0." in model_card(replace(subject, data_licence="CC-BY 4.0"))
    task = load_task("rte").model_copy(update={"licence": "research only"})
    assert "Licence of the rows: research only." in model_card(replace(subject, tasks=(task,)))
    assert "No evaluation is recorded." in model_card(replace(subject, evaluations=()))


def test_the_lines_for_peft_are_python(subject: Subject) -> None:
    text = model_card(subject)
    lines = text.split("```python\n")[1].split("\n```")[0]
    compile(lines, "card", "exec")
    assert len(lines.splitlines()) == 5
    assert ".format(sentence1='sentence1', sentence2='sentence2')" in lines
    assert "peft" not in model_card(replace(subject, peft=False)).lower()


HOSTILE = "x](https://a.example) <script>alert(1)</script> | ```\n---\n# *big* \u202e `tick` &lt;"


def test_foreign_text_stays_text(subject: Subject, add: Add) -> None:
    task = load_task("rte").model_copy(update={"description": HOSTILE, "input": "{sentence1}" + HOSTILE})
    prompt = replace(subject.record, note=HOSTILE)
    assert isinstance(prompt, Prompt)
    text = model_card(replace(subject, record=prompt, prompts=(prompt,), tasks=(task,), data_licence=HOSTILE))
    matter = yaml.safe_load(text.split("---\n")[1])
    assert matter["base_model"] == "google-t5/t5-base"
    assert "\u202e" not in text
    fences = [line for line in text.splitlines() if line.startswith("```")]
    opened = ""
    outside = []
    for line in text.splitlines():  # as CommonMark does: a fence ends with at least as many ticks and nothing else
        ticks = len(line) - len(line.lstrip("`"))
        if not opened and ticks >= 3:
            opened = "`" * ticks
        elif opened and line == "`" * len(line) and len(line) >= len(opened):
            opened = ""
        elif not opened:
            outside.append(line)
    assert not opened
    assert fences
    assert not any("<script" in line.replace("\\<", "") for line in outside)
    assert not any("](https" in line for line in outside if "docs/peft" not in line)
    assert sum(line.startswith("# ") for line in outside) == 1


def test_markup() -> None:
    assert plain("*a* [b](c) <d>\n- e") == r"\*a\* \[b\]\(c\) \<d\> - e"
    assert code("a`b``c") == "``` a`b``c ```"
    assert code("a\nb") == "`a b`"
    assert block("a\n```\nb", "json") == "````json\na\n```\nb\n````"
    assert table(("a",), [("b|c",)]) == "| a |\n| --- |\n| b\\|c |"


def test_results_are_those_that_the_hub_can_file(subject: Subject) -> None:
    text = results_yaml(subject.evaluations, subject.known_tasks)
    assert text is not None
    content: list[Any] = yaml.safe_load(text)
    (entry,) = parse_eval_result_entries(content)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "rte", 0.61)
    assert entry.date == "2026-11-28T07:51:06Z"
    assert entry.notes == "accuracy; 95 % interval 0.520 to 0.690; 138 rows of the split test by the rule halved"
    own = load_task("shop-reviews")
    assert results_yaml([replace(EVALUATION, task="shop-reviews")], [own]) is None


def test_every_metric_has_a_name_on_the_hub() -> None:
    from attempt_cli.data.metrics import METRICS

    assert list(HUB_METRICS) == list(METRICS)
