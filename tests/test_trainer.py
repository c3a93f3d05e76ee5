"""The loop: what an epoch, a window, a limit, a validation, a signal and a number that is not finite mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain import checkpoint, tree
from functrain.base import GradientTransformation
from functrain.bridge.modules import functionalize
from functrain.checkpoint import CheckpointError
from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer
from tests.networks import NormNet, Weight, ones, product


def scalar_trainer(batches: object, lr: float = 1.0, **kwargs: object) -> Trainer:
    kwargs = {"objective": product, "max_epochs": 1} | kwargs
    return Trainer(Weight(torch.float64), sgd(lr), batches, **kwargs)


def weight(trainer: Trainer) -> float:
    return trainer.model.module.w.item()


def regression(n: int = 22, batch_size: int = 4, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x[:, :2]), batch_size=batch_size, shuffle=shuffle)


def net_trainer(**kwargs: object) -> Trainer:
    torch.manual_seed(3)
    kwargs = {"loss_fn": F.mse_loss, "max_epochs": 2} | kwargs
    val = kwargs.pop("val_loader", None)
    return Trainer(NormNet(0.3), adamw(1e-2), regression(), val, **kwargs)


def same_state(a: Trainer, b: Trainer) -> bool:
    leaves = zip(tree.leaves(a.state), tree.leaves(b.state), strict=True)
    return tree.keys(a.state) == tree.keys(b.state) and all(torch.equal(x, y) for x, y in leaves)


# --- windows


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


# --- losses


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


@pytest.mark.long
@pytest.mark.inductor
def test_a_compiled_run_computes_what_an_eager_one_does() -> None:
    def run(compiled: bool) -> Tensor:
        torch.manual_seed(0)
        trainer = Trainer(
            nn.Linear(3, 2), adamw(0.1), regression(24, shuffle=False), regression(24, shuffle=False),
            loss_fn=F.mse_loss, max_epochs=2, grad_accum_steps=3, compile=compiled,
        )  # fmt: skip
        trainer.train()
        return trainer.model.module.weight.detach()

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


# --- validation


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


def test_without_save_dir_nothing_is_written_until_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = scalar_trainer(ones(1, 1))
    trainer.train()
    assert not list(tmp_path.iterdir())
    assert trainer.save_checkpoint(is_best=True) == Path("checkpoints/step-00000002.pt")
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {
        "step-00000002.pt", "last.pt", "best_model.pt", "lock",
    }  # fmt: skip


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
