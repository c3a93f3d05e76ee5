"""Files that appear whole or not at all, and whose damage is seen.

A file is written beside its place under another name, synced to disk, read back, and renamed, and then its directory is
synced. Whoever is killed in the middle leaves what was there before.

A **seal** is the comment of a zip: the SHA-256 of every byte before it. A zip's own checksums cover what is stored in
it alone; a changed name, offset or shape passes them. With the seal any changed byte, and any missing one, is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_MARK = b"functrain sha256 "
SEAL_SIZE = len(_MARK) + 2 * hashlib.sha256().digest_size
_NO_COMMENT = struct.pack("<H", 0)  # how a zip without a comment ends
_COMMENT = struct.pack("<H", SEAL_SIZE) + _MARK  # and how one with a seal goes on instead


class Damaged(Exception):
    """A file is not as it was written."""


@contextlib.contextmanager
def replacing(path: Path, check: Callable[[BinaryIO], None] | None = None) -> Iterator[BinaryIO]:
    """A new file to write; when the block ends it replaces the one at `path`, and if it raises nothing is left.

    Args:
        path: the file's place.
        check: what raises if the written file, open for reading, is not right.
    """
    with beside(path) as temporary:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if check:
                check(file)
        os.replace(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name for a temporary file in the same directory; what has it when the block ends is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # after a rename it is not there
            temporary.unlink()


def sync(directory: Path) -> None:
    """Make the names in a directory last: a rename is safe only once its directory is on disk."""
    if os.name == "nt":  # a directory cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sealing:
    """A writer that computes the digest of what passes, and keeps its first error, which torch would reword."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Pass the data on."""
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def seal(self) -> None:
        """Give the zip that was written its comment; raise the error that was kept."""
        if self.error is not None:
            raise self.error
        self.file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self.file.write(_COMMENT + self.digest.hexdigest().encode())


def check_seal(file: BinaryIO) -> None:
    """Raise Damaged unless the file ends in the digest of what is before it."""
    body = file.seek(0, os.SEEK_END) - len(_NO_COMMENT) - SEAL_SIZE
    if body < 0:
        raise Damaged("it is too short")
    file.seek(0)
    digest = hashlib.sha256()
    while body and (chunk := file.read(min(1 << 20, body))):
        digest.update(chunk)
        body -= len(chunk)
    digest.update(_NO_COMMENT)  # the digest is of the zip as it was before the comment
    if file.read() != _COMMENT + digest.hexdigest().encode():
        raise Damaged("its bytes do not match its seal")
