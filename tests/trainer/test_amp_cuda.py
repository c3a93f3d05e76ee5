"""Mixed precision, checkpoints and waiting, where there is an accelerator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from functrain import tree
from tests.networks import NormNet, points
from tests.trainer.test_amp import guard_of, numbers, same, set_scale

pytestmark = pytest.mark.cuda
CUDA = "cuda:0"


def batches(n: int, device: str = CUDA) -> list[tuple[Tensor, ...]]:
    """On the device already: what a copy waits for is not the trainer's matter."""
    return [tuple(x.to(device) for x in points(seed=i)) for i in range(n)]


def trainer_of(data: Any, device: str = CUDA, optimizer: Any = None, **kwargs: Any) -> ft.Trainer:
    torch.manual_seed(0)
    module = NormNet()
    given = {"loss_fn": F.mse_loss, "max_epochs": 1} | kwargs
    made = ft.adamw(0.05) if optimizer is None else optimizer(module.to(device).parameters())
    return ft.Trainer(module, made, data, device=device, **given)


def on_cpu(tensors: Any) -> Any:
    return tree.map(lambda x: x.cpu(), tensors)


class Scaled(nn.Module):
    """Its gradient is the batch, taken in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w.half() * x.half()).float().sum()


def test_amp_5_scales_are_those_of_torchs_grad_scaler_on_the_device() -> None:
    xs = [1.0, 0.5, math.inf, 2.0, 0.5, math.nan, *[0.25] * 8, 64.0, 0.5]
    data = [torch.tensor([x, 0.0], device=CUDA) for x in xs]
    module = Scaled().to(CUDA)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cuda")
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 1994})
    scales = []
    for x in data:
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        scaler.scale(module(x)).backward()
        scaler.step(optimizer)
        scaler.update()

    trainer = ft.Trainer(Scaled(), ft.sgd(1.0), data, device=CUDA, max_epochs=1, precision="fp16", log_interval=1)
    set_scale(trainer, 2.0**16, 1994)
    trainer.train()
    assert numbers(trainer, "loss_scale") == scales
    assert guard_of(trainer)[:2] == [scaler.get_scale(), scaler.state_dict()["_growth_tracker"]]
    assert torch.equal(trainer.state.params["w"], module.w.detach())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_torchs_loop_under_autocast(precision: Any) -> None:
    """fp16 by torch's own recipe of autocast, GradScaler and AdamW; to the rounding of half-precision products."""
    data = batches(8)
    torch.manual_seed(0)
    module = NormNet().to(CUDA)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    for x, y in data:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16 if precision == "fp16" else torch.bfloat16):
            loss = F.mse_loss(module(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    trainer = trainer_of(
        data, precision=precision, optimizer=lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)
    )
    trainer.train()
    assert guard_of(trainer)[2:] == [0, 0]
    # Adam's first updates are the sign of the gradient times the rate, and a small gradient's sign is rounding.
    for name, x in module.named_parameters():
        torch.testing.assert_close(trainer.state.params[name], x.detach(), rtol=0.02, atol=0.005)


def test_amp_3_an_overflow_on_the_device_changes_no_bit_but_the_guards() -> None:
    trainer = trainer_of(batches(6), precision="fp16", ema_decay=0.9, max_steps=3)
    trainer.train()
    set_scale(trainer, 2.0**100, 7)
    before = tree.map(torch.clone, trainer.state)
    trainer.cadence = trainer.cadence._replace(max_steps=4)
    trainer.train()
    for part in ("params", "buffers", "opt_state"):
        assert same(getattr(trainer.state, part), getattr(before, part)), part
    assert guard_of(trainer) == [2.0**99, 0, 1, 1]


def test_use_amp_is_bf16_where_the_device_computes_it_natively_and_else_fp16() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    trainer = trainer_of(batches(2), use_amp=True)
    assert trainer.precision == ("bf16" if native else "fp16")
    trainer.train()
    assert trainer.history[-1]["loss_scale"] == (1.0 if native else 2.0**16)


# --- checkpoints go from device to device


@pytest.mark.parametrize("optimizer", [None, lambda params: torch.optim.AdamW(params, lr=0.05)], ids=["rule", "torchs"])
@pytest.mark.parametrize("background", [False, True])
def test_ckpt_9_a_run_goes_from_cuda_to_the_cpu_and_back(optimizer: Any, background: bool, tmp_path: Path) -> None:
    kwargs: Any = {"optimizer": optimizer, "precision": "fp16", "ema_decay": 0.9, "save_async": background}
    first = trainer_of(batches(6), max_steps=2, save_dir=tmp_path / "a", **kwargs)
    first.train()

    second = trainer_of(
        batches(6, "cpu"), "cpu", max_steps=4, save_dir=tmp_path / "b", resume=tmp_path / "a" / "last.pt", **kwargs
    )
    assert {x.device.type for x in tree.leaves(second.state)} == {"cpu"}
    assert same(second.state, on_cpu(first.state))
    assert second.history == first.history
    second.train()

    third = trainer_of(batches(6), save_dir=tmp_path / "c", resume=tmp_path / "b" / "last.pt", **kwargs)
    assert same(on_cpu(third.state), second.state)
    for name, x in third.state.params.items():
        assert x.device == torch.device(CUDA), name
    third.train()
    assert third.updates == 6
    assert third.updates - third.state.guard.skipped.item() >= 4


def test_a_run_that_goes_back_has_its_state_on_the_device(tmp_path: Path) -> None:
    data = batches(6)
    data[3] = (data[3][0] * math.nan, data[3][1])
    trainer = trainer_of(data, nonfinite="rollback", save_dir=tmp_path, save_interval=2, log_interval=5)
    trainer.train()
    plain = trainer_of(data[:2] + data[4:])
    plain.train()
    for part in ("params", "buffers", "opt_state"):
        assert same(getattr(trainer.state, part), getattr(plain.state, part)), part
    assert guard_of(trainer)[2:] == [2, 0]


# --- nobody waits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "fp16", "max_grad_norm": 0.1},
        {"nonfinite": "skip", "ema_decay": 0.9, "grad_accum_steps": 2, "short_window": "carry"},
        {"optimizer": lambda params: torch.optim.AdamW(params, lr=0.05)},
    ],
    ids=["raise", "fp16", "skip", "a torch optimizer"],
)
def test_nan_4_no_update_between_looks_waits_for_the_device(settings: dict[str, Any]) -> None:
    def watch(event: str, trainer: ft.Trainer) -> None:
        """From the third update, when all has been set up, to the last but one: a wait in between is an error."""
        if event == "update" and trainer.updates in (3, 9):
            torch.cuda.set_sync_debug_mode("error" if trainer.updates == 3 else "default")

    data = batches(10 * settings.get("grad_accum_steps", 1))
    trainer = trainer_of(data, callbacks=[watch], log_interval=100, **settings)
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.updates == 10


def test_a_record_tells_the_memory_in_bytes() -> None:
    torch.cuda.reset_peak_memory_stats(CUDA)
    big = torch.empty(1 << 22, device=CUDA)  # 16 MiB
    trainer = trainer_of(batches(2))
    trainer.train()
    assert trainer.history[-1]["memory"] == torch.cuda.max_memory_allocated(CUDA)
    assert trainer.history[-1]["memory"] >= big.nbytes
