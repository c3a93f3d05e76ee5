"""The loop: what an epoch, a window, a limit, a validation, a signal and a number that is not finite mean."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from functrain import checkpoint, schedules, tree
from functrain.base import GradientTransformation, identity
from functrain.bridge.modules import functionalize
from functrain.checkpoint import CheckpointError
from functrain.optimizers.adaptive import adam, adamw
from functrain.optimizers.momentum import sgd
from functrain.run.journal import NonFiniteError
from functrain.run.streams import capture, streams, to_json
from functrain.trainer import Trainer


class Weight(nn.Module):
    """One number; a batch multiplies it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def product(m: nn.Module, x: Tensor) -> Tensor:
    """The mean of w * x: its gradient is the mean of x."""
    return m(x).mean()


def scalar_trainer(batches: object, lr: float = 1.0, **kwargs: object) -> Trainer:
    kwargs = {"objective": product, "max_epochs": 1} | kwargs
    return Trainer(Weight(torch.float64), sgd(lr), batches, **kwargs)


def ones(*sizes: int) -> list[Tensor]:
    return [torch.ones(n, dtype=torch.float64) for n in sizes]


def weight(trainer: Trainer) -> float:
    return trainer.model.module.w.item()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


def regression(n: int = 22, batch_size: int = 4, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size, shuffle=shuffle)


def net_trainer(**kwargs: object) -> Trainer:
    torch.manual_seed(3)
    kwargs = {"loss_fn": F.mse_loss, "max_epochs": 2} | kwargs
    val = kwargs.pop("val_loader", None)
    return Trainer(Net(), adamw(1e-2), regression(), val, **kwargs)


def same_state(a: Trainer, b: Trainer) -> bool:
    leaves = zip(tree.leaves(a.state), tree.leaves(b.state), strict=True)
    return tree.keys(a.state) == tree.keys(b.state) and all(torch.equal(x, y) for x, y in leaves)


# --- windows


def test_ten_batches_in_windows_of_four_move_the_weight_by_exactly_three() -> None:
    trainer = scalar_trainer(ones(*[1] * 10), grad_accum_steps=4)
    trainer.train()
    assert weight(trainer) == -3.0
    assert trainer.updates == 3


def test_a_window_weighs_its_batches_by_their_length() -> None:
    batches = [torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([10.0]).double()]
    trainer = scalar_trainer(batches, grad_accum_steps=2)
    trainer.train()
    assert weight(trainer) == -4.0  # the mean of four numbers; the mean of means is 6


