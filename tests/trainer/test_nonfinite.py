"""Numbers that are not finite: nothing is lost, the error names what there is to name, and nobody waits for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import functrain as ft
from functrain import tree
from functrain.run.journal import FULL
from functrain.run.nonfinite import NonFiniteError
from tests.networks import NormNet, points
from tests.trainer.test_amp import gradients, guard_of, numbers, same, weighted

NAN, INF = math.nan, math.inf
CAUSES: dict[str, Callable[[Tensor], Tensor]] = {  # what is added to the loss; the weights are w
    "loss nan": lambda w: w.sum() * NAN,
    "loss inf": lambda w: torch.tensor(INF),  # its gradient is finite
    "loss -inf": lambda w: torch.tensor(-INF),
    "gradient nan": lambda w: (0 * w).sqrt().sum(),
    "gradient inf": lambda w: (w - w.detach()).sqrt().sum(),
}


def hint(in_row: int = 0, most: int = 0) -> str:
    if not in_row:
        return "the parameters are as before it; hint: a smaller rate, max_grad_norm=, or nonfinite='skip' to go on"
    return (
        f"the last {in_row} updates were not, and max_skips={most}; the parameters are as before them; "
        "hint: a smaller rate, max_grad_norm=, or precision='bf16' where float16 overflows"
    )


def told(trainer: ft.Trainer) -> str:
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    return str(caught.value)


# --- raise


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("k", [1, 2])
def test_nan_1_a_loss_or_gradient_that_is_not_finite_changes_no_parameter_no_moment_and_no_buffer(
    cause: str, k: int
) -> None:
    torch.manual_seed(0)
    module = NormNet()
    module.head.bias.requires_grad_(False)
    batches = [(*points(seed=i), cause if i == 3 * k - 1 else "") for i in range(4 * k)]  # in the third update

    def objective(m: nn.Module, batch: Any) -> Tensor:
        x, y, why = batch
        return F.mse_loss(m(x), y) + (CAUSES[why](m.head.weight) if why else 0)

    states: list[ft.TrainState] = []
    trainer = ft.Trainer(
        module, ft.adamw(lambda t: 0.1 / (1 + t)), batches, objective=objective, grad_accum_steps=k, max_epochs=1,
        ema_decay=0.9, callbacks=[lambda event, t: states.append(tree.map(torch.clone, t.state))],
    )  # fmt: skip
    assert "Trainer: update 3 in epoch 1 was not finite: " in told(trainer)
    for part in ("params", "frozen", "buffers", "opt_state", "seed"):
        assert same(getattr(states[2], part), getattr(states[1], part)), part
    assert not same(states[3].params, states[2].params)  # the next is applied
    assert [x.guard.skipped.item() for x in states[:4]] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("cause", "loss", "norm"),
    [
        ("loss nan", "nan", "nan"),
        ("loss inf", "inf", "2.0"),
        ("loss -inf", "-inf", "2.0"),
        ("gradient nan", "-2.0", "nan"),
        ("gradient inf", "-2.0", "inf"),
    ],
)
def test_nan_1_the_error_names_update_epoch_loss_and_gradient_norm(cause: str, loss: str, norm: str) -> None:
    def objective(m: Any, batch: Any) -> Tensor:
        x, why = batch
        return m(x) + (CAUSES[why](m.w[1:]) if why else 0)

    x = torch.tensor([2.0, 0.0])
    batches = [(x, ""), (x, cause)]
    trainer = weighted(batches, ft.sgd(0.5), objective=objective, max_epochs=3, log_interval=100)
    start = f"Trainer: update 2 in epoch 1 was not finite: loss {loss}, gradient norm {norm}; "
    assert told(trainer) == start + hint()
    assert trainer.model.module.w.tolist() == [-1.0, 0.0]  # the module has what was good


def saves(event: str, trainer: ft.Trainer) -> None:
    if event == "update" and trainer.updates == 4:
        trainer.save_checkpoint()


LOOKS: dict[str, dict[str, Any]] = {
    "log": {"log_interval": 4},
    "validation": {"eval_interval": 4, "val_loader": gradients(1)},
    "save": {"save_interval": 4, "save_dir": "."},
    "save in the background": {"save_interval": 4, "save_dir": ".", "save_async": True},
    "save by hand": {"callbacks": [saves]},
    "end": {"max_steps": 4},
    "stop": {"callbacks": [lambda event, trainer: trainer.updates == 4 and trainer.stop()]},
}


@pytest.mark.parametrize("look", LOOKS)
def test_nan_1_it_is_an_error_at_the_next_look(look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = weighted(gradients(1, 1, NAN, 1, 1, 1), **LOOKS[look])
    assert told(trainer) == "Trainer: update 3 in epoch 1 was not finite: loss nan, gradient norm nan; " + hint()
    assert trainer.updates == 4
    assert trainer.history == []
    assert not list(tmp_path.glob("*.pt"))


def test_nan_1_an_epochs_end_is_a_look_and_so_are_a_thousand_updates() -> None:
    trainer = weighted(gradients(1, NAN, 1), max_epochs=3)
    assert "update 2 in epoch 1" in told(trainer)
    assert trainer.updates == 3
    trainer = weighted(gradients(1, NAN, *[1.0] * FULL), log_interval=10**6)
    assert "update 2 in epoch 1" in told(trainer)
    assert trainer.updates == FULL


def test_nan_1_after_the_error_the_run_can_be_saved_and_goes_on(tmp_path: Path) -> None:
    batches = gradients(1, NAN, 4, NAN, 16, 32, NAN, 128)  # two are found at the same look, and the first is named
    trainer = weighted(batches, log_interval=5, save_dir=tmp_path)
    assert "update 2 in epoch 1" in told(trainer)
    path = trainer.save_checkpoint()
    for one in (trainer, weighted(batches, log_interval=5, resume=path)):
        assert one.updates == 5
        assert "update 7 in epoch 1" in told(one)
        one.train()  # nothing is left of it
        assert one.model.module.w[0].item() == -(1 + 4 + 16 + 32 + 128)
        assert guard_of(one)[2:] == [3, 0]


# --- skip: at most so many in a row


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_amp_6_more_than_max_skips_in_a_row_are_an_error_that_names_update_and_counts(precision: Any) -> None:
    for nonfinite in ["skip"] if precision is None else ["skip", "raise"]:
        settings: Any = {"nonfinite": nonfinite, "precision": precision, "max_skips": 3, "log_interval": 100}
        trainer = weighted(gradients(1, *[NAN] * 3, 1, *[INF] * 3, 1), **settings)  # not too many
        trainer.train()
        assert (trainer.updates, trainer.state.params["w"][0].item()) == (9, -3)
        assert guard_of(trainer)[2:] == [6, 0]

        trainer = weighted(gradients(1, NAN, 1, *[NAN] * 4, 1), **settings, max_epochs=2)
        start = "Trainer: update 7 in epoch 1 was not finite: loss nan, gradient norm nan; "
        assert told(trainer) == start + hint(4, 3)
        assert (trainer.updates, trainer.state.params["w"][0].item()) == (8, -3)


def test_amp_6_25_in_a_row_are_borne_where_nothing_else_is_said() -> None:
    for bad, good in ((25, True), (26, False)):
        trainer = weighted(gradients(*[NAN] * bad, 1), nonfinite="skip")
        if good:
            trainer.train()
            assert trainer.state.params["w"][0].item() == -1
        else:
            assert told(trainer).endswith(hint(26, 25))


@pytest.mark.parametrize("stop", range(1, 6))
def test_amp_6_a_row_goes_on_through_a_checkpoint(stop: int, tmp_path: Path) -> None:
    batches = gradients(1, *[NAN] * 5, 1)
    kwargs: Any = {"nonfinite": "skip", "max_skips": 4, "save_dir": tmp_path}
    whole = told(weighted(batches, **kwargs))
    assert whole == "Trainer: update 6 in epoch 1 was not finite: loss nan, gradient norm nan; " + hint(5, 4)
    weighted(batches, **kwargs, max_steps=stop).train()
    assert told(weighted(batches, **kwargs, resume="auto")) == whole


def test_amp_6_an_update_after_the_first_too_many_ends_the_row() -> None:
    trainer = weighted(gradients(NAN, NAN, 1, NAN, 1, NAN, NAN), nonfinite="skip", max_skips=1, log_interval=3)
    assert "update 2 in epoch 1" in told(trainer)
    assert "update 7 in epoch 1" in told(trainer)  # and not update 4, which is alone


def test_amp_6_a_window_that_weighs_nothing_neither_adds_to_a_row_nor_ends_it(tmp_path: Path) -> None:
    def objective(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """A window of zeros has no weight."""
        return m(x), (x[0] != 0).float()

    batches = gradients(1, NAN, 0, 0, NAN, 0, NAN, 1)
    kwargs: Any = {"objective": objective, "nonfinite": "skip", "max_skips": 2, "save_dir": tmp_path}
    whole = told(weighted(batches, **kwargs))
    assert whole == "Trainer: update 7 in epoch 1 was not finite: loss nan, gradient norm nan; " + hint(3, 2)
    for stop in range(1, 7):
        weighted(batches, **kwargs, max_steps=stop).train()
        assert told(weighted(batches, **kwargs, resume="auto")) == whole


def test_an_unknown_policy_and_a_count_below_one_are_refused() -> None:
    message = "Trainer: nonfinite must be 'raise', 'skip' or 'rollback', got 'ignore'"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        weighted([], nonfinite="ignore")
    with pytest.raises(ValueError, match=r"^Trainer: max_skips must be an integer >= 1, got 0$"):
        weighted([], max_skips=0)


# --- told as it is


def test_nan_3_nan_and_infinity_are_recorded_written_and_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = weighted(
        gradients(1, NAN, INF), nonfinite="skip", log_interval=1, save_dir=tmp_path, objective=lambda m, x: m(x) + x[0]
    )
    trainer.train()
    assert str(numbers(trainer, "loss")) == "[1.0, nan, nan]"
    assert str(numbers(trainer, "grad_norm")) == "[1.0, nan, inf]"
    assert numbers(trainer, "skipped") == [0, 1, 2]

    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ['"loss": NaN' in row for row in rows] == [False, True, True]
    assert '"grad_norm": Infinity' in rows[2]
    assert str([json.loads(row) for row in rows]) == str(trainer.history)
    again = weighted(gradients(1, NAN, INF), resume=tmp_path / "last.pt")
    assert str(again.history) == str(trainer.history)

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert [re.search(r"loss (\S+) .*\|g\| (\S+)  skip (\d)", line).groups() for line in lines] == [
        ("1.0000", "1.00", "0"), ("nan", "nan", "1"), ("nan", "inf", "2")
    ]  # fmt: skip


# --- nobody waits


class Reads(TorchDispatchMode):
    """Counts tensors that are read on the host. The counters of the host itself, int64, may be: they are never away."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].dtype != torch.int64
        return func(*args, **kwargs or {})


