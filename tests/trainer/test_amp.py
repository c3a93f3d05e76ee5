"""Mixed precision in a run: an overflow leaves no trace but in the guard, and without float16 nothing scales."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from functrain import tree
from functrain.precision import GROWTH_INTERVAL
from tests.networks import NormNet, points

INF = math.inf


class Weight(nn.Module):
    """Two numbers; a batch multiplies them, so that it is their gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum()


def weighted(batches: Iterable[object], tx: Any = None, **kwargs: Any) -> ft.Trainer:
    """A run whose gradient is the batch."""
    return ft.Trainer(Weight(), ft.sgd(1.0) if tx is None else tx, batches, **{"max_epochs": 1} | kwargs)


def gradients(*xs: float) -> list[Tensor]:
    """Batches whose gradients these are, at the first number."""
    return [torch.tensor([x, 0.0]) for x in xs]


def same(a: object, b: object) -> bool:
    """The same leaves, bit for bit."""
    return tree.keys(a) == tree.keys(b) and all(map(torch.equal, tree.leaves(a), tree.leaves(b)))


def set_scale(trainer: ft.Trainer, scale: float, good_steps: int = 0) -> None:
    guard = trainer.state.guard
    trainer.state = trainer.state._replace(
        guard=guard._replace(
            scale=torch.full_like(guard.scale, scale), good_steps=torch.full_like(guard.good_steps, good_steps)
        )
    )


def numbers(trainer: ft.Trainer, name: str) -> list[Any]:
    return [record[name] for record in trainer.history if "loss" in record]


def guard_of(trainer: ft.Trainer) -> list[float]:
    return [x.item() for x in trainer.state.guard]


# --- an overflow

RULES = {
    "sgd": ft.sgd(lambda t: 0.01 * (1 + t), momentum=0.9),
    "adamw": ft.adamw(lambda t: 0.1 / (1 + t)),
    "amsgrad": ft.amsgrad(0.1),
    "nadam": ft.nadam(0.1),
    "adan": ft.adan(0.1),
    "radam": ft.radam(0.1),
    "adabelief": ft.adabelief(0.1),
    "yogi": ft.yogi(0.1),
    "lion": ft.lion(0.1),
    "adadelta": ft.adadelta(0.1),
    "adafactor": ft.adafactor(0.1),
    "rmsprop": ft.rmsprop(0.001, momentum=0.9),
    "lamb": ft.lamb(0.1),
    "novograd": ft.novograd(0.1),
    "schedule_free": ft.schedule_free_adamw(0.1),
    "inject_hyperparams": ft.inject_hyperparams(ft.adam)(lambda t: 0.1 + t),
    "partition": ft.partition(
        {"a": ft.lion(0.1), "b": ft.adam(0.1)}, lambda params: {name: "ab"[x.ndim % 2] for name, x in params.items()}
    ),
}
CLASSES = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD"]


def normed(optimizer: Any, module: nn.Module | None = None, **kwargs: Any) -> ft.Trainer:
    """Three updates of a module with BatchNorm."""
    data = [points(seed=i) for i in range(8)]
    given = {"precision": "fp16", "max_epochs": None, "max_steps": 3, "loss_fn": F.mse_loss, "ema_decay": 0.5} | kwargs
    return ft.Trainer(NormNet() if module is None else module, optimizer, data, **given)


def overflow(trainer: ft.Trainer) -> ft.TrainState:
    """Three updates, then one that overflows: the state before it."""
    trainer.train()
    assert trainer.state.guard.skipped.item() == 0
    set_scale(trainer, 2.0**100, good_steps=7)
    trainer.state = trainer.driver.before(trainer.state)  # it has the rate that a scheduler has set
    before = tree.map(torch.clone, trainer.state)
    trainer.cadence = trainer.cadence._replace(max_steps=4)
    trainer.train()
    return before


def unchanged_but_for_the_guard(trainer: ft.Trainer, before: ft.TrainState) -> None:
    after = trainer.state
    for part in ("params", "frozen", "buffers", "opt_state", "seed"):
        assert same(getattr(after, part), getattr(before, part)), part
    assert guard_of(trainer) == [2.0**99, 0, 1, 1]
    assert (after.step.item(), after.buffers["norm.num_batches_tracked"].item()) == (4, 3)
    record = trainer.history[-1]
    assert math.isfinite(record["loss"])  # the gradient alone overflowed
    assert not math.isfinite(record["grad_norm"])
    assert (record["loss_scale"], record["skipped"]) == (2.0**100, 1)


@pytest.mark.parametrize("name", RULES)
def test_amp_3_an_overflow_halves_the_scale_and_no_other_bit_changes(name: str) -> None:
    torch.manual_seed(0)
    trainer = normed(RULES[name])
    first = tree.map(torch.clone, trainer.state)
    before = overflow(trainer)
    assert not same(before.opt_state, first.opt_state)  # there was something to lose
    assert not same(before.buffers, first.buffers)
    unchanged_but_for_the_guard(trainer, before)


