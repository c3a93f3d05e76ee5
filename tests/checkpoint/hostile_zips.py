"""Zips that two readers may read differently, that are larger inside than outside, or that name what is elsewhere."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping

from tests.checkpoint.files import zipped

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
PICKLE, DATA = "archive/data.pkl", "archive/data/0"


def zips(pickled: bytes, rest: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Each around a pickle that is right; `rest` are the other entries of the right file."""
    entries = {PICKLE: pickled, **rest}
    right = zipped(entries)
    for bad in ("../x", "/etc/passwd", "archive/../../x", "archive/data/../x", "archive/data/x", "archive/data/0/1",
                "x", "archive\\data\\1", "archive/data/1\0.txt", "archive/" + "x" * 60_000, "archive/constants.pkl",
                "é", "archive/./data/1", "archive//data/1", "archive/data/１", "ARCHIVE/data/1",
                "archive/code/x.py"):  # fmt: skip
        yield f"another entry {bad[:30]!r}", zipped({**entries, bad: b"x"})
        yield f"only an entry {bad[:30]!r}", zipped({bad: b"x"})
        yield f"its first entry {bad[:30]!r}", zipped({bad: b"x", **entries})
    for lost in entries:
        yield f"without {lost}", zipped({k: v for k, v in entries.items() if k != lost})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the standard library sees a name twice too
        for twice in (PICKLE, DATA, "archive/version"):
            yield f"{twice} twice", zipped([*entries.items(), (twice, entries[twice])])
            yield f"another {twice} before", zipped([(twice, b"x"), *entries.items()])
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"compressed by {method}", zipped(entries, method)
        yield f"a bomb of {method}", zipped({**entries, DATA: bytes(50_000_000)}, method)
        yield f"a pickle that is a bomb of {method}", zipped({**entries, PICKLE: bytes(50_000_000)}, method)
    yield "another byte order", zipped({**entries, "archive/byteorder": b"middle"})
    yield "another version", zipped({**entries, "archive/version": b"0\n"})
    yield "bytes before", b"x" * 100 + right
    yield "a zip before", right + right
    yield "nothing in it", zipped({})
    yield "no zip", right[:-22] + b"\0" * 22
    yield "only its end", right[-22:]
    yield "a script before", b"#!/bin/sh\ntouch x\n" + right
    for at, what in (
        (8, "entries here"),
        (10, "entries"),
        (12, "length"),
        (16, "start"),
        (4, "disk"),
        (6, "other disk"),
    ):
        for by in (1, -1, 40):
            yield f"the directory's {what} by {by}", _changed(right, right.rfind(END) + at, "<H", by)
    directory = right.find(CENTRAL)
    for at, form, what in ((6, "<H", "version"), (8, "<H", "flags"), (10, "<H", "method"),
                           (20, "<I", "compressed size"),
                           (24, "<I", "size"), (28, "<H", "name's length"), (30, "<H", "extra's length"),
                           (32, "<H", "comment's length"), (42, "<I", "place")):  # fmt: skip
        for by in (100,) if what == "version" else (1, 1 << 10):
            yield f"an entry's {what} by {by}", _changed(right, directory + at, form, by)
    yield "an entry's local name", right.replace(PICKLE.encode(), PICKLE.upper().encode(), 1)
    yield "an entry's local name length", _changed(right, 26, "<H", 1)
    yield "an entry's local extra length", _changed(right, 28, "<H", 1 << 12)
    yield "an entry without a local header", b"PK\3\5" + right[4:]
    end = right.rfind(END)
    count, length, start = len(entries), end - directory, directory
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    yield "a second directory elsewhere", _wide(right, record, end)
    for what, numbers in {
        "counts": (count + 1, count, length, start), "lengths": (count, count, length + 1, start),
        "starts": (count, count, length, start + 1), "huge starts": (count, count, length, 1 << 60),
        "huge counts": (1 << 60, 1 << 60, length, start),
    }.items():  # fmt: skip
        changed = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers)
        yield f"a second directory with other {what}", _wide(right, changed, end, end)
    yield (
        "a second directory that is longer",
        _wide(right, record[:4] + struct.pack("<Q", 1 << 40) + record[12:], end, end),
    )


def _changed(whole: bytes, at: int, form: str, by: int) -> bytes:
    (old,) = struct.unpack_from(form, whole, at)
    mask = (1 << 8 * struct.calcsize(form)) - 1
    return whole[:at] + struct.pack(form, (old + by) & mask) + whole[at + struct.calcsize(form) :]


def _wide(right: bytes, record: bytes, end: int, place: int = 0) -> bytes:
    """With the records that large zips have; the one says that the other is at `place`."""
    return right[:end] + record + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1) + right[end:]
