"""Killed processes, full disks, folders nobody may write to, databases of another age: what was there stays whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from attempt_registry import Prompt, Registry, RegistryError
from attempt_registry.database import MIGRATIONS
from attempt_registry.objects import Objects

Add = Callable[..., Prompt]

# a process that adds prompts; argv: folder, name, how many
ADDING = """
import sys
from pathlib import Path
import numpy as np
from attempt_registry import Registry

def add(registry, name, number):
    return registry.add_prompt(
        np.full((2, 3), number, np.float32), name=name, kind="source", method="prompt-tuning", backbone="tiny",
        fingerprint="f" * 64, task="t", task_version=1, embedding_scale=1.0, settings={}, numbers={}, seed=number,
    )

registry = Registry.open(Path(sys.argv[1]))
"""
LOOP = (
    ADDING + "for number in range(int(sys.argv[3])):\n    print(add(registry, sys.argv[2], number).ref, flush=True)\n"
)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refs(registry: Registry) -> list[str]:
    return [prompt.ref for prompt in registry.prompts()]


def object_files(registry: Registry) -> list[Path]:
    return [path for path in (registry.folder / "objects").rglob("*") if path.is_file()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_processes_that_add_one_name_at_once_each_get_their_versions(registry: Registry) -> None:
    # nothing is there yet: they also race for making the folder, the database and its tables
    processes = [start(LOOP, registry.folder, "rte", 6) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in outputs] == [""] * 3
    given = [line for lines, _ in outputs for line in lines.split()]
    assert sorted(given) == sorted(f"rte@{version}" for version in range(1, 19))
    assert sorted(refs(registry)) == sorted(given)
    assert registry.verify() == []
    # every process's tensors, each under its own version
    seeds = sorted(prompt.seed for prompt in registry.prompts() if prompt.seed is not None)
    assert seeds == sorted(list(range(6)) * 3)


def test_killed_between_object_and_row_leaves_one_object_that_gc_removes(registry: Registry, add: Add) -> None:
    add("before")
    program = ADDING + (
        "import os, signal; from attempt_registry.database import Database\n"
        "Database.insert = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "add(registry, 'rte', 9)\n"
    )
    process = start(program, registry.folder)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert refs(registry) == ["before@1"]
    assert registry.verify() == []
    assert len(object_files(registry)) == 2
    # young: a process that still lives may be about to add the row
    left = registry.gc()
    assert (left.files, left.young) == ((), 1)
    removed = registry.gc(grace=0)
    assert len(removed.files) == 1
    assert len(object_files(registry)) == 1
    np.testing.assert_array_equal(registry.prompt_tensor(registry.prompt("before"))[0], [0, 1, 2])
    assert add("rte").ref == "rte@1"


def test_killed_while_the_object_is_written_leaves_a_temporary_file_that_gc_removes(registry: Registry) -> None:
    program = ADDING + (
        "import os, signal\nos.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\nadd(registry, 'rte', 9)\n"
    )
    start(program, registry.folder).communicate(timeout=60)
    (temporary,) = object_files(registry)
    assert temporary.suffix == ".tmp"
    assert registry.verify() == []
    assert registry.gc(grace=0).files == (str(temporary),)
    assert object_files(registry) == []


@pytest.mark.parametrize("after", [0.02, 0.11, 0.23])
def test_what_was_told_to_be_added_survives_a_kill_at_any_moment(registry: Registry, after: float) -> None:
    process = start(LOOP, registry.folder, "rte", 100_000)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(after)
    process.kill()
    told = [first.strip(), *process.communicate()[0].split()]
    there = refs(registry)
    assert set(told) <= set(there)
    assert len(there) - len(told) in (0, 1)
    assert registry.verify() == []
    assert process.returncode == -signal.SIGKILL


def test_gc_between_object_and_row_takes_nothing_away(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("gone", np.ones((2, 3)))
    registry.remove("gone")
    for file in object_files(registry):
        os.utime(file, (0, 0))
    other = Registry.open(registry.folder)
    put, seen = Objects.put, []

    def put_and_collect(self: Objects, data: bytes, sha256: str) -> None:
        put(self, data, sha256)
        if not seen:
            # the worst moment and no grace: the file is there, its row is not
            seen.append(other.gc(grace=0))

    monkeypatch.setattr(Objects, "put", put_and_collect)
    prompt = add("again", np.ones((2, 3)))
    assert len(seen[0].files) == 1
    np.testing.assert_array_equal(registry.prompt_tensor(prompt), np.ones((2, 3)))


def test_using_an_old_orphan_again_makes_it_young(registry: Registry, add: Add) -> None:
    file = registry.tensor_path(add("a"))
    registry.remove("a")
    os.utime(file, (0, 0))
    assert registry.gc(dry_run=True).files == (str(file),)
    Objects(registry.folder).put(file.read_bytes(), hashlib.sha256(file.read_bytes()).hexdigest())
    assert registry.gc().files == ()


def test_a_writer_waits_for_another(registry: Registry, add: Add) -> None:
    add("a")
    other = sqlite3.connect(registry.folder / "registry.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert refs(registry) == ["a@1"]  # readers never wait
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    assert add("b").ref == "b@1"


def test_a_writer_that_waits_too_long_says_who_is_in_the_way(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a")
    registry.close()
    monkeypatch.setattr("attempt_registry.database.BUSY_SECONDS", 0.1)
    other = sqlite3.connect(registry.folder / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryError, match=r"another process has been writing to .*registry\.db"):
        add("b")
    other.execute("ROLLBACK")
    assert add("b").ref == "b@1"


def test_a_connection_is_not_shared_with_a_forked_process(registry: Registry, add: Add) -> None:
    add("a")
    child = os.fork()
    if not child:
        try:
            add("child")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    add("parent")
    assert refs(registry) == ["a@1", "child@1", "parent@1"]
    assert registry.verify() == []


# --- no space


def test_a_full_disk_while_the_object_is_written(registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    add("before")
    before = contents(registry.folder / "objects")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RegistryError, match="no space left on the disk of") as failure:
            add("after", np.ones((2, 3)))
    assert "Free some space" in (failure.value.hint or "")
    assert contents(registry.folder / "objects") == before
    assert refs(registry) == ["before@1"]
    assert add("after", np.ones((2, 3))).ref == "after@1"


def test_a_full_disk_while_the_row_is_written(registry: Registry, add: Add) -> None:
    add("before")
    connection = registry._database._own.connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RegistryError, match="no space left on the disk of"):
        add("after", note="x" * 100_000)
    assert refs(registry) == ["before@1"]
    connection.execute("PRAGMA max_page_count = 100000")
    assert add("after").ref == "after@1"
    assert registry.verify() == []


def test_a_disk_that_really_fills_up(tmp_path: Path, in_own_mounts: Callable) -> None:
    program = tmp_path / "fill.py"
    program.write_text(
        ADDING
        + "from attempt_registry import RegistryError\n"
        + "told = []\n"
        + "try:\n"
        + "    for number in range(100_000):\n"
        + "        told.append(add(registry, 'rte', number).ref)\n"
        + "except RegistryError as error:\n"
        + "    print(error.message)\n"
        + "registry.close()\n"
        + "there = {prompt.ref for prompt in registry.prompts()}\n"
        + "assert len(told) > 3 and set(told) == there, (len(told), len(there))\n"
        + "for file in Path(sys.argv[1]).parent.glob('ballast'): file.unlink()\n"
        + "assert registry.verify() == []\n"
        + "print(add(registry, 'after', 1).ref)\n"
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_own_mounts(
        f"mount -t tmpfs -o size=1200k tmpfs {disk}\n"
        f"head -c 100000 /dev/zero > {disk}/ballast\n"
        f"exec {sys.executable} {program} {disk}/registry\n"
    )
    assert done.stderr == ""
    message, after = done.stdout.splitlines()
    assert message.startswith(f"no space left on the disk of {disk}/registry/")
    assert after == "after@1"


# --- read-only


# Reading works, writing is refused with a clear error and changes nothing; argv: the folder of a registry with sst2@1.
CHECK_READ_ONLY = """
from attempt_registry import RegistryError

