"""A stand-in hub that takes uploads, for calls in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backbones.hub_stand_in import running
from tests.hub.stand_in import OWNER_TOKEN, UploadHub
from tests.registry.conftest import add, backbone, registry

__all__ = ["add", "backbone", "registry"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadHub]:
    """An empty hub; this process has the owner's token, and asks it alone."""
    from huggingface_hub import constants

    with running(UploadHub()) as hub:
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage speaks another protocol
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
