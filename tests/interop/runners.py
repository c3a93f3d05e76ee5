"""One job, through each trainer as its manual has it: functrain's, Lightning's, Transformers', a loop of Accelerate's.

Each function imports its library and returns the losses that the trainer itself logged, if it logs any. `way` names a
setting that a manual offers for a case, beside what it does by default.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

MODULES: dict[str, tuple[str, ...]] = {  # what a runner imports
    "functrain": ("functrain.trainer",),
    "lightning": ("lightning.pytorch", "torchdata.stateful_dataloader"),
    "transformers": ("transformers.trainer",),
    "accelerate": ("accelerate", "torchdata.stateful_dataloader"),
}
WAYS: dict[str, dict[str, tuple[str, ...]]] = {  # what is tried, "" is the default
    "tokens": {
        "functrain": ("", "(sum, weight)"),
        "lightning": ("",),
        "transformers": ("", "num_items_in_batch"),
        "accelerate": ("", "num_items_in_batch"),
    },
    "resume": {
        "functrain": ("",),
        "lightning": ("", "StatefulDataLoader"),
        "transformers": ("",),
        "accelerate": ("", "use_seedable_sampler", "use_stateful_dataloader"),
    },
    "nan": {
        "functrain": ("",),
        "lightning": ("", "detect_anomaly"),
        "transformers": ("", "underflow_overflow"),
        "accelerate": ("",),
    },
    "stop": {
        "functrain": ("",),
        "lightning": ("", "save_on_exception"),
        "transformers": ("", "enable_jit_checkpoint"),
        "accelerate": ("",),
    },
}


class Job(NamedTuple):
    """What is trained, and how."""

    net: nn.Module
    data: Dataset[Any]
    batch: int
    folder: Path
    make: Callable[[nn.Module], torch.optim.Optimizer]
    way: str = ""
    epochs: int = 1
    accumulate: int = 1
    shuffle: bool = False
    every: int | None = None  # updates a checkpoint; None is one at each epoch's end
    resume: int | None = None  # the update whose checkpoint it goes on from
    validation: Dataset[Any] | None = None
    stops: bool = False  # by a signal: it saves where the trainer does when nothing is set

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.data, self.batch, shuffle=self.shuffle)

    def checks(self) -> DataLoader[Any] | None:
        return None if self.validation is None else DataLoader(self.validation, self.batch)

    def checkpoint(self) -> Path | None:
        """The one to go on from, under the name that its trainer has given it."""
        if self.resume is None:
            return None
        names = (f"step-{self.resume:08}.pt", f"step={self.resume}.ckpt", f"checkpoint-{self.resume}")
        (found,) = (p for name in (*names, f"step_{self.resume}") if (p := self.folder / name).exists())
        return found

    def weights_files(self) -> list[Path]:
        """Where the weights are in it."""
        path = self.checkpoint()
        assert path
        return [path / "model.safetensors"] if path.is_dir() else [path]


def functrain(job: Job) -> list[float]:
    from functrain.trainer import Trainer

    def objective(net: nn.Module, batch: dict[str, torch.Tensor]) -> object:
        return net.terms(**batch) if job.way == "(sum, weight)" else net(**batch)["loss"]

    trainer = Trainer(
        job.net,
        job.make(job.net),
        job.loader(),
        job.checks(),
        objective=objective,
        max_epochs=job.epochs,
        grad_accum_steps=job.accumulate,
        save_dir=job.folder,
        save_interval=job.every,
        keep=100,
        resume=job.checkpoint(),
    )
    trainer.train()
    return [float(record["loss"]) for record in trainer.history if "loss" in record]


def lightning(job: Job) -> list[float]:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = job.net

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.make(self.net)

    stateful = StatefulDataLoader(job.data, job.batch, shuffle=job.shuffle)
    places: dict[str, Any] = {"dirpath": job.folder, "filename": "{step}", "save_top_k": -1}
    saving = ModelCheckpoint(**places, every_n_train_steps=job.every, every_n_epochs=None if job.every else 1)
    if job.stops:
        saving = ModelCheckpoint(save_on_exception=True) if job.way else ModelCheckpoint()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        accumulate_grad_batches=job.accumulate,
        callbacks=[saving],
        default_root_dir=job.folder,
        detect_anomaly=job.way == "detect_anomaly",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = stateful if job.way == "StatefulDataLoader" else job.loader()
    trainer.fit(Module(), loader, job.checks(), ckpt_path=job.checkpoint())
    return []


def transformers(job: Job) -> list[float]:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    settings: dict[str, Any] = {} if job.every is None else {"save_steps": job.every}
    if job.stops:
        settings = {"enable_jit_checkpoint": True, "save_strategy": "no"} if job.way else {}
    elif job.every is None:
        settings = {"save_strategy": "epoch"}
    if job.way == "underflow_overflow":
        settings |= {"debug": job.way}
    if job.validation is not None:
        settings |= {"eval_strategy": "epoch"}
    arguments = TrainingArguments(
        job.folder,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch,
        per_device_eval_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulate,
        train_sampling_strategy="random" if job.shuffle else "sequential",
        max_grad_norm=0.0,
        logging_steps=1,
        seed=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    optimizer = job.make(job.net)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(
        job.net,
        arguments,
        train_dataset=job.data,
        eval_dataset=job.validation,
        optimizers=(optimizer, constant),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if job.resume is None else str(job.checkpoint()))
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def accelerate(job: Job) -> list[float]:
    from accelerate import Accelerator, DataLoaderConfiguration

    stateful = job.way == "use_stateful_dataloader"
    # The manual asks for a seedable sampler where the order is to be repeated.
    loading = DataLoaderConfiguration(
        use_seedable_sampler=stateful or job.way == "use_seedable_sampler", use_stateful_dataloader=stateful
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=job.accumulate, dataloader_config=loading)
    net, optimizer, loader = accelerator.prepare(job.net, job.make(job.net), job.loader())
    if job.resume is not None:
        accelerator.load_state(str(job.checkpoint()))
    updates = job.resume or 0
    for epoch in range(updates // len(loader), job.epochs):
        rest = updates % len(loader)
        active = accelerator.skip_first_batches(loader, rest) if rest and not stateful else loader
        active.set_epoch(epoch)
        more = {}
        if job.way == "num_items_in_batch":  # the manual's way: of the window, here an epoch, before its first batch
            active = list(active)
            more = {"num_items_in_batch": sum((batch["labels"] != -100).sum() for batch in active)}
        for batch in active:
            with accelerator.accumulate(net):
                loss = net(**batch, **more)["loss"]
                accelerator.backward(loss * job.accumulate if more else loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                updates += 1
            if job.every and updates % job.every == 0:
                accelerator.save_state(str(job.folder / f"step_{updates}"))
        if job.every is None and not job.stops:
            accelerator.save_state(str(job.folder / f"step_{updates}"))
    return []


RUNNERS: dict[str, Callable[[Job], list[float]]] = {
    "functrain": functrain,
    "lightning": lightning,
    "transformers": transformers,
    "accelerate": accelerate,
}
