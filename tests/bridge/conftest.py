"""PyTorch's list of its optimizers stands in a module that loads a Hypothesis profile of PyTorch's as it is imported,
for all tests there are. It is imported here first, and the profile that was there is put back."""

from __future__ import annotations

import importlib

from hypothesis import settings

ours = settings.get_current_profile_name()
importlib.import_module("torch.testing._internal.common_utils")
settings.load_profile(ours)
