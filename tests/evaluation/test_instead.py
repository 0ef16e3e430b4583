"""What users do instead of training a prompt: what the model reads, token by token, and what a probe learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.data.example import Example
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.in_context import demonstrated, instructed, orders
from attempt_cli.evaluation.prediction import predict
from attempt_cli.evaluation.probe import STRENGTHS, classifier, fit_probe, last_states
from attempt_cli.prompted import PromptedModel
from tests.evaluation.test_prediction import examples, task
from tests.models import save_chat, save_gpt2, save_t5

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_scores(backbone: FrozenBackbone, text: str, words: tuple[str, ...], *, start: bool) -> list[float]:
    """log p of each label word behind a whole text, by the library's own model."""
    ids = backbone.tokenizer(text, add_special_tokens=start)["input_ids"]
    found = []
    for word in words:
        own = backbone.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([ids + own])).logits[0]
        found.append(sum(logits[len(ids) - 1 + at].log_softmax(-1)[token].item() for at, token in enumerate(own)))
    return found


def test_the_instruction_is_the_task_s_own_or_made_of_its_description() -> None:
    told = task(description="Is it so? (Toy rows, 2020)")
    assert told.instructions == 'Is it so? Answer with "yes" or "no".'
    assert task().instructions == 'Answer with "yes" or "no".'
    assert task(instruction="Say it.", description="Other words.").instructions == "Say it."
    assert task(description="Rows of /home/me/rows.csv").instructions == 'Answer with "yes" or "no".'
    with pytest.raises(AttemptError, match="neither an instruction nor a description"):
        _ = task(answers="mood", metrics=["squad_f1"]).instructions


def test_an_instruction_scores_as_the_whole_text_does(backbone: FrozenBackbone) -> None:
    toy = task(instruction="one two three.")
    told = instructed(backbone, toy)
    rows = examples(toy, 5)
    assert told.tokens == len(backbone.tokenizer("one two three.\n\n", add_special_tokens=False)["input_ids"])
    for row, found in zip(rows, predict(told.model, toy, rows).rows, strict=True):
        both = plain_scores(backbone, f"one two three.\n\n{row.input}", ("yes", "no"), start=True)
        assert found.log_likelihood == pytest.approx(both[("yes", "no").index(row.target)], abs=1e-4)


def test_an_instruction_that_leaves_no_room_is_refused(backbone: FrozenBackbone) -> None:
    with pytest.raises(AttemptError, match="of toy has 80 tokens of the 128"):
        instructed(backbone, task(instruction="." * 78))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "chat"])
def test_solved_rows_score_as_the_whole_text_does(tmp_path: Path, backbone: FrozenBackbone, kind: str) -> None:
    if kind != "llama":
        folder = {"gpt2": save_gpt2, "chat": save_chat}[kind](tmp_path / kind)
        backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    toy = task()
    shown, asked = examples(toy, 3), examples(toy, 6)[3:]
    told = demonstrated(backbone, toy, shown, max_length=16, chat_template=kind == "chat")
    front = "".join(f"{row.input} {row.target}\n\n" for row in shown)
    assert (told.shown, told.tokens) == (3, len(backbone.tokenizer(front, add_special_tokens=False)["input_ids"]))
    for row, found in zip(asked, predict(told.model, toy, asked, max_length=16).rows, strict=True):
        if kind == "chat":
            turns = [{"role": "user", "content": front + row.input}]
            text = backbone.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
            words = backbone.label_tokens(("yes", "no"), backbone.chat_frame)
            (batch,) = [EncodedRow(ids, words[("yes", "no").index(row.target)])]
            expected = PromptedModel(backbone).log_likelihood([batch]).item()
        else:
            both = plain_scores(backbone, front + row.input, ("yes", "no"), start=True)
            expected = both[("yes", "no").index(row.target)]
        assert found.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_rows_that_the_context_does_not_hold_are_left_out_from_the_front(backbone: FrozenBackbone) -> None:
    toy = task()
    rows = examples(toy, 13)
    told = demonstrated(backbone, toy, rows, max_length=16)
    assert 0 < told.shown < 13
    last = demonstrated(backbone, toy, rows[-told.shown :], max_length=16)
    assert last.model.frame == told.model.frame
    with pytest.raises(AttemptError, match="holds no solved row beside an input of 128 tokens"):
        demonstrated(backbone, toy, rows, max_length=128)


