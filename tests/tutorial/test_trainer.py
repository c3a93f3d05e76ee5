"""The trainer from scratch beside `ft.Trainer`: the same weights of the same data; and going on from its files."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain.tutorial import AdamWFromScratch, SGDFromScratch, TrainerFromScratch, warmup_cosine
from tests.networks import NormNet, mlp

ROOT = Path(__file__).parent.parent.parent
Batch = tuple[Tensor, Tensor]
EPOCHS = 3
RAGGED = [8, 8, 8, 8, 8, 3, 8, 8, 5]  # rows: windows of 4, 4 and 1; a short batch in the middle, and one at the end


def batches(sizes: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 3, generator=draw, dtype=torch.float64)
    y = torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1)
    return list(zip(x.to(dtype).split(list(sizes)), y.to(dtype).split(list(sizes)), strict=True))


def both(module: nn.Module, mine: Any, tx: Any, given: Any, *, theirs: Any = None, **settings: Any) -> Any:
    """The two trainers, trained, each with a module that began alike."""
    twin = type(module)() if isinstance(module, NormNet) else mlp(3, 16, 2)
    twin.to(next(module.parameters()).dtype).load_state_dict(module.state_dict())
    scratch = TrainerFromScratch(
        module, mine(module.parameters()), given, given[:2], "cpu", EPOCHS, loss_fn=F.mse_loss, **settings
    )
    scratch.train()
    shared = {name: x for name, x in settings.items() if name not in ("scheduler", "amp_dtype", "use_amp")}
    real = ft.Trainer(
        twin, tx, given, given[:2], None, "cpu", loss_fn=F.mse_loss, max_epochs=EPOCHS, log_interval=1,
        **shared, **(theirs or {}),
    )  # fmt: skip
    real.train()
    return scratch, real


def assert_same(scratch: TrainerFromScratch, real: ft.Trainer, rtol: float = 1e-12) -> None:
    """Parameters, buffers, and what was recorded."""
    for name, x in real.model.module.state_dict().items():
        torch.testing.assert_close(scratch.model.state_dict()[name], x, rtol=rtol, atol=rtol)
    for key in ("loss", "grad_norm", "learning_rate", "val_loss"):
        recorded = [[row[key] for row in rows if key in row] for rows in (scratch.history, real.history)]
        assert recorded[0] == pytest.approx(recorded[1], rel=max(rtol, 1e-12)), key


SCHEDULE = warmup_cosine(0.05, warmup=2, total=9)
THEIRS = ft.schedules.warmup_cosine_decay_schedule(0.0, 0.05, 2, 9)
OPTIMIZERS: dict[str, Any] = {
    "sgd": (lambda p: SGDFromScratch(p, 0.0, 0.9, nesterov=True), ft.sgd(THEIRS, 0.9, nesterov=True)),
    "adamw": (lambda p: AdamWFromScratch(p, 0.0, weight_decay=0.1), ft.adamw(THEIRS, weight_decay=0.1)),
}


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulation_clipping_schedule_and_ragged_windows_give_the_weights_of_ft_trainer(
    optimizer: str, k: int
) -> None:
    torch.manual_seed(0)
    mine, tx = OPTIMIZERS[optimizer]
    scratch, real = both(
        NormNet(dtype=torch.float64), mine, tx, batches(RAGGED), grad_accum_steps=k, max_grad_norm=1.2,
        scheduler=SCHEDULE,
    )  # fmt: skip
    assert_same(scratch, real)
    norms = [row["grad_norm"] for row in scratch.history if "grad_norm" in row]
    assert len(norms) == EPOCHS * -(-9 // k)
    assert min(norms) < 1.2 < max(norms)  # some were clipped, others were not


AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", [None, *AMP])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_float32_and_mixed_precision_they_are_those_of_ft_trainer_to_the_bit(
    optimizer: str, precision: str | None
) -> None:
    """Batches of 8 rows: a mean times 8 and divided by 8, as ft.Trainer carries it, is the mean."""
    torch.manual_seed(0)
    mine, tx = OPTIMIZERS[optimizer]
    settings = {} if precision is None else {"use_amp": True, "amp_dtype": AMP[precision]}
    module = mlp(3, 16, 2) if precision == "fp16" else NormNet()  # for BatchNorm and overflows see test_trainer_claims
    scratch, real = both(
        module, mine, tx, batches([8] * 6, torch.float32), max_grad_norm=0.5, scheduler=SCHEDULE,
        theirs={"precision": precision}, **settings,
    )  # fmt: skip
    for name, x in real.model.module.state_dict().items():
        assert torch.equal(scratch.model.state_dict()[name], x), name
    assert_same(scratch, real, rtol=1e-6)


def test_use_amp_on_a_cpu_is_that_of_ft_trainer() -> None:
    torch.manual_seed(0)
    mine, tx = OPTIMIZERS["sgd"]
    scratch, real = both(
        mlp(3, 16, 2), mine, tx, batches([8] * 4, torch.float32), scheduler=SCHEDULE, use_amp=True,
        theirs={"use_amp": True},
    )  # fmt: skip
    assert all(torch.equal(scratch.model.state_dict()[name], x) for name, x in real.model.module.state_dict().items())


def test_overflows_halve_the_scale_and_skip_the_updates_that_ft_trainer_skips() -> None:
    """Targets of 3000: gradients that float16 has only with a scale of less than 2¹⁶."""
    torch.manual_seed(0)
    given = [(x, 3e3 * y) for x, y in batches([8] * 6, torch.float32)]
    scratch, real = both(
        mlp(3, 16, 2), lambda p: SGDFromScratch(p, 1e-8), ft.sgd(1e-8), given, use_amp=True, amp_dtype=torch.float16,
        theirs={"precision": "fp16"},
    )  # fmt: skip
    rows = [row for row in scratch.history if "loss" in row]
    guard = real.state.guard
    assert sum(row["skipped"] for row in rows) == guard.skipped.item() > 1
    assert (scratch.scale, scratch.good_updates) == (guard.scale.item(), guard.good_steps.item())
    assert 1 < scratch.scale < 2**16
    assert scratch.updates == real.updates - guard.skipped.item()
    assert all(torch.equal(scratch.model.state_dict()[name], x) for name, x in real.model.module.state_dict().items())


def test_the_scale_doubles_after_2000_updates_without_overflow() -> None:
    model = nn.Linear(1, 1)
    trainer = TrainerFromScratch(
        model, SGDFromScratch(model.parameters(), 0.0), [], use_amp=True, amp_dtype=torch.float16, loss_fn=F.mse_loss
    )
    trainer.good_updates = 1998
    window = [(torch.ones(1, 1), model(torch.ones(1, 1)).detach())]  # no error, no gradient
    scales = []
    for _ in range(4):
        trainer.update(window)
        scales.append(trainer.scale)
    assert scales == [2.0**16, 2.0**17, 2.0**17, 2.0**17]


@pytest.mark.parametrize(("peak", "warmup", "total"), [(3e-3, 10, 100), (0.1, 1, 7), (0.1, 0, 5)])
def test_the_schedule_is_functrains_at_every_update(peak: float, warmup: int, total: int) -> None:
    mine = warmup_cosine(peak, warmup, total)
    theirs = ft.schedules.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total)
    for u in range(total + 5):
        assert mine(u) == pytest.approx(float(theirs(torch.tensor(u, dtype=torch.int32))), rel=1e-12, abs=1e-15)


# --- going on


def shuffled(trainer: type[TrainerFromScratch], save_dir: Path | None, epochs: int, **settings: Any) -> Any:
    """A run in which everything is random that can be: dropout, and the order of samples."""
    torch.manual_seed(3)
    model = NormNet(dropout=0.2)
    x, y = (torch.cat(parts) for parts in zip(*batches([64], torch.float32), strict=True))
    train = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    val = DataLoader(TensorDataset(x, y), batch_size=24)
    optimizer = AdamWFromScratch(model.parameters(), lr=0.01)
    return trainer(
        model, optimizer, train, val, "cpu", epochs, loss_fn=F.mse_loss, grad_accum_steps=3, max_grad_norm=1.0,
        scheduler=warmup_cosine(0.02, 3, 18), use_amp=True, amp_dtype=torch.float16, save_dir=save_dir, **settings,
    )  # fmt: skip


def assert_same_run(resumed: Any, whole: Any) -> None:
    for part in ("model", "optimizer"):
        ours, theirs = (ft.tree.leaves(getattr(t, part).state_dict()) for t in (resumed, whole))
        assert all(itertools.starmap(torch.equal, zip(ours, theirs, strict=True)))
    for name in ("epoch", "updates", "best", "scale", "good_updates", "history"):
        assert getattr(resumed, name) == getattr(whole, name), name


def test_a_run_that_goes_on_from_its_file_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = shuffled(TrainerFromScratch, None, 6)
    whole.train()
    shuffled(TrainerFromScratch, tmp_path, 2).train()
    resumed = shuffled(TrainerFromScratch, tmp_path, 6)
    torch.manual_seed(99)  # the new process has done other things
    resumed.load_checkpoint(tmp_path / "last.pt")
    resumed.train()
    assert_same_run(resumed, whole)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "best_model.pt"}


def test_best_model_is_that_of_the_least_validation_loss(tmp_path: Path) -> None:
    trainer = shuffled(TrainerFromScratch, tmp_path, 6)
    trainer.train()
    losses = [row["val_loss"] for row in trainer.history if "val_loss" in row]
    assert len(losses) == 6
    assert trainer.best == min(losses)
    again = shuffled(TrainerFromScratch, None, 6)
    again.load_checkpoint(tmp_path / "best_model.pt")
    assert again.evaluate() == min(losses)
    assert again.epoch == losses.index(min(losses)) + 1


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_in_another_process(tmp_path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from functrain.tutorial import TrainerFromScratch
        from tests.tutorial.test_trainer import shuffled

        class Killed(TrainerFromScratch):
            def update(self, window):
                if self.epoch == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().update(window)

        trainer = shuffled(Killed, Path(sys.argv[1]), 6)
        trainer.train()
    """
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert run.returncode == -9
    whole, resumed = shuffled(TrainerFromScratch, None, 6), shuffled(TrainerFromScratch, tmp_path, 6)
    whole.train()
    resumed.load_checkpoint(tmp_path / "last.pt")
    assert resumed.epoch == 3
    resumed.train()
    assert_same_run(resumed, whole)
