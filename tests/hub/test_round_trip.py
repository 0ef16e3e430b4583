"""A prompt and a mixture go to the hub and into a fresh registry: real commands, a real client, a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attempt_registry import Registry
from tests.backbones.hub_stand_in import running
from tests.hub.stand_in import OWNER_TOKEN, UploadHub
from tests.training.commands import Attempt
from tests.training.conftest import attempt, llama
from tests.training.toy import READ

__all__ = ["attempt", "llama"]

QUICK = f"--train-file train.csv {READ} --dtype float32 --steps 3 --batch-size 8 --eval-every 0 --placement before"
WITH_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, repository = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
bare = model.state_dict()["lm_head.weight"].sum()
ids = AutoTokenizer.from_pretrained(base)("it is good label:", return_tensors="pt")
without = model(**ids).logits[0, -1]
changed = PeftModel.from_pretrained(model, repository)(**ids).logits[0, -1]
assert not torch.allclose(without, changed)
print(len(changed))
"""


def ask_the_stand_in() -> None:
    """Lets the hub's library, which the fork server imported before, ask where the environment says."""
    from huggingface_hub import constants

    constants.ENDPOINT = os.environ["HF_ENDPOINT"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_OFFLINE = False


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with running(UploadHub()) as hub:
        yield hub


def environment(hub: UploadHub, home: Path) -> dict[str, Any]:
    return {
        "prepare": ask_the_stand_in,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": OWNER_TOKEN,
        "HF_HOME": str(home / "hub-home"),
        "NO_PROXY": "127.0.0.1",
    }


def contents(folder: Path) -> list[tuple[str, str, str]]:
    """Every record with the hash of its tensors."""
    registry = Registry.open(folder)
    prompts = [("prompt", one.ref, one.sha256) for one in registry.prompts()]
    return prompts + [("attention", one.ref, one.sha256) for one in registry.attentions()]


@pytest.mark.slow
def test_there_and_back(attempt: Attempt, hub: UploadHub, llama: Path) -> None:
    there = environment(hub, attempt.folder)
    attempt.succeed(f"train-source one {QUICK} --prompt-length 4")
    attempt.succeed(f"train-target aim {QUICK} --sources one")
    attempt.succeed("eval --composition aim-attempt --test-file test.csv --dtype float32")
    seen = attempt.json("push one me/one --dry-run", **there | {"HF_TOKEN": ""})["push"]
    assert hub.requests == []
    pushed = attempt.json("push one me/one", **there)["push"]
    assert pushed["files"] == seen["files"]
    assert (pushed["private"], pushed["peft"]) == (True, True)
    mixture = attempt.json("push aim-attempt me/aim --license mit", **there)["push"]
    assert not mixture["peft"]
    assert "| `aim` | test | accuracy |" in mixture["card"]
    for repository in hub.kept.values():
        for name, content in repository.files.items():
            assert str(attempt.folder).encode() not in content, name
    assert attempt.json("registry show one --what prompts")["prompt"]["hub"] == [f"me/one@{pushed['commit']}"]

    fresh = Attempt(attempt.folder, attempt.backbone, "fresh")
    assert fresh.json("pull me/one", **there)["pull"]["commit"] == pushed["commit"]
    pulled = fresh.json("pull me/aim", **there)["pull"]
    assert pulled["name"] == "aim-attempt@1"
    assert contents(attempt.folder / "fresh") == contents(attempt.folder / attempt.registry)
    assert fresh.succeed("registry verify").code == 0
    shown = fresh.json("registry show aim-attempt --what compositions")["composition"]
    assert shown["hub"] == [f"me/aim@{mixture['commit']}"]
    assert shown["ancestors"] == ["one@1", "attention:aim-attempt@1", "aim-attempt@1"]
    for name in ("one", "aim-attempt"):
        predict = f"predict {name} test.csv --dtype float32"
        assert fresh.succeed(predict).lines == attempt.succeed(predict).lines

    settings = {name: value for name, value in there.items() if name != "prepare"} | {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    loaded = subprocess.run(
        [sys.executable, "-c", WITH_PEFT, str(llama), "me/one"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert loaded.returncode == 0, loaded.stderr


def test_what_the_commands_say(attempt: Attempt, hub: UploadHub) -> None:
    there = environment(hub, attempt.folder)
    unknown = attempt("push nothing me/x", **there)
    assert (unknown.code, "no prompt or composition named 'nothing'" in unknown.err) == (1, True)
    missing = attempt("pull me/none", **there)
    assert (missing.code, "the hub has no model repository 'me/none'" in missing.err) == (1, True)
    wrong = attempt("pull none", **there)
    assert (wrong.code, "Write OWNER/NAME" in wrong.err) == (1, True)
