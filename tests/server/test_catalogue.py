"""What is served follows the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_registry import Registry
from tests.server.shop import Served, Shop
from tests.server.test_limits import COMPLETION, problem

pytestmark = pytest.mark.usefixtures("one_thread")


def names(server: Served) -> list[str]:
    return [one["id"] for one in server.get("/v1/models").json()["data"]]


def answer(server: Served, model: str) -> Any:
    return server.post("/v1/completions", COMPLETION | {"model": model})


def test_a_changed_registry_is_noticed(server: Served) -> None:
    assert "new" not in names(server)
    problem(answer(server, "new"), 404)
    with Registry.open(server.shop.registry.folder) as other:  # as another process would
        shop = Shop(other, server.shop.backbone)
        shop.prompt("new", seed=11)
        assert "new" in names(server)
        first = answer(server, "new").json()["attempt"]
        shop.prompt("new", seed=12)  # the next version is meant from now on
        second = answer(server, "new").json()["attempt"]
        assert first != second
        assert answer(server, "new@1").json()["attempt"] == first
        other.tag("new", add=["fresh"])
        assert server.get("/v1/models/new").json()["tags"] == ["fresh"]
        other.remove("new")
        assert answer(server, "new").json()["attempt"] == first
        other.remove("new")
    assert "new" not in names(server)
    problem(answer(server, "new"), 404)


def test_only_what_is_named_is_served(start: Callable[..., Served]) -> None:
    server = start("mood", "aim")
    assert names(server) == ["mood", "aim"]
    assert answer(server, "mood").status_code == 200
    problem(answer(server, "topic"), 404)
    problem(answer(server, "prompt:mood"), 404)


def test_prompts_of_another_backbone_are_not_served(server: Served) -> None:
    server.shop.own = server.shop.own | {"fingerprint": "f" * 16, "backbone": "another"}
    server.shop.prompt("foreign")
    assert "foreign" not in names(server)
    problem(answer(server, "foreign"), 404)


def test_a_composition_of_several_tasks_is_served_by_task(server: Served) -> None:
    server.shop.mixture("both", ["style"], ["mood", "topic"])
    assert {"both:mood", "both:topic"} <= set(names(server))
    assert answer(server, "both:topic").status_code == 200
    error = problem(answer(server, "both"), 400)
    assert "both:mood, both:topic" in error["message"]
    problem(answer(server, "both:style"), 404)
    assert server.get("/v1/models/both:topic").json()["sources"] == ["style@1"]


def test_sources_alone_serve_tasks_of_the_package_and_read_no_files(server: Served, tmp_path: Path) -> None:
    server.shop.mixture("prior", ["mood", "topic"], [])
    file = tmp_path / "own.yaml"
    file.write_text("name: own\ninput: '{text}'\nlabels: {a: a, b: b}\nmetrics: [accuracy]\nfiles: {train: x.csv}\n")
    found = server.post("/predict", {"inputs": {"sentence": "it was good"}, "models": "prior:sst2"}).json()
    assert set(found["predictions"]["prior:sst2"][0]["attention"]) == {"mood@1", "topic@1", "target"}
    for task in (str(file), f"../{file.name}", "sst3"):
        problem(answer(server, f"prior:{task}"), 404)


def test_a_damaged_prompt_is_the_server_s_fault_and_named(server: Served) -> None:
    server.shop.registry.tensor_path(server.shop.registry.prompt("topic")).write_bytes(b"damaged")
    error = problem(answer(server, "topic"), 500, "model_broken")
    assert "topic@1" in error["message"]
    assert answer(server, "mood").status_code == 200
