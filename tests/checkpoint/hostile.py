"""Files that an attacker would write, under a right seal unless one is wrong on purpose.

`attacks` has each with its name; `canary` is a file that is there only if something in one of them ran.
"""

from __future__ import annotations

import io
import itertools
import json
import pickle
import random
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.checkpoint.files import pickled_by_torch, zipped
from tests.checkpoint.hostile_zips import zips
from tests.checkpoint.pickles import (
    END,
    FALSE,
    HOOKS,
    PROTOCOL,
    call,
    contents,
    map_of,
    name,
    number,
    sizes,
    storage,
    tensor,
    text,
    tuple_of,
)

GOOD = {
    "archive/data/0": struct.pack("<5f", *range(5)),
    "archive/byteorder": b"little",
    "archive/version": b"3\n",
}
HUGE = 1 << 40

# What runs code, or reads or writes something, when it is called with a text.
RUNNERS = """os.system posix.system nt.system os.popen os.mkdir os.makedirs posix.mkdir builtins.eval builtins.exec
builtins.open builtins.__import__ __builtin__.eval __builtin__.file subprocess.call subprocess.Popen
subprocess.check_output commands.getoutput io.open _io.open pathlib.Path.touch pathlib.Path runpy.run_path
runpy._run_code importlib.import_module imp.load_source pickle.loads _pickle.loads pickle.load dill.loads
cloudpickle.loads marshal.loads code.interact pty.spawn webbrowser.open timeit.timeit shutil.rmtree
torch.load torch.serialization.load torch.hub.load torch.jit.load torch.package.PackageImporter
torch.storage._load_from_bytes torch.utils.cpp_extension.load torch._utils._import_dotted_name
torch.fx.graph_module.reduce_graph_module torch.distributed.rpc.internal.deserialize functools.partial
functools.reduce operator.attrgetter operator.methodcaller operator.call copyreg._reconstructor
copyreg.__newobj__ copyreg.add_extension builtins.getattr builtins.setattr builtins.map builtins.type types.FunctionType
types.CodeType ctypes.CDLL ctypes.util.find_library numpy.load numpy.core.multiarray._reconstruct
numpy.testing._private.utils.runstring socket.create_connection urllib.request.urlopen logging.config.dictConfig
unittest.mock.patch asyncio.run threading.Thread multiprocessing.Process functrain.checkpoint.save""".split()

# What torch's own reader of plain data would call; some of it with as much memory as the file says.
CALLED_BY_TORCH = [
    ("builtins.bytearray", [number(HUGE)]),
    ("torch.Tensor", [number(HUGE)]),
    ("torch.FloatTensor", [number(HUGE)]),
    ("torch.storage.UntypedStorage", [number(HUGE)]),
    ("torch.UntypedStorage", [number(HUGE)]),
    ("_codecs.encode", [text("a"), text("zlib_codec")]),
    ("_codecs.encode", [text("a"), text("../../canary")]),
    ("collections.Counter", [text("a")]),
    ("collections.OrderedDict", [tuple_of(tuple_of(text("a"), number(1)))]),
    ("builtins.set", [sizes(1, 2)]),
    ("builtins.complex", [number(1)]),
    ("torch.Size", [sizes(HUGE, HUGE)]),
    ("torch.device", [text("cuda:0")]),
    ("torch.nn.parameter.Parameter", [tensor()]),
    ("torch.serialization._get_layout", [text("torch.sparse_coo")]),
    ("torch._utils._rebuild_parameter", [tensor(), FALSE, HOOKS]),
    ("torch._utils._rebuild_parameter_with_state", [tensor(), FALSE, HOOKS, map_of({"__class__": text("a")})]),
    ("torch._utils._rebuild_tensor", [storage(), number(0), sizes(5), sizes(1)]),
    ("torch._utils._rebuild_qtensor", [storage(), number(0), sizes(5), sizes(1), tuple_of(), FALSE, HOOKS]),
    ("torch._utils._rebuild_sparse_tensor", [name("torch", "sparse_coo"), tuple_of(tensor(), tensor())]),
    ("torch._utils._rebuild_meta_tensor_no_storage", [name("torch", "float32"), sizes(HUGE), sizes(1), FALSE]),
    ("torch._utils._rebuild_nested_tensor", [tensor(), tensor(), tensor(), tensor()]),
    ("torch._utils._rebuild_device_tensor_from_cpu_tensor", [tensor(), name("torch", "float32"), text("cuda"), FALSE]),
    ("torch._utils._rebuild_wrapper_subclass",
     [name("torch", "Tensor"), name("torch", "float32"), sizes(HUGE), sizes(1), number(0), b"N", text("cpu"), FALSE]),
    ("torch._tensor._rebuild_from_type_v2",
     [name("torch._utils", "_rebuild_tensor_v2"), name("torch", "Tensor"), tuple_of(), map_of({"__class__": b"N"})]),
]  # fmt: skip


