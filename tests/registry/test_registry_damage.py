"""Damaged cells, mutated database files, foreign files, links and FIFOs: named, left alone, and in nobody's way."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attempt_registry import Attention, Backbone, Problem, Prompt, Registry, RegistryError
from attempt_registry.references import check_name

Add = Callable[..., Prompt]
AddAttention = Callable[..., Attention]
FINGERPRINT = "f" * 64
MUTATIONS = 40


def set_cell(registry: Registry, sql: str, *values: object) -> None:
    """Changes the database as another program would, without the triggers that know what fits."""
    with sqlite3.connect(registry.folder / "registry.db") as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(sql, values)
    connection.close()


# --- cells


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("settings", "{"),
        ("settings", "[]"),
        ("settings", "{}, {}"),
        ("settings", None),
        ("numbers", "[" * 100_000),
        ("numbers", b"\xff"),
        ("tags", "{}"),
        ("tags", "[1]"),
        ("parents", '["sst2@1"'),
        ("length", "many"),
        ("task", b"\xff\xfe"),
        ("sha256", "../../elsewhere"),
    ],
)
def test_a_damaged_cell_is_named_and_in_nobodys_way(
    registry: Registry, add: Add, add_attention: AddAttention, column: str, cell: object
) -> None:
    add("sst2"), add("mnli", parents=["sst2"]), add("cb", np.ones((2, 3)), parents=["mnli"])
    registry.close()
    set_cell(registry, f"UPDATE prompts SET {column} = ? WHERE name = 'mnli'", cell)
    assert [prompt.ref for prompt in registry.prompts()] == ["cb@1", "sst2@1"]
    assert list(registry.damaged) == ["prompt mnli@1"]
    assert [prompt.ref for prompt in registry.prompts(tag="x")] == []
    assert [prompt.ref for prompt in registry.search("sst2")] == ["sst2@1"]
    assert registry.lineage("cb").parents[0] == "mnli@1"
    with pytest.raises(RegistryError, match=f"prompt mnli@1 is damaged in the database: its field '{column}'"):
        registry.prompt("mnli")
    problems = registry.verify()
    assert [problem.what for problem in problems] == ["prompt mnli@1"]
    assert problems[0].problem.startswith(f"its row is damaged: its field '{column}'")
    assert registry.remove("mnli", dry_run=True).children == ("cb@1",)
    assert registry.remove("mnli").removed
    assert add("mnli").ref == "mnli@2"


def test_damaged_runs_and_compositions_are_named_too(registry: Registry, add: Add) -> None:
    add("sst2")
    registry.add_composition(name="one", backbone="tiny", fingerprint=FINGERPRINT, sources=["sst2"])
    registry.add_run(
        command="x", settings={}, rows={}, seed=0, budget={}, numbers={}, versions={}, duration=1.0, inputs=["sst2"]
    )
    registry.close()
    set_cell(registry, "UPDATE compositions SET sources = '['")
    set_cell(registry, "UPDATE runs SET numbers = 'x'")
    assert registry.runs() == registry.compositions() == []
    assert [problem.what for problem in registry.verify()] == ["composition one@1", "run 1"]
    with pytest.raises(RegistryError, match="run 1 is damaged"):
        registry.run(1)
    with pytest.raises(RegistryError, match="is part of a composition: one@1"):
        registry.remove("sst2")
    assert registry.remove("one", kind="composition").removed


def test_words_that_do_not_fit_the_table_are_a_problem(registry: Registry, add: Add) -> None:
    add("sst2"), add("rte")
    registry.close()
    set_cell(registry, "DELETE FROM prompts_words WHERE rowid = 1")
    assert [problem.what for problem in registry.verify()] == ["search"]


DAMAGES = [
    "DELETE FROM prompts_words WHERE rowid = 1",
    "UPDATE prompts_words_data SET block = x'00ff00ff'",
    "DROP TABLE prompts_words",
    "DELETE FROM links",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_search_words_and_references_are_made_again(registry: Registry, add: Add, damage: str) -> None:
    add("sst2"), add("rte", parents=["sst2"])
    registry.close()
    set_cell(registry, damage)
    if "links" not in damage:
        assert "search" in [problem.what for problem in registry.verify()]
    registry.repair()
    assert registry.verify() == []
    assert [record.ref for record in registry.search("sst2")] == ["sst2@1"]
    assert registry.remove("sst2", dry_run=True).children == ("rte@1",)
    add("later")  # the triggers are there again, too
    assert [record.ref for record in registry.search("later")] == ["later@1"]


@pytest.mark.parametrize("part", range(4))
def test_a_mutated_database_ends_in_a_clear_error_or_works(registry: Registry, add: Add, part: int) -> None:
    registry.remember_backbone(Backbone("tiny", FINGERPRINT, "decoder-only", 3, 0.1, 1000, "made in the test"))
    for number in range(6):
        add(f"p{number}", tags=["a"], note="é", parents=[f"p{number - 1}"] if number else [])
    registry.add_composition(name="c", backbone="tiny", fingerprint=FINGERPRINT, sources=["p1"], targets=["p2"])
    registry.close()
    good = (registry.folder / "registry.db").read_bytes()
    hints: list[str | None] = []
    for number in range(MUTATIONS // 4):
        choose = random.Random(part * MUTATIONS + number)
        data = bytearray(good)
        if part == 0:
            data = data[: choose.randrange(len(data))]
        elif part == 1:
            start, length = choose.randrange(len(data)), choose.choice([16, 512, 4096])
            data[start : start + length] = choose.randbytes(len(data[start : start + length]))
        else:
            text = choose.choice([b"p1@1", b"tiny", b'{"', b"ffff", b"source", b"prompts", "é".encode()])
            places = [at for at in range(len(data)) if data.startswith(text, at)]
            data[choose.choice(places) + choose.randrange(len(text))] = choose.randrange(256)
        folder = registry.folder.with_name(f"mutated-{number}")
        shutil.copytree(registry.folder, folder)
        (folder / "registry.db").write_bytes(data)
        mutated = Registry.open(folder)
        before = time.monotonic()
        for call in (
            mutated.prompts,
            mutated.compositions,
            mutated.verify,
            lambda of=mutated: of.search("p1 é"),
            lambda of=mutated: of.lineage("p3"),
            lambda of=mutated: of.prompt_tensor(of.prompt("p1")),
            lambda of=mutated: of.backbone("tiny"),
            lambda of=mutated: of.tag("p4", add=["b"]),
            lambda of=mutated: of.remove("p5"),
            lambda of=mutated: of.gc(dry_run=True, grace=0),
        ):
            try:
                call()
            except RegistryError as error:
                hints.append(error.hint)
        mutated.close()
        assert time.monotonic() - before < 20
        shutil.rmtree(folder)
    assert all(hints)


# --- files


def old(path: Path) -> Path:
    os.utime(path, (0, 0), follow_symlinks=False)
    return path


def test_gc_follows_no_link_and_takes_no_foreign_file(registry: Registry, add: Add, tmp_path: Path) -> None:
    own = registry.tensor_path(add("a")).parent
    models = tmp_path / "models"
    (models / "ab").mkdir(parents=True)
    strangers = [old_file(models / "model.safetensors"), old_file(models / "ab" / f"{'0' * 62}.safetensors")]
    strangers += [old_file(own / name) for name in ("model.safetensors", "x.tmp", f"{'0' * 61}Z.safetensors")]
    objects = registry.folder / "objects"
    (objects / "zz").symlink_to(models)
    (objects / "ab").symlink_to(models / "ab")
    (objects / "zy").mkdir()
    strangers.append(old_file(objects / "zy" / f"{'0' * 62}.safetensors"))
    link = own / f"{'1' * 62}.safetensors"
    link.symlink_to(strangers[0])
    assert registry.gc(grace=0).files == ()
    assert all(path.exists() for path in [*strangers, link])
    mine = old_file(own / f"{'2' * 62}.safetensors")
    assert registry.gc().files == (str(mine),)


def old_file(path: Path) -> Path:
    path.write_text("mine")
    return old(path)


def test_gc_refuses_objects_that_are_a_link(registry: Registry, add: Add, tmp_path: Path) -> None:
    add("a")
    objects = registry.folder / "objects"
    objects.rename(tmp_path / "elsewhere")
    objects.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match="is a link, which is not followed"):
        registry.gc(grace=0)
    assert registry.verify() == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_in_place_of_a_tensor_is_named_and_can_be_healed(registry: Registry, add: Add) -> None:
    prompt = add("a")
    path = registry.tensor_path(prompt)
    path.unlink()
    os.mkfifo(path)
    assert registry.verify() == [Problem("prompt a@1", "it is not a file", str(path))]
    with pytest.raises(RegistryError, match="the file of prompt a@1 is damaged"):
        registry.prompt_tensor(prompt)
    add("b")
    assert registry.verify() == []


def test_a_time_in_the_future_does_not_keep_a_file_for_ever(registry: Registry, add: Add) -> None:
    path = registry.tensor_path(add("a"))
    registry.remove("a")
    soon = time.time() + 60
    os.utime(path, (soon, soon))
    assert registry.gc().young == 1  # the clock of another machine may be a little ahead
    late = time.time() + 10 * 365 * 86400
    os.utime(path, (late, late))
    assert registry.gc().files == (str(path),)


def test_gc_takes_no_file_from_an_addition_in_progress(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("first", np.zeros((2, 3)))
    other = Registry.open(registry.folder)
    replace, taken = os.replace, []

    def collect_and_replace(source: Path, target: Path) -> None:
        if len(taken) < 3:
            taken.append(other.gc(grace=0).files)
        replace(source, target)

    monkeypatch.setattr(os, "replace", collect_and_replace)
    prompt = add("a", np.ones((2, 3)))
    assert [len(files) for files in taken] == [1, 1, 1]
    np.testing.assert_array_equal(registry.prompt_tensor(prompt), np.ones((2, 3)))
    assert registry.verify() == []


def test_an_addition_succeeds_though_another_process_removes_it_at_once(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Registry.open(registry.folder)
    database = registry._database
    execute = type(database).transaction

    from contextlib import contextmanager

    @contextmanager
    def removed_after(self: object):  # type: ignore[no-untyped-def]
        with execute(database):
            yield
        other.remove("a")

    add("before")
    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", removed_after.__get__(database))
        assert add("a").ref == "a@1"
    assert [prompt.ref for prompt in registry.prompts()] == ["before@1"]


# --- what terminals obey


@pytest.mark.parametrize(
    "character", ["\x1b[31m", "\n", "\x00", "\x7f", "\x9b", "\u202e", "\u2066", "\u200f", "\ud800"]
)
def test_control_and_bidirectional_characters_are_refused(registry: Registry, add: Add, character: str) -> None:
    add("rte")
    bad = f"a{character}b"
    for call in (
        lambda: check_name(bad),
        lambda: add(bad, task="t"),
        lambda: add("x", task=bad),
        lambda: add("x", tags=[bad]),
        lambda: registry.tag("rte", add=[bad]),
    ):
        with pytest.raises(RegistryError, match=r"has the control character U\+") as failure:
            call()
        assert failure.value.message.isprintable()
    assert [prompt.ref for prompt in registry.prompts()] == ["rte@1"]
    assert add("übung", task="情感 анализ", tags=["خوب", "👩‍🔬"]).tags == ("خوب", "👩‍🔬")


# --- room and media


def test_reading_and_gc_work_on_a_disk_without_a_free_byte(tmp_path: Path, in_own_mounts: Callable) -> None:
    import sys

    from tests.registry.test_registry_crashes import ADDING

    program = tmp_path / "full.py"
    program.write_text(
        ADDING
        + "import os\n"
        + "from attempt_registry import RegistryError\n"
        + "add(registry, 'gone', 1); add(registry, 'kept', 2); registry.remove('gone'); registry.close()\n"
        + "try:\n"
        + "    with open(registry.folder.parent / 'ballast', 'wb', 0) as file:\n"
        + "        while True: file.write(bytes(4096))\n"
        + "except OSError: pass\n"
        + "print([prompt.ref for prompt in registry.prompts()])\n"
        + "try: add(registry, 'more', 3)\n"
        + "except RegistryError as error: print(error.message.split(' of ')[0])\n"
        + "registry.close()\n"
        + "print(len(registry.gc(grace=0).files), registry.verify())\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_own_mounts(f"mount -t tmpfs -o size=2m tmpfs {disk}\nexec {sys.executable} {program} {disk}/registry\n")
    assert done.stderr == ""
    assert done.stdout == "['kept@1']\nno space left on the disk\n1 []\n"


def test_a_log_that_read_only_media_hide_is_told(
    registry: Registry, add: Add, tmp_path: Path, in_own_mounts: Callable
) -> None:
    import sys

    add("sst2")
    copy = tmp_path / "copy"
    shutil.copytree(registry.folder, copy)  # while it is open: the newest rows are in the log
    assert (copy / "registry.db-wal").stat().st_size
    (copy / "registry.db-shm").unlink()
    program = tmp_path / "program" / "read.py"
    program.parent.mkdir()
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom attempt_registry import Registry, RegistryError\n"
        "try: print(Registry.open(Path(sys.argv[1])).prompts())\n"
        "except RegistryError as error: print(error.message, error.hint)\n"
    )
    done = in_own_mounts(
        f"mount --bind {copy} {copy}\nmount -o remount,ro,bind {copy}\nexec {sys.executable} {program} {copy}\n"
    )
    assert done.stderr == ""
    assert "are in registry.db-wal, which SQLite cannot read in a folder where it may not write" in done.stdout
    assert "Copy the folder" in done.stdout
    assert [prompt.ref for prompt in Registry.open(copy).prompts()] == ["sst2@1"]