def test_a_window_of_k_batches_is_one_batch_of_all_of_them() -> None:
    x = torch.randn(10, 3, dtype=torch.float64)
    y = torch.randn(10, 1, dtype=torch.float64)

    def train(batches: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
        torch.manual_seed(0)
        trainer = Trainer(
            nn.Linear(3, 1).double(), adamw(0.1), batches, loss_fn=F.mse_loss, max_epochs=3, grad_accum_steps=k
        )
        trainer.train()
        return trainer.model.module.weight.detach().clone()

    ragged = list(zip(x.split([4, 1, 5]), y.split([4, 1, 5]), strict=True))
    torch.testing.assert_close(train(ragged, 3), train([(x, y)], 1), rtol=1e-12, atol=0)


def test_no_gradient_crosses_an_epochs_end() -> None:
    batches = [torch.tensor([x]).double() for x in (1.0, 2.0, 4.0)]
    trainer = scalar_trainer(batches, grad_accum_steps=2, max_epochs=2)
    trainer.train()
    assert (trainer.updates, weight(trainer)) == (4, -2 * (1.5 + 4.0))


def test_a_rule_that_asks_for_the_loss_again_gets_the_windows() -> None:
    seen = []

    def update(
        updates: object, state: object, params: object, value_fn: Callable[..., Tensor]
    ) -> tuple[object, object]:
        seen.append(value_fn({"w": torch.tensor(2.0).double()}).item())
        return updates, state

    tx = GradientTransformation(lambda params: (), update, needs=("value_fn",))
    batches = [torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([10.0]).double()]
    Trainer(Weight(torch.float64), tx, batches, objective=product, max_epochs=1, grad_accum_steps=2).train()
    assert seen == [8.0]


# --- limits


@pytest.mark.parametrize(
    ("limits", "updates", "epoch"),
    [
        ({"max_epochs": 2}, 10, 3),
        ({"max_epochs": 2, "max_steps": 7}, 7, 2),
        ({"max_epochs": None, "max_steps": 12}, 12, 3),
        ({"max_epochs": 1, "max_steps": 7}, 5, 2),
        ({"max_epochs": 2, "max_steps": 5}, 5, 2),
    ],
)
def test_the_first_limit_ends_the_run(limits: dict[str, int | None], updates: int, epoch: int) -> None:
    trainer = scalar_trainer(ones(*[1] * 5), **limits)
    trainer.train()
    assert (trainer.updates, trainer.epoch, weight(trainer)) == (updates, epoch, -updates)


def test_training_further_goes_on_where_it_ended() -> None:
    whole, parts = net_trainer(max_epochs=None, max_steps=15), net_trainer(max_epochs=None, max_steps=4)
    torch.manual_seed(5)
    whole.train()
    torch.manual_seed(5)
    for n in (4, 6, 12, 15):
        parts.cadence = parts.cadence._replace(max_steps=n)
        parts.train()
        torch.rand(3)  # what is drawn between does not matter
    assert same_state(parts, whole)


def test_a_run_at_its_limit_does_nothing_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = scalar_trainer(ones(1, 1))
    trainer.train()
    capsys.readouterr()
    before = trainer.state
    trainer.train()
    assert trainer.state is before
    assert "nothing to do: the run ends at update 2, and that is where it stands" in capsys.readouterr().err


def test_max_time_ends_a_run_between_two_updates() -> None:
    trainer = scalar_trainer(ones(1, 1), max_epochs=None, max_steps=10**9, max_time=0.05)
    trainer.train()
    assert 0 < trainer.updates < 10**9
    assert weight(trainer) == -trainer.updates


# --- loaders


def test_a_loader_whose_len_raises_is_trained_on() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(ones(1, 1, 1))

    trainer = scalar_trainer(DataLoader(Stream(), batch_size=None), grad_accum_steps=2, max_epochs=2)
    trainer.train()
    assert (trainer.updates, trainer.epoch, weight(trainer)) == (4, 3, -4.0)


def test_a_loader_without_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^Trainer: the train loader yields no batch$"):
        scalar_trainer([]).train()


def test_a_spent_iterator_is_an_error_in_the_second_epoch() -> None:
    message = (
        "Trainer: the train loader is an iterator, and was spent after one epoch; "
        "hint: give something that can be iterated again, such as a DataLoader or a list"
    )
    trainer = scalar_trainer(iter(ones(1, 1)), max_epochs=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.train()
    assert trainer.updates == 2


def test_a_sampler_with_set_epoch_is_told_the_epoch() -> None:
    class Loader(list[Tensor]):
        def __init__(self) -> None:
            super().__init__(ones(1, 1))
            self.told: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.told.append(epoch)

    loader = Loader()
    scalar_trainer(loader, max_epochs=3).train()
    assert loader.told == [0, 1, 2]


# --- losses, precision, clipping


def test_without_loss_fn_the_module_returns_its_loss() -> None:
    class Returns(Weight):
        def __init__(self, how: Callable[[Tensor], object]) -> None:
            super().__init__(torch.float64)
            self.how = how

        def forward(self, x: Tensor) -> object:
            return self.how(self.w * x.mean())

    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    wraps: list[Callable[[Tensor], object]] = [lambda x: x, lambda x: {"loss": x, "logits": None}, Output]
    for how in wraps:
        for batch in (ones(1)[0], ones(1), {"x": ones(1)[0]}):
            trainer = Trainer(Returns(how), sgd(1.0), [batch], max_epochs=1)
            trainer.train()
            assert weight(trainer) == -1.0
    message = "Trainer: the module returned a list without a loss; hint: give loss_fn= or objective="
    with pytest.raises(TypeError, match=re.escape(message)):
        Trainer(Returns(lambda x: [x]), sgd(1.0), ones(1)).train()


def test_clipping_acts_on_the_windows_gradient_once() -> None:
    trainer = scalar_trainer([3 * x for x in ones(1, 1, 1, 1)], grad_accum_steps=4, max_grad_norm=0.5)
    trainer.train()
    assert weight(trainer) == -0.5
    (record,) = trainer.history
    assert (record["grad_norm"], record["max_grad_norm"]) == (3.0, 0.5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights_nearly_as_float32_does(precision: str) -> None:
    weights = []
    for chosen in (None, precision):
        torch.manual_seed(0)
        trainer = Trainer(nn.Linear(3, 1), sgd(0.1), regression(shuffle=False), loss_fn=F.mse_loss, precision=chosen)
        trainer.train()
        weights.append(trainer.state.params["weight"])
    assert weights[1].dtype is torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0.05, atol=0.02)


def test_use_amp_is_bf16_on_a_cpu_and_no_second_word_on_precision() -> None:
    assert scalar_trainer(ones(1), use_amp=True).precision == "bf16"
    message = "Trainer: use_amp and precision='fp16' are both given; hint: precision alone says all"
    with pytest.raises(ValueError, match=re.escape(message)):
        scalar_trainer(ones(1), use_amp=True, precision="fp16")


def test_an_overflow_under_a_loss_scale_is_skipped_and_not_an_error() -> None:
    trainer = scalar_trainer([torch.tensor([x]) for x in (1.0, float("inf"), 1.0)], precision="fp16", log_interval=1)
    trainer.train()
    assert weight(trainer) == -2.0
    assert [r["skipped"] for r in trainer.history] == [0, 1, 1]
    assert [r["loss_scale"] for r in trainer.history] == [2.0**16, 2.0**16, 2.0**15]


def test_a_record_tells_the_rate_that_was_used() -> None:
    rate = schedules.linear_schedule(1.0, 0.0, 4)
    trainer = scalar_trainer(ones(1, 1, 1, 1), lr=rate, log_interval=1)
    trainer.train()
    assert [r["learning_rate"] for r in trainer.history] == [1.0, 0.75, 0.5, 0.25]
    assert weight(trainer) == -2.5


@pytest.mark.long
@pytest.mark.inductor
def test_a_compiled_run_computes_what_an_eager_one_does() -> None:
    def run(compiled: bool) -> Tensor:
        torch.manual_seed(0)
        trainer = Trainer(
            nn.Linear(3, 1), adamw(0.1), regression(24, shuffle=False), regression(24, shuffle=False),
            loss_fn=F.mse_loss, max_epochs=2, grad_accum_steps=3, compile=compiled,
        )  # fmt: skip
        trainer.train()
        return trainer.model.module.weight.detach()

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


# --- numbers that are not finite


def test_a_loss_that_is_not_finite_is_an_error_at_the_next_look() -> None:
    batches = [torch.tensor([x]).double() for x in (1.0, float("nan"), 1.0, 1.0)]
    trainer = scalar_trainer(batches, log_interval=3, max_epochs=2)
    message = (
        "Trainer: update 2 in epoch 1 was not finite: loss nan, gradient norm nan; the parameters are as before it; "
        "hint: a smaller rate, max_grad_norm=, or nonfinite='skip' to go on"
    )
    with pytest.raises(NonFiniteError, match=re.escape(message)):
        trainer.train()
    assert trainer.updates == 3
    assert weight(trainer) == -2.0
    assert trainer.history == []


@pytest.mark.parametrize("look", ["save", "validation"])
def test_a_save_and_a_validation_are_looks(tmp_path: Path, look: str) -> None:
    batches = [torch.tensor([x]).double() for x in (1.0, float("nan"), 1.0)]
    given = (
        {"save_interval": 2, "save_dir": tmp_path} if look == "save" else {"eval_interval": 2, "val_loader": ones(1)}
    )
    trainer = scalar_trainer(batches, log_interval=100, **given)
    with pytest.raises(NonFiniteError, match="update 2"):
        trainer.train()
    assert trainer.updates == 2
    assert not list(tmp_path.glob("*.pt"))


def test_skipping_counts_and_goes_on_and_logs_nan_as_nan(tmp_path: Path) -> None:
    batches = [torch.tensor([x]).double() for x in (1.0, float("nan"), 1.0)]
    trainer = scalar_trainer(batches, log_interval=1, nonfinite="skip", save_dir=tmp_path)
    trainer.train()
    assert weight(trainer) == -2.0
    assert [r["skipped"] for r in trainer.history] == [0, 1, 1]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert '"loss": NaN' in rows[1]
    assert math.isnan(json.loads(rows[1])["loss"])


# --- validation


def test_validation_is_sum_over_weight_of_the_module_in_eval_mode() -> None:
    trainer = net_trainer(val_loader=regression(10, 4, shuffle=False))
    trainer.train()
    net = trainer.model.module.eval()
    x, y = regression(10, 10, shuffle=False).dataset.tensors
    with torch.no_grad():
        expected = F.mse_loss(net(x), y).item()
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.history[-1]["val_loss"] == pytest.approx(expected, rel=1e-6)


def test_what_a_loss_logs_is_averaged_by_weight() -> None:
    def objective(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"loss": m(x).mean(), "largest": x.max()}

    trainer = scalar_trainer(ones(1), objective=objective, val_loader=[2 * ones(3)[0], 6 * ones(1)[0]])
    assert trainer.evaluate() == {"loss": 0.0, "largest": 3.0}
    trainer.train()
    assert trainer.history[0]["largest"] == 1.0
    assert trainer.history[1]["val_largest"] == 3.0


class Raises(list[object]):
    def __iter__(self) -> Iterator[object]:
        yield from super().__iter__()
        raise RuntimeError("the loader broke")


@pytest.mark.parametrize("breaks", [False, True])
def test_validation_leaves_no_trace(breaks: bool) -> None:
    batches = list(regression(10))
    shuffled = regression(10)
    shuffled.sampler.generator = torch.Generator().manual_seed(0)
    trainer = net_trainer(val_loader=Raises(batches) if breaks else shuffled)
    net = trainer.model.module
    net.norm.eval()  # frozen, in a module that trains
    flags = {name: m.training for name, m in net.named_modules()}
    state = [x.clone() for x in tree.leaves(trainer.state)]
    sources = streams(shuffled)
    before = json.dumps(to_json(capture(sources)))

    if breaks:
        with pytest.raises(RuntimeError, match="the loader broke"):
            trainer.evaluate()
    else:
        trainer.evaluate()
    assert json.dumps(to_json(capture(sources))) == before
    assert {name: m.training for name, m in net.named_modules()} == flags
    assert all(torch.equal(x, y) for x, y in zip(state, tree.leaves(trainer.state), strict=True))


def test_training_with_validation_logs_and_saves_is_training_without(tmp_path: Path) -> None:
    plain = net_trainer(grad_accum_steps=2)
    busy = net_trainer(
        grad_accum_steps=2,
        val_loader=regression(9),
        eval_interval=1,
        log_interval=1,
        save_interval=1,
        save_dir=tmp_path,
    )
    for trainer in (plain, busy):
        torch.manual_seed(4)
        trainer.train()
    assert same_state(plain, busy)


def test_the_best_is_never_nan_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    losses = iter([float("nan"), 3.0, 2.0, 2.0, float("nan"), 5.0, 1.0])

    def objective(m: nn.Module, x: Tensor) -> Tensor:
        return m(x).mean() if m.training else torch.tensor(next(losses))

    best = []

    def note(event: str, trainer: Trainer) -> None:
        if event == "update" and (tmp_path / "best_model.pt").exists():
            best.append(int(checkpoint.load(tmp_path / "best_model.pt", trainer.state).step))

    trainer = scalar_trainer(
        ones(*[1] * 7), objective=objective, val_loader=ones(1), eval_interval=1, save_dir=tmp_path, callbacks=[note]
    )
    trainer.train()
    assert best == [2, 3, 3, 3, 3]
    assert int(checkpoint.load(tmp_path / "best_model.pt", trainer.state).step) == 7


def test_an_empty_validation_loader_is_an_error_at_construction() -> None:
    message = "Trainer: the validation loader is empty; hint: val_loader=None trains without validation"
    with pytest.raises(ValueError, match=re.escape(message)):
        scalar_trainer(ones(1), val_loader=[])
    with pytest.raises(ValueError, match=r"^Trainer: the validation loader yields no batch$"):
        scalar_trainer(ones(1), val_loader=iter([])).evaluate()
    with pytest.raises(ValueError, match=r"^Trainer.evaluate: there is no val_loader$"):
        scalar_trainer(ones(1)).evaluate()


# --- what is written and told


def test_the_run_directory_holds_checkpoints_records_and_the_call(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    trainer = scalar_trainer(ones(*[1] * 12), save_dir=run, save_interval=2, keep=2, log_interval=4, val_loader=ones(1))
    trainer.train()
    names = {"step-00000010.pt", "step-00000012.pt", "last.pt", "best_model.pt", "metrics.jsonl", "config.json", "lock"}
    assert {p.name for p in run.iterdir()} == names
    assert int(checkpoint.load(run / "last.pt", trainer.state).step) == 12
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == trainer.history
    assert [(r["step"], "loss" in r, "val_loss" in r) for r in trainer.history] == [
        (4, True, False), (8, True, False), (12, True, False), (12, False, True),
    ]  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["optimizer"] == "sgd(1.0)"
    assert config["save_interval"] == 2


def test_rotation_goes_by_number_and_spares_the_best_and_the_one_resumed_from(tmp_path: Path) -> None:
    first = scalar_trainer(ones(*[1] * 9), save_dir=tmp_path, save_interval=3, keep=3)
    first.train()
    second = scalar_trainer(
        ones(*[1] * 9), save_dir=tmp_path, save_interval=3, keep=1, max_epochs=2, resume=tmp_path / "step-00000006.pt"
    )
    second.train()
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000006.pt", "step-00000018.pt"]


def test_a_run_sets_aside_what_another_run_saved_for_later_updates(tmp_path: Path) -> None:
    scalar_trainer(ones(*[1] * 9), save_dir=tmp_path, save_interval=3).train()
    fresh = scalar_trainer(ones(*[1] * 4), save_dir=tmp_path)
    fresh.train()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000004.pt"
    names = ["step-00000003.pt", "step-00000004.pt", "step-00000006.pt.stale", "step-00000009.pt.stale"]
    assert sorted(p.name for p in tmp_path.glob("step-*")) == names
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("stale", False) for row in rows] == [True, False]


def test_without_save_dir_nothing_is_written_until_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = scalar_trainer(ones(1, 1))
    trainer.train()
    assert not list(tmp_path.iterdir())
    assert trainer.save_checkpoint(is_best=True) == Path("checkpoints/step-00000002.pt")
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-00000002.pt", "last.pt", "best_model.pt"}


def test_a_directory_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError) as caught:
        scalar_trainer(ones(1), save_dir=tmp_path / "file" / "run").train()
    assert str(caught.value) == f"checkpoint.save: {tmp_path / 'file' / 'run'}: Not a directory"


def test_callbacks_and_loggers_hear_in_order() -> None:
    heard: list[str] = []

    class Log:
        def log(self, record: dict[str, object]) -> None:
            heard.append("val" if "val_loss" in record else "log")

    trainer = scalar_trainer(
        ones(1, 1, 1),
        val_loader=ones(1),
        log_interval=2,
        loggers=[Log()],
        callbacks=[lambda event, t: heard.append(event)],
    )
    trainer.train()
    assert heard == ["update", "update", "log", "update", "log", "val", "eval", "epoch", "end"]


def test_the_module_holds_the_trained_weights_afterwards_even_after_an_error() -> None:
    trainer = scalar_trainer(Raises(ones(1, 1)), max_epochs=3)
    with pytest.raises(RuntimeError, match=r"^the loader broke$"):
        trainer.train()
    assert weight(trainer) == -2.0


def test_a_functionalized_module_is_taken_as_it_is() -> None:
    model = functionalize(Weight())
    assert Trainer(model, sgd(1.0), ones(1), objective=product).model is model


@pytest.mark.parametrize("place", ["loss", "callback"])
def test_an_error_of_the_users_passes_unchanged_and_the_run_can_still_be_saved(tmp_path: Path, place: str) -> None:
    mistake = KeyError("mine")
    calls = []

    def fail_at_three(where: str) -> None:
        calls.append(where)
        if where == place and calls.count(where) == 3:
            raise mistake

    def objective(m: nn.Module, x: Tensor) -> Tensor:
        fail_at_three("loss")
        return product(m, x)

    trainer = scalar_trainer(
        ones(1, 1, 1, 1), objective=objective, callbacks=[lambda event, t: fail_at_three("callback")], save_dir=tmp_path
    )
    with pytest.raises(KeyError) as caught:
        trainer.train()
    assert caught.value is mistake

    trainer.save_checkpoint()
    again = scalar_trainer(ones(1, 1, 1, 1), save_dir=tmp_path, resume="auto")
    assert again.updates == trainer.updates == (2 if place == "loss" else 3)
    again.train()
    assert weight(again) == -4.0


# --- signals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_ends_the_run_at_the_next_boundary_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def send(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == 3:
            os.kill(os.getpid(), number)

    trainer = scalar_trainer(ones(*[1] * 5), save_dir=tmp_path, callbacks=[send])
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == code
    assert signal.getsignal(number) is before
    assert (trainer.updates, weight(trainer)) == (3, -3.0)
    assert "stopped at update 3: resume='auto' goes on from here" in capsys.readouterr().err

    again = scalar_trainer(ones(*[1] * 5), save_dir=tmp_path, resume="auto")
    again.train()
    assert weight(again) == -5.0


def test_a_second_ctrl_c_aborts(tmp_path: Path) -> None:
    def send(event: str, trainer: Trainer) -> None:
        """Twice, the second when the first has been seen: two that are pending at once are one."""
        if event == "update":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)  # the second ends this

    trainer = scalar_trainer(ones(1, 1), save_dir=tmp_path, callbacks=[send])
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)
    assert not list(tmp_path.glob("*.pt"))


