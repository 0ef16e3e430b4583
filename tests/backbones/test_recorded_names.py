"""Names that the registry recorded are accepted where a backbone is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attempt_cli.artefacts import remember_backbone
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from tests.models import save_llama


def session(tmp_path: Path, backbone: str) -> Session:
    return Session(registry=tmp_path / "registry", backbone=backbone, device="cpu", dtype="float32", input_cache=0)


def test_a_recorded_name_is_its_folder_and_two_of_a_name_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    one = Path(shutil.copytree(folders["llama"], tmp_path / "a" / "mine"))
    first = session(tmp_path, str(one))
    remember_backbone(first.store, first.load_backbone())
    for name in ("mine", first.load_backbone().fingerprint):
        assert session(tmp_path, name).load_backbone().source == str(one)
        assert session(tmp_path, name).backbone_name == "mine"
    other = save_llama(tmp_path / "b" / "mine", intermediate_size=24)
    second = session(tmp_path, str(other))
    remember_backbone(second.store, second.load_backbone())
    with pytest.raises(AttemptError, match="'mine' is the name of 2 recorded backbones") as caught:
        session(tmp_path, "mine").load_backbone()
    assert str(one) in (caught.value.hint or "")
    assert str(other) in (caught.value.hint or "")
