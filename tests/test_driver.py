"""What the Trainer says of optimizers and schedulers that it cannot drive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from functrain import optim
from functrain.bridge.torch_optimizer import TorchOptimizer
from functrain.combinators.chain import chain
from functrain.optimizers.adaptive import adam, adamw
from functrain.transforms.clip import clip_by_global_norm
from tests.torch_loops import by_hand, network, trainer_of

# --- what cannot be driven


class Own(torch.optim.SGD):
    """Somebody's own."""


OWN = f"{Own.__module__}.Own"
HERE = (
    "ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, LBFGS, Muon, NAdam, RAdam, RMSprop, Rprop, SGD, and "
    "ft.TorchOptimizer(params, rule) for any rule"
)


def elsewhere(module: nn.Module) -> Optimizer:
    return optim.SGD([*module[0].named_parameters(), ("head.weight", nn.Parameter(torch.ones(2)))])


REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a class of one's own": (
        lambda m: Own(m.parameters()), None, TypeError, f"from_torch: {OWN} has no equal here; hint: there are {HERE}",
    ),
    "neither": (
        lambda m: 3, None, TypeError,
        "Trainer: optimizer must be a GradientTransformation or a torch optimizer, got int; "
        "hint: ft.adamw(0.001), or ft.configure_optimizer(module)",
    ),
    "parameters with a name": (
        elsewhere, None, ValueError,
        "Trainer: parameter 'head.weight' of the optimizer's group 0 is none of the model's; "
        "hint: build the optimizer from this model's parameters()",
    ),
    "parameters without names": (
        lambda m: torch.optim.SGD([{"params": m[0].parameters()}, {"params": network().parameters()}]), None,
        ValueError,
        "Trainer: parameter '2' of the optimizer's group 1 is none of the model's; "
        "hint: build the optimizer from this model's parameters()",
    ),
    "a scheduler over another": (
        lambda m: optim.SGD(m.parameters()), lambda o, m: StepLR(torch.optim.SGD(m.parameters()), 1), ValueError,
        "Trainer: StepLR sets the rates of another optimizer than the one given; "
        "hint: build it over the optimizer that the Trainer has",
    ),
    "no scheduler": (
        lambda m: optim.SGD(m.parameters()), lambda o, m: 3, TypeError,
        "Trainer: scheduler is a int, and not one of torch.optim.lr_scheduler; "
        "hint: OneCycleLR(optimizer, max_lr=..., total_steps=...)",
    ),
    "beside a transformation": (
        lambda m: adamw(0.1), lambda o, m: CosineAnnealingLR(torch.optim.SGD(m.parameters()), 9), TypeError,
        "Trainer: CosineAnnealingLR sets the rate of a torch optimizer, and adamw is a transformation; hint: give it a "
        "schedule, such as ft.adamw(ft.schedules.cosine_decay_schedule(...)), or train with "
        "ft.configure_optimizer(...)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_driven_is_told_in_words(what: str) -> None:
    make, schedule, error, message = REFUSED[what]
    module = network()
    optimizer = make(module)
    with pytest.raises(error) as caught:
        trainer_of(module, optimizer, None if schedule is None else schedule(optimizer, module))
    assert str(caught.value) == message


MADE = "was set in a group while training, which makes another rule; hint: numbers may change, from and to anything "


@pytest.mark.parametrize("kind", [optim.SGD, torch.optim.SGD])
@pytest.mark.parametrize(
    ("group", "name", "value"),
    [(0, "momentum", 0.9), (0, "maximize", True), (0, "nesterov", True), (1, "weight_decay", 0)],
)
def test_a_change_that_makes_another_rule_is_an_error_at_the_next_update(
    kind: Any, group: int, name: str, value: Any
) -> None:
    def edit(update: int, optimizer: Optimizer) -> None:
        if update == 3:
            optimizer.param_groups[group][name] = value

    module = network()
    first, *rest = module.parameters()
    optimizer = kind([{"params": [first]}, {"params": rest, "weight_decay": 0.1}], lr=0.1)
    trainer = trainer_of(module, optimizer, callbacks=[by_hand(edit)])
    with pytest.raises(ValueError, match="another rule") as caught:
        trainer.train()
    assert str(caught.value) == f"Trainer: {name}={value!r} {MADE}but 0; for the rest build a Trainer anew"
    assert trainer.updates == 3
    assert all(torch.equal(p, trainer.state.params[name]) for name, p in module.named_parameters())


@pytest.mark.parametrize("kind", [optim.SGD, torch.optim.SGD])
def test_a_group_that_comes_while_training_is_an_error_at_the_next_update(kind: Any) -> None:
    def add(update: int, optimizer: Optimizer) -> None:
        if update == 3:
            optimizer.add_param_group({"params": module[4].parameters()})

    module = network()
    trainer = trainer_of(module, kind(module[0].parameters(), lr=0.1), callbacks=[by_hand(add)])
    message = "Trainer: the optimizer has 2 groups, and had 1 when the Trainer was built; hint: build a Trainer anew"
    with pytest.raises(ValueError, match="when the Trainer was built") as caught:
        trainer.train()
    assert str(caught.value) == message


def test_groups_of_a_rule_that_sees_all_parameters_must_have_equal_values() -> None:
    module = network()
    first, *rest = module.parameters()
    rule = chain(clip_by_global_norm(1.0), adam(0.1))
    optimizer = TorchOptimizer([{"params": [first]}, {"params": rest}], rule)
    trainer = trainer_of(module, optimizer)
    optimizer.param_groups[0]["lr"] = 0.3
    message = (
        "Trainer: TorchOptimizer of chain(chain(clip_by_global_norm, adam), scale) sees all parameters at once, so its "
        "groups must have equal values; hint: ft.partition gives each set of parameters a rule"
    )
    with pytest.raises(ValueError, match="equal values") as caught:
        trainer.train()
    assert str(caught.value) == message
    assert trainer.updates == 0