@pytest.mark.parametrize("family", [ft.optim, torch.optim], ids=["ours", "torchs"])
@pytest.mark.parametrize("name", CLASSES)
def test_amp_3_an_overflow_leaves_a_torch_optimizer_and_does_not_step_its_scheduler(name: str, family: Any) -> None:
    torch.manual_seed(0)
    module = NormNet()
    optimizer = getattr(family, name)(module.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = normed(optimizer, module, scheduler=scheduler)
    seen: list[Any] = []
    trainer.callbacks.append(lambda event, t: seen.append((scheduler.last_epoch, optimizer.param_groups[0]["lr"])))
    before = overflow(trainer)
    unchanged_but_for_the_guard(trainer, before)
    assert set(seen[3:]) == {(3, 1e-2 / 8)}  # the end of three updates, and all of the fourth
    steps = [state["step"] for state in optimizer.state_dict()["state"].values() if "step" in state]
    assert all(int(step) == 3 for step in steps)


@pytest.mark.long
@pytest.mark.inductor
def test_amp_3_an_overflow_in_a_compiled_run_changes_no_other_bit_either() -> None:
    torch.manual_seed(0)
    trainer = normed(RULES["adamw"], compile=True)
    unchanged_but_for_the_guard(trainer, overflow(trainer))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights_nearly_as_float32_does(precision: Any) -> None:
    weights = []
    for chosen in (None, precision):
        torch.manual_seed(0)
        trainer = normed(ft.sgd(0.1), precision=chosen, max_steps=8)
        trainer.train()
        weights.append(trainer.state.params["head.weight"])
    assert weights[1].dtype is torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0.05, atol=0.02)


# --- without a scaler


@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
def test_amp_4_without_fp16_the_scale_is_neither_used_nor_changed(precision: Any) -> None:
    found = []
    for scale in (65536.0, 2.0**100, math.nan):
        trainer = weighted(
            gradients(1, INF, 2, 4), ft.adamw(0.1), precision=precision, log_interval=1, nonfinite="skip"
        )
        set_scale(trainer, scale, good_steps=GROWTH_INTERVAL - 1)
        trainer.train()
        assert numbers(trainer, "loss_scale") == [1.0] * 4
        assert numbers(trainer, "skipped") == [0, 1, 1, 1]
        kept, good_steps, *_ = guard_of(trainer)
        assert str((kept, good_steps)) == str((scale, GROWTH_INTERVAL - 1))  # as text: NaN is NaN
        found.append((trainer.state.params, trainer.state.opt_state))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.parametrize("source", [None, "bf16", "fp16"])
@pytest.mark.parametrize("target", [None, "bf16", "fp16"])
def test_amp_4_a_checkpoint_of_any_precision_loads_into_any_and_the_guard_is_the_files(
    source: Any, target: Any, tmp_path: Path
) -> None:
    batches = gradients(1, 2, INF, 4, 8)
    first = weighted(batches, ft.adam(0.1), precision=source, nonfinite="skip", max_steps=4, save_dir=tmp_path)
    first.train()
    expected = [2.0**15, 1, 1, 0] if source == "fp16" else [2.0**16, 0, 1, 0]
    assert guard_of(first) == expected

    second = weighted(batches, ft.adam(0.1), precision=target, nonfinite="skip", resume=tmp_path / "last.pt")
    assert same(second.state, first.state)
    second.train()
    scale, good_steps, *counts = expected
    assert guard_of(second) == [scale, good_steps + (target == "fp16"), *counts]
    assert second.history[-1]["loss_scale"] == (scale if target == "fp16" else 1.0)
    assert second.updates == 5


def test_amp_4_a_scale_survives_a_while_without_fp16(tmp_path: Path) -> None:
    batches = gradients(*[1.0] * 6)
    for i, precision in enumerate(["fp16", "bf16", "fp16"], 1):
        resume = "auto" if i > 1 else None
        trainer = weighted(batches, precision=precision, max_steps=2 * i, save_dir=tmp_path, resume=resume)
        if i == 1:
            set_scale(trainer, 2.0**9, good_steps=3)
        trainer.train()
    assert guard_of(trainer) == [2.0**9, 7, 0, 0]


def test_use_amp_is_bf16_on_a_cpu_and_no_second_word_on_precision() -> None:
    trainer = weighted(gradients(1), use_amp=True)
    assert trainer.precision == "bf16"
    trainer.train()
    assert trainer.history[0]["loss_scale"] == 1.0
    message = "Trainer: use_amp and precision='fp16' are both given; hint: precision alone says all"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        weighted(gradients(1), use_amp=True, precision="fp16")


def test_a_run_whose_parameters_are_bfloat16_is_saved_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    policy = ft.Precision(param=torch.bfloat16, compute=torch.float32)

    def run(**kwargs: Any) -> ft.Trainer:
        torch.manual_seed(0)
        trainer = normed(ft.adamw(0.1), precision=policy, **kwargs)
        trainer.train()
        return trainer

    whole = run(max_steps=6)
    run(max_steps=2, save_dir=tmp_path)
    resumed = run(max_steps=6, save_dir=tmp_path, resume="auto")
    assert {x.dtype for x in whole.state.params.values()} == {torch.bfloat16}
    assert same(resumed.state, whole.state)
    for name, x in resumed.model.module.named_parameters():  # float32, as the module was built
        assert torch.equal(x, whole.state.params[name].float())
    with pytest.raises(ft.CheckpointError, match="bfloat16"):
        normed(ft.adamw(0.1), precision=None, resume=tmp_path / "last.pt")