def torchs(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters())


SETTINGS: dict[str, dict[str, Any]] = {
    "raise": {},
    "skip": {"nonfinite": "skip", "grad_accum_steps": 2, "short_window": "carry", "ema_decay": 0.9},
    "rollback": {"nonfinite": "rollback", "save_dir": ".", "short_window": "drop", "grad_accum_steps": 2},
    "fp16": {"precision": "fp16", "max_grad_norm": 0.1},
    "a torch optimizer": {"optimizer": torchs},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_nan_4_between_looks_the_host_reads_what_the_bare_step_reads_and_nothing_more(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**SETTINGS[name]}
    k, make = settings.get("grad_accum_steps", 1), settings.pop("optimizer", lambda module: ft.adamw(0.1))
    extra = []
    for n in (4, 40):
        module = NormNet()
        batches = [points(seed=i) for i in range(n * k)]
        given: Any = {"loss_fn": F.mse_loss, "max_epochs": 1, "log_interval": 10**6} | settings
        trainer = ft.Trainer(module, make(module), batches, **given)
        state = trainer.state
        with Reads() as bare:
            for window in zip(*[iter(batches)] * k, strict=True):
                acc = None
                for batch in window:
                    acc = trainer.step.gradients(state, batch, acc)
                assert acc is not None
                state, _ = trainer.step.apply(state, acc)
        with Reads() as run:
            trainer.train()
        assert trainer.updates == n
        assert bare.count >= n
        extra.append(run.count - bare.count)
    assert extra[0] == extra[1] > 0
