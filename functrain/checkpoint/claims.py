r"""What a checkpoint claims to hold, checked before anything of it is built.

`torch.save` speaks a small part of pickle's language: a map, strings, numbers, and for each tensor the name of a
storage, an offset, a shape and strides. This file reads that part and no more. A name stands for itself and is looked
up nowhere; a call is noted and not made. What has to be true of a file that `save` wrote is then compared with it:

- the map is {"format", "leaves", "meta"}, and each leaf a tensor or a plain scalar under a name of its own;
- a tensor is the whole of a storage, the storage is as large as it says, and there is none beside these.

Whatever differs is refused: other names and instructions, sizes beyond the file, nesting.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from enum import Enum
from typing import BinaryIO, NamedTuple, TypeGuard, cast

import torch

from functrain.checkpoint.contents import FORMAT, SCALARS, dtype_name, words
from functrain.checkpoint.durable import Damaged, check_seal
from functrain.checkpoint.layout import Archive, Reading, open_archive

_BYTES = "torch.storage UntypedStorage"
_ITEM = {  # bytes of an element, by the name of a storage
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1, "torch ComplexDoubleStorage": 16, "torch ComplexFloatStorage": 8,
    _BYTES: 1,
}  # fmt: skip
_NEWER = {  # or of a dtype without a storage of its own
    f"torch {dtype_name(dtype)}": dtype.itemsize
    for dtype in (
        torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
        torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
        torch.bits8, torch.bits16, torch.bits1x8, torch.bits2x4, torch.bits4x2,
    )
}  # fmt: skip
_TENSOR, _TENSOR_OF_DTYPE = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
_HOOKS = "collections OrderedDict"
_NAMES = {*_ITEM, *_NEWER, _TENSOR, _TENSOR_OF_DTYPE, _HOOKS}

# Instructions by their byte: those that push a number or a constant, fetch what was remembered, and make tuples.
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_CONSTANTS: dict[bytes, object] = {b"\x88": True, b"\x89": False, b")": ()}
_FETCH, _REMEMBER = {b"h": "<B", b"j": "<I"}, {b"q": "<B", b"r": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_DEEPEST = 10_000  # entries of the stack: torch writes a map in parts of a thousand


class Named(NamedTuple):
    """A name in the place of what it names."""

    name: str


class Stored(NamedTuple):
    """A storage in the file."""

    kind: str
    size: int  # bytes


class Call(Enum):
    """A call that was not made, in the place of its result."""

    TENSOR = 1
    HOOKS = 2  # none: torch writes an empty map of them


def check_file(file: BinaryIO) -> None:
    """Raise unless the file has a right seal and holds what `save` writes.

    Raises:
        Damaged, OSError: it has not, or cannot be read.
    """
    check_seal(file)
    reading = Reading(file)
    try:
        check_claims(open_archive(cast("BinaryIO", reading)))  # it has what zipfile asks for
    except Exception as error:  # whatever reading nonsense raises
        if reading.error is not None:
            raise reading.error from None
        raise error if isinstance(error, Damaged) else Damaged(words(error)) from error


def check_claims(archive: Archive) -> None:
    """Raise unless these are the claims of a file that `save` wrote."""
    found = _Reader(archive).run()
    if type(found) is not dict or type(found.get("format")) is not int or found["format"] != FORMAT:
        raise Damaged(f"it is not in format {FORMAT}")
    leaves = found.get("leaves")
    if set(found) != {"format", "leaves", "meta"} or type(leaves) is not dict or type(found["meta"]) is not str:
        raise Damaged("it holds something else than tensors and scalars by name")
    if type(json.loads(found["meta"])) is not dict:
        raise Damaged("its meta is no JSON object")
    if not all(leaf is Call.TENSOR or type(leaf) in SCALARS for leaf in leaves.values()):
        raise Damaged("it holds something else than tensors and scalars by name")


class _Reader:
    """A pickle, read one instruction at a time."""

    def __init__(self, archive: Archive) -> None:
        self.data, self.at = archive.pickled, 0
        self.unused = dict(archive.sizes)
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.maps = 0
        self.others: dict[bytes, Callable[[], None]] = {
            b"\x80": self._protocol, b"}": self._map, b"(": self._mark, b"X": self._string, b"\x8a": self._long,
            b"c": self._name, b"t": self._tuple, b"Q": self._storage, b"R": self._call,
            b"s": lambda: self._set(len(self.stack) - 2), b"u": lambda: self._set(self.marks.pop()),
        }  # fmt: skip

    def run(self) -> object:
        """What the pickle makes, with names, storages and calls as they stand there."""
        while (op := self._take(1)) != b".":
            self._do(op)
            if len(self.stack) > _DEEPEST:
                raise Damaged("it is nested too deeply")
        (found,) = self.stack
        if self.at != len(self.data) or self.marks or self.unused:
            raise Damaged("it holds more than it names")
        return found

    def _do(self, op: bytes) -> None:
        if op in _NUMBERS:
            self.stack.append(self._unpack(_NUMBERS[op]))
        elif op in _CONSTANTS:
            self.stack.append(_CONSTANTS[op])
        elif op in _FETCH:
            self.stack.append(self.memo[int(self._unpack(_FETCH[op]))])
        elif op in _REMEMBER:
            self.memo[int(self._unpack(_REMEMBER[op]))] = self.stack[-1]
        elif op in _TUPLES:
            self._tuple_from(len(self.stack) - _TUPLES[op])
        elif op in self.others:
            self.others[op]()
        else:
            raise Damaged(f"its instruction {op!r} is none that a checkpoint has")

    def _take(self, n: int) -> bytes:
        taken = self.data[self.at : self.at + n]
        self.at += n
        if len(taken) != n:
            raise Damaged("it ends too early")
        return taken

    def _unpack(self, form: str) -> int | float:
        number: int | float = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _protocol(self) -> None:
        if self.at != 1 or self._take(1) != b"\2":
            raise Damaged("it is not in protocol 2")

    def _map(self) -> None:
        self.maps += 1
        if self.maps > 2:
            raise Damaged("it holds something else than tensors and scalars by name")
        self.stack.append({})

    def _mark(self) -> None:
        self.marks.append(len(self.stack))
        if len(self.marks) > 4:
            raise Damaged("it is nested too deeply")

    def _string(self) -> None:
        self.stack.append(str(self._take(int(self._unpack("<I"))), "utf-8", "surrogatepass"))

    def _long(self) -> None:
        self.stack.append(int.from_bytes(self._take(int(self._unpack("<B"))), "little", signed=True))

    def _name(self) -> None:
        end = self.data.index(b"\n", self.data.index(b"\n", self.at) + 1)
        name = self._take(end - self.at).replace(b"\n", b" ").decode()
        self._take(1)
        if name not in _NAMES:
            raise Damaged(f"it names {name.replace(' ', '.')!r}, and a checkpoint names nothing but tensors")
        self.stack.append(Named(name))

    def _tuple(self) -> None:
        self._tuple_from(self.marks.pop())

    def _tuple_from(self, start: int) -> None:
        made = tuple(self._pop(start))
        if not all(_are_sizes(x) for x in made if type(x) is tuple):
            raise Damaged("it is nested too deeply")
        self.stack.append(made)

    def _pop(self, start: int) -> list[object]:
        """Take what is on the stack from there on."""
        if start < (self.marks[-1] if self.marks else 0):
            raise Damaged("it takes what is not there")
        popped = self.stack[start:]
        del self.stack[start:]
        return popped

    def _set(self, start: int) -> None:
        pairs = self._pop(start)
        target = self.stack[-1]
        if type(target) is not dict:
            raise Damaged("it sets an entry of what is no map")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str or key in target:
                raise Damaged("it holds something else than tensors and scalars by name")
            target[key] = value

    def _storage(self) -> None:
        (place,) = self._pop(len(self.stack) - 1)
        if type(place) is not tuple or len(place) != 5:
            raise Damaged("it has a storage that is none")
        tag, kind, key, device, count = place
        if tag != "storage" or type(kind) is not Named or kind.name not in _ITEM or type(key) is not str:
            raise Damaged("it has a storage that is none")
        if type(device) is not str or type(count) is not int or self.unused.pop(key, None) != count * _ITEM[kind.name]:
            raise Damaged("it has a storage of another size than it claims")
        self.stack.append(Stored(kind.name, count * _ITEM[kind.name]))

    def _call(self) -> None:
        function, arguments = self._pop(len(self.stack) - 2)
        called = function.name if type(function) is Named else ""
        if called == _HOOKS and arguments == ():
            self.stack.append(Call.HOOKS)
        elif called in (_TENSOR, _TENSOR_OF_DTYPE) and type(arguments) is tuple:
            _check_tensor(called == _TENSOR_OF_DTYPE, arguments)
            self.stack.append(Call.TENSOR)
        else:
            raise Damaged("it calls something else than what makes a tensor")


def _check_tensor(of_dtype: bool, arguments: tuple[object, ...]) -> None:
    """Raise unless these arguments make a tensor of the whole of a storage."""
    if len(arguments) != 6 + of_dtype:
        raise Damaged("it has a tensor that is none")
    storage, offset, shape, strides, grad, hooks, *dtype = arguments
    if type(storage) is not Stored or grad is not False or hooks is not Call.HOOKS:
        raise Damaged("it has a tensor that is none")
    if not _are_sizes(shape) or not _are_sizes(strides) or len(shape) != len(strides) or not _are_sizes((offset,)):
        raise Damaged("it has a tensor that is none")
    kind, kinds = storage.kind, _ITEM
    if of_dtype and kind == _BYTES:  # the dtype says what they are
        kind, kinds = dtype[0].name if type(dtype[0]) is Named else "", _NEWER
    if kind not in kinds or kind == _BYTES:
        raise Damaged("it has a tensor of no dtype")
    count = math.prod(shape)
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if offset or count * kinds[kind] != storage.size or (count and reach > count):
        raise Damaged("it has a tensor of another size than its storage")


def _are_sizes(x: object) -> TypeGuard[tuple[int, ...]]:
    """True of a tuple of numbers that may be a shape."""
    return type(x) is tuple and len(x) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in x)
