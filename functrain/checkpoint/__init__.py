"""Trees of tensors to and from disk.

A checkpoint is one file and nothing but data: a zip in PyTorch's format that holds a flat map from the key of a leaf
(`tree.keys`) to a tensor or a plain scalar, and a JSON text of whatever else the writer wants to remember.

Its bytes are **sealed**, and it appears whole or not at all (`durable`): any changed byte is an error when it is read,
and whoever is killed while writing leaves the old file as it was. A seal does not say who wrote: anybody can compute
one. So before anything in a file is built, what it claims is held against what it is (`layout`, `claims`), and then it
is read with `weights_only=True`: nothing in it can run code, no name in it selects any, and it takes no more memory
than it is large.

    python -m functrain.checkpoint show runs/a
"""

from functrain.checkpoint.contents import CheckpointError, Contents
from functrain.checkpoint.exporting import export_weights
from functrain.checkpoint.fitting import load, rebuild
from functrain.checkpoint.listing import STEP_FILE, candidates, latest
from functrain.checkpoint.reading import read, verify
from functrain.checkpoint.writing import save

__all__ = [
    "STEP_FILE", "CheckpointError", "Contents", "candidates", "export_weights", "latest", "load", "read", "rebuild",
    "save", "verify",
]  # fmt: skip