def test_an_encoder_decoder_reads_solved_rows_as_one_text(tmp_path: Path) -> None:
    backbone, toy = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32"), task()
    shown, asked = examples(toy, 2), examples(toy, 4)[2:]
    told = demonstrated(backbone, toy, shown)
    words = backbone.label_tokens(("yes", "no"))
    for row, found in zip(asked, predict(told.model, toy, asked).rows, strict=True):
        assert told.model.frame is not None
        own = backbone.tokenizer(row.input, add_special_tokens=True)["input_ids"]
        joined = EncodedRow([*told.model.frame.head, *own], words[("yes", "no").index(row.target)])
        expected = PromptedModel(backbone).log_likelihood([joined]).item()
        assert found.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_orders_are_permutations_by_seed() -> None:
    rows = examples(task(), 6)
    found = orders(rows, 4, 1)
    assert found == orders(rows, 4, 1) != orders(rows, 4, 2)
    assert all(sorted(one, key=rows.index) == rows for one in found)
    assert len({tuple(rows.index(row) for row in one) for one in found}) > 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_states_are_the_library_s(tmp_path: Path, backbone: FrozenBackbone, kind: str) -> None:
    if kind == "t5":
        backbone = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32")
    rows = backbone.encode([row.input for row in examples(task(), 5)], None, 64)
    for row, found in zip(rows, backbone.states(rows), strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            base = backbone.model.get_encoder() if kind == "t5" else backbone.model.base_model
            own = base(input_ids=ids).last_hidden_state[0]
        assert torch.allclose(found[0], own[-1], atol=1e-5)
        assert torch.allclose(found[1], own.mean(dim=0), atol=1e-5)


def test_the_probe_is_regularised_logistic_regression() -> None:
    """Its gradient is zero at the solution, worked out in float64 from the loss."""
    randomness = np.random.default_rng(0)
    states, labels = randomness.normal(size=(40, 6)), [number % 3 for number in range(40)]
    states[np.arange(40), labels] += 1.5
    found = classifier(states, labels)
    scaler, fitted = found.steps[0][1], found.steps[1][1]
    x = (states - states.mean(axis=0)) / states.std(axis=0)
    assert np.allclose(scaler.transform(states), x)
    logits = x @ fitted.coef_.T + fitted.intercept_
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert np.allclose(found.predict_proba(states), p)
    slope = fitted.C * (p - np.eye(3)[labels]).T @ x + fitted.coef_  # of C Σ -log p + |W|² / 2
    assert np.abs(slope).max() < 0.01 * np.abs(fitted.coef_).max()
    assert fitted.C in STRENGTHS


def test_a_probe_learns_the_toy_task_and_says_what_it_costs(backbone: FrozenBackbone) -> None:
    toy = task()
    rows = [toy.render(row, number) for number, row in enumerate([{"text": "good", "mood": "yes"}] * 6)]
    rows += [toy.render({"text": "bad", "mood": "no"}, 6 + number) for number in range(6)]
    probe = fit_probe(PromptedModel(backbone), toy, rows)
    found = probe.predict(rows)
    assert found.texts == [row.target for row in rows]
    assert (probe.parameters, found.truncated) == (24 * 2 + 2, 0)
    for row in found.rows:
        assert row.probabilities is not None
        assert sum(row.probabilities) == pytest.approx(1)
    states, _ = last_states(PromptedModel(backbone), toy, rows)
    assert states.shape == (12, 24)


def test_a_probe_of_numbers_and_what_it_refuses(backbone: FrozenBackbone) -> None:
    def numbers(metrics: list[str], value: str = "{number}") -> tuple[Any, list[Example]]:
        own = task(target=value, labels=None, label="mood", metrics=metrics)
        rows = [{"text": "good " * n, "number": n} for n in range(1, 9)]
        return own, [own.render(row, number) for number, row in enumerate(rows)]

    def fit(own: Any, rows: list[Example]) -> Any:
        return fit_probe(PromptedModel(backbone), own, rows)

    own, rows = numbers(["pearson"])
    probe = fit(own, rows)
    guesses = [float(text) for text in probe.predict(rows).texts]
    assert np.corrcoef(guesses, range(1, 9))[0, 1] > 0.8
    assert probe.parameters == 25
    with pytest.raises(AttemptError, match="its target is 'n1'"):
        fit(*numbers(["pearson"], "n{number}"))
    with pytest.raises(AttemptError, match="answers of toy are free text"):
        fit(*numbers(["squad_f1"]))
    toy = task()
    with pytest.raises(AttemptError, match="two labels at least"):
        fit(toy, examples(toy, 1))
