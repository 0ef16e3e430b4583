"""Push and pull: what leaves the registry comes back the same, and nothing else comes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

import attempt_cli as attempt
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields
from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_cli.sharing.files import ADAPTER, BUNDLE
from attempt_registry import Backbone, Prompt, Registry
from tests.hub.stand_in import STRANGER_TOKEN, Repository, UploadHub

Add = Callable[..., Prompt]


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def session(registry: Registry, backbone: Backbone, notes: Notes) -> attempt.Session:
    registry.remember_backbone(replace(backbone, source="/home/me/secret/tiny"))
    return attempt.Session(registry, listener=notes, command="attempt push …")


@pytest.fixture
def other(tmp_path: Path, backbone: Backbone) -> attempt.Session:
    """Another registry, which knows the backbone."""
    fresh = Registry.open(tmp_path / "other")
    fresh.remember_backbone(backbone)
    return attempt.Session(fresh)


@pytest.fixture
def rte(add: Add) -> Prompt:
    """A prompt with all that its record can hold."""
    settings: dict[str, Any] = {
        "task": task_fields(load_task("rte")),
        "format": "words",
        "training": {"method": "spot", "steps": 40, "prompt_length": 2},
        "total_steps": 40,
        "dtype": "float32",
    }
    parent = add("sst2", tags=("paper",))
    tensor = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    return add(
        "rte",
        tensor,
        kind="target",
        method="spot",
        settings=settings,
        numbers={"validation": {"accuracy": 0.6}},
        seed=7,
        note="a note",
        tags=("best",),
        parents=(parent.ref,),
        embedding_scale=0.13557793111536814,
    )


def everything(registry: Registry, prompt: Prompt) -> dict[str, Any]:
    """A record without what belongs to its registry alone."""
    fields = dict(vars(prompt))
    for name in ("id", "version", "created"):
        del fields[name]
    fields["settings"] = {name: value for name, value in prompt.settings.items() if name != "imported"}
    return fields | {"tensor": registry.prompt_tensor(prompt).tobytes()}


def test_a_dry_run_sends_nothing_and_needs_no_token(
    hub: UploadHub, session: attempt.Session, rte: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    pushed = attempt.push("rte", "me/rte", dry_run=True, session=session)
    assert hub.requests == []
    assert (pushed.name, pushed.commit, pushed.private, pushed.peft) == ("rte@1", None, True, True)
    assert set(pushed.files) == {BUNDLE, "README.md", "attempt.json", *ADAPTER}
    assert all(size > 0 for size in pushed.files.values())
    assert pushed.card.startswith("---\n")
    assert session.store.runs() == []
    with pytest.raises(AttemptError, match="without a token"):
        attempt.push("rte", "me/rte", session=session)
    assert hub.requests == []


def test_there_and_back(
    hub: UploadHub, session: attempt.Session, other: attempt.Session, rte: Prompt, notes: Notes
) -> None:
    pushed = attempt.push("rte", "me/rte", session=session)
    repository = hub.kept["me/rte"]
    assert repository.private
    assert repository.messages == ["initial commit", "Push rte@1"]
    assert pushed.commit == repository.branches["main"]
    pulled = attempt.pull("me/rte", session=other)
    assert pulled.commit == pushed.commit
    (prompt,) = (one for one in pulled.prompts if one.name == "rte")
    assert everything(other.store, prompt) == everything(session.store, rte)
    again = attempt.pull("me/rte", session=session)  # where it came from
    assert again.name == rte.ref
    assert notes.notes[-1] == "All of it was here already."
    imported = prompt.settings["imported"]
    assert (imported["repository"], imported["revision"]) == ("me/rte", pushed.commit)


def test_the_commit_is_pinned_in_the_record(hub: UploadHub, session: attempt.Session, rte: Prompt) -> None:
    from attempt_cli.sharing.references import hub_references

    first = attempt.push("rte", "me/rte", session=session)
    again = attempt.push("rte", "me/rte", session=session)
    assert again.commit == first.commit  # nothing had changed
    other = attempt.push("rte", "me/rte@trial", license="mit", session=session)
    runs = session.store.lineage("rte").used_by
    assert [run.command for run in runs] == ["attempt push …"] * 3
    assert hub_references(rte.settings, runs) == [f"me/rte@{first.commit}", f"me/rte@{other.commit}"]


def test_no_folder_of_this_machine_leaves_it(
    hub: UploadHub, session: attempt.Session, add: Add, tmp_path: Path
) -> None:
    task = task_fields(load_task("shop-reviews"))
    file = str(tmp_path / "private" / "rows.csv")
    task |= {"files": {"train": file}, "description": f"Rows of {file}"}
    add("mine", settings={"task": task, "format": "words"})
    session.store.add_run(
        command=f"attempt train-source mine --train-file={file}",
        settings={},
        rows={"train": {"origin": f"{file}: all 3 rows", "n": 3}},
        seed=0,
        budget={},
        numbers={},
        versions={},
        duration=1.0,
        artefacts=["prompt:mine"],
    )
    attempt.push("mine", "me/mine", session=session)
    assert b"--train-file=rows.csv" in hub.kept["me/mine"].files[BUNDLE]
    assert b"rows.csv: all 3 rows" in hub.kept["me/mine"].files[BUNDLE]
    for name, content in hub.kept["me/mine"].files.items():
        for secret in (str(tmp_path), "/home/me/secret"):
            assert secret.encode() not in content, name


def test_what_peft_cannot_express_is_pushed_as_a_bundle(
    hub: UploadHub, session: attempt.Session, other: attempt.Session, notes: Notes, add: Add
) -> None:
    prompt = add("behind", placement="after")
    pushed = attempt.push("behind", "me/behind", session=session)
    assert not pushed.peft
    assert not set(ADAPTER) & set(pushed.files)
    assert any("no adapter of PEFT" in note for note in notes.notes)
    (pulled,) = attempt.pull("me/behind", session=other).prompts
    assert everything(other.store, pulled) == everything(session.store, prompt)


def test_an_evaluation_is_on_the_card_and_in_the_hub_s_file(
    hub: UploadHub, session: attempt.Session, rte: Prompt
) -> None:
    numbers = {
        "task": "rte",
        "model": rte.ref,
        "kind": "prompt",
        "metrics": {"accuracy": 0.61},
        "interval": [0.52, 0.69],
        "per_row": {"scores": {"accuracy": [1, 0]}},
    }
    session.store.add_run(
        command="attempt eval",
        settings={"split": "test"},
        rows={"test": {"n": 138}},
        seed=None,
        budget={},
        numbers=numbers,
        versions={},
        duration=1.0,
        inputs=[f"prompt:{rte.ref}"],
    )
    attempt.push("rte", "me/rte", session=session)
    files = hub.kept["me/rte"].files
    assert b"| `rte` | test | accuracy | 0.610 | 0.520 to 0.690 | 138 |" in files["README.md"]
    (entry,) = yaml.safe_load(files[".eval_results/rte.yaml"])
    assert (entry["dataset"], entry["value"]) == ({"id": "nyu-mll/glue", "task_id": "rte"}, 0.61)


def test_a_later_push_takes_away_what_an_earlier_one_left(
    hub: UploadHub, session: attempt.Session, rte: Prompt, add: Add
) -> None:
    attempt.push("rte", "me/rte", session=session)
    hub.kept["me/rte"].commit({**hub.kept["me/rte"].files, "LICENSE": b"mine", ".eval_results/rte.yaml": b"- 1\n"})
    add("behind", placement="after")
    attempt.push("behind", "me/rte", session=session)
    assert set(hub.kept["me/rte"].files) == {".gitattributes", "LICENSE", "README.md", BUNDLE}


@pytest.mark.parametrize("files", [{"model.safetensors": b"x"}, {"adapter_config.json": b"{}", "a/b.txt": b""}])
def test_what_somebody_else_put_there_stays(
    hub: UploadHub, session: attempt.Session, rte: Prompt, files: dict[str, bytes]
) -> None:
    hub.kept["me/rte"] = Repository(private=True)
    before = hub.kept["me/rte"].commit(files)
    with pytest.raises(AttemptError, match="'me/rte' holds something else"):
        attempt.push("rte", "me/rte", session=session)
    assert hub.kept["me/rte"].branches["main"] == before
    assert session.store.runs() == []


def test_nothing_becomes_public_unasked(hub: UploadHub, session: attempt.Session, rte: Prompt, notes: Notes) -> None:
    hub.kept["me/open"] = Repository(private=False)
    hub.kept["me/open"].commit({".gitattributes": b""})
    with pytest.raises(AttemptError, match="'me/open' is public") as failure:
        attempt.push("rte", "me/open", session=session)
    assert "--public" in (failure.value.hint or "")
    assert not attempt.push("rte", "me/open", public=True, session=session).private
    assert not attempt.push("rte", "me/new", public=True, session=session).private
    assert attempt.push("rte", "me/closed", session=session).private
    assert attempt.push("rte", "me/closed", public=True, session=session).private
    assert "'me/closed' stays private" in notes.notes[-1]


def test_a_push_that_fails_records_nothing(
    hub: UploadHub, session: attempt.Session, rte: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.failing = "POST /api/models/me/rte/commit"
    with pytest.raises(AttemptError, match="status 503"):
        attempt.push("rte", "me/rte", session=session)
    assert session.store.runs() == []
    monkeypatch.setenv("HF_TOKEN", STRANGER_TOKEN)
    with pytest.raises(AttemptError, match="the token may not do that with 'me/rte'"):
        attempt.push("rte", "me/rte", session=session)
    assert session.store.runs() == []


@pytest.mark.parametrize("license", ["Apache 2.0", "mit\n---\n", "", "x" * 61])
def test_a_licence_that_the_hub_does_not_know(session: attempt.Session, rte: Prompt, license: str) -> None:
    with pytest.raises(AttemptError, match="no licence of the hub's list"):
        attempt.push("rte", "me/rte", license=license, dry_run=True, session=session)


# --- pulling


def test_names_that_are_taken(
    hub: UploadHub, session: attempt.Session, other: attempt.Session, rte: Prompt, add: Add
) -> None:
    attempt.push("rte", "me/rte", session=session)
    fields = {name: getattr(rte, name) for name in ("kind", "method", "fingerprint", "task", "task_version")}
    other.store.add_prompt(
        np.zeros((2, 3)), name="rte", backbone="tiny", embedding_scale=1.0, settings={}, numbers={}, seed=0, **fields
    )
    with pytest.raises(AttemptError, match="other records have these names here: prompt rte") as failure:
        attempt.pull("me/rte", session=other)
    assert "--prefix" in (failure.value.hint or "")
    assert [prompt.ref for prompt in other.store.prompts()] == ["rte@1"]
    assert attempt.pull("me/rte", name="theirs", session=other).name == "theirs@1"
    assert attempt.pull("me/rte", prefix="my-", session=other).name == "my-rte@1"
    assert other.store.prompt("my-rte").parents == ("my-sst2@1",)


def test_a_registry_that_does_not_know_the_backbone(
    hub: UploadHub, session: attempt.Session, rte: Prompt, tmp_path: Path
) -> None:
    attempt.push("rte", "me/rte", session=session)
    fresh = Registry.open(tmp_path / "fresh")
    assert attempt.pull("me/rte", session=attempt.Session(fresh)).name == "rte@1"
    (known,) = fresh.backbones()
    ours = session.store.backbone("tiny")
    assert known == replace(ours, source="tiny", created=known.created)
    assert fresh.verify() == []


def test_an_adapter_that_peft_wrote(hub: UploadHub, other: attempt.Session) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    config["base_model_name_or_path"] = "tiny"
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    hub.kept["me/peft"] = Repository()
    commit = hub.kept["me/peft"].commit(
        {ADAPTER[0]: json.dumps(config).encode(), ADAPTER[1]: save({"prompt_embeddings": tensor}), "train.py": b"evil"}
    )
    with pytest.raises(AttemptError, match="nothing says what"):
        attempt.pull("me/peft", session=other)
    pulled = attempt.pull("me/peft", task="rte", note="theirs", session=other)
    (prompt,) = pulled.prompts
    assert (pulled.format, prompt.ref, prompt.note) == ("peft", "rte@1", "theirs")
    assert (other.store.prompt_tensor(prompt) == tensor).all()
    assert prompt.settings["imported"]["revision"] == commit
    assert not any("train.py" in request for request in hub.requests)


def test_what_there_is_not(hub: UploadHub, other: attempt.Session) -> None:
    with pytest.raises(AttemptError, match="no model repository 'me/none'"):
        attempt.pull("me/none", session=other)
    hub.kept["me/empty"] = Repository()
    hub.kept["me/empty"].commit({"README.md": b""})
    with pytest.raises(AttemptError, match="has no revision 'v2'"):
        attempt.pull("me/empty@v2", session=other)
    with pytest.raises(AttemptError, match="holds no prompt that can be pulled"):
        attempt.pull("me/empty", session=other)
    assert other.store.prompts() == []


@pytest.mark.parametrize(
    "files",
    [
        {"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."},
        {"adapter_config.json": b"[" * 100_000, "adapter_model.safetensors": b"x"},
        {"adapter_config.json": b'{"peft_type": "PROMPT_TUNING"}', "adapter_model.safetensors": b"\xff" * 64},
        {f"../{BUNDLE}": b"", "sub/adapter_config.json": b"", "sub/adapter_model.safetensors": b""},
        {BUNDLE: b""},
        {BUNDLE: b"\x80\x04."},
        {BUNDLE: b"PK\x05\x06" + b"\0" * 18},
    ],
)
def test_hostile_repositories_add_nothing(hub: UploadHub, other: attempt.Session, files: dict[str, bytes]) -> None:
    hub.kept["me/bad"] = Repository()
    hub.kept["me/bad"].commit(files)
    with pytest.raises(AttemptError):
        attempt.pull("me/bad", task="rte", session=other)
    assert other.store.prompts() == []
    fetched = {request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET /me/bad/resolve")}
    assert fetched <= {BUNDLE, "attempt.json", *ADAPTER}


def test_files_that_are_far_too_large_are_not_fetched(hub: UploadHub, other: attempt.Session) -> None:
    hub.kept["me/large"] = Repository()
    hub.kept["me/large"].commit({BUNDLE: b""})
    hub.claimed_sizes[BUNDLE] = 1 << 40
    with pytest.raises(AttemptError, match="no prompt is that large"):
        attempt.pull("me/large", session=other)
    assert not any("resolve" in request for request in hub.requests)


def test_a_download_that_breaks_off_adds_nothing(
    hub: UploadHub, session: attempt.Session, other: attempt.Session, rte: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    attempt.push("rte", "me/rte", session=session)
    hub.failing = f"GET .*{BUNDLE}"
    with pytest.raises(AttemptError):
        attempt.pull("me/rte", session=other)
    assert other.store.prompts() == []
    hub.failing = ""
    assert attempt.pull("me/rte", session=other).name == "rte@1"


def test_a_pulled_commit_stays_what_it_was(
    hub: UploadHub, session: attempt.Session, other: attempt.Session, rte: Prompt, add: Add
) -> None:
    first = attempt.push("rte", "me/rte", session=session)
    add("behind", placement="after")
    attempt.push("behind", "me/rte", session=session)
    pulled = attempt.pull(f"me/rte@{first.commit}", name="old", session=other)
    assert (pulled.commit, pulled.prompts[-1].name) == (first.commit, "old")
