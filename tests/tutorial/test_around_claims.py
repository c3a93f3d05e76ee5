"""What `trainer_from_scratch.py` says breaks when validation or a checkpoint lacks something."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from functrain.tutorial import SGDFromScratch, TrainerFromScratch
from tests.networks import NormNet
from tests.tutorial.sources import trainer_without
from tests.tutorial.test_trainer import batches, shuffled

# --- validation


def validated(trainer: Any, dropout: float = 0.0, sizes: Any = (8, 8)) -> Any:
    torch.manual_seed(0)
    model = NormNet(dropout)
    val = batches(sizes, torch.float32)
    return trainer(model, SGDFromScratch(model.parameters(), 0.1), val, val, loss_fn=F.mse_loss)


def saved_tensors(trainer: Any) -> int:
    """How many tensors a validation keeps for a backward pass."""
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        trainer.evaluate()
    return count


GRAD = (
    ("    @torch.no_grad()\n", ""),
    ("total += float(self.loss(x, y)) * len(x)", "total += float(self.loss(x, y).detach()) * len(x)"),
)


def test_without_no_grad_validation_keeps_tensors_for_a_backward_pass_that_never_comes() -> None:
    assert saved_tensors(validated(TrainerFromScratch)) == 0
    assert saved_tensors(validated(trainer_without(*GRAD))) > 10


NO_EVAL = ("        self.model.eval()\n", "")


def test_without_eval_batchnorm_learns_the_validation_data_in_spite_of_no_grad() -> None:
    for trainer, changes in ((TrainerFromScratch, False), (trainer_without(NO_EVAL), True)):
        found = validated(trainer)
        before = found.model.norm.running_mean.clone()
        found.evaluate()
        assert torch.equal(found.model.norm.running_mean, before) != changes


def test_without_eval_dropout_blurs_the_measure() -> None:
    for trainer, blurred in ((TrainerFromScratch, False), (trainer_without(NO_EVAL), True)):
        found = validated(trainer, dropout=0.5)
        found.model.norm = nn.Identity()
        measured = set()
        for seed in range(5):
            torch.manual_seed(seed)
            measured.add(found.evaluate())
        assert len(measured) == (5 if blurred else 1)


def test_the_mode_is_put_back_and_without_that_the_model_stays_in_eval() -> None:
    for trainer, training in (
        (TrainerFromScratch, True),
        (trainer_without(("self.model.train(was_training)", "pass")), False),
    ):
        found = validated(trainer)
        found.evaluate()
        assert found.model.training == training


def test_without_train_a_model_that_came_in_eval_mode_measures_no_batch() -> None:
    for trainer, measures in (
        (TrainerFromScratch, True),
        (trainer_without(("            self.model.train()\n", "")), False),
    ):
        found = validated(trainer)
        found.model.eval()
        found.train()
        assert (found.model.norm.running_mean.count_nonzero() > 0) == measures


def test_validation_is_a_mean_over_rows_and_not_over_batches() -> None:
    one = validated(TrainerFromScratch, sizes=[16]).evaluate()
    assert validated(TrainerFromScratch, sizes=[8, 7, 1]).evaluate() == pytest.approx(one, rel=1e-6)
    by_batches = trainer_without(("* len(x)  # by", "# by"), ("rows += len(x)", "rows += 1"))
    assert validated(by_batches, sizes=[8, 7, 1]).evaluate() != pytest.approx(one, rel=1e-2)


def weights(found: Any) -> Tensor:
    return nn.utils.parameters_to_vector(found.model.parameters())


def test_validation_does_not_touch_the_samples_of_training_and_without_the_fork_it_does() -> None:
    for trainer, same in (
        (TrainerFromScratch, True),
        (trainer_without(("with torch.random.fork_rng(devices=[]):", "if True:")), False),
    ):
        with_it = shuffled(trainer, None, 3)
        with_it.train()
        without_it = shuffled(trainer, None, 3)
        without_it.val_loader = None
        without_it.train()
        assert torch.equal(weights(with_it), weights(without_it)) == same


def test_there_is_nothing_to_validate_on_without_a_loader() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"^TrainerFromScratch\.evaluate: there is no val_loader$"):
        TrainerFromScratch(model, SGDFromScratch(model.parameters(), 0.1), []).evaluate()


# --- checkpoints


def resumed(folder: Path, name: str, begins: Any, epochs: int = 4, trainer: Any = TrainerFromScratch) -> Any:
    """A run that goes on from a file in which one part is as at the beginning of a run."""
    shuffled(trainer, folder, 2).train()
    path = folder / "last.pt"
    found = torch.load(path, weights_only=True)
    assert name in found
    torch.save(found | {name: begins}, path)
    again = shuffled(trainer, folder, epochs)
    again.load_checkpoint(path)
    again.train()
    return again


@pytest.fixture(scope="module")
def whole() -> Any:
    run = shuffled(TrainerFromScratch, None, 4)
    run.train()
    return run


def test_with_every_part_the_weights_are_the_same(tmp_path: Path, whole: Any) -> None:
    assert torch.equal(weights(resumed(tmp_path, "epoch", 2)), weights(whole))


def test_without_m_and_v_the_weights_are_others(tmp_path: Path, whole: Any) -> None:
    memory = shuffled(TrainerFromScratch, None, 2).optimizer.state_dict()
    assert (weights(resumed(tmp_path, "optimizer", memory)) - weights(whole)).norm() > 1e-3


def test_without_the_state_of_the_generator_samples_come_in_another_order(tmp_path: Path, whole: Any) -> None:
    other = torch.Generator().manual_seed(5).get_state()
    assert (weights(resumed(tmp_path, "random", other)) - weights(whole)).norm() > 1e-3


def test_without_updates_the_schedule_warms_up_again(tmp_path: Path) -> None:
    history = resumed(tmp_path, "updates", 0).history
    assert next(row for row in history if row["epoch"] == 3 and not row["skipped"])["learning_rate"] == 0.0


def test_without_the_epoch_the_run_trains_all_epochs_once_more(tmp_path: Path, whole: Any) -> None:
    assert len(resumed(tmp_path, "epoch", 0).history) == len(whole.history) * 6 // 4


def test_without_the_scale_the_first_updates_overflow_again(tmp_path: Path, whole: Any) -> None:
    """As in a run whose gradients need a scale far below the first one."""
    skipped = [
        sum(row.get("skipped", 0) for row in run.history) for run in (resumed(tmp_path, "scale", 2.0**40), whole)
    ]
    assert skipped[0] == 6 > skipped[1]  # all that is left


def test_without_best_a_worse_model_overwrites_the_best(tmp_path: Path) -> None:
    """The file says that the run had 0.0 once; the next epoch is worse, and is kept out, or not."""
    for best, overwritten in ((0.0, False), (math.inf, True)):
        folder = tmp_path / str(best)
        resumed(folder, "best", best, epochs=3)
        kept = torch.load(folder / "best_model.pt", weights_only=True)
        assert (kept["epoch"] == 3) == overwritten


def test_without_buffers_validation_is_another(tmp_path: Path) -> None:
    run = shuffled(TrainerFromScratch, None, 2)
    run.train()
    right = run.evaluate()
    run.model.norm.reset_running_stats()
    assert run.evaluate() != pytest.approx(right, rel=1e-2)


COUNT, SAVE = "            self.epoch += 1\n", 'self.save_checkpoint(self.save_dir / "last.pt")\n'
TOO_EARLY = (
    (COUNT, f"            {SAVE}{COUNT}"),
    (f"                {SAVE}                if better", "                if better"),
)


def test_saved_before_the_epoch_is_counted_it_is_trained_twice(tmp_path: Path, whole: Any) -> None:
    early = trainer_without(*TOO_EARLY)
    shuffled(early, tmp_path, 2).train()
    again = shuffled(early, tmp_path, 4)
    again.load_checkpoint(tmp_path / "last.pt")
    again.train()
    assert again.updates == whole.updates + 3


def test_a_save_that_fails_leaves_the_old_file_and_written_in_place_it_leaves_none(tmp_path: Path) -> None:
    for trainer, whole in (
        (TrainerFromScratch, True),
        (trainer_without(('temporary = path.with_suffix(".tmp")', "temporary = path")), False),
    ):
        run = validated(trainer)
        path = tmp_path / "last.pt"
        run.save_checkpoint(path)
        run.history = [{"loss": lambda: 0.0}]  # cannot be pickled: the save ends in the middle
        with pytest.raises((AttributeError, pickle.PicklingError)):
            run.save_checkpoint(path)
        fresh = validated(TrainerFromScratch)
        if whole:
            fresh.load_checkpoint(path)
        else:
            with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
                fresh.load_checkpoint(path)


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was_here",)


def test_a_file_that_holds_code_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "bad.pt")
    with pytest.raises(pickle.UnpicklingError):
        validated(TrainerFromScratch).load_checkpoint("bad.pt")
    assert not Path("was_here").exists()
