"""Names that the registry recorded are accepted where a backbone is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from attempt_cli.api.experiments import reproduce
from attempt_cli.artefacts import check_backbone, remember_backbone
from attempt_cli.backbones.names import with_recorded
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from attempt_cli.sources import source_prompts
from tests.models import save_llama
from tests.training.commands import Attempt


def session(tmp_path: Path, backbone: str) -> Session:
    return Session(registry=tmp_path / "registry", backbone=backbone, device="cpu", dtype="float32", input_cache=0)


def remembered(tmp_path: Path, folder: Path) -> Session:
    """A session on a folder that the registry has recorded, with a source prompt for it."""
    made = session(tmp_path, str(folder))
    backbone = made.load_backbone()
    remember_backbone(made.store, backbone)
    made.store.add_prompt(
        np.zeros((2, backbone.width), np.float32),
        name=f"of-{folder.parent.name}",
        kind="source",
        task="sst2",
        method="prompt-tuning",
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        task_version=1,
        embedding_scale=1.0,
        settings={},
        numbers={},
        seed=0,
    )
    return made


@pytest.fixture
def two_of_a_name(folders: dict[str, Path], tmp_path: Path) -> tuple[Session, Session]:
    one = Path(shutil.copytree(folders["llama"], tmp_path / "a" / "mine"))
    other = save_llama(tmp_path / "b" / "mine", intermediate_size=24)
    return remembered(tmp_path, one), remembered(tmp_path, other)


def test_a_recorded_name_is_its_folder_and_two_of_a_name_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    one = Path(shutil.copytree(folders["llama"], tmp_path / "a" / "mine"))
    first = remembered(tmp_path, one)
    for name in ("mine", first.load_backbone().fingerprint):
        assert session(tmp_path, name).load_backbone().source == str(one)
        assert session(tmp_path, name).backbone_name == "mine"
    other = save_llama(tmp_path / "b" / "mine", intermediate_size=24)
    remembered(tmp_path, other)
    with pytest.raises(AttemptError, match="'mine' is the name of 2 recorded backbones") as caught:
        session(tmp_path, "mine").load_backbone()
    assert str(one) in (caught.value.hint or "")
    assert str(other) in (caught.value.hint or "")


def test_the_hint_of_a_wrong_backbone_gives_what_works(two_of_a_name: tuple[Session, Session], tmp_path: Path) -> None:
    first, second = two_of_a_name
    own = first.store.prompt("of-a")
    with pytest.raises(AttemptError, match="'of-a@1' was trained for mine") as caught:
        check_backbone(first.store, second.load_backbone(), own)
    hint = caught.value.hint or ""
    typed = hint.partition("--backbone ")[2].partition(",")[0]
    assert session(tmp_path, typed).load_backbone().fingerprint == own.fingerprint
    fitting = hint.rpartition("--backbone ")[2].partition("`")[0]
    assert [prompt.name for prompt in first.store.prompts(backbone=fitting)] == ["of-b"]


def test_all_sources_are_those_of_the_chosen_folder(two_of_a_name: tuple[Session, Session]) -> None:
    for chosen, name in zip(two_of_a_name, ("of-a", "of-b"), strict=True):
        (found,) = source_prompts(chosen.store, "all", chosen.backbone_name)
        assert found.name == name
    with pytest.raises(AttemptError, match=r"several backbones: mine \(\w+\), mine \(\w+\)"):
        source_prompts(chosen.store, "all", None)


def test_the_list_shows_both_of_a_name(two_of_a_name: tuple[Session, Session], tmp_path: Path) -> None:
    rows = Attempt(tmp_path, registry="registry").json("backbone list")["backbones"]
    found = {(row["location"], row["fingerprint"]) for row in rows if row["name"] == "mine"}
    assert found == {(each.load_backbone().source, each.load_backbone().fingerprint) for each in two_of_a_name}


def test_grids_take_recorded_names_and_tell_backbones_apart(
    two_of_a_name: tuple[Session, Session], tmp_path: Path
) -> None:
    first, second = (each.load_backbone() for each in two_of_a_name)
    store = two_of_a_name[0].store
    place = with_recorded(store, first.fingerprint)
    assert place == first.source
    called = {"tasks": ["rte"], "methods": ["source"], "session": Session(registry=store, data_dir=tmp_path)}
    with pytest.raises(AttemptError, match="two backbones have the name 'mine'"):
        reproduce("table3", backbones=[first.fingerprint, second.source], **called)
    with pytest.raises(AttemptError, match="'mine' is the name of 2 recorded backbones"):
        reproduce("table3", backbones=["mine"], **called)
