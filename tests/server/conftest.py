"""A tiny backbone of its own (the server sets its input cache), and servers that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attempt_cli.backbones.base import FrozenBackbone
from attempt_registry import Registry
from tests.server.shop import Served, Shop, filled, serve_here
from tests.training.conftest import llama, one_thread

__all__ = ["llama", "one_thread"]


@pytest.fixture(scope="package")
def backbone(llama: Path) -> FrozenBackbone:
    """The tiny Llama in float32."""
    from attempt_cli.backbones.load import load_backbone

    return load_backbone(str(llama), device="cpu", dtype="float32")


@pytest.fixture
def shop(tmp_path: Path, backbone: FrozenBackbone) -> Shop:
    """A registry with prompts of several kinds."""
    return filled(Registry.open(tmp_path / "shop"), backbone)


@pytest.fixture
def start(shop: Shop) -> Iterator[Callable[..., Served]]:
    """Starts servers on the registry with settings of one's own."""
    started: list[Served] = []

    def begin(*names: str, **settings: Any) -> Served:
        started.append(serve_here(shop, *names, **settings))
        return started[-1]

    yield begin
    for one in started:
        one.engine.stop()
    shop.backbone.input_cache = None


@pytest.fixture
def server(start: Callable[..., Served]) -> Served:
    """A server on the registry."""
    return start()
