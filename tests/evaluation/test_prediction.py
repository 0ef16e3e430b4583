"""What a model says of rows: labels by their words' probability, free text by generation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.example import Example
from attempt_cli.data.fields import task_from_fields
from attempt_cli.data.task import Task
from attempt_cli.evaluation.evaluate import evaluate, score_interval
from attempt_cli.evaluation.prediction import (
    MAX_NEW_TOKENS,
    PromptedTask,
    _FirstLines,
    encode_examples,
    predict,
    predict_many,
)
from attempt_cli.evaluation.statistics import proportion_interval
from attempt_cli.placement import Placement
from attempt_cli.prompted import PromptedModel
from tests.models import save_gpt2, save_t5
from tests.training import tiny
from tests.training.toy import toy_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def task(**fields: Any) -> Task:
    """A classification of the toy rows, or what the fields say."""
    words = {"labels": {"yes": "yes", "no": "no"}, "label": "mood", "metrics": ["accuracy"]}
    given = {"name": "toy", "input": "{text} label:", "files": {"test": "test.csv"}}
    return task_from_fields(given | ({} if "answers" in fields else words) | fields, "the test", Path())


def examples(of: Task, count: int = 13) -> list[Example]:
    return [of.render(row, number) for number, row in enumerate(toy_rows(count))]


@pytest.mark.parametrize("sources", [0, 3])
def test_every_row_gets_its_own_prediction_in_any_batch(backbone: FrozenBackbone, sources: int) -> None:
    model, toy = tiny.model(backbone, sources=sources), task()
    rows = examples(toy)
    done = []
    whole = predict(model, toy, rows, progress=done.append)
    assert sum(done) == len(rows)
    for max_tokens in (1, 70):
        parts = predict(model, toy, rows, max_tokens=max_tokens)
        for one, other in zip(whole.rows, parts.rows, strict=True):
            assert one.text == other.text
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
            assert one.attention == pytest.approx(other.attention, abs=1e-5) if sources else one.attention is None
    encoded = encode_examples(model, toy, rows)
    for row, prediction in zip(encoded, whole.rows, strict=True):
        assert prediction.probabilities is not None
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-6)
        assert prediction.text == ("yes", "no")[prediction.probabilities[1] > prediction.probabilities[0]]
        assert prediction.log_likelihood == pytest.approx(float(model.log_likelihood([row]).detach()), abs=1e-4)
        if prediction.attention is not None:
            assert len(prediction.attention) == sources + 1
            assert sum(prediction.attention) == pytest.approx(1, abs=1e-6)


def test_a_row_without_an_answer_is_predicted_as_with_one(backbone: FrozenBackbone) -> None:
    model, toy = tiny.model(backbone), task()
    known = predict(model, toy, examples(toy))
    asked = predict(model, toy, [toy.render_input({"text": row["text"]}) for row in toy_rows(13)])
    for one, other in zip(known.rows, asked.rows, strict=True):
        assert (one.text, one.probabilities) == (other.text, other.probabilities)
        assert other.log_likelihood is None


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama"])
def test_rows_as_long_as_the_model_sees(kind: str, tmp_path: Path, llama: Path) -> None:
    """The answer's words need room behind the input too, whether the row has an answer or is to get one."""
    savers = {"gpt2": save_gpt2, "t5": save_t5}
    folder = savers[kind](tmp_path / kind) if kind in savers else llama
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = tiny.model(backbone)
    toy = task(labels={"yes": "entailment", "no": "contradiction"}, max_length=500)
    rows = toy_rows(4)
    for row in rows[:2]:
        row["text"] = "the text was three " * 60 + row["text"]
    known = predict(model, toy, [toy.render(row) for row in rows])
    asked = predict(model, toy, [toy.render_input(row) for row in rows])
    assert known.truncated == asked.truncated == (0 if kind == "t5" else 2)
    for one, other in zip(known.rows, asked.rows, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def answers(**fields: Any) -> Task:
    return task(answers="answer", metrics=["squad_f1", "squad_em"], **fields)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama"])
def test_free_text_is_generated(kind: str, tmp_path: Path, llama: Path) -> None:
    savers = {"gpt2": save_gpt2, "t5": save_t5}
    folder = savers[kind](tmp_path / kind) if kind in savers else llama
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model, free = tiny.model(backbone, sources=2), answers(max_length=500)
    rows = [{**row, "answer": "two"} for row in toy_rows(5)]
    rows[0]["text"] = "the text was three " * 60 + rows[0]["text"]  # no room for an answer without a cut
    known = [free.render(row) for row in rows]
    predictions = predict(model, free, known)
    assert predictions.truncated == (0 if kind == "t5" else 1)
    one_by_one = [predict(model, free, [example]).rows[0] for example in known]
    for row, alone in zip(predictions.rows, one_by_one, strict=True):
        assert row.text == alone.text
        assert (row.probabilities, row.log_likelihood) == (None, None)
        assert row.attention is not None
        assert sum(row.attention) == pytest.approx(1, abs=1e-6)
        assert len(backbone.tokenizer(row.text)["input_ids"]) <= 4 * MAX_NEW_TOKENS
        assert "\n" not in row.text
    asked = predict(model, free, [free.render_input({"text": row["text"]}) for row in rows])
    assert asked.texts == predictions.texts
    result = evaluate(model, free, known)
    assert list(result.metrics) == ["squad_f1", "squad_em"]
    assert result.interval[0] <= result.score <= result.interval[1]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_prompts_that_write_texts_share_one_reading(
    placement: Placement, backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = answers()
    known = [free.render({**row, "answer": "two"}) for row in toy_rows(5)]
    models = [
        replace(tiny.model(backbone, sources=sources, seed=seed), placement=placement)
        for seed, sources in enumerate((0, 2, 2))
    ]
    alone = [predict(model, free, known) for model in models]
    assert len({tuple(one.texts) for one in alone}) == 3
    read, readings = backbone.read, list[int]()
    monkeypatch.setattr(backbone, "read", lambda rows, states: readings.append(len(rows)) or read(rows, states))
    found = predict_many([PromptedTask(model, free) for model in models], known)
    assert sum(readings) == (5 if placement == "after" else 0)
    for one, other in zip(found, alone, strict=True):
        assert one.texts == other.texts
        assert [row.attention is None for row in one.rows] == [row.attention is None for row in other.rows]


def test_a_row_is_done_with_its_first_line() -> None:
    class Letters:
        def batch_decode(self, written: list[list[int]], skip_special_tokens: bool) -> list[str]:
            assert skip_special_tokens
            return ["".join("ab\n "[token] for token in own) for own in written]

    watch = _FirstLines(Letters(), 3)
    assert watch([0, 2, 3]) == [False, False, False]  # an empty line in front is no answer
    assert watch([2, 1, 2]) == [True, False, False]
    assert watch([3, 2, 0]) == [True, True, False]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_what_stands_behind_the_first_line_is_not_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str({"gpt2": save_gpt2, "t5": save_t5}[kind](tmp_path / kind)), dtype="float32")
    model, free = tiny.model(backbone), answers()
    known = [free.render({**row, "answer": "two"}) for row in toy_rows(4)]
    encoded = encode_examples(model, free, known, None)
    whole = model.generate(encoded, MAX_NEW_TOKENS)[0]
    assert any(len(text) > 3 for text in whole)
    # a tokenizer in which every third piece ends a line
    decode, calls = backbone.tokenizer.batch_decode, list[int]()

    def lined(written: Any, **options: Any) -> list[str]:
        calls.append(max(map(len, written)))
        pieces = [[decode([[token]], **options)[0] for token in own] for own in written]
        return ["".join(text + "\n" * (place % 3 == 2) for place, text in enumerate(own)) for own in pieces]

    monkeypatch.setattr(backbone.tokenizer, "batch_decode", lined)
    unwatched = [text.split("\n", 1)[0].strip() for text in model.generate(encoded, MAX_NEW_TOKENS)[0]]
    assert max(calls) > 12
    calls.clear()
    assert predict(model, free, known).texts == unwatched
    assert max(calls) <= 12


def test_long_inputs_lose_their_middle_and_are_counted(backbone: FrozenBackbone) -> None:
    model, toy = tiny.model(backbone), task()
    rows = [toy.render({"text": "it was the " * 40 + end, "mood": "yes"}) for end in ("good", "bad")]
    predictions = predict(model, toy, [*rows, *examples(toy, 3)], max_length=40)
    assert predictions.truncated == 2
    encoded = encode_examples(model, toy, rows, 40)
    assert [len(row.input_ids) for row in encoded] == [40, 40]
    assert all(backbone.tokenizer.decode(row.input_ids).endswith(" label:") for row in encoded)


def test_an_evaluation(backbone: FrozenBackbone) -> None:
    model, toy = tiny.model(backbone, sources=2), task()
    rows = examples(toy)
    result = evaluate(model, toy, rows)
    hits = sum(prediction == example.target for prediction, example in zip(result.predictions.texts, rows, strict=True))
    assert (result.score, result.n) == (pytest.approx(hits / 13), 13)
    assert result.interval == proportion_interval(hits, 13)
    assert result.mean_attention is not None
    columns = zip(*(row.attention or () for row in result.predictions.rows), strict=True)
    assert result.mean_attention == pytest.approx([math.fsum(column) / 13 for column in columns])
    assert result.rows_per_second > 0
    assert evaluate(tiny.model(backbone), toy, rows).mean_attention is None


@pytest.mark.parametrize("metric", ["f1", "matthews", "f1_macro"])
def test_the_interval_of_a_metric_that_is_no_mean_brackets_it(metric: str) -> None:
    toy = task(metrics=[metric])
    rows = examples(toy, 60)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(60, generator=generator) < 0.3
    predictions = [
        ("no" if row.target == "yes" else "yes") if flip else row.target for row, flip in zip(rows, wrong, strict=True)
    ]
    from attempt_cli.data.scoring import score

    low, high = score_interval(toy, predictions, rows)
    assert low < score(toy, predictions, rows)[metric] < high
    assert 0.05 < high - low < 0.6


def test_the_mixture_serves_each_task_with_its_own_target(backbone: FrozenBackbone) -> None:
    """A composition of two targets says of a task's rows what that target alone would have them say."""
    from attempt_cli.method import PromptMixture

    one, two = tiny.model(backbone, seed=1), tiny.model(backbone, seed=2)
    assert one.mixture is not None
    assert two.mixture is not None
    both = PromptMixture(torch.cat([one.mixture.target_prompts, two.mixture.target_prompts]).detach())
    together = PromptedModel(backbone, both, one.scale)
    toy = task()
    for index, alone in enumerate((one, two)):
        expected = predict(alone, toy, examples(toy)).rows
        found = predict(together, toy, examples(toy), task_index=index).rows
        for row, other in zip(found, expected, strict=True):
            assert row.probabilities == pytest.approx(other.probabilities, abs=1e-6)
