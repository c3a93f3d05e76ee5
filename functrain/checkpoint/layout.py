"""The zip around a checkpoint, held against the layout that torch writes.

Two programs may read one zip differently: a name that occurs twice, a directory that is not where another field says,
a size that two places tell. What was checked must be what is read, so there is one layout, and whatever differs from it
is refused.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from functrain.checkpoint.durable import SEAL_SIZE, Damaged

_NAMES = re.compile(r"archive/(data\.pkl|byteorder|version|\.\w[\w/]*|data/\d+)", re.ASCII)
_PICKLE, _STORAGE = "archive/data.pkl", "archive/data/"
_NEEDED = {_PICKLE, "archive/byteorder", "archive/version"}
_NOTES = {"archive/byteorder": re.compile(rb"little|big"), "archive/version": re.compile(rb"[1-9]\n")}
_NOTE = re.compile(rb"\d{1,64}")  # an alignment, an id

_END, _END64, _LOCATOR, _LOCAL = (struct.Struct(form) for form in ("<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL", "<4s22x2H"))
_END_MARK, _END64_MARK, _LOCATOR_MARK, _LOCAL_MARK = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\3\4"
_FLAGS = 0x0808  # sizes behind the data, names in UTF-8


class Reading:
    """A file that keeps its first error, which zipfile would reword."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def read(self, n: int = -1) -> bytes:
        """The next bytes."""
        with self._kept():
            return self.file.read(n)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go there."""
        with self._kept():
            return self.file.seek(offset, whence)

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where it is."""
        return self.file.tell()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


class Archive(NamedTuple):
    """A zip whose entries are what they claim to be."""

    pickled: bytes
    sizes: dict[str, int]  # by the key of a storage: its bytes


def open_archive(file: BinaryIO) -> Archive:
    """What is in the zip, without the storages.

    Raises:
        Damaged, or what `zipfile` raises: it is not laid out as torch writes it.
    """
    start, count = _directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        names = [entry.orig_filename for entry in entries]
        if len(entries) != count:
            raise Damaged("its directory is not where it says")
        if len(set(names)) != len(names) or not all(map(_NAMES.fullmatch, names)) or not set(names) >= _NEEDED:
            raise Damaged("its entries are not those of a checkpoint")
        ends = [*(entry.header_offset for entry in entries[1:]), start]
        for entry, end in zip(entries, ends, strict=True):
            _check_entry(file, entry, end)
            if entry.filename != _PICKLE and not entry.filename.startswith(_STORAGE):
                _check_note(entry, archive)
        pickled = archive.read(_PICKLE)
    sizes = {e.filename.removeprefix(_STORAGE): e.file_size for e in entries if e.filename.startswith(_STORAGE)}
    return Archive(pickled, sizes)


def _check_note(entry: zipfile.ZipInfo, archive: zipfile.ZipFile) -> None:
    """Raise Damaged unless the entry is one of torch's notes."""
    if entry.file_size > 64 or not _NOTES.get(entry.filename, _NOTE).fullmatch(archive.read(entry)):
        raise Damaged("its entries are not those of a checkpoint")


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Where the directory begins, and how many entries it says it has."""
    end = file.seek(0, os.SEEK_END) - SEAL_SIZE - _END.size
    wide = end - _LOCATOR.size - _END64.size  # where the record of a large zip is, if there is one
    if wide < 0:
        raise Damaged("it is too short")
    file.seek(wide)
    record, locator = _END64.unpack(file.read(_END64.size)), _LOCATOR.unpack(file.read(_LOCATOR.size))
    mark, disk, disk2, here, count, length, start, _ = _END.unpack(file.read(_END.size))
    narrow = [disk, disk2, here, count, length, start]
    if locator[0] == _LOCATOR_MARK:
        end64, size, _, _, *numbers = record
        limits = [0xFFFF] * 4 + [0xFFFFFFFF] * 2
        agree = narrow == [min(x, limit) for x, limit in zip(numbers, limits, strict=True)]
        if (end64, size) != (_END64_MARK, _END64.size - 12) or locator[1:] != (0, wide, 1) or not agree:
            raise Damaged("its directory is told twice, and differently")
        narrow, end = numbers, wide
    disk, disk2, here, count, length, start = narrow
    if (mark, disk, disk2, here) != (_END_MARK, 0, 0, count) or start + length != end:
        raise Damaged("its directory is not where it says")
    return start, count


def _check_entry(file: BinaryIO, entry: zipfile.ZipInfo, end: int) -> None:
    """Raise Damaged unless the entry lies as it is before `end`, under the name that the directory gives it."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise Damaged("its entries are compressed")
    file.seek(entry.header_offset)
    mark, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
    same = file.read(name) == entry.orig_filename.encode()
    if mark != _LOCAL_MARK or not same or entry.flag_bits & ~_FLAGS:
        raise Damaged("its entries are not those of a checkpoint")
    if entry.header_offset + _LOCAL.size + name + extra + entry.file_size > end:
        raise Damaged("its entries overlap")