def test_a_signal_within_a_validation_is_obeyed_and_the_validation_made_up_for(tmp_path: Path) -> None:
    class Kills(list[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            os.kill(os.getpid(), signal.SIGTERM)
            yield from super().__iter__()

    trainer = scalar_trainer(ones(1, 1, 1, 1), val_loader=Kills(ones(1)), eval_interval=2, save_dir=tmp_path)
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.updates == 2

    again = scalar_trainer(
        ones(1, 1, 1, 1), val_loader=ones(1), eval_interval=2, save_dir=tmp_path, log_interval=100, resume="auto"
    )
    again.train()
    assert [r["step"] for r in again.history if "val_loss" in r] == [2, 4]


# --- two in one directory


def test_a_second_process_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    holds = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "f.write(str(os.getpid())); f.flush(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        message = f"Trainer: process {other.pid} is writing to {tmp_path}; hint: choose another save_dir"
        with pytest.raises(RuntimeError, match=re.escape(message)):
            scalar_trainer(ones(1), save_dir=tmp_path).train()
        other.stdin.close()
    (tmp_path / ".step-00000001.pt.77.tmp").touch()  # left by a writer that was killed
    scalar_trainer(ones(1), save_dir=tmp_path).train()
    assert not list(tmp_path.glob(".*.tmp"))


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"max_epochs": None},
            ValueError,
            "Trainer: max_epochs and max_steps are both None; hint: one of them must end the run",
        ),
        ({"max_epochs": 0}, ValueError, "Trainer: max_epochs must be an integer >= 1, got 0"),
        ({"grad_accum_steps": 0}, ValueError, "Trainer: grad_accum_steps must be an integer >= 1, got 0"),
        ({"log_interval": 2.5}, ValueError, "Trainer: log_interval must be an integer >= 1, got 2.5"),
        ({"keep": 0}, ValueError, "Trainer: keep must be an integer >= 1, got 0"),
        ({"max_time": -1}, ValueError, "Trainer: max_time must be > 0 and finite, got -1"),
        ({"max_grad_norm": 0}, ValueError, "train_step: max_grad_norm must be > 0 and finite, got 0"),
        (
            {"loss_fn": F.mse_loss},
            ValueError,
            "Trainer: loss_fn and objective are both given; hint: one of them is the loss",
        ),
        (
            {"resume": "auto"},
            ValueError,
            "Trainer: resume='auto' looks for checkpoints in save_dir, which is None",
        ),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1)], lr=1.0)},
            ValueError,
            "Trainer: parameter '0' of the optimizer's group 0 is none of the model's; "
            "hint: build the optimizer from this model's parameters()",
        ),
        (
            {"optimizer": 3},
            TypeError,
            "Trainer: optimizer must be a GradientTransformation or a torch optimizer, got int",
        ),
        (
            {"scheduler": 3},
            TypeError,
            "Trainer: int sets the rate of a torch optimizer, and sgd is a transformation; hint: give it a schedule, "
            "such as ft.adamw(ft.schedules.cosine_decay_schedule(...)), or train with ft.configure_optimizer(...)",
        ),
        (
            {"nonfinite": "rollback"},
            NotImplementedError,
            "Trainer: nonfinite='rollback'; what there is: 'raise', 'skip'",
        ),
        ({"short_window": "carry"}, NotImplementedError, "Trainer: short_window='carry'; what there is: 'weighted'"),
        (
            {"save_async": True},
            NotImplementedError,
            "Trainer: save_async=True; saving in the background is not there yet",
        ),
        (
            {"metrics": {}},
            NotImplementedError,
            "Trainer: metrics=; numbers of outputs are not there yet; "
            "hint: an objective may return {'loss': ..., **logs}",
        ),
    ],
)  # fmt: skip
def test_each_wrong_argument_is_told_in_words(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"optimizer": sgd(1.0), "objective": product} | arguments
    with pytest.raises(error) as caught:
        Trainer(Weight(), train_loader=ones(1), **given)
    assert str(caught.value) == message


