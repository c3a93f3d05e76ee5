"""The optimizers of torch.optim, with functrain's rules inside: `from functrain import optim`.

Arguments, defaults, groups, states and numbers are torch 2.13's, and a state dict goes both ways. Each class is a
signature and the pure chain that it stands for.

Arguments that mean the same everywhere:
    params: parameters, pairs (name, parameter), or groups: dicts with `params` and values of their own.
    lr: η >= 0, the learning rate; a float or a 0-dim tensor, obeyed whenever it changes.
    weight_decay: λ >= 0, added to the gradient as λ p; decoupled, it shrinks the parameter by η λ p instead.
    maximize: step along the gradient, and not against it.
    foreach, capturable: accepted, and without effect: there is one way to compute, and it waits for no device.
    fused, compile: compile the update, in seconds at the first step. `compile` is in no group and no state dict.
    differentiable: an error at the first step: `as_transform()` is the differentiable form.

Errors have torch's types and begin with torch's words. Half-precision parameters have float32 moments.
"""

from functrain.bridge.lbfgs import LBFGS
from functrain.bridge.torch_adaptive import Adam, Adamax, AdamW, NAdam, RAdam
from functrain.bridge.torch_squares import Adadelta, Adagrad, RMSprop
from functrain.bridge.torch_steps import ASGD, SGD, Adafactor, Muon, Rprop

__all__ = [
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam",
    "RMSprop", "Rprop", "SGD",
]  # fmt: skip