assert [prompt.ref for prompt in registry.prompts()] == ["sst2@1"]
assert registry.prompt_tensor(registry.prompt("sst2")).shape == (2, 3)
assert registry.verify() == []
assert registry.gc(dry_run=True, grace=0).files == ()
assert registry.remove("sst2", dry_run=True).removed is False
for write in (
    lambda: add(registry, "rte", 1),
    lambda: registry.remove("sst2"),
    lambda: registry.tag("sst2", add=["x"]),
    lambda: registry.gc(),
):
    try:
        write()
    except RegistryError as error:
        assert error.message == f"the registry {registry.folder} is read-only", error.message
        assert error.hint == "Change the folder's permissions, or name another with --registry."
    else:
        raise AssertionError("written")
print(sorted(path.name for path in registry.folder.iterdir()))
"""


def test_read_only_by_wish(registry: Registry, add: Add) -> None:
    add("sst2")
    registry.close()
    before = contents(registry.folder)
    reader = Registry.open(registry.folder, read_only=True)
    assert reader.prompt("sst2").ref == "sst2@1"
    with pytest.raises(RegistryError, match="is read-only"):
        reader.tag("sst2", add=["x"])
    reader.close()
    assert {name: data for name, data in contents(registry.folder).items() if name in before} == before


def test_a_folder_without_permission_to_write(tmp_path: Path) -> None:
    # Permissions do not stop root: there the process becomes another user, after importing all it needs.
    program = (
        ADDING
        + """
