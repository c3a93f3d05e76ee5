"""Property tests of optimizers: what to draw, and the laws that every rule keeps.

    from functrain.testing import laws
    laws.check_all(my_rule(0.9))

`strategies` draws trees of tensors, gradients for them and hyper-parameters; `laws` checks a transformation against
them and reports the smallest counterexample. Both need Hypothesis, which nothing else in functrain imports.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise ImportError(
        "functrain.testing needs hypothesis; hint: python -m pip install 'functrain[testing]', or hypothesis alone"
    ) from error

from functrain.testing import laws, strategies

__all__ = ["laws", "strategies"]

del _hypothesis