def test_a_checkpoint_of_another_model_or_optimizer_changes_nothing(tmp_path: Path) -> None:
    scalar_trainer(ones(1, 1), save_dir=tmp_path).train()
    path = tmp_path / "last.pt"

    def refuses(trainer: Trainer, message: str, path: Path = path) -> None:
        before, place, rng = trainer.state, trainer.feed.place, torch.get_rng_state()
        values = [x.clone() for x in tree.leaves(before)]
        with pytest.raises(CheckpointError) as caught:
            trainer.load_checkpoint(path)
        assert str(caught.value) == message
        assert trainer.state is before
        assert trainer.feed.place is place
        assert trainer.history == []
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(x, y) for x, y in zip(values, tree.leaves(trainer.state), strict=True))

    hint = "hint: this is the checkpoint of another model or optimizer"
    other = Trainer(nn.Linear(1, 1), sgd(1.0), ones(1), objective=product)
    refuses(
        other,
        f"checkpoint.load: {path}: leaf 'params.weight', float32 of shape (1, 1), is not in the file; {hint}",
    )
    other = Trainer(Weight(torch.float64), adam(1.0), ones(1), objective=product)
    refuses(other, f"checkpoint.load: {path}: its optimizer is sgd, and this run's is adam")
    other = Trainer(Weight(torch.float64), identity(), ones(1), objective=product)
    refuses(other, f"checkpoint.load: {path}: its optimizer is sgd, and this run's is identity")

    same = scalar_trainer(ones(1))
    missing = tmp_path / "missing.pt"
    refuses(same, f"checkpoint.load: {missing}: No such file or directory", missing)
    plain = tmp_path / "plain.pt"
    checkpoint.save(plain, same.state)
    refuses(
        same,
        f"checkpoint.load: {plain}: 'optimizer' is missing; hint: this is not the checkpoint of a Trainer's run",
        plain,
    )
