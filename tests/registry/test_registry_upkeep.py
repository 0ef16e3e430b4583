"""Tags, removal, damage, verification, cleaning up."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from attempt_registry import Problem, Prompt, Registry, RegistryError, Removal

Add = Callable[..., Prompt]
FINGERPRINT = "f" * 64


def compose(registry: Registry, **parts: object) -> str:
    return registry.add_composition(name="reviews", backbone="tiny", fingerprint=FINGERPRINT, **parts).ref  # type: ignore[arg-type]


def test_tags(registry: Registry, add: Add) -> None:
    add("rte", tags=["old"])
    assert registry.tag("rte", add=["new", "best", "new"], remove=["old"]).tags == ("new", "best")
    assert registry.prompt("rte").tags == ("new", "best")
    with pytest.raises(RegistryError, match=r"rte@1 has no tag 'bset'") as failure:
        registry.tag("rte", add=["other"], remove=["bset"])
    assert failure.value.hint == "It has new, best."
    assert registry.prompt("rte").tags == ("new", "best")
    with pytest.raises(RegistryError, match="cannot be a tag"):
        registry.tag("rte", add=["a,b"])


def test_removing_takes_one_version(registry: Registry, add: Add) -> None:
    add("rte"), add("rte"), add("mrpc", parents=["rte@2"])
    planned = Removal("prompt", "rte@2", (), ("mrpc@1",), ("rte@1",), removed=False)
    assert registry.remove("rte", dry_run=True) == planned
    assert registry.prompt("rte").version == 2
    assert registry.remove("rte") == Removal("prompt", "rte@2", (), ("mrpc@1",), ("rte@1",), removed=True)
    assert registry.prompt("rte").version == 1
    assert registry.verify() == []  # a parent that was removed is history


@pytest.mark.parametrize("ref", ["sst2", "prompt:sst2@1", "rte", "glue"])
def test_a_part_of_a_composition_stays(registry: Registry, add: Add, add_attention: Callable, ref: str) -> None:
    add("sst2"), add("rte"), add_attention()
    compose(registry, sources=["sst2"], attention="glue", targets=["rte"])
    kind = "attention" if ref == "glue" else "prompt"
    for dry_run in (True, False):
        with pytest.raises(RegistryError, match=r"is part of a composition: reviews@1") as failure:
            registry.remove(ref, kind=kind, dry_run=dry_run)
        assert "attempt registry remove reviews@1 --what compositions" in (failure.value.hint or "")
    removed = registry.remove(ref, kind=kind, force=True)
    assert removed.compositions == ("reviews@1",)
    part = f"attention:{removed.ref}" if kind == "attention" else removed.ref
    assert registry.verify() == [Problem("composition reviews@1", f"its part {part} is not in the registry")]
    assert registry.remove("reviews", kind="composition").removed
    assert registry.verify() == []


def damage(path: os.PathLike[str]) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def test_a_damaged_file_is_named_with_its_prompt(registry: Registry, add: Add, add_attention: Callable) -> None:
    prompt, attention, fine = add("rte"), add_attention(), add("fine", np.ones((2, 3)))
    for record, what, read in (
        (prompt, "prompt rte@1", registry.prompt_tensor),
        (attention, "attention glue@1", registry.attention_tensors),
    ):
        path = registry.tensor_path(record)
        damage(path)
        with pytest.raises(RegistryError, match=f"the file of {what} is damaged: {path}") as failure:
            read(record)
        assert "attempt registry verify" in (failure.value.hint or "")
    assert registry.verify() == [
        Problem("prompt rte@1", "its file is damaged (wrong hash)", str(registry.tensor_path(prompt))),
        Problem("attention glue@1", "its file is damaged (wrong hash)", str(registry.tensor_path(attention))),
    ]
    np.testing.assert_array_equal(registry.prompt_tensor(fine), np.ones((2, 3)))


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 200, b"\x80\x04pickle", None])
def test_adding_a_tensor_again_heals_its_damaged_file(registry: Registry, add: Add, content: bytes | None) -> None:
    prompt = add("rte")
    path = registry.tensor_path(prompt)
    if content is None:
        damage(path)
    else:
        path.write_bytes(content)
    with pytest.raises(RegistryError, match="is damaged"):
        registry.prompt_tensor(prompt)
    again = add("again")
    np.testing.assert_array_equal(registry.prompt_tensor(prompt), registry.prompt_tensor(again))


def test_a_missing_file_is_named_with_its_prompt(registry: Registry, add: Add) -> None:
    prompt = add("rte")
    path = registry.tensor_path(prompt)
    path.unlink()
    with pytest.raises(RegistryError, match=f"the file of prompt rte@1 is missing: {path}"):
        registry.prompt_tensor(prompt)
    assert registry.verify() == [Problem("prompt rte@1", "its file is missing", str(path))]


def test_a_reference_to_what_never_existed_is_a_problem(registry: Registry, add: Add) -> None:
    add("rte"), add("sst2", parents=["rte"])
    with registry.transaction():
        registry._database.execute("UPDATE prompts SET parents = '[\"rte@2\", \"nobody@1\"]' WHERE name = 'sst2'")
    assert registry.verify() == [
        Problem("prompt sst2@1", "its parent rte@2 never existed here"),
        Problem("prompt sst2@1", "its parent nobody@1 never existed here"),
    ]


def test_a_damaged_database_is_told_and_not_written_to(registry: Registry, add: Add) -> None:
    with registry.transaction():
        for number in range(60):
            add(f"p{number}", note="x" * 500)
    registry.close()
    file = registry.folder / "registry.db"
    data = bytearray(file.read_bytes())
    assert len(data) > 40_000
    data[24_000:40_000] = b"\xa5" * 16_000
    file.write_bytes(data)
    with pytest.raises(RegistryError, match="is damaged or not a SQLite database"):
        registry.verify()
    with pytest.raises(RegistryError, match="is damaged or not a SQLite database"):
        registry.prompts()
    assert file.read_bytes() == bytes(data)


def test_gc_takes_only_what_nothing_refers_to(registry: Registry, add: Add, add_attention: Callable) -> None:
    add("a", np.ones((2, 3))), add("b", np.ones((2, 3))), add("c", np.zeros((2, 3)))
    add_attention(), add_attention("other", rank=3)
    for name, kind in (("a", "prompt"), ("c", "prompt"), ("glue", "attention")):
        registry.remove(name, kind=kind)
    # b and other still use the files of a and glue; only c's is free
    free = registry.tensor_path(registry.prompt("b")).parent.parent
    found = registry.gc(dry_run=True, grace=0)
    (file,) = found.files
    assert (found.bytes, found.young, found.removed) == (os.stat(file).st_size, 0, False)
    assert os.path.exists(file)
    assert file.startswith(str(free))
    assert registry.gc().young == 1
    assert registry.gc(grace=0).files == (file,)
    assert not os.path.exists(file)
    assert registry.gc(grace=0).files == ()
    assert registry.verify() == []


def test_gc_leaves_files_that_are_not_its_own(registry: Registry, add: Add) -> None:
    file = registry.tensor_path(add("a"))
    strangers = [file.parent / "README", registry.folder / "notes.txt", file.parent.parent / "x.safetensors"]
    for stranger in strangers:
        stranger.write_text("mine")
        os.utime(stranger, (0, 0))
    assert registry.gc().files == ()
    assert all(stranger.exists() for stranger in strangers)


def test_gc_without_the_database_removes_nothing(registry: Registry, add: Add) -> None:
    file = registry.tensor_path(add("a"))
    registry.close()
    (registry.folder / "registry.db").unlink()
    for dry_run in (True, False):
        with pytest.raises(RegistryError, match=r"holds tensors, but their database registry\.db is missing"):
            Registry.open(registry.folder).gc(dry_run, grace=0)
    assert file.exists()