import difflib, errno, hashlib, os, shutil, stat
import safetensors.numpy, sqlite_utils
from attempt_registry.migrations import migrations

add(registry, "sst2", 1)
registry.close()
for path in [*registry.folder.rglob("*"), registry.folder]:
    path.chmod(0o555 if path.is_dir() else 0o444)
if os.getuid() == 0:
    for parent in registry.folder.parents:
        if not parent.stat().st_mode & 0o001:
            if parent.parent.samefile("/"):
                sys.exit("skip")
            parent.chmod(parent.stat().st_mode | 0o001)
    os.setgid(65534)
    os.setuid(65534)
"""
    )
    process = start(program + CHECK_READ_ONLY, tmp_path / "registry")
    output, errors = process.communicate(timeout=60)
    if errors == "skip\n":
        pytest.skip("the temporary folder cannot be opened to another user")
    assert errors == ""
    assert output == "['objects', 'registry.db']\n"


def test_a_read_only_file_system(tmp_path: Path, registry: Registry, add: Add, in_own_mounts: Callable) -> None:
    add("sst2")
    registry.close()
    program = tmp_path / "program" / "check.py"  # not beside the folder `registry`, which Python would import
    program.parent.mkdir()
    program.write_text(ADDING + CHECK_READ_ONLY)
    done = in_own_mounts(
        f"mount --bind {registry.folder} {registry.folder}\n"
        f"mount -o remount,ro,bind {registry.folder}\n"
        f"exec {sys.executable} {program} {registry.folder}\n"
    )
    assert done.stderr == ""
    assert done.stdout == "['objects', 'registry.db']\n"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="file is a file, not a folder"):
        Registry.open(tmp_path / "file")
    registry = Registry.open(tmp_path / "file" / "registry")
    assert registry.prompts() == []
    with pytest.raises(RegistryError, match=r"file.* is a file, not a folder"):
        registry.add_run(
            command="", settings={}, rows={}, seed=0, budget={}, numbers={}, versions={}, duration=0, artefacts=[]
        )


# --- databases of another age or kind


def test_reading_makes_nothing(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    assert registry.prompts() == registry.attentions() == registry.compositions() == registry.runs() == []
    assert registry.search("x") == registry.verify() == registry.backbones() == []
    assert registry.gc().files == ()
    for call in (registry.prompt, registry.remove, registry.tag, registry.lineage):
        with pytest.raises(RegistryError, match="no prompt named 'rte'"):
            call("rte")
    assert not (tmp_path / "registry").exists()
    with pytest.raises(RegistryError, match="there is no registry in"):
        Registry.open(tmp_path / "registry", must_exist=True)


def test_a_database_of_a_newer_version_is_refused_and_not_touched(registry: Registry, add: Add) -> None:
    add("sst2")
    registry.close()
    with sqlite3.connect(registry.folder / "registry.db") as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('registry', '0099_future', '')"
        )
    connection.close()
    before = contents(registry.folder)
    for use in (registry.prompts, lambda: add("rte"), registry.gc, registry.verify):
        with pytest.raises(RegistryError, match=r"by a newer version of attempt \(it has 0099_future\)") as failure:
            use()
        assert "pip install --upgrade attempt-cli" in (failure.value.hint or "")
        registry.close()
    assert contents(registry.folder) == before


def test_an_older_database_is_brought_up_to_date(registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlite_utils import Database

    from attempt_registry.migrations import migrations

    kept = add("sst2")
    registry.close()

    def add_column(db: Database) -> None:
        db.table("prompts").add_column("colour", str)

    monkeypatch.setattr("attempt_registry.database.MIGRATIONS", (*MIGRATIONS, "0099_colour"))
    monkeypatch.setattr(migrations, "_migrations", [*migrations._migrations])
    migrations(name="0099_colour")(add_column)
    with pytest.raises(
        RegistryError, match="made by an older version of attempt and cannot be updated: it is read-only"
    ):
        Registry.open(registry.folder, read_only=True).prompts()
    assert registry.prompts() == [kept]
    assert registry._database.rows("SELECT colour FROM prompts") == [(None,)]


def test_references_and_words_of_an_older_database_are_found(registry: Registry, add: Add) -> None:
    from sqlite_utils import Database

    from attempt_registry.migrations import migrations

    registry.folder.mkdir()
    with sqlite3.connect(registry.folder / "registry.db") as connection:
        migrations.apply(Database(connection), stop_before="0003_links_and_words")
        prompt = (
            "INSERT INTO prompts (name, version, kind, method, backbone, fingerprint, task, task_version, length, "
            "width, dtype, embedding_scale, sha256, settings, numbers, created, note, tags, parents) VALUES "
            f"(?, 1, 'source', 'mpt', 'tiny', '{'f' * 64}', 'Grüße', 1, 2, 3, 'float32', 1.0, '{'0' * 64}', '{{}}', "
            "'{}', '', '', ?, ?)"
        )
        connection.execute(prompt, ("sst2", '["paper"]', "[]"))
        connection.execute(prompt, ("rte", "[]", '["sst2@1"]'))
        connection.execute(prompt, ("broken", "[]", '["sst2'))
        connection.execute(
            "INSERT INTO compositions (name, version, backbone, fingerprint, sources, attention, targets, settings, "
            "created, note) VALUES ('both', 1, 'tiny', '', '[\"sst2@1\"]', 'glue@1', '[\"rte@1\"]', '{}', '', '')"
        )
        connection.execute(
            "INSERT INTO runs (command, settings, rows, budget, numbers, versions, duration, created, artefacts, "
            "inputs) VALUES ('t', '{}', '{}', '{}', '{}', '{}', 1.0, '', '[\"prompt:rte@1\"]', '[\"prompt:sst2@1\"]')"
        )
    connection.close()
    lineage = registry.lineage("sst2")
    assert lineage.children == ("rte@1",)
    assert [run.command for run in lineage.used_by] == ["t"]
    assert [composition.ref for composition in lineage.compositions] == ["both@1"]
    assert [composition.ref for composition in registry.compositions(uses="attention:glue@1")] == ["both@1"]
    assert refs(registry) == ["rte@1", "sst2@1"]
    assert [record.ref for record in registry.search("grüsse paper")] == ["sst2@1"]
    assert [record.ref for record in registry.search("sst2@1")] == ["both@1"]
    assert "prompt broken@1" in [problem.what for problem in registry.verify()]


def test_the_migrations_are_the_ones_that_opening_looks_for() -> None:
    from attempt_registry.database import MIGRATION_SET
    from attempt_registry.migrations import migrations

    assert tuple(migration.name for migration in migrations._migrations) == MIGRATIONS
    assert migrations.name == MIGRATION_SET


def test_a_database_half_made_is_finished(registry: Registry, add: Add) -> None:
    registry.folder.mkdir()
    (registry.folder / "registry.db").touch()
    assert Registry.open(registry.folder, read_only=True).prompts() == []
    assert registry.prompts() == []
    assert add("sst2").ref == "sst2@1"


def test_other_files_are_refused_and_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE prompts (id, name)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(RegistryError, match="is a SQLite database, but not a registry"):
        Registry.open(tmp_path).prompts()
    assert file.read_bytes() == before
    file.write_bytes(b"something else altogether, long enough for a header" * 40)
    with pytest.raises(RegistryError, match="is damaged or not a SQLite database"):
        Registry.open(tmp_path).prompts()
    assert file.read_bytes().startswith(b"something else")


def test_the_database_uses_a_write_ahead_log(registry: Registry, add: Add) -> None:
    add("sst2")
    assert registry._database.rows("PRAGMA journal_mode") == [("wal",)]
    assert registry._database.rows("PRAGMA synchronous") == [(2,)]
    assert registry._database.rows("PRAGMA busy_timeout") == [(30000,)]


def test_an_addition_that_another_process_removes_at_once_has_succeeded(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = registry._database.transaction

    @contextlib.contextmanager
    def then_removed() -> Iterator[None]:
        with transaction():
            yield
        with contextlib.closing(sqlite3.connect(registry.folder / "registry.db")) as other:
            other.execute("DELETE FROM prompts")
            other.commit()

    monkeypatch.setattr(registry._database, "transaction", then_removed)
    assert add("sst2").ref == "sst2@1"
    assert registry.prompts() == []
    monkeypatch.undo()
    assert add("sst2").ref == "sst2@2"
