"""Where a run cannot go on exactly one warning says what differs, and it does; where there is none, nothing does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer
from tests.trainer.resume.data import Data
from tests.trainer.resume.subjects import Run, assert_same_end, end_of, resumed, saving

TWO = {"num_workers": 2}


class Case(NamedTuple):
    """A run, what it was changed to, where it goes on, and what is said."""

    saved: Run
    now: Run
    file: str
    warning: str


GONE = "were there at one time only, when the run was saved or now, and what is drawn from them differs"
OTHER = "the batch before this place is not the one that the saved run had"
ANEW = "persistent workers start anew, and what they draw at random differs"
NO_STATE = "the loader's state has no random numbers of its workers, and what they draw differs"
STREAMED = "the loader is an iterable without state, and differs unless it yields the same from its start"
PERSISTENT = Run("shuffle", True, TWO | {"persistent_workers": True})

CASES: dict[str, Case] = {
    "a stream that went": Case(
        Run("generator"), Run("shuffle"), "06-2.pt", f"the random streams loader.sampler.generator {GONE}"
    ),
    "a stream that came": Case(
        Run("shuffle"), Run("generator"), "06-2.pt", f"the random streams loader.sampler.generator {GONE}"
    ),
    "a stream that went, within an epoch": Case(
        Run("generator"), Run("shuffle"), "03-1.pt", f"the random streams loader.sampler.generator {GONE}; {OTHER}"
    ),
    "another batch size": Case(
        Run("fives"), Run("shuffle"), "03-1.pt",
        "the batch size was 5 and is 4, so this epoch repeats or misses samples",
    ),
    "other data": Case(Run("list"), Run("other list"), "03-1.pt", OTHER),
    "more data": Case(Run("list"), Run("long list"), "03-1.pt", "an epoch had 6 batches and has 7"),
    "workers that came": Case(
        Run("shuffle"), Run("shuffle", True, TWO), "06-2.pt",
        "the loader had 0 workers and has 2, and what its dataset draws differs",
    ),
    "fewer workers": Case(
        Run("shuffle", True, TWO), Run("shuffle", True, {"num_workers": 1}), "03-1.pt",
        f"the loader had 2 workers and has 1, and what its dataset draws differs; {OTHER}",
    ),
    "persistent workers after the first epoch": Case(PERSISTENT, PERSISTENT, "08-2.pt", f"{ANEW}; {OTHER}"),
    "persistent workers at an epoch's end": Case(PERSISTENT, PERSISTENT, "06-2.pt", ANEW),
    "persistent workers at an epoch's last batch": Case(PERSISTENT, PERSISTENT, "06-1.pt", ANEW),
    "a stateful loader whose workers draw": Case(
        Run("stateful", True, TWO), Run("stateful", True, TWO), "03-1.pt", NO_STATE
    ),
    "a stateful iterable at an epoch's end": Case(
        Run("stateful iterable"), Run("stateful iterable"), "06-2.pt", STREAMED
    ),
    "a loader of one's own at an epoch's end": Case(
        Run("own stateful"), Run("own stateful"), "06-2.pt",
        "a loader's own state is kept within an epoch alone, and what it remembers else differs",
    ),
    "an iterable that goes on": Case(
        Run("stream that goes on"), Run("stream that goes on"), "08-2.pt", f"{STREAMED}; {OTHER}"
    ),
    "an iterable that goes on, at an epoch's end": Case(
        Run("stream that goes on"), Run("stream that goes on"), "06-2.pt", STREAMED
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_res_7_one_warning_says_what_differs_and_it_does(tmp_path: Path, what: str) -> None:
    saved, now, file, warning = CASES[what]
    expected, files = saving(saved, tmp_path)
    trainer = now.build(77, resume=tmp_path / file)
    with pytest.warns(UserWarning, match="resume") as caught:
        trainer.train()
    end = end_of(trainer)
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]  # jax has a word on each fork
    assert said == [f"resume is not exact: {warning}"]
    with pytest.raises(AssertionError):
        assert_same_end(expected, end, files[file])


def test_res_7_the_console_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, now, file, warning = CASES["another batch size"]
    saving(saved, tmp_path)
    capsys.readouterr()
    with pytest.warns(UserWarning, match="resume"):
        resumed(now, tmp_path / file)
    line = f"resumed {tmp_path / file} (epoch 1, batch 3), not exact: {warning}"
    assert line in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("loader", ["iterable", "generator function"])
def test_res_7_an_iterable_that_yields_the_same_from_its_start_is_exact_and_warned_of(
    tmp_path: Path, loader: str
) -> None:
    expected, files = saving(Run(loader), tmp_path)
    for name, before in files.items():
        if name == list(files)[-1]:
            continue  # the run is over
        with pytest.warns(UserWarning, match=f"^{re.escape(f'resume is not exact: {STREAMED}')}$"):
            end = resumed(Run(loader), tmp_path / name)
        assert_same_end(expected, end, before)


@pytest.mark.parametrize("run", [Run("iterable"), PERSISTENT, Run("stateful", True, TWO)])
def test_res_7_a_run_that_is_over_or_has_not_begun_is_warned_of_nothing(tmp_path: Path, run: Run) -> None:
    expected, files = saving(run, tmp_path)
    name = list(files)[-1]
    assert_same_end(expected, resumed(run, tmp_path / name), files[name])
    trainer = run.build(3, save_dir=tmp_path / "new")
    path = trainer.save_checkpoint()
    assert end_of(trainer)["state"].keys() == expected["state"].keys()
    resumed(run, path)


def test_res_7_a_shuffled_val_loader_of_another_size_is_no_difference(tmp_path: Path) -> None:
    expected, files = saving(Run(), tmp_path)
    trainer = Run().build(77, resume=tmp_path / "03-1.pt")
    trainer.evaluation.loader = DataLoader([Data(False)[i] for i in range(8)], 8)
    trainer.train()
    a, b = expected, end_of(trainer)
    same = {"history": [], "best": 0.0}
    assert_same_end(a | same, b | same, files["03-1.pt"])


class Draws(nn.Module):
    """Noise from a generator of its own, which is in no file."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Identity()
        self.noise.bits, self.w = torch.Generator().manual_seed(3), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x * torch.rand(x.shape, generator=self.noise.bits)).sum()


def test_res_7_a_module_with_random_numbers_of_its_own_is_named_and_differs(tmp_path: Path) -> None:
    def make(**kwargs: Any) -> Trainer:
        return Trainer(Draws(), sgd(0.1), [torch.ones(2)] * 6, max_epochs=1, **kwargs)

    whole = make()
    whole.train()
    first = make(save_dir=tmp_path)
    first.callbacks.append(lambda event, t: t.stop() if event == "update" and t.updates == 3 else None)
    first.train()
    again = make(resume=tmp_path / "last.pt")
    message = "resume is not exact: the module draws from noise.bits, which no checkpoint has"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        again.train()
    assert not torch.equal(again.state.params["w"], whole.state.params["w"])
