"""Pickles written by hand, instruction by instruction: right ones, and those that an attacker would write."""

from __future__ import annotations

import struct
from collections.abc import Mapping

PROTOCOL, END = b"\x80\2", b"."


def text(s: str) -> bytes:
    data = s.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(n: int) -> bytes:
    if -(1 << 31) <= n < 1 << 31:
        return b"J" + struct.pack("<i", n)
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def sizes(*numbers: int) -> bytes:
    return tuple_of(*map(number, numbers))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def map_of(entries: Mapping[str, bytes] | list[tuple[bytes, bytes]]) -> bytes:
    pairs = [(text(k), v) for k, v in entries.items()] if isinstance(entries, Mapping) else entries
    return b"}(" + b"".join(k + v for k, v in pairs) + b"u"


HOOKS = call(name("collections", "OrderedDict"))
FALSE = b"\x89"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 5, device: str = "cpu") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text(device), number(count)) + b"Q"


def tensor(
    data: bytes | None = None,
    offset: bytes | None = None,
    shape: bytes | None = None,
    strides: bytes | None = None,
    grad: bytes = FALSE,
    hooks: bytes = HOOKS,
    function: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """Five numbers of type float32, unless something else is said."""
    made = (data or storage(), offset or number(0), shape or sizes(5), strides or sizes(1), grad, hooks, more)
    return call(function or name("torch._utils", "_rebuild_tensor_v2"), *made)


def contents(
    leaves: bytes | Mapping[str, bytes] | None = None,
    meta: bytes | None = None,
    form: bytes | None = None,
    protocol: bytes = PROTOCOL,
    end: bytes = END,
) -> bytes:
    """The pickle of a checkpoint that is right, unless something else is said."""
    if leaves is None:
        leaves = {"w": tensor()}
    made = leaves if isinstance(leaves, bytes) else map_of(leaves)
    top = {"format": form or number(1), "leaves": made, "meta": meta or text("{}")}
    return protocol + map_of(top) + end