def dotted(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return name(module, attribute)


def around(value: bytes) -> Iterator[tuple[str, bytes]]:
    """The pickles of checkpoints that have it in each place where something can be."""
    yield "alone", PROTOCOL + value + END
    yield "as a leaf", contents({"w": value})
    yield "as the leaves", contents(value)
    yield "as the format", contents(form=value)
    yield "as the meta", contents(meta=value)
    yield "as a key", PROTOCOL + map_of([(value, number(1))]) + END
    yield "as a leaf's key", contents(map_of([(value, number(1))]))
    yield "as a storage", contents({"w": tensor(value)})
    yield "as a storage's place", contents({"w": tensor(value + b"Q")})
    yield (
        "as a storage's type",
        contents({"w": tensor(tuple_of(text("storage"), value, text("0"), text("cpu"), number(5)) + b"Q")}),
    )
    yield "as a shape", contents({"w": tensor(shape=value)})
    yield "as strides", contents({"w": tensor(strides=value)})
    yield "as an offset", contents({"w": tensor(offset=value)})
    yield "as hooks", contents({"w": tensor(hooks=value)})
    yield "as a wish for gradients", contents({"w": tensor(grad=value)})
    yield "as a tensor's metadata", contents({"w": tensor(more=value)})
    yield "in the place of a tensor's maker", contents({"w": tensor(function=value)})
    yield "and thrown away", contents(protocol=PROTOCOL + value + b"0")


def code(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that run something, each in several of pickle's ways to call."""
    command = f"touch {canary}"
    for runner in RUNNERS:
        module, _, attribute = runner.rpartition(".")
        says = str(canary) if attribute in ("mkdir", "makedirs", "open", "touch", "file", "save") else command
        says = f"__import__('os').mkdir({str(canary)!r})" if attribute in ("eval", "exec", "timeit") else says
        for way, value in {
            "reduce": call(name(module, attribute), text(says)),
            "nested reduce": call(call(dotted("functools.partial"), name(module, attribute), text(says))),
            "object": b"(" + name(module, attribute) + text(says) + b"o",
            "instance": b"(" + text(says) + f"i{module}\n{attribute}\n".encode(),
            "new": name(module, attribute) + tuple_of(text(says)) + b"\x81",
            "new with keywords": name(module, attribute) + tuple_of(text(says)) + map_of({}) + b"\x92",
            "stack global": text(module) + text(attribute) + b"\x93" + tuple_of(text(says)) + b"R",
            "build": HOOKS + map_of({"__setstate__": name(module, attribute)}) + b"b" + text(says) + b"b",
            "build a tensor": tensor() + tuple_of(name(module, attribute), text(says)) + b"b",
            "persistent": tuple_of(name(module, attribute), text(says)) + b"Q",
            "extension": b"\x82\x01" + tuple_of(text(says)) + b"R",
        }.items():
            for place, pickled in around(value):
                yield f"{runner} by {way} {place}", pickled
    for known, arguments in CALLED_BY_TORCH:
        for place, pickled in around(call(dotted(known), *arguments)):
            yield f"{known} {place}", pickled
        yield f"{known} by new", contents({"w": dotted(known) + tuple_of(*arguments) + b"\x81"})
        yield f"{known} itself", contents({"w": dotted(known)})


def sized() -> Iterator[tuple[str, bytes]]:
    """Pickles with sizes that the file has not."""
    for n in (-1, 0, 4, 6, 1 << 28, 1 << 31, HUGE, 1 << 62, 1 << 63, 1 << 64, 1 << 1000):
        yield f"storage of {n}", contents({"w": tensor(storage(count=n))})
        yield f"shape of {n}", contents({"w": tensor(shape=sizes(n))})
        yield f"all of {n}", contents({"w": tensor(storage(count=n), shape=sizes(n))})
        yield f"shape of {n} by stride 0", contents({"w": tensor(shape=sizes(n), strides=sizes(0))})
        yield f"shape of 0 and {n}", contents({"w": tensor(shape=sizes(0, n), strides=sizes(1, 1))})
        yield f"offset {n or 1}", contents({"w": tensor(offset=number(n or 1))})
        yield f"stride {n + 3}", contents({"w": tensor(strides=sizes(n + 3))})
    yield "65 dimensions", contents({"w": tensor(shape=sizes(5, *[1] * 64), strides=sizes(*[1] * 65))})
    yield "10,000 dimensions", contents({"w": tensor(shape=sizes(5, *[1] * 9_999), strides=sizes(*[1] * 10_000))})
    yield "more dimensions than strides", contents({"w": tensor(shape=sizes(5, 1))})
    yield "a shape of booleans", contents({"w": tensor(shape=tuple_of(b"\x88"))})
    yield "a shape of floats", contents({"w": tensor(shape=tuple_of(b"G" + struct.pack(">d", 5.0)))})
    for kind in ("DoubleStorage", "ByteStorage", "QInt8Storage", "UntypedStorage", "TypedStorage", "Tensor", "float32"):
        yield f"storage of type {kind}", contents({"w": tensor(storage(kind))})
    for key in ("1", "", "00", "../data/0", "/etc/passwd", "0\0", "x" * 100_000, "é", "\udc80", "data.pkl", "-1"):
        yield f"storage called {key[:20]!r}", contents({"w": tensor(storage(key=key))})
    yield "one storage twice", contents({"a": tensor(), "b": tensor()})
    yield "no storage", contents({"w": number(1)})
    yield "one key twice", contents(map_of([(text("w"), tensor()), (text("w"), number(1))]))
    yield "of a newer dtype, of none", contents({"w": tensor(function=dotted("torch._utils._rebuild_tensor_v3"))})
    yield "two tops", contents(end=map_of({}) + END)
    yield "something behind the end", contents() + b"more"
    for cut in range(1, len(contents()), 17):
        yield f"cut after {cut}", contents()[:cut]


def deep() -> Iterator[tuple[str, bytes]]:
    """Nesting, in pickle and in JSON."""
    n = 50_000
    for what, nested in {
        "tuples": b")" + b"\x85" * n, "pairs": b")" + b"\x89\x86" * n, "marks": b"(" * n,
        "lists": b"]" * n + b"a" * (n - 1),
        "marked tuples": b"(" * n + b"t" * n, "maps": b"}" * n, "doubled": b")q\1" + b"h\1h\1\x86q\1" * 1_000,
        "maps in maps": (b"}" + text("a")) * n + b"N" + b"s" * n, "itself": b"}q\1" + text("a") + b"h\1s",
        "constants": b"\x88" * n, "calls": name("collections", "OrderedDict") + b")R" * n,
        "frozen": b"(" * n + b"\x91" * n,
    }.items():  # fmt: skip
        for place, pickled in around(nested):
            if place in ("alone", "as a leaf", "as a shape", "and thrown away"):
                yield f"nested {what} {place}", pickled
    for what, said in {
        "lists": "[" * n, "closed lists": "[" * n + "]" * n, "maps": '{"a":' * n, "a list": "[]", "a number": "1",
        "many digits": '{"a":' + "9" * n + "}", "nothing": "", "half": "{", "NaN": "NaN", "surrogates": '"\udc80',
    }.items():  # fmt: skip
        yield f"JSON of {what}", contents(meta=text(said))


def quantized(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that these go
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def typed() -> Iterator[tuple[str, bytes]]:
    """What torch.save writes of what is no flat map of plain tensors."""
    five = torch.arange(5.0)
    leaves: dict[str, object] = {
        "none": None, "bytes": b"w", "list": [1], "tuple": (1,), "map": {"w": five}, "sparse": torch.eye(2).to_sparse(),
        "meta": five.to("meta"), "parameter": torch.nn.Parameter(five),
        "quantized": quantized(five), "grad": five.clone().requires_grad_(),
        "a part of a storage": five[1:], "expanded": five[:1].expand(9), "complex": 1j, "dtype": torch.float32,
        "device": torch.device("cuda"), "size": torch.Size([1]), "conjugate": torch.zeros(2, dtype=torch.cfloat).conj(),
    }  # fmt: skip
    for what, leaf in leaves.items():
        yield f"a leaf that is {what}", pickled_by_torch({"format": 1, "leaves": {"w": leaf}, "meta": "{}"})
        yield f"nothing but {what}", pickled_by_torch(leaf)
    whole = {"format": 1, "leaves": {"w": five}, "meta": "{}"}
    for change in ({"format": 2}, {"format": True}, {"format": "1"}, {"leaves": {1: five}}, {"leaves": [five]},
                   {"leaves": None}, {"meta": {}}, {"meta": None}, {"more": 1}):  # fmt: skip
        yield f"changed to {change}", pickled_by_torch({**whole, **change})
    for lost in whole:
        yield f"without {lost}", pickled_by_torch({k: v for k, v in whole.items() if k != lost})
    buffer = io.BytesIO()
    torch.save(whole, buffer, _use_new_zipfile_serialization=False)
    yield "torch's format without a zip", buffer.getvalue()
    yield "a pickle without a zip", pickle.dumps(whole)
    yield "JSON", json.dumps(whole, default=str).encode()


def attacks(canary: Path, draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """As many, from each family in turn."""
    families = [list(family) for family in (code(canary), sized(), deep(), typed(), zips(contents(), GOOD))]
    for family in families:
        draw.shuffle(family)
    longest = max(map(len, families))
    mixed = (family[i] for i in range(longest) for family in families if i < len(family))
    for what, content in itertools.islice(mixed, count):
        is_pickle = content.startswith(PROTOCOL) and what != "a pickle without a zip"
        yield what, zipped({"archive/data.pkl": content, **GOOD}) if is_pickle else content


def right() -> bytes:
    """What the attacks are made from: a file that is read."""
    return zipped({"archive/data.pkl": contents(), **GOOD})
