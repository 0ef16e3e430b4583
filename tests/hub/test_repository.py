"""What is said to the hub, and how its answers are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from attempt_cli.errors import AttemptError
from attempt_cli.hub import Place
from attempt_cli.sharing import repository
from attempt_cli.sharing.repository import parse_place
from tests.hub.stand_in import STRANGER_TOKEN, Repository, UploadHub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "README.md").write_text("---\nlicense: mit\n---\nA card.")
    (made / "sub" / "x.yaml").write_text("- 1\n")
    (made / "a.safetensors").write_bytes(bytes(range(200)))
    return made


def test_places() -> None:
    assert parse_place("me/x-1.y_z") == Place("me/x-1.y_z")
    assert parse_place("me/x@refs/pr/1") == Place("me/x", "refs/pr/1")
    wrong = (
        "",
        "x",
        "a/b/c",
        "-a/b",
        "a/b.",
        "a/..",
        "../a",
        "a/b@",
        "a/b@../c",
        "a/b@-x",
        "ä/b",
        "https://a/b",
        "a/b--c",
    )
    for text in wrong:
        with pytest.raises(AttemptError, match=r"no repository|no revision"):
            parse_place(text)


def test_all_files_arrive_in_one_commit(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    place = Place("me/x")
    assert repository.find_state(place) is None
    state = repository.create(place, private=True)
    assert state.private
    oid = repository.commit(place, folder, state, frozenset(), "first")
    made = hub.kept["me/x"]
    assert made.private
    assert made.branches["main"] == oid
    assert made.messages == ["initial commit", "first"]
    assert made.files["a.safetensors"] == bytes(range(200))
    after = repository.find_state(place)
    assert after is not None
    assert after.sizes == {name: len(content) for name, content in made.files.items()}
    # nothing new: the same commit, and no empty one
    assert repository.commit(place, folder, after, frozenset(), "second") == oid
    (folder / "a.safetensors").unlink()
    third = repository.commit(place, folder, after, frozenset({"a.safetensors"}), "third")
    assert "a.safetensors" not in made.files
    # the older commit is still there, and only what is named is fetched
    repository.download(place, oid, {"a.safetensors": 200}, tmp_path / "got")
    assert (tmp_path / "got" / "a.safetensors").read_bytes() == bytes(range(200))
    assert not (tmp_path / "got" / "README.md").exists()
    assert third != oid


def test_a_commit_on_a_branch(hub: UploadHub, folder: Path) -> None:
    state = repository.create(Place("me/x"), private=False)
    place = Place("me/x", "trial")
    repository.create_branch(place)
    repository.create_branch(place)  # it may be there
    repository.commit(place, folder, state, frozenset(), "on it")
    assert list(hub.kept["me/x"].files) == [".gitattributes"]
    found = repository.find_state(place)
    assert found is not None
    assert "README.md" in found.sizes


def test_nothing_is_committed_over_what_somebody_else_committed(hub: UploadHub, folder: Path) -> None:
    place = Place("me/x")
    state = repository.create(place, private=True)
    theirs = hub.kept["me/x"].commit({"theirs": b""})
    with pytest.raises(AttemptError, match="changed 'me/x' meanwhile"):
        repository.commit(place, folder, state, frozenset(), "late")
    assert hub.kept["me/x"].branches["main"] == theirs


@pytest.mark.parametrize("failing", ["PUT /lfs/", "POST /lfs/verify", "POST /api/models/me/x/commit"])
def test_an_upload_that_breaks_off_changes_nothing(
    hub: UploadHub, folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries five times
    place = Place("me/x")
    state = repository.create(place, private=True)
    hub.failing = failing
    with pytest.raises(AttemptError, match="answers with status 503"):
        repository.commit(place, folder, state, frozenset(), "broken")
    hub.failing = ""
    assert repository.find_state(place) == state


def test_errors_say_what_is_wrong(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = repository.create(Place("me/x"), private=False)
    hub.kept["me/secret"] = Repository(private=True)
    hub.kept["me/secret"].commit({})
    with pytest.raises(AttemptError, match="'me/x' has no revision 'none'"):
        repository.find_state(Place("me/x", "none"))
    (folder / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(AttemptError, match=r"Invalid metadata in README\.md"):
        repository.commit(Place("me/x"), folder, state, frozenset(), "bad card")
    monkeypatch.setenv("HF_TOKEN", STRANGER_TOKEN)
    assert repository.find_state(Place("me/secret")) is None  # as if there were none
    (folder / "README.md").write_text("---\n---\n")
    for refused in (
        lambda: repository.create(Place("me/y"), private=True),
        lambda: repository.commit(Place("me/x"), folder, state, frozenset(), "not mine"),
    ):
        with pytest.raises(AttemptError, match="the token may not do that"):
            refused()
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(AttemptError, match="does not accept the token"):
        repository.create(Place("me/y"), private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AttemptError, match="without a token") as failure:
        repository.require_token()
    assert "hf auth login" in (failure.value.hint or "")


def test_without_a_connection(hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AttemptError, match=r"no answer from http://127\.0\.0\.1:9"):
        repository.find_state(Place("me/x"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AttemptError, match="switched off by HF_HUB_OFFLINE"):
        repository.find_state(Place("me/x"))


def test_a_file_that_does_not_arrive_as_listed(hub: UploadHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.kept["me/x"] = Repository()
    oid = hub.kept["me/x"].commit({"a.bin": b"1234", "b.bin": b"12"})
    with pytest.raises(AttemptError):
        repository.download(Place("me/x"), oid, {"a.bin": 3}, tmp_path / "wrong-size")
    with pytest.raises(AttemptError, match="did not arrive"):
        repository.download(Place("me/x"), oid, {"c.bin": 3}, tmp_path / "missing")
    hub.failing = "GET /me/x/resolve"
    with pytest.raises(AttemptError, match=r"status 503|no answer"):
        repository.download(Place("me/x"), oid, {"b.bin": 2}, tmp_path / "broken")
