"""Opens, updates, reads and writes the SQLite file, and explains its failures.

Reading and writing use `sqlite3` itself; only creating tables uses sqlite-utils. Importing the latter also imports
pandas where it is installed, which costs more than all the rest of a command.
"""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attempt_registry.errors import RegistryError

FILE_NAME = "registry.db"
BUSY_SECONDS = 30.0
# The names in `attempt_registry.migrations`, repeated here: an up-to-date database opens without importing it.
MIGRATION_SET = "registry"
MIGRATIONS = ("0001_first_tables", "0002_placement", "0003_links_and_words")


class _Own(threading.local):
    """What each thread has of its own: a SQLite connection serves only the thread that opened it."""

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None
        self.writable = False
        self.process = os.getpid()


class Database:
    """A connection to the registry's SQLite file, opened on first use.

    Args:
        folder: the registry's folder; the first write creates the file, reading never does.
        read_only: refuse to write, even where the folder would allow it.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        self.file = folder / FILE_NAME
        self._refuse_writes = read_only
        self._own = _Own()

    def close(self) -> None:
        """Closes the connection; the next use opens a new one."""
        if self._own.connection is not None and self._own.process == os.getpid():
            self._own.connection.close()
        self._own.connection = None

    def state(self) -> tuple[int | None, int | None]:
        """Returns what changes when another connection commits; equal values in one thread mean the same content."""
        rows = self.rows("PRAGMA data_version")
        return (id(self._own.connection), int(rows[0][0])) if rows else (None, None)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Returns all rows of a SELECT; none when there is no database yet."""
        return list(self.each_row(sql, parameters))

    def each_row(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yields the rows of a SELECT one by one; text that is not UTF-8 comes as bytes."""
        connection = self._open()
        if connection is None:
            return
        with translated_errors(self.file):
            done = 0
            try:
                for row in connection.execute(sql, parameters):
                    yield row
                    done += 1
            except sqlite3.OperationalError as error:
                if "Could not decode" not in str(error) or connection.text_factory is _text_or_bytes:
                    raise
                connection.text_factory = _text_or_bytes  # takes longer, so only where it is needed
                yield from itertools.islice(connection.execute(sql, parameters), done, None)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Runs one writing statement inside `transaction` and returns the number of rows it changed."""
        with translated_errors(self.file):
            return self._in_transaction().execute(sql, parameters).rowcount

    def insert(self, table: str, record: Mapping[str, Any]) -> int:
        """Adds one row inside `transaction` and returns its id."""
        marks = ", ".join("?" * len(record))
        with translated_errors(self.file):
            cursor = self._in_transaction().execute(
                f"INSERT INTO {table} ({', '.join(record)}) VALUES ({marks})", list(record.values())
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes all writes inside visible together, or none; a nested transaction is a part of the outer one."""
        connection = self._open(for_writing=True)
        assert connection is not None
        nested = connection.in_transaction
        with translated_errors(self.file):
            if nested:
                connection.execute("SAVEPOINT part")
            else:
                _begin(connection)
        try:
            yield
            with translated_errors(self.file):
                connection.execute("RELEASE part" if nested else "COMMIT")
        except BaseException:
            # a full disk may already have ended the transaction
            if connection.in_transaction:
                if nested:
                    connection.execute("ROLLBACK TO part")
                    connection.execute("RELEASE part")
                else:
                    connection.execute("ROLLBACK")
            raise

    def require_writable(self) -> None:
        """Fails before any tensor is written when rows could not be.

        Raises:
            RegistryError: when the registry is read-only.
        """
        self._open(for_writing=True)

    def _in_transaction(self) -> sqlite3.Connection:
        connection = self._own.connection
        if connection is None or not connection.in_transaction:
            raise RuntimeError("writes belong inside transaction()")
        return connection

    def _open(self, *, for_writing: bool = False) -> sqlite3.Connection | None:
        if self._own.process != os.getpid():
            # SQLite connections do not survive a fork: leave the parent's alone
            self._own.connection, self._own.process = None, os.getpid()
        if self._own.connection is None and (for_writing or self.file.exists()):
            with translated_errors(self.file):
                self._own.connection = self._connect(for_writing)
        if for_writing and not self._own.writable:
            raise _read_only(self.folder)
        return self._own.connection

    def _connect(self, for_writing: bool) -> sqlite3.Connection | None:
        is_there = self.file.exists()
        if self._refuse_writes and not is_there:
            return None
        if not is_there:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._own.writable = not self._refuse_writes and all(
            os.access(path, os.W_OK) for path in (self.folder, self.file) if path.exists()
        )
        if not self._own.writable:
            # an empty file: another process has just begun its first write
            return self._connect_read_only() if is_there and self.file.stat().st_size else None
        mode = "rwc" if for_writing else "rw"
        connection = _connection(self.file, mode)
        try:
            try:
                pending = self._pending(connection)
            except sqlite3.OperationalError as error:
                if not _is_full(error, self.folder):
                    raise
                # The log's index has no room on the disk. A connection that is alone keeps it in memory: reading goes
                # on, and so does `gc`, which makes room.
                connection.close()
                connection = _connection(self.file, mode)
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                pending = self._pending(connection)
            if pending:
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_read_only(self) -> sqlite3.Connection:
        connection = _connection(self.file, "ro")
        try:
            pending = self._pending(connection)
        except sqlite3.OperationalError:
            connection.close()
            # WAL creates files beside the database. Where it may not, and there is no log to read, nobody can be
            # writing either: SQLite may read the file as it is.
            log = self.file.with_name(f"{FILE_NAME}-wal")
            if log.exists() and log.stat().st_size:
                raise RegistryError(
                    f"the newest changes of the registry {self.folder} are in {log.name}, "
                    "which SQLite cannot read in a folder where it may not write",
                    "Copy the folder to where you may write, and name the copy with --registry.",
                ) from None
            connection = _connection(self.file, "ro&immutable=1")
            pending = self._pending(connection)
        if pending:
            connection.close()
            raise RegistryError(
                f"the registry {self.folder} was made by an older version of attempt and cannot be updated: "
                "it is read-only",
                "Open it once where it is writable, for example after copying the folder.",
            )
        return connection

    def _pending(self, connection: sqlite3.Connection) -> bool:
        """Tells by one cheap query whether migrations are missing; refuses a newer version's database."""
        try:
            query = "SELECT name FROM _sqlite_migrations WHERE migration_set = ?"
            applied = {str(name) for (name,) in connection.execute(query, (MIGRATION_SET,))}  # damaged: of any type
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise _foreign(self.file) from None
            return True
        unknown = sorted(applied.difference(MIGRATIONS))
        if unknown:
            raise RegistryError(
                f"the registry {self.folder} was made by a newer version of attempt (it has {', '.join(unknown)})",
                "Update with `pip install --upgrade attempt-cli`, or name another folder with --registry. "
                "Nothing was changed.",
            )
        if not applied:
            raise _foreign(self.file)
        return len(applied) < len(MIGRATIONS)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        import sqlite_utils

        from attempt_registry.migrations import migrations

        _enable_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            # in one transaction: of two processes that open a new registry, the second finds the work done
            migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _connection(file: Path, mode: str) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end only where this module does it
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _text_or_bytes(data: bytes) -> str | bytes:
    # a damaged cell is found when its record is made; here it would hide all others
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _begin(connection: sqlite3.Connection) -> None:
    # IMMEDIATE: wait for other writers here, not at the first write, where SQLite could only fail. SQLite's own waiting
    # asks ever more rarely, so that newcomers overtake whoever waits longest; here all ask equally often.
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        _when_unlocked(connection, "BEGIN IMMEDIATE", lambda: 0.001 + os.urandom(1)[0] / 50_000)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")


def _enable_wal(connection: sqlite3.Connection) -> None:
    # Unlike statements, the change of mode does not wait for other connections. Where the file system does not
    # support WAL, the database works without it.
    _when_unlocked(connection, "PRAGMA journal_mode=wal", lambda: 0.02)


def _when_unlocked(connection: sqlite3.Connection, sql: str, pause: Callable[[], float]) -> None:
    """Runs a statement as soon as no other connection is in its way; fails as SQLite does after BUSY_SECONDS.

    Args:
        pause: seconds between two tries.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(sql)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause())


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turns failures of SQLite and of the file system into a RegistryError that says how to fix them."""
    try:
        yield
    except sqlite3.Error as error:
        raise _sqlite_failure(error, path) from error
    except OSError as error:
        raise file_failure(error, path) from error
    except UnicodeEncodeError as error:
        raise RegistryError(
            "a text has characters that are not valid Unicode", "Check the note and the names."
        ) from error
    except UnicodeDecodeError as error:
        # a damaged name of a table, inside SQLite's own message
        raise _damaged(path, "text that is not UTF-8") from error
    except OverflowError as error:
        raise RegistryError("a number is too large for the registry (64 bits)", "Choose a smaller seed.") from error


def file_failure(error: OSError, path: Path) -> RegistryError:
    """Explains a failure of the file system to the user."""
    where = error.filename or path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path)
    if error.errno == errno.EROFS or isinstance(error, PermissionError):
        return RegistryError(
            f"no permission for {where}", "Change the folder's permissions, or name another with --registry."
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return RegistryError(f"{where} is a file, not a folder", "Name a folder with --registry.")
    return RegistryError(f"{error.strerror or error}: {where}", "Check the disk and the folder, then try again.")


def _sqlite_failure(error: sqlite3.Error, path: Path) -> RegistryError:
    text = str(error)
    if _is_full(error, path.parent):
        return _full(path)
    if "readonly" in text:
        return _read_only(path.parent)
    if "locked" in text or "busy" in text:
        return RegistryError(
            f"another process has been writing to {path} for {BUSY_SECONDS:.0f} seconds",
            "Try again when it is done.",
        )
    if "no such module: fts5" in text or "no such tokenizer" in text:
        return RegistryError(
            f"Python's SQLite {sqlite3.sqlite_version} has no full-text search by trigrams",
            "Use a Python with SQLite 3.34 or newer, for example one from python.org.",
        )
    if any(sign in text for sign in ("not a database", "malformed", "vtable constructor failed", "fts5 file format")):
        return _damaged(path, text)
    if "unable to open" in text:
        return RegistryError(f"cannot open {path}", "Check the permissions of the file and of its folder.")
    return RegistryError(f"SQLite failed on {path}: {text}", "Check the disk, then run `attempt registry verify`.")


def _is_full(error: sqlite3.Error, folder: Path) -> bool:
    # SQLite reports an I/O error when there is no room for the index of its log
    return "disk is full" in str(error) or ("disk I/O error" in str(error) and _free_bytes(folder) < 1 << 20)


def _free_bytes(folder: Path) -> int:
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _full(path: Path) -> RegistryError:
    return RegistryError(
        f"no space left on the disk of {path}",
        "Free some space, for example with `attempt registry gc`, then run the command again. "
        "The registry's earlier contents are intact.",
    )


def _damaged(path: Path, text: str) -> RegistryError:
    return RegistryError(
        f"{path} is damaged or not a SQLite database ({text})",
        "Restore a copy, or name another folder with --registry. The tensors under objects/ are separate files.",
    )


def _read_only(folder: Path) -> RegistryError:
    return RegistryError(
        f"the registry {folder} is read-only", "Change the folder's permissions, or name another with --registry."
    )


def _foreign(file: Path) -> RegistryError:
    return RegistryError(f"{file} is a SQLite database, but not a registry", "Name another folder with --registry.")
