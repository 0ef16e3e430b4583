"""Damages files in seeded ways, and watches what is done with them.

`ATTEMPT_FUZZ` is the number of inputs of each file of tests here; `make fuzz` asks for 10,000. Every input is accepted
or ends in a clear error: a traceback, more than 10 seconds, more than 1 GB, or code that ran fails it.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INPUTS = int(os.environ.get("ATTEMPT_FUZZ", "0"))
SECONDS, BYTES = 10, 1 << 30
STUCK = 60  # seconds after which even what does not listen to a signal is ended, with a traceback in a file

# what breaks readers: numbers at the ends of their types, brackets, text that is none, ways to elsewhere
WORDS: tuple[bytes, ...] = (
    *(b"0", b"-1", b"99999999999999999999", b"1e999", b"NaN", b"null", b"true", b"[", b"{", b'"', b"..", b"/", b"\0"),
    *(b"\xff\xff\xff\xff", b"\xff" * 8, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[31m", b"[" * 2000, b"9" * 5000),
    *(struct.pack("<Q", number) for number in (0, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1)),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 5000, "../../x", "/etc/passwd", "\ud800", "\x1b[31m", "a\0b", [], {}, [1], ["x"], [[]], {"x": 1}),
    {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Slow", "own.Fast"]},
)


class LateError(BaseException):
    """Took too long; no reader may take it for one of its own errors."""


class RanError(BaseException):
    """Ran code, or wrote where it may not."""


def inputs(kinds: int, short: int) -> int:
    """Returns how many inputs each of so many kinds gets: `short`, unless more are asked for."""
    return INPUTS // kinds or short


def damaged(
    data: bytes, draw: random.Random, words: Sequence[bytes] = WORDS, near: int = 400, more: float = 0.7
) -> bytes:
    """Flips, cuts, doubles, removes or replaces bytes in one to five places.

    Args:
        data: the file.
        draw: decides.
        words: what is put in.
        near: bytes at the start, where headers are.
        more: how often a place is chosen among them.
    """
    for _ in range(draw.choice((1, 1, 2, 5))):
        start = draw.randrange(max(1, min(len(data), near) if draw.random() < more else len(data)))
        end = min(len(data), start + draw.choice((1, 4, 8, 1 + draw.randrange(len(data) + 1))))
        before, part, after = data[:start], data[start:end], data[end:]
        match draw.randrange(6):
            case 0:
                data = before + bytes(byte ^ (1 << draw.randrange(8)) for byte in part[:3]) + part[3:] + after
            case 1:
                data = before
            case 2:
                data = before + after
            case 3:
                data = before + part + part + after
            case 4:
                data = before + draw.choice(words) + part + after
            case _:
                word = draw.choice((*words, draw.randbytes(8)))
                data = before + word + data[start + len(word) :]
    return data


def damaged_document(document: Any, draw: random.Random, values: Sequence[Any] = VALUES) -> Any:
    """Changes, removes or adds one to five values anywhere in a JSON document."""
    holder = [copy.deepcopy(document)]
    for _ in range(draw.choice((1, 1, 2, 5))):
        places = list(_places(holder))
        if not places:
            break
        inside, key = draw.choice(places)
        match draw.randrange(5):
            case 0 if inside is not holder:
                del inside[key]
            case 1:
                other, place = draw.choice(places)
                inside[key] = copy.deepcopy(other[place])
            case 2 if isinstance(inside, dict):
                inside[draw.choice(("auto_map", "x", *inside))] = copy.deepcopy(draw.choice(values))
            case _:
                inside[key] = copy.deepcopy(draw.choice(values))
    return holder[0]


def damaged_json(data: bytes, draw: random.Random, values: Sequence[Any] = VALUES) -> bytes:
    """Damages the values of a JSON file, or one time in three its bytes."""
    if draw.random() < 1 / 3:
        return damaged(data, draw)
    return json.dumps(damaged_document(json.loads(data), draw, values)).encode()


def damaged_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Damages the header's values, with its length right again, or one time in three any bytes."""
    if draw.random() < 1 / 3:
        return damaged(data, draw)
    length = 8 + int.from_bytes(data[:8], "little")
    dtypes = ("F64", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4")
    header = json.dumps(damaged_document(json.loads(data[8:length]), draw, (*VALUES, *dtypes))).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[length:]


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every value as what holds it and its key there."""
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fails what takes too long or too much memory, runs code, or writes outside a folder.

    Raises:
        AssertionError, LateError, RanError: says which.
    """
    global _watched
    began, before = time.monotonic(), _memory("VmRSS")
    _set_alarm(SECONDS)
    with (folder / "stuck.txt").open("w") as report:
        faulthandler.dump_traceback_later(STUCK, exit=True, file=report)
        _watched = str(folder)
        try:
            yield
        finally:
            _watched = None
            _set_alarm(0)
            faulthandler.cancel_dump_traceback_later()
    took, used = time.monotonic() - began, _memory("VmHWM") - before
    assert took < SECONDS, f"{took:.0f} s"
    assert used < BYTES, f"{used / BYTES:.1f} GB"


def tried(read: Callable[[], object], folder: Path, refusals: tuple[type[Exception], ...], what: object) -> bool:
    """Reads a damaged file; returns whether it was accepted.

    Raises:
        AssertionError: it was neither accepted nor refused as it should be; says what was read.
    """
    try:
        with watched(folder):
            read()
        return True
    except refusals as error:
        refusal = error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust code is no Exception either
        raise AssertionError(f"{type(error).__name__}: {str(error)[:500]} of {str(what)[:4000]}") from error
    message, hint = str(refusal), getattr(refusal, "hint", None)
    assert 0 < len(message) < 5000, f"{message[:5000]!r} of {str(what)[:4000]}"
    assert hint, f"no hint in {message!r} of {str(what)[:4000]}"
    return False


def _late(number: int, frame: object) -> None:
    raise LateError(f"more than {SECONDS} s")


def _set_alarm(seconds: int) -> None:
    if hasattr(signal, "SIGALRM"):  # elsewhere the time is looked at afterwards
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(seconds)


def _memory(field: str) -> int:
    """Returns bytes in use (VmRSS), or the most since the last call for VmRSS (VmHWM); 0 where Linux does not tell."""
    try:
        if field == "VmRSS":
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


# --- code

_watched: str | None = None
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "subprocess.Popen")
_NEVER += ("pickle.find_class", "socket.connect", "webbrowser.open")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event in _NEVER:
        raise RanError(f"{event} {arguments}")
    if event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(_watched):
        raise RanError(f"the code of {arguments[0].co_filename}")
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & _WRITING:
        path = os.path.abspath(arguments[0])
        if not path.startswith((_watched, os.devnull, "/proc/self/")) and "__pycache__" not in path:
            raise RanError(f"wrote {path}")


sys.addaudithook(_audit)  # none can be taken away again; it does nothing while nobody watches
