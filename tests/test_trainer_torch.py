"""The Trainer over an optimizer of torch's kind computes what a loop of torch's own does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from functrain import optim
from functrain.bridge.factories import configure_optimizer
from functrain.bridge.torch_optimizer import TorchOptimizer
from functrain.combinators.chain import chain
from functrain.optimizers.adaptive import adam, lion
from functrain.trainer import Trainer
from functrain.transforms.clip import clip_by_global_norm
from tests.bridge.faces import STEPPED, Row, assert_bitwise, assert_states_near, every_row
from tests.bridge.test_schedulers import SCHEDULERS, STEPS
from tests.torch_loops import apart, batches, by_hand, decayed, network, rates, spoiled, torch_loop, trainer_of, values

ANY_SHAPE = [row for row in STEPPED if row.name != "Muon"]  # of parameters


def one_cycle(optimizer: Optimizer, steps: int = 12) -> OneCycleLR:
    """It moves betas[0] too."""
    return OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)


# --- what is computed


@pytest.mark.parametrize("k", [1, 2])
def test_sch_1_adamw_under_one_cycle_is_torchs_loop(k: int) -> None:
    ours, theirs = network(), network()
    optimizer = configure_optimizer(ours, "adamw", lr=0.05, weight_decay=0.1)
    reference = torch.optim.AdamW(decayed(theirs), lr=0.05)
    trainer = trainer_of(ours, optimizer, one_cycle(optimizer), grad_accum_steps=k, max_epochs=k)
    trainer.train()
    used = torch_loop(theirs, reference, one_cycle(reference), batches(12) * k, k)
    assert rates(trainer) == used
    assert len(set(used)) == 12
    assert apart(ours, theirs) <= 1e-10
    assert optimizer.param_groups[0]["betas"] == reference.param_groups[0]["betas"] != (0.9, 0.999)


def test_clipped_it_is_torchs_loop_but_for_the_small_number_that_torch_adds_to_the_norm() -> None:
    # clip_grad_norm_ divides by norm + 1e-6, so a clipped gradient is 1e-6 / norm shorter than its limit.
    ours, theirs = network(), network()
    optimizer = configure_optimizer(ours, "sgd", lr=0.05, momentum=0.9)
    trainer = trainer_of(ours, optimizer, max_grad_norm=0.3)
    trainer.train()
    assert all(record["grad_norm"] > 0.3 for record in trainer.history)
    torch_loop(theirs, torch.optim.SGD(decayed(theirs, 0.01), lr=0.05, momentum=0.9), None, batches(12), limit=0.3)
    assert 1e-10 < apart(ours, theirs) <= 1e-6


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_evaluates_the_windows_loss_as_a_closure_of_torchs_does(search: str | None) -> None:
    window = batches(2)
    ours, theirs = network(), network()
    options: dict[str, Any] = dict(lr=0.9, max_iter=5, history_size=3, line_search_fn=search)
    optimizer, reference = optim.LBFGS(ours.parameters(), **options), torch.optim.LBFGS(theirs.parameters(), **options)
    trainer_of(ours, optimizer, given=window * 5, grad_accum_steps=2).train()

    def closure() -> Tensor:
        reference.zero_grad()
        loss = torch.stack([nn.functional.mse_loss(theirs(x), y) for x, y in window]).mean()
        loss.backward()
        return loss

    for _ in range(5):
        reference.step(closure)
    assert apart(ours, theirs) <= 1e-10
    assert optimizer.state_dict()["state"][0]["n_iter"] == reference.state_dict()["state"][0]["n_iter"]


@pytest.mark.parametrize("kind", ["ours", "torchs"])
@every_row(ANY_SHAPE)
def test_each_class_trains_as_in_torchs_loop_and_holds_the_state_afterwards(row: Row, kind: str) -> None:
    ours, theirs = network(), network()
    optimizer = getattr(row, kind)(row.grouped(list(ours.parameters()), row.options), **row.options)
    reference = row.reference(row.grouped(list(theirs.parameters()), row.options), **row.options)
    schedulers = [StepLR(o, step_size=4, gamma=0.5) for o in (optimizer, reference)]
    trainer = trainer_of(ours, optimizer, schedulers[0])
    trainer.train()
    assert rates(trainer) == torch_loop(theirs, reference, schedulers[1], batches(12))
    assert apart(ours, theirs) <= 1e-10
    if kind == "torchs":  # loading, torch casts counters to the dtype of parameters
        reference.load_state_dict(reference.state_dict())
    assert_states_near(optimizer.state_dict(), reference.state_dict(), row)
    assert_bitwise(values(optimizer), values(reference))
    torch_loop(ours, optimizer, schedulers[0], batches(5, seed=2))
    torch_loop(theirs, reference, schedulers[1], batches(5, seed=2))
    assert apart(ours, theirs) <= 1e-10


def test_a_torch_loop_goes_on_in_the_trainer_and_the_trainer_in_a_torch_loop() -> None:
    ours, theirs = network(), network()
    optimizer = configure_optimizer(ours, "adamw", lr=0.05, weight_decay=0.1)
    reference = torch.optim.AdamW(decayed(theirs), lr=0.05)
    parts = [batches(6, seed) for seed in (1, 2, 3)]
    schedulers = [one_cycle(o, 18) for o in (optimizer, reference)]
    torch_loop(ours, optimizer, schedulers[0], parts[0])
    trainer = trainer_of(ours, optimizer, schedulers[0], parts[1])
    trainer.train()
    torch_loop(ours, optimizer, schedulers[0], parts[2])
    torch_loop(theirs, reference, schedulers[1], [batch for part in parts for batch in part])
    assert apart(ours, theirs) <= 1e-10
    assert {float(s["step"]) for s in optimizer.state_dict()["state"].values()} == {18.0}


@pytest.mark.parametrize("make", [optim.AdamW, torch.optim.AdamW])
def test_the_state_dict_is_true_whenever_a_checkpoint_is_saved(make: Any, tmp_path: Path) -> None:
    ours = network()
    optimizer = make(decayed(ours), lr=0.05)
    seen: dict[int, Any] = {}

    def note(event: str, trainer: Trainer) -> None:
        if event == "save":
            seen[trainer.updates] = copy.deepcopy(optimizer.state_dict())

    trainer_of(ours, optimizer, save_dir=tmp_path, save_interval=4, callbacks=[note]).train()
    assert list(seen) == [4, 8, 12]
    for updates, state_dict in seen.items():
        theirs = network()
        reference = torch.optim.AdamW(decayed(theirs), lr=0.05)
        torch_loop(theirs, reference, None, batches(12)[:updates])
        assert_states_near(state_dict, reference.state_dict(), next(row for row in ANY_SHAPE if row.name == "AdamW"))


# --- schedulers


@pytest.mark.parametrize("kind", [optim.AdamW, torch.optim.AdamW])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_sch_1_every_scheduler_sets_the_rates_that_it_sets_in_torchs_loop(name: str, kind: Any, tmp_path: Path) -> None:
    ours, theirs = network(), network()
    optimizer, reference = kind(decayed(ours), lr=0.1), torch.optim.AdamW(decayed(theirs), lr=0.1)
    schedulers = [SCHEDULERS[name](o) for o in (optimizer, reference)]
    held_out = batches(2, seed=3) if name == "ReduceLROnPlateau" else []
    trainer = trainer_of(
        ours, optimizer, schedulers[0], batches(STEPS), val_loader=held_out or None, eval_interval=1,
        save_dir=tmp_path, save_interval=7,
    )  # fmt: skip
    trainer.train()
    used = torch_loop(theirs, reference, schedulers[1], batches(STEPS), validation=held_out)
    assert rates(trainer) == used
    assert len(set(used)) > 1, "the scheduler did nothing"
    assert apart(ours, theirs) <= 1e-10
    assert_bitwise(values(optimizer), values(reference))


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "LambdaLR"])
def test_sch_2_a_skipped_update_does_not_step_the_scheduler(name: str) -> None:
    ours, theirs = network(), network()
    optimizer, reference = optim.AdamW(decayed(ours), lr=0.1), torch.optim.AdamW(decayed(theirs), lr=0.1)
    schedulers = [SCHEDULERS[name](o) for o in (optimizer, reference)]
    data = spoiled(batches(20), 0, 7, 8)
    trainer = trainer_of(ours, optimizer, schedulers[0], data, nonfinite="skip")
    trainer.train()
    assert trainer.history[-1]["skipped"] == 3
    assert rates(trainer) == torch_loop(theirs, reference, schedulers[1], data)
    assert schedulers[0].last_epoch == schedulers[1].last_epoch == 17
    assert apart(ours, theirs) <= 1e-10


def test_sch_5_on_a_plateau_the_rate_falls_after_a_validation_and_by_its_loss() -> None:
    module = network()
    optimizer = optim.SGD(module.parameters(), lr=1.0)
    scheduler = SCHEDULERS["ReduceLROnPlateau"](optimizer)  # two in vain are allowed

    def objective(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.0 * m(batch[0]).mean() + (0.0 if m.training else 5.0)

    trainer = trainer_of(
        module, optimizer, scheduler, loss_fn=None, objective=objective, val_loader=batches(1), eval_interval=2
    )
    trainer.train()
    assert scheduler.best == 5.0
    assert rates(trainer) == [1.0] * 8 + [0.5] * 4


# --- what is changed by hand


@pytest.mark.parametrize("kind", [optim.AdamW, torch.optim.AdamW])
def test_a_callback_that_edits_a_group_is_obeyed_at_the_next_update(kind: Any) -> None:
    def edit(update: int, optimizer: Optimizer) -> None:
        if update == 3:
            optimizer.param_groups[0]["lr"] = 0.5
        if update == 6:
            optimizer.param_groups[0]["weight_decay"] = 0.7
            optimizer.param_groups[1]["betas"] = (0.5, 0.9)

    ours, theirs = network(), network()
    optimizer, reference = kind(decayed(ours), lr=0.1), torch.optim.AdamW(decayed(theirs), lr=0.1)
    trainer = trainer_of(ours, optimizer, callbacks=[by_hand(edit)])
    trainer.train()
    assert rates(trainer) == torch_loop(theirs, reference, None, batches(12), between=edit) == [0.1] * 3 + [0.5] * 9
    assert apart(ours, theirs) <= 1e-10


def test_values_in_tensors_are_obeyed_when_they_change_in_place() -> None:
    def edit(update: int, optimizer: Optimizer) -> None:
        group, wide = optimizer.param_groups[0], torch.float64
        if update == 0 and not isinstance(group["lr"], Tensor):
            group["lr"], group["betas"] = torch.tensor(0.1, dtype=wide), (torch.tensor(0.9, dtype=wide), 0.999)
        if update == 3:
            group["lr"].fill_(0.5)
        if update == 6:
            group["betas"][0].fill_(0.5)

    ours, theirs = network(), network()
    optimizer, reference = optim.AdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters(), foreach=False)
    edit(0, optimizer)
    trainer = trainer_of(ours, optimizer, callbacks=[by_hand(edit)])
    trainer.train()
    assert rates(trainer) == torch_loop(theirs, reference, None, batches(12), between=edit)
    assert apart(ours, theirs) <= 1e-10


def test_groups_and_what_they_hold_are_the_same_objects_after_training() -> None:
    module = network()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, foreach=False)
    (group,) = optimizer.param_groups
    trainer_of(module, optimizer).train()
    assert optimizer.param_groups[0] is group
    assert group["lr"] is rate


def test_two_groups_are_both_recorded_and_the_first_is_the_rate() -> None:
    module = network()
    first, *rest = module.parameters()
    optimizer = optim.SGD([{"params": [first], "lr": 0.3}, {"params": rest}], lr=0.2)
    trainer = trainer_of(module, optimizer, StepLR(optimizer, 1, 0.5), max_steps=2)
    trainer.train()
    names = ("learning_rate", "learning_rate/0", "learning_rate/1")
    assert [tuple(record[name] for name in names) for record in trainer.history] == [(0.3, 0.3, 0.2), (0.15, 0.15, 0.1)]


# --- which parameters


@pytest.mark.parametrize("kind", [optim.AdamW, torch.optim.AdamW])
def test_what_the_optimizer_does_not_have_and_what_is_frozen_stays_bit_for_bit(kind: Any) -> None:
    ours, theirs = network(), network()
    for module in (ours, theirs):
        module[4].bias.requires_grad_(False)
    before = copy.deepcopy(ours.state_dict())
    optimizer, reference = (
        cls([m[4].weight, m[4].bias, *m[1].parameters()], lr=0.1)
        for cls, m in ((kind, ours), (torch.optim.AdamW, theirs))
    )  # neither has the first layer
    trainer_of(ours, optimizer).train()
    torch_loop(theirs, reference, None, batches(12))
    kept = {name for name, x in ours.state_dict().items() if torch.equal(x, before[name])}
    assert kept == {"0.weight", "0.bias", "4.bias"}
    assert apart(ours, theirs) <= 1e-10
    assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys() == {0, 2, 3}


@pytest.mark.parametrize("tx", [lion(0.05, weight_decay=0.1), chain(clip_by_global_norm(0.3), adam(0.05))], ids=str)
def test_a_rule_as_a_torch_optimizer_trains_bit_for_bit_as_the_rule(tx: Any) -> None:
    face, pure = network(), network()
    trainer_of(face, TorchOptimizer(face.parameters(), tx)).train()
    trainer_of(pure, tx).train()
    assert_bitwise(face.state_dict(), pure.state_dict())


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.long
@pytest.mark.inductor
@pytest.mark.parametrize("k", [1, 2])
def test_a_compiled_run_is_the_eager_one_and_compiles_nothing_again_as_rate_and_beta_change(k: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    modules, used, graphs = [network(), network()], [], []
    for module, compiled in zip(modules, (False, True), strict=True):
        optimizer = configure_optimizer(module, "adamw", lr=0.05, weight_decay=0.1)
        note = [lambda event, trainer: graphs.append(compiled_graphs()) if event == "update" else None]
        trainer = trainer_of(
            module, optimizer, one_cycle(optimizer), grad_accum_steps=k, compile=compiled, callbacks=note
        )
        trainer.train()
        used.append(rates(trainer))
    assert used[0] == used[1]
    assert len(set(used[1])) == 12 // k
    assert set(graphs[12 // k :]) == {1 if k == 1 else 3}  # from the first update on
    assert apart(*modules) <= 1e-5
