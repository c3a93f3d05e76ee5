"""Who remembers outside the state: seen when the same run comes again, after another one."""

from __future__ import annotations

from contextlib import suppress

import torch
from hypothesis.strategies import SearchStrategy

from functrain import tree
from functrain.base import GradientTransformation
from functrain.testing.trial import Step, Trial, compare, for_all, run
from functrain.tree import Tree


def same_again(tx: GradientTransformation, one: list[Step], two: list[Step]) -> None:
    """Raise LawBroken where updates differ from the same updates again."""
    hint = "it remembers something outside its state, or draws noise without a seed in it"
    compare("pure", tx, ("update", one), ("the same update again", two), hint=hint)


def check_memory(tx: GradientTransformation, params: SearchStrategy[Tree] | None) -> None:
    """Compare a run with the same run after another one, on one small example.

    Before Hypothesis tries the rule on many trees: a memory outside the state is that of the tree before, and the error
    that then comes says nothing of it.
    """
    drawn: list[Trial] = []
    for_all(drawn.append, params, 10)
    for p, history in [trial for trial in drawn if tree.size(trial.params)][:1]:
        runs: list[list[Step]] = []
        with suppress(Exception):  # what the rule raises, the law meets again, and has an example of
            state = tx.init(_copy(p))
            for factor in (1, -8, 1):  # the one between turns the sign of a memory
                grads = tree.map(lambda g, factor=factor: factor * g, history * 3)
                runs.append(run(tx, _copy(p), grads, _copy(state)))
        if len(runs) == 3:
            same_again(tx, runs[0], runs[2])


def _copy(t: Tree) -> Tree:
    return tree.map(torch.clone, t)
