"""Chat templates: what stands around an input is what the tokenizer's own template makes, and scores are plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.chat import ChatFrame, chat_frame
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import check_chat_template, load_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptAttention, PromptMixture, pool_input
from attempt_cli.placement import PLACEMENTS, Placement
from attempt_cli.prompted import PromptedModel, score_many
from tests.backbones.plain import plain_model
from tests.backbones.test_scores import close
from tests.models import TURNS, save_chat

TEXTS = ["it was good. label:", "one", "the text is bad, and four five"]
LABELS = ("yes", "no", "nothing", "entailment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def chat(folder: Path) -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype="float32")


def of_library(backbone: FrozenBackbone, text: str, answer: str | None = None) -> list[int]:
    """What transformers makes of a user's turn, and of the assistant's answer to it."""
    turns = [{"role": "user", "content": text}]
    turns += [{"role": "assistant", "content": answer}] if answer else []
    ids: list[int] = backbone.tokenizer.apply_chat_template(
        turns, add_generation_prompt=answer is None, return_dict=False
    )
    return ids


def model_of(
    backbone: FrozenBackbone, placement: Placement, *, sources: int = 0, seed: int = 0, length: int = 3
) -> PromptedModel:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(1 + sources, length, backbone.width, generator=generator)
    mixture = PromptMixture(drawn)
    if sources:
        mixer = PromptAttention(backbone.width, 4, 3.0, generator=generator)
        mixture = PromptMixture(drawn[:1], drawn[1:], mixer)
    return PromptedModel(backbone, mixture, 0.7, placement, frame=backbone.chat_frame)


def encoded(model: PromptedModel, texts: list[str] = TEXTS, limit: int = 64) -> list[Any]:
    targets = [model.label_tokens(LABELS)[i % len(LABELS)] for i in range(len(texts))]
    return model.backbone.encode(texts, targets, limit, None, model.around)


def test_rows_of_the_bare_model_are_those_of_the_library(chat: FrozenBackbone) -> None:
    model = PromptedModel(chat, frame=chat.chat_frame)
    assert [row.input_ids for row in encoded(model)] == [of_library(chat, text) for text in TEXTS]
    assert encoded(model, [" it \n"])[0].input_ids == of_library(chat, "it")


@pytest.mark.parametrize("answer", ["yes", "entailment", "0.2"])
def test_answers_have_the_tokens_of_the_template(chat: FrozenBackbone, answer: str) -> None:
    whole, asked = of_library(chat, "it is", answer), of_library(chat, "it is")
    ours = chat.target_tokens(answer, end=True, frame=chat.chat_frame)
    assert whole[: len(asked) + len(ours)] == asked + ours
    assert ours[-1] == chat.chat_frame.end_id


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prompt_stands_inside_the_users_turn(chat: FrozenBackbone, folder: Path, placement: Placement) -> None:
    """Every score is that of one plain pass over the library's own tokens with the prompt put beside the text."""
    model = model_of(chat, placement)
    assert isinstance(model.mixture, PromptMixture)
    prompt, plain = model.mixture.kept_prompts(False)[0].detach() * model.scale, plain_model(folder)
    labels = model.label_tokens(LABELS)
    scores, _ = model.score_labels(encoded(model), labels)
    table = plain.get_input_embeddings().weight
    for i, text in enumerate(TEXTS):
        whole = of_library(chat, text)
        own = chat.encode([text], None, 64, None, ((), ()))[0].input_ids
        at = next(k for k in range(len(whole)) if whole[k : k + len(own)] == own)
        at += len(own) if placement == "after" else 0
        for j, word in enumerate(labels):
            ids = torch.tensor(whole)
            row = torch.cat([table[ids[:at]], prompt, table[ids[at:]], table[torch.tensor(word)]])
            logits = plain(inputs_embeds=row[None]).logits[0, -len(word) - 1 : -1].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(word)[:, None]).sum()
            torch.testing.assert_close(scores[i, j], expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_training_and_scoring_read_the_same(chat: FrozenBackbone, placement: Placement) -> None:
    model = model_of(chat, placement, sources=2)
    rows, labels = encoded(model), model.label_tokens(LABELS)
    scores, _ = model.score_labels(rows, labels)
    own = scores[torch.arange(len(rows)), torch.arange(len(rows)) % len(labels)]
    close(model.log_likelihood(rows).detach(), own)
    close(torch.cat([model.log_likelihood([row]).detach() for row in rows]), own)  # alone as in a batch


def test_kept_inputs_and_several_prompts_at_once_give_the_plain_scores(
    chat: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model_of(chat, "after", sources=2, seed=seed) for seed in range(3)]
    rows, labels = encoded(models[0]), models[0].label_tokens(LABELS)
    plain = [model.score_labels(rows, labels)[0] for model in models]
    monkeypatch.setattr(chat, "input_cache", InputCache(1 << 20))
    assert chat.input_cache is not None
    chat.input_cache.plan([rows], chat.cache_bytes_per_token)
    for _ in range(2):
        found = score_many(models, rows, [labels] * 3)
        for (ours, _), theirs in zip(found, plain, strict=True):
            close(ours, theirs)
    assert chat.input_cache.hits > 0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_g_reads_the_text_and_not_the_template(chat: FrozenBackbone, placement: Placement) -> None:
    model = model_of(chat, placement, sources=2)
    batch = chat.collate(encoded(model))
    _, weights = model.prompts(batch, chat.embed(batch.input_ids), None)
    bare = chat.collate(chat.encode(TEXTS, None, 64, None, ((), ())))
    assert isinstance(model.mixture, PromptMixture)
    pooled = pool_input(chat.embed(bare.input_ids), bare.input_mask) / model.scale
    _, expected = model.mixture(batch.task_ids, pooled)
    close(weights, expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_row_without_text_still_has_a_score(chat: FrozenBackbone, placement: Placement) -> None:
    model = model_of(chat, placement, sources=2)
    scores, weights = model.score_labels(encoded(model, ["", "it"]), model.label_tokens(LABELS))
    assert bool(scores.isfinite().all())
    assert weights is not None
    assert bool(weights.isfinite().all())


def test_a_limit_cuts_the_text_and_never_the_template(chat: FrozenBackbone) -> None:
    model, long = PromptedModel(chat, frame=chat.chat_frame), "one two three four five it is the text " * 20
    row = encoded(model, [long], 12)[0]
    head, tail = chat.chat_frame.head, chat.chat_frame.tail
    assert row.truncated > 0
    assert len(row.input_ids) == len(head) + 12 + len(tail)
    assert tuple(row.input_ids[: len(head)]) == head
    assert tuple(row.input_ids[-len(tail) :]) == tail
    for placement in PLACEMENTS:  # 128 positions hold the text, the prompt, the target and the whole template
        asked = model_of(chat, placement)
        assert asked.longest_input(1000, 5) == 128 - 3 - 5 - len(head) - len(tail)
        assert asked.overhead(50, (0, 1)) == 3 + len(tail if placement == "after" else head)


def test_generation_stops_at_the_end_of_the_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template closes turns with <pad>, which is not the model's end token."""
    backbone = load_backbone(
        str(save_chat(tmp_path / "tiny", TURNS.replace("<end>", "<pad>"))), device="cpu", dtype="float32"
    )
    frame = backbone.chat_frame
    assert frame.end_id == backbone.tokenizer.pad_token_id != backbone.end_id
    model = PromptedModel(backbone, frame=frame)
    rows = encoded(model)
    assert any(model.generate(rows, 12)[0])
    with torch.no_grad():  # the end of the turn is what the model says next
        hidden = backbone.model.base_model(torch.tensor([rows[0].input_ids])).last_hidden_state[0, -1]
        backbone.model.get_output_embeddings().weight[frame.end_id] = 1e3 * hidden
    written: list[Any] = []
    monkeypatch.setattr(backbone.tokenizer, "batch_decode", lambda ids, **_: written.extend(ids.tolist()) or [""])
    model.generate(rows[:1], 12)
    assert written == [[frame.end_id]]


def test_the_cue_of_sentencepiece_vocabularies(tmp_path: Path) -> None:
    """Llama 2's template puts a space before the answer, and names no control token but the first."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    backbone = load_backbone(
        str(save_chat(tmp_path / "tiny", template, sentencepiece=True)), device="cpu", dtype="float32"
    )
    frame = backbone.chat_frame
    assert frame.lead == " "
    assert frame.end_id == backbone.tokenizer.eos_token_id
    row = backbone.encode(["it was good"], None, 64, None, PromptedModel(backbone, frame=frame).around)[0]
    assert row.input_ids == of_library(backbone, "it was good")
    yes = backbone.target_tokens("yes", end=False, frame=frame)
    assert of_library(backbone, "it", "yes")[len(of_library(backbone, "it")) :][: len(yes)] == yes


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}<s>{{ m['content'] | upper }}<end>{% endfor %}", "changes its text"),
        ("{% for m in messages %}<s>{{ m['content'] }}{{ m['content'] | length }}{% endfor %}", "changes its text"),
        ("<s>hello<end>", "changes its text"),
        ("{{ raise_exception('only tools') }}", "cannot be rendered: TemplateError: only tools"),
        ("{% for", "cannot be rendered"),
    ],
)
def test_templates_that_frame_no_text_are_refused(folder: Path, template: str, words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = template
    with pytest.raises(AttemptError, match=words):
        chat_frame(tokenizer, "tiny")


def test_a_date_in_a_template_stays_the_same_and_thinking_is_off(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = (
        "<s>{{ strftime_now('%d %b %Y') }}{% for m in messages %}<s>{{ m['content'] }}<end>{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<s>quick{% endif %}"
    )
    assert chat_frame(tokenizer, "tiny").text == "<s>26 Jul 2024<s>{input}<end><s>quick"


def test_backbones_without_a_template_are_refused_before_their_weights(
    backbones: dict[str, FrozenBackbone], folders: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    for kind, words in (("gpt2", "no chat template"), ("t5", "encoder-decoder")):
        with pytest.raises(AttemptError, match=words) as refused:
            check_chat_template(str(folders[kind]))
        assert "--chat-template" in str(refused.value.hint)
        with pytest.raises(AttemptError, match=words):
            _ = backbones[kind].chat_frame
    check_chat_template(str(folder))
    (empty := tmp_path / "empty").mkdir()  # what else is wrong is the loading's to tell
    (empty / "config.json").write_text("{}")
    check_chat_template(str(empty))


def test_a_frame_is_made_of_the_whole_template(chat: FrozenBackbone) -> None:
    frame = chat.chat_frame
    assert isinstance(frame, ChatFrame)
    assert frame.text == "<s>system\nbe good<end>\n<s>user\n{input}<end>\n<s>assistant\n"
    assert chat.tokenizer.decode(frame.head) == "<s>system\nbe good<end>\n<s>user\n"
    assert (frame.cue, frame.lead) == ("assistant\n", "")
