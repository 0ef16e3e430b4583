"""A registry with prompts of several kinds on a tiny backbone, and a server on it in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from openai import AsyncOpenAI

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import RecentInputs
from attempt_cli.backbones.load import describe
from attempt_cli.method import PromptAttention, rms_temperature
from attempt_cli.server.app import create_app
from attempt_cli.server.catalogue import Catalogue
from attempt_cli.server.engine import Engine
from attempt_cli.server.settings import ServerSettings
from attempt_cli.session import Session
from attempt_registry import Backbone, Prompt, Registry

M = 4  # tokens of a prompt
MOOD = {"no": "no", "yes": "yes"}
WORDS = {"a": "good text", "b": "nothing", "c": "entailment"}  # of several tokens each, here


class Shop:
    """Adds prompts for a backbone to a registry."""

    def __init__(self, registry: Registry, backbone: FrozenBackbone) -> None:
        self.registry = registry
        self.backbone = backbone
        registry.remember_backbone(Backbone(**describe(backbone)))
        self.own = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}

    def prompt(
        self,
        name: str,
        *,
        labels: dict[str, str] | None = MOOD,
        input: str = "{text} label:",
        placement: str = "after",
        seed: int = 0,
        length: int = M,
        kind: str = "source",
        **fields: Any,
    ) -> Prompt:
        """Adds a random prompt; without labels its task is free text."""
        answer = (
            {"labels": labels, "metrics": ["accuracy"]} if labels else {"answers": "answer", "metrics": ["squad_em"]}
        )
        task = {"name": fields.pop("task", name), "input": input, "files": {"train": "train.csv"}, **answer}
        numbers = np.random.default_rng(seed).standard_normal((length, self.backbone.width)).astype(np.float32)
        return self.registry.add_prompt(
            numbers,
            name=name,
            kind=kind,
            method=fields.pop("method", "prompt-tuning"),
            task=task["name"],
            task_version=1,
            embedding_scale=self.backbone.embedding_rms,
            settings={"task": task, "training": {"max_length": 64}},
            numbers={},
            seed=seed,
            placement=placement,
            **self.own,
            **fields,
        )

    def mixture(self, name: str, sources: list[str], targets: list[str], *, placement: str = "after") -> None:
        """Adds a composition of prompts that are there, with a random G."""
        generator = torch.Generator().manual_seed(5)
        width = self.backbone.width
        attention = PromptAttention(width, 3, rms_temperature(width), generator=generator)
        with torch.no_grad():
            for weight in attention.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator))
        self.registry.add_attention(
            {key: value.numpy() for key, value in attention.state_dict().items()},
            name=name,
            rank=3,
            level="instance",
            temperature=attention.temperature,
            width=width,
            settings={},
            seed=0,
            placement=placement,
            **self.own,
        )
        self.registry.add_composition(
            name=name,
            sources=sources,
            targets=targets,
            attention=name,
            settings={"embedding_scale": self.backbone.embedding_rms},
            **self.own,
        )


def filled(registry: Registry, backbone: FrozenBackbone) -> Shop:
    """Prompts with labels, with labels of several tokens, with several columns, for free text, and a composition."""
    shop = Shop(registry, backbone)
    for seed, name in enumerate(("mood", "topic", "style")):
        shop.prompt(name, seed=seed)
    shop.prompt("long", labels=WORDS, seed=3, length=M + 2)
    shop.prompt("pair", input="{first} {second} label:", seed=4)
    shop.prompt("first", placement="before", seed=5)
    shop.prompt("second", placement="before", seed=6)
    shop.prompt("story", labels=None, seed=7)
    shop.prompt("tale", labels=None, seed=8)
    shop.prompt("aim", seed=9, kind="target", method="attempt", parents=["mood", "topic"])
    shop.mixture("aim", ["mood", "topic"], ["aim"])
    return shop


@dataclass
class Served:
    """A server in this process."""

    shop: Shop
    session: Session
    engine: Engine
    catalogue: Catalogue
    app: Any

    def run(self, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]], **headers: str) -> Any:
        """Runs what a client does, and returns what it returns."""

        async def working() -> Any:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
                return await work(client)

        return asyncio.run(working())

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Gets a path."""
        found: httpx.Response = self.run(lambda client: client.get(path), **headers)
        return found

    def post(
        self, path: str, body: Any = None, *, content: bytes | str | None = None, **headers: str
    ) -> httpx.Response:
        """Posts JSON, or content as it is."""
        if content is not None:
            headers.setdefault("Content-Type", "application/json")
            found: httpx.Response = self.run(lambda client: client.post(path, content=content), **headers)
        else:
            found = self.run(lambda client: client.post(path, json=body), **headers)
        return found

    def openai(self, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
        """Runs what the official client does."""

        async def working() -> Any:
            import httpx2

            transport = httpx2.ASGITransport(self.app)
            async with httpx2.AsyncClient(transport=transport) as own:
                client = AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=own, max_retries=0)
                return await work(client)

        return asyncio.run(working())


def serve_here(shop: Shop, *names: str, cache: int = 1 << 24, **settings: Any) -> Served:
    """Starts a server in this process; stop its engine at the end."""
    settings = {"wait": 2, "timeout": 30, **settings}
    made = ServerSettings(**settings)
    made.check()
    backbone = shop.backbone
    backbone.input_cache = RecentInputs(cache) if cache else None
    session = Session(Path(shop.registry.folder))
    engine = Engine(backbone, max_tokens=made.max_tokens, wait=made.wait / 1000, queue=made.max_queue)
    catalogue = Catalogue(session, names, backbone.fingerprint)
    app = create_app(catalogue, engine, made)
    engine.start()
    return Served(shop, session, engine, catalogue, app)
