"""Every block of docs/use-elsewhere.md runs as it stands there, in order, with fewer steps, on a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.backbones.hub_stand_in import running
from tests.exchange.test_authors import save_run
from tests.hub.stand_in import OWNER_TOKEN, UploadHub
from tests.models import save_llama

PAGE = (Path(__file__).parents[2] / "docs" / "use-elsewhere.md").read_text("utf-8")


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from attempt_cli.backbones.load import load_backbone

    model = save_llama(tmp_path / "model")
    backbone = load_backbone(str(model), device="cpu", dtype="float32")
    (tmp_path / "authors").mkdir()
    torch.save(torch.randn(5, backbone.width), tmp_path / "authors" / "mnli.pt")
    save_run(tmp_path / "authors" / "run", backbone)
    (tmp_path / "someones-adapter").mkdir()
    save_file(
        {"prompt_embeddings": np.ones((3, backbone.width), np.float32)},
        tmp_path / "someones-adapter" / "adapter_model.safetensors",
    )
    (tmp_path / "someones-adapter" / "adapter_config.json").write_text(
        '{"peft_type": "P_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}'
    )
    found = re.findall(r"^```(console|python)\n(.*?)^```", PAGE, flags=re.S | re.M)
    script = "".join(text if kind == "console" else f"python - <<'END'\n{text}END\n" for kind, text in found)
    assert len(found) == 15
    script = re.sub(r"--steps \d+", "--steps 2", script).replace("smollm2-135m", str(model))
    script = script.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model))
    environment = {
        "HF_TOKEN": OWNER_TOKEN,
        "HF_HOME": str(tmp_path / "hub-home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ATTEMPT_REGISTRY": "own"}
    with running(UploadHub()) as hub:
        environment["HF_ENDPOINT"] = hub.endpoint
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
    assert done.returncode == 0, done.stderr
    assert "their-support-chats-attempt@1" in done.stdout
    assert f"(20, {backbone.width})" in done.stdout
    assert "adapter_model.safetensors" in hub.kept["me/shop-reviews"].files
    assert re.search(r"^chats-plain@1 +support-chats +\S+ +\d", done.stdout, flags=re.M)
