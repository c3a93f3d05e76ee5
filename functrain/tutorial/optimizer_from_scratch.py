"""SGD and AdamW from nothing but tensors and loops.

A network has parameters p, thousands or billions of numbers, and a loss L(p) that says how badly it does on a batch.
Backpropagation writes the gradient g = ∂L/∂p beside each parameter, into `p.grad`. It says where the loss rises
fastest. It does not say how far to go: that is what an optimizer is for. All that one does is

    read `p.grad`,  change `p` in place,  remember something for the next time.

The file builds two of them, in the order in which people found out what was missing: descent, momentum, an own step
size for every number, weight decay that is not gradient. Read it from top to bottom. A formula stands right above the
line that computes it, with the letters of the code:

    p, g      a parameter and its gradient, tensors of one shape; formulas are meant entry by entry
    lr        η, the learning rate: how much of a step is taken
    m, v      averages of g and of g²; they are the memory, and like p in shape
    t         updates so far, 1 at the first
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# --- Descent, and momentum
#
# For a small step d the loss changes by about g·d, and of all d of one length the one along -g goes down most:
#
#     p ← p - η g
#
# How large may η be? Take the simplest valley, L = ½ h p², whose curvature is h. There g = h p, and a step makes p into
# (1 - η h) p. That shrinks as long as |1 - η h| < 1, which is η < 2 / h. Beyond it p changes sign at every step and
# grows. A real loss has many directions, each with an h of its own, and one η for all: the steepest forbids more than
# 2 / h_max, and with that the gentlest shrinks by 1 - 2 h_min / h_max a step. The ratio h_max / h_min is the valley's
# condition number. Where it is 1000, a factor e along the floor takes five hundred steps; one direction alone, with
# η = 1 / h, would be there in one.
#
# Momentum is the cure. Do not step along the last gradient, step along all of them, older ones counting less:
#
#     m ← β m + g,       so that      m = g_t + β g_{t-1} + β² g_{t-2} + ...
#
# Why does a sum with fading weights help?
#
#   - The weights 1, β, β², ... add up to 1 / (1 - β). So m is an average, times 1 / (1 - β).
#   - Along the floor of the valley all gradients agree, and m grows to g / (1 - β): with β = 0.9 ten times the step.
#   - Across the valley they change sign at each step, and cancel: +g, -g, ... add up to g / (1 + β), about half a step.
#   - Each batch's gradient is the true one plus noise. If the noise of two batches is independent and its variance σ²,
#     that of the average (1 - β) m is σ² (1 - β) / (1 + β): with β = 0.9 as if nineteen batches were averaged.
#
# Nesterov's variant asks for the gradient where momentum is about to carry the parameters, and not where they are, so
# that it brakes a step earlier. With θ the parameters, and gradients taken at p = θ - η β m:
#
#     m ← β m + g(p),  θ ← θ - η m        is in terms of p alone       m ← β m + g,  p ← p - η (g + β m)
#
# (Put θ = p + η β m in, before and after.) The second form is the one in use: there p is what the network holds, and
# no gradient has to be taken anywhere else.


class SGDFromScratch:
    """Stochastic gradient descent, with momentum. Stochastic: each gradient is that of a batch, not of all data.

        g ← g + λ p
        m ← β m + g
        p ← p - η m,  or with Nesterov  p - η (g + β m)

    Args:
        params: the parameters, such as `model.parameters()`.
        lr: η >= 0. May be changed between updates: it is an attribute.
        momentum: β in [0, 1). With 0, m is g.
        nesterov: step as if one update ahead.
        weight_decay: λ >= 0. Adds λ p to the gradient: that of ½ λ p², a penalty on large parameters.

    Raises:
        ValueError: there are no parameters.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.params = _listed("SGDFromScratch", params)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.m = [torch.zeros_like(p) for p in self.params]

    # An update is arithmetic on parameters, but no part of the network's computation: without `no_grad` autograd would
    # refuse the change in place, or record it and differentiate through all updates before.
    @torch.no_grad()
    def step(self) -> None:
        """One update, from the gradients that are there."""
        for p, m in zip(self.params, self.m, strict=True):
            if p.grad is None:  # nothing reached this parameter: it stays, and its memory does not fade
                continue
            g = p.grad

            # g ← g + λ p. A new tensor: the caller's gradient is left as it was.
            if self.weight_decay:
                g = g + self.weight_decay * p

            # m ← β m + g
            m.mul_(self.momentum).add_(g)

            # p ← p - η m, or one step ahead
            p -= self.lr * (g + self.momentum * m if self.nesterov else m)

    def zero_grad(self) -> None:
        """Forget the gradients. `backward()` adds to what is there: without this they pile up from update to update.

        None and not zero: a parameter that the next batch does not use has no gradient then, and `step` leaves it
        alone. With zeros, momentum and decay would move it.
        """
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The memory, for a checkpoint. The tensors are the optimizer's own, not copies."""
        return {"m": self.m}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up a memory that was saved."""
        _copy(self.m, state["m"])


# --- A step size for every number: Adam
#
# One η for all remains. But gradients differ in size by powers of ten from layer to layer, and in a table of words the
# row of a rare one gets a gradient once in a thousand batches. Adam divides each entry by how large its gradients are:
#
#     m ← β₁ m + (1 - β₁) g           the mean of g, the first moment
#     v ← β₂ v + (1 - β₂) g²          the mean of g², the second
#     p ← p - η m / √v
#
# The quotient has no unit: multiply the loss by 1000, and no update changes. It is mostly between -1 and 1: near ±1
# where gradients agree from batch to batch, near 0 where they are noise. So η is about how far a parameter moves in one
# update, and one η does for layers whose gradients have nothing in common.
#
# Here m is a mean: with the factor 1 - β₁ its weights add up to 1, in the end. At the beginning they do not, and that
# is what bias correction is about. Write the recursion out, from m = 0:
#
#     m_t = (1 - β) Σ β^(t-i) g_i,    i = 1 ... t
#
# Take the expectation, for gradients whose mean G does not change during these t steps:
#
#     E[m_t] = G (1 - β) Σ β^(t-i) = G (1 - β) (1 + β + ... + β^(t-1)) = G (1 - βᵗ)
#
# by the sum of a geometric series. So m is too small by the known factor 1 - βᵗ, because it began as zero and zero is
# no gradient; dividing by it makes the expectation right at every t. (If G changes, what is left is an error of the
# size of that change, with the weight of old gradients.) The same holds for v and g².
#
# Does it matter? With β₁ = 0.9 and β₂ = 0.999 the first m is 0.1 g, and the first √v is √0.001 |g|, 0.03 |g|: the first
# update would be 3.2 η, the tenth 6.5 η, and not η, at the very time at which the network is at its most fragile. The
# factor β₂ᵗ is gone only after some thousands of updates.
#
# ε keeps 0/0 away, where every gradient so far was zero. It is in the unit of g, and where gradients are not much
# larger than ε it brakes.
#
# --- Weight decay that is decoupled: the W
#
# Small weights make smooth functions, so one wants to pull them towards zero. In plain descent there are two ways to
# say that, and they are the same:
#
#     a penalty       L + ½ λ p²      →    p ← p - η (g + λ p)        "L2"
#     a shrinkage     p ← (1 - η λ) p, beside the step              →    p ← p - η g - η λ p
#
# In Adam they are not. Let the penalty's gradient λ p into m and v, and it is divided by √v like everything else: a
# parameter with gradients of size 100 is pulled towards zero a hundred times less than one with gradients of size 1.
# What was meant as a property of the model has become one of the gradients. AdamW does what is meant. It leaves λ p out
# of m and v, and adds it behind the division: all parameters shrink by 1 - η λ, whatever their gradients are.


class AdamWFromScratch:
    """Adam with decoupled weight decay.

        m ← β₁ m + (1 - β₁) g                 m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²                v̂ = v / (1 - β₂ᵗ)
        p ← p - η (m̂ / (√v̂ + ε) + λ p)

    Args:
        params: the parameters, such as `model.parameters()`.
        lr: η >= 0, about the size of one update of one number. May be changed between updates.
        betas: (β₁, β₂), each in [0, 1): averages over the last 1 / (1 - β) gradients, about.
        eps: ε > 0, in the unit of g.
        weight_decay: λ >= 0. Without gradients an update multiplies parameters by 1 - η λ.

    Raises:
        ValueError: there are no parameters.

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 1, and section 3 for the correction. https://arxiv.org/abs/1412.6980
        Loshchilov & Hutter, Decoupled weight decay regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.params = _listed("AdamWFromScratch", params)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = [0 for _ in self.params]  # one each: a parameter without a gradient does not age

    @torch.no_grad()
    def step(self) -> None:
        """One update, from the gradients that are there."""
        b1, b2 = self.betas
        for i, (p, m, v) in enumerate(zip(self.params, self.m, self.v, strict=True)):
            if p.grad is None:
                continue
            g = p.grad
            self.t[i] += 1
            t = self.t[i]

            # m ← β₁ m + (1 - β₁) g
            m.mul_(b1).add_((1 - b1) * g)

            # v ← β₂ v + (1 - β₂) g²
            v.mul_(b2).add_((1 - b2) * g**2)

            # m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ). New tensors: the averages go on uncorrected.
            m_hat = m / (1 - b1**t)
            v_hat = v / (1 - b2**t)

            # p ← p - η (m̂ / (√v̂ + ε) + λ p)
            p -= self.lr * (m_hat / (v_hat.sqrt() + self.eps) + self.weight_decay * p)

    def zero_grad(self) -> None:
        """Forget the gradients, as SGDFromScratch does."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The memory, for a checkpoint: twice as many numbers as the parameters. The tensors are not copies."""
        return {"m": self.m, "v": self.v, "t": [torch.tensor(t) for t in self.t]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Take up a memory that was saved. Without t the correction would begin anew, and correct what needs none."""
        _copy(self.m, state["m"])
        _copy(self.v, state["v"])
        self.t = [int(t) for t in state["t"]]


# What is missing, beside speed: groups of parameters with an η and a λ of their own (biases and the weights of
# normalisation are better left without decay), and the step as a pure function of gradient, memory and parameters.
# functrain has both; chapters 3 and 4 of docs/learn/ say what they are good for.


def _listed(where: str, params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list. `model.parameters()` is a generator, which is empty when it is read again."""
    listed = list(params)
    if not listed:
        raise ValueError(f"{where}: there are no parameters; hint: a generator gives them once, call parameters() anew")
    return listed


def _copy(into: list[Tensor], found: list[Tensor]) -> None:
    for x, y in zip(into, found, strict=True):
        x.copy_(y)
