"""Where exports are written: in one step, never over what is there; and how .npy files go out and come in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import attempt_cli
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange.folders import replacing_folder
from attempt_cli.listener import Listener
from attempt_cli.session import Session
from tests.exchange.conftest import add_prompt, chat_session, in_chat


class Notes(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_round_trip_through_npy(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session, fresh = sessions(), sessions(registry="fresh")
    prompt = add_prompt(session, "mine", placement="after")
    exported = attempt_cli.export("mine", tmp_path / "mine", to="npy", session=session)
    assert exported.files == ("attempt.json", "mine.npy")
    entering = np.load(tmp_path / "mine" / "mine.npy")
    np.testing.assert_array_equal(entering, session.store.prompt_tensor(prompt) * np.float32(prompt.embedding_scale))
    for path, name in ((tmp_path / "mine", "one"), (tmp_path / "mine" / "mine.npy", "two")):
        (added,) = attempt_cli.import_from(path, name=name, session=fresh).prompts
        assert (added.ref, added.placement, added.task, added.kind) == (f"{name}@1", "after", "moods", "target")
        np.testing.assert_array_equal(fresh.store.prompt_tensor(added), entering)


def test_a_task_of_the_package_finds_its_rows(sessions: Callable[..., Session], tmp_path: Path) -> None:
    from attempt_cli.data.fields import task_fields

    session, fresh = sessions(), sessions(registry="fresh")
    task = task_fields(attempt_cli.load_task("shop-reviews"))
    prompt = add_prompt(session, "mine", task="shop-reviews", settings={"task": task, "format": "words"})
    attempt_cli.export("mine", tmp_path / "mine", to="npy", session=session)
    said = json.loads((tmp_path / "mine" / "attempt.json").read_text())
    assert said["prompts"][0]["settings"]["task"]["files"] == {"train": "train.jsonl", "test": "test.jsonl"}
    (added,) = attempt_cli.import_from(tmp_path / "mine", session=fresh).prompts
    assert added.settings["task"] == prompt.settings["task"]


def test_google_s_files_are_raw(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    raw = np.random.default_rng(0).standard_normal((100, 24)).astype("<f4") * 40
    np.save(tmp_path / "prompt.npy", raw)
    with pytest.raises(ArgumentsError, match=r"nothing says what .* was trained for"):
        attempt_cli.import_from(tmp_path / "prompt.npy", session=session)
    (prompt,) = attempt_cli.import_from(tmp_path / "prompt.npy", task="rte", tags="google", session=session).prompts
    assert (prompt.ref, prompt.embedding_scale, prompt.tags) == ("rte@1", 1.0, ("google",))
    np.testing.assert_array_equal(session.store.prompt_tensor(prompt), raw)
    np.save(tmp_path / "prompt.npy", raw[:, :20])
    with pytest.raises(AttemptError, match=r"holds \[100, 20\], but a prompt of t5 is \[length, 24\]"):
        attempt_cli.import_from(tmp_path / "prompt.npy", task="rte", session=session)


def test_what_is_there_is_kept(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    add_prompt(session)
    (tmp_path / "mine").mkdir()
    attempt_cli.export("moods", tmp_path / "mine", to="npy", session=session)  # an empty folder is free
    with pytest.raises(AttemptError, match="is not empty"):
        attempt_cli.export("moods", tmp_path / "mine", to="npy", session=session)
    add_prompt(session, "other", length=7)
    attempt_cli.export("other", tmp_path / "mine", to="npy", force=True, session=session)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["attempt.json", "other.npy"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "work")
    for name, says in (("work", "files that no export wrote"), ("link", "is a link"), ("work/thesis.txt", "is a file")):
        with pytest.raises(AttemptError, match=says):
            attempt_cli.export("moods", tmp_path / name, to="npy", force=True, session=session)
    with pytest.raises(AttemptError, match="is there already"):
        attempt_cli.export("moods", tmp_path / "work" / "thesis.txt", to="bundle", session=session)
    with pytest.raises(AttemptError, match="is a folder, and this format is one file"):
        attempt_cli.export("moods", tmp_path / "work", to="bundle", session=session)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> None:
        with replacing_folder(tmp_path / "new") as folder:
            (folder / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from attempt_cli.exchange.folders import replacing_folder
with replacing_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "attempt.json").write_text("new")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    rename = Path.rename
    def killed(self, target):  # after the first of the renames, or before it
        if sys.argv[2] == "after":
            rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = killed
"""


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("when", ["writing", "before", "after"])
def test_a_kill_leaves_nothing_half_written(when: str, there: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if there:
        target.mkdir()
        (target / "attempt.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, target, when], env=os.environ, timeout=60)
    assert done.returncode == -9
    whole = [path.read_text() for path in tmp_path.glob("target/attempt.json")]
    if there and when == "after":  # between two renames: the former export is whole, beside its place
        assert not target.exists()
        assert [path.read_text() for path in tmp_path.glob(".target.*.former/attempt.json")] == ["old"]
    else:
        assert whole == (["old"] if there else ["new"] if when == "after" else [])


def test_a_description_of_other_files_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "mine", to="npy", session=session)
    file = tmp_path / "mine" / "attempt.json"
    said = json.loads(file.read_text())
    for change, says in (
        ({"version": 9}, "of another version"),
        ({"format": "peft"}, "describes the format"),
        ({"files": {"../../moods.npy": "0"}}, "is another file now"),
        ({"prompts": [{}]}, "look at its 'name'"),
        ({"prompts": []}, "another number of prompts"),
        ({"backbone": []}, "'backbone' is no dict"),
        ({"backbone": {"name": 3, "fingerprint": "x"}}, "names no backbone"),
    ):
        file.write_text(json.dumps({**said, **change}))
        with pytest.raises(AttemptError, match=says):
            attempt_cli.import_from(tmp_path / "mine", name="x", session=session)
    assert session.store.versions("x") == []


def test_nothing_known_is_told(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    with pytest.raises(AttemptError, match="there is nothing at"):
        attempt_cli.import_from(tmp_path / "nowhere", session=session)
    with pytest.raises(AttemptError, match="holds nothing that can be imported") as failure:
        attempt_cli.import_from(tmp_path / "registry", session=session)
    assert "PEFT" in (failure.value.hint or "")
    add_prompt(session)
    with pytest.raises(AttemptError, match="no export format named 'pefft'"):
        attempt_cli.export("moods", tmp_path / "x", to="pefft", session=session)


@pytest.mark.parametrize("to", ["vocabulary", "vocabulary-delta", "vllm"])
def test_what_is_written_only_is_refused_by_name(to: str, sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions()
    add_prompt(session, placement="after")
    attempt_cli.export("moods", tmp_path / "model", to=to, session=session)
    for path in (tmp_path / "model", next((tmp_path / "model").iterdir())):
        with pytest.raises(AttemptError, match=r"is an export of .*, which is not read back") as failure:
            attempt_cli.import_from(path, task="moods", session=session)
        assert "--to bundle" in (failure.value.hint or "")
    assert len(session.store.versions("moods")) == 1
    # what another tool says in a file of that name is not ours
    for said in ("[]", '{"format": ["vllm"]}', "{", '{"format": "some"}'):
        (tmp_path / "model" / "attempt.json").write_text(said)
        with pytest.raises(AttemptError, match=r"holds nothing that can be imported|--prefix says nothing of"):
            attempt_cli.import_from(tmp_path / "model", prefix="x-", session=session)


@pytest.mark.parametrize("to", ["npy", "bundle"])
def test_a_prompt_of_a_chat_template_stays_one(to: str, tmp_path: Path) -> None:
    session, text = chat_session(tmp_path, "after")
    attempt_cli.export("moods", tmp_path / "out", to=to, session=session)
    other = Session(tmp_path / "other", backbone=session.backbone, device="cpu", dtype="float32")
    (again,) = attempt_cli.import_from(tmp_path / "out", session=other).prompts
    assert again.chat_template == session.store.prompt("moods").chat_template
    assert again.chat_template is not None
    assert again.placement == "after"
    expected, found = in_chat(session, text)[1], in_chat(other, text)[1]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_peft_cannot_put_a_prompt_into_a_chat_template(tmp_path: Path) -> None:
    session, _ = chat_session(tmp_path, "before")
    with pytest.raises(AttemptError, match="inside a chat template's user turn, which PEFT cannot express") as caught:
        attempt_cli.export("moods", tmp_path / "out", to="peft", session=session)
    assert caught.value.hint == (
        "Train one with --no-chat-template, or export it --to npy, bundle, vocabulary, vocabulary-delta or vllm."
    )
    assert not (tmp_path / "out").exists()
