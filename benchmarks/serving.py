"""What `attempt serve` answers in a second, and how long a request waits: 1, 8 and 64 clients, one task and twenty.

    python -m benchmarks.serving --full

Each client sends its next request when the last is answered. All servers run as processes of their own, and answer in
turns: the same real rows, each once, so that no input is kept. Against: the same server answering one request at a time
(`--max-tokens 1 --wait 0`), and PEFT with an adapter a task (`peft_server`). In "texts among them" every eighth request
writes sixteen tokens.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from attempt_cli.backbones.load import describe, load_backbone
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields
from attempt_cli.data.rows import load_examples
from attempt_registry import Backbone, Registry
from benchmarks.harness import Report, Times, arguments, rounds_of

TASKS = 20
OURS, ALONE, PEFT = "attempt serve", "one request at a time", "PEFT, an adapter a task"
TRAFFIC = {"one task": 1, "twenty tasks": TASKS, "twenty tasks, texts among them": TASKS}


class Server:
    """A server as a process; its address is on its standard output."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r'"url": "(.*?)"', line):
                self.url = found[1]
                return
        raise SystemExit(f"{command[0]} ended with {self.process.wait()}")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def filled(folder: Path, name: str, device: str | None, length: int) -> None:
    """Makes a registry of twenty prompts of random numbers for SST-2, and one for free text."""
    backbone = load_backbone(name, device=device)
    task = task_fields(load_task("sst2")) | {"input": "{sentence}"}  # the texts are rendered already, for all servers
    free = {"name": "text", "input": "{sentence}", "answers": "answer", "metrics": ["squad_em"], "hub": task["hub"]}
    with Registry.open(folder) as registry:
        registry.remember_backbone(Backbone(**describe(backbone)))
        for number in range(TASKS + 1):
            own = task if number < TASKS else free
            registry.add_prompt(
                np.random.default_rng(number).standard_normal((length, backbone.width)).astype(np.float32),
                name=f"task-{number}" if number < TASKS else "text",
                kind="source",
                method="prompt-tuning",
                backbone=backbone.name,
                fingerprint=backbone.fingerprint,
                task=own["name"],
                task_version=1,
                embedding_scale=backbone.embedding_rms,
                settings={"task": own},
                numbers={},
                seed=number,
                placement=backbone.placements[0],
            )


def requests(texts: Sequence[str], traffic: str) -> list[dict[str, Any]]:
    """One request a text."""
    found = []
    for number, text in enumerate(texts):
        model = f"task-{number % TRAFFIC[traffic]}"
        if "texts" in traffic and number % 8 == 7:
            model = "text"
        found.append({"model": model, "prompt": text, "max_tokens": 16})
    return found


async def load(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> tuple[float, list[float]]:
    """Sends all requests from so many clients; returns the seconds of all, and of each."""
    waiting, each = list(bodies)[::-1], []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one() -> None:
            while waiting:
                body = waiting.pop()
                began = time.perf_counter()
                answer = await client.post("/v1/completions", json=body)
                each.append(time.perf_counter() - began)
                answer.raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return time.perf_counter() - began, each


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--length", type=int, default=20, help="m (default 20)")
    parser.add_argument("--clients", default="1,8,64", help="clients at once, parted by commas (default 1,8,64)")
    options = parser.parse_args()
    rounds, count = rounds_of(options), options.rows or (256 if options.full else 64)
    cells = [(traffic, int(clients)) for traffic in TRAFFIC for clients in options.clients.split(",")]
    chosen = load_task("sst2")
    examples = load_examples(chosen, "train", data_dir=options.data_dir, limit=count * rounds * len(cells) + 8).examples
    texts = [example.input for example in examples]
    setting = {"backbone": options.backbone, "m": options.length, "requests": count, "rounds": rounds, "task": "sst2"}
    report = Report("serving", setting)
    with tempfile.TemporaryDirectory() as folder:
        filled(Path(folder), options.backbone, options.device, options.length)
        own = ["attempt_cli", "--format", "json", "serve", "--port", "0", "--backbone", options.backbone]
        own += ["--device", options.device] if options.device else []
        peer = ["benchmarks.peft_server", "--backbone", options.backbone, "--length", str(options.length)]
        peer += ["--device", options.device] if options.device else []
        servers = {OURS: Server(*own, ATTEMPT_REGISTRY=folder)}
        try:
            servers[ALONE] = Server(*own, "--max-tokens", "1", "--wait", "0", ATTEMPT_REGISTRY=folder)
            servers[PEFT] = Server(*peer)
            measure(report, servers, cells, texts, count, rounds)
        finally:
            for server in servers.values():
                server.end()
    report.finish(options.out)


def measure(
    report: Report,
    servers: dict[str, Server],
    cells: Sequence[tuple[str, int]],
    texts: Sequence[str],
    count: int,
    rounds: int,
) -> None:
    """Asks all servers in turns, with the same texts in a round, and others in the next."""
    new = iter(texts)
    warm = [next(new) for _ in range(8)]
    for traffic, clients in cells:
        taking = [name for name in servers if "texts" not in traffic or name != PEFT]
        seconds: dict[str, list[float]] = {name: [] for name in taking}
        each: dict[str, list[float]] = {name: [] for name in taking}
        for name in taking:
            asyncio.run(load(servers[name].url, requests(warm, traffic), min(clients, 8)))
        for number in range(rounds):
            bodies = requests([next(new) for _ in range(count)], traffic)
            first = number % len(taking)
            for name in [*taking[first:], *taking[:first]]:
                taken, waits = asyncio.run(load(servers[name].url, bodies, clients))
                seconds[name].append(taken)
                each[name] += waits
        title = f"{traffic}, {clients} client{'s' if clients > 1 else ''}"
        times = Times(dict.fromkeys(taking, float(count)), seconds)
        waits = {name: np.percentile(each[name], [50, 99]) * 1000 for name in taking}
        note = "p50 and p99 of a request: " + "; ".join(f"{n} {a:.0f} and {b:.0f} ms" for n, (a, b) in waits.items())
        report.add_race(title, times, ALONE, "requests/s", note)
        print(f"  {title}", file=sys.stderr, flush=True)
        if clients >= 8 and PEFT in taking:
            report.goal(f"{title}: against PEFT, an adapter a task", times.ratio(OURS, PEFT), at_least=1)


if __name__ == "__main__":
    main()
