"""What the Trainer's arguments mean to a run: which loss, which precision, how a window becomes an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from functrain.base import GradientTransformation
from functrain.bridge.modules import Model, ModelLoss
from functrain.precision import Precision, PrecisionLike
from functrain.record import show
from functrain.run.scheduler import Scheduler
from functrain.state import TrainState
from functrain.step import Metrics, Step
from functrain.window import Gradients, first_device


def choose_loss(
    model: Model,
    loss_fn: Callable[..., object] | None,
    objective: Callable[[nn.Module, object], object] | None,
) -> ModelLoss:
    """The loss that a criterion, an objective, or the module itself computes.

    Raises:
        ValueError, TypeError: the module has nothing to train; there are two losses; one is no function.
    """
    if not model.params:
        raise ValueError(
            f"Trainer: {type(model.module).__name__} has no parameter with requires_grad; "
            "hint: unfreeze what is to be trained: module.requires_grad_()"
        )
    if loss_fn is not None and objective is not None:
        raise ValueError("Trainer: loss_fn and objective are both given; hint: one of them is the loss")
    if loss_fn is not None:
        return model.loss(loss_fn)
    return model.objective(own_loss if objective is None else objective)


def own_loss(module: nn.Module, batch: object) -> object:
    """The loss that the module returns: by itself, or as the entry or attribute `loss` of what it returns."""
    try:
        if isinstance(batch, Mapping):
            out = module(**batch)
        else:
            out = module(*batch) if isinstance(batch, tuple | list) else module(batch)
    except TypeError as error:
        if "forward()" in str(error):
            error.add_note(
                "Trainer: without loss_fn= and objective= the module is called with all entries of the batch, and "
                "returns its loss; hint: loss_fn=F.cross_entropy, say, is given its output and the batch's last entry"
            )
        raise
    if isinstance(out, Tensor) and not out.dim():
        return out
    loss: object = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if loss is None:
        kind = (
            f"tensor of shape {tuple(out.shape)}, not" if isinstance(out, Tensor) else f"{type(out).__name__} without"
        )
        raise TypeError(f"Trainer: the module returned a {kind} a loss; hint: give loss_fn= or objective=")
    return loss


def check_loader(name: str, loader: object) -> None:
    """Refuse what yields no batches.

    Raises:
        TypeError: it cannot be iterated, is one tensor, or is a dataset, which yields samples.
    """
    kind = type(loader).__name__
    if isinstance(loader, Tensor):
        raise TypeError(f"Trainer: {name} is a tensor, which is one batch at most; hint: a list of batches: [batch]")
    if isinstance(loader, Dataset) and not isinstance(loader, Iterable):
        raise TypeError(
            f"Trainer: {name} is a {kind}, which yields samples, not batches; "
            "hint: DataLoader(dataset, batch_size=32, shuffle=True)"
        )
    if not (isinstance(loader, Iterable) or hasattr(loader, "__getitem__")) or isinstance(loader, str):
        hint = "scheduler=" if isinstance(loader, Scheduler) else "a DataLoader, or a list of batches"
        raise TypeError(f"Trainer: {name} is a {kind}, which yields no batches; hint: {hint}")


def check_list(name: str, given: object) -> None:
    """Raise TypeError for one thing where several may be."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"Trainer: {name} is a {type(given).__name__}, not a list; hint: {name}=[...]")


def place_model(model: Model, device: torch.device | str | None) -> torch.device:
    """Move the module to the device, if one is given. Where it is now."""
    if device is not None:
        model.module.to(device)
    return first_device([*model.params.values(), *model.frozen.values()])


def choose_precision(
    precision: PrecisionLike | Precision, use_amp: bool, device: torch.device
) -> PrecisionLike | Precision:
    """The precision asked for; with use_amp bf16 where the device computes it natively, else fp16."""
    if not use_amp:
        return precision
    if precision is not None:
        raise ValueError(f"Trainer: use_amp and precision={precision!r} are both given; hint: precision alone says all")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" else "fp16"


def outline(tx: GradientTransformation) -> str:
    """The rules that a transformation is made of, without their numbers: chain(clip_by_global_norm, adamw)."""
    if tx.spec is None:
        return "transformation"
    arguments = [*tx.spec.args, *tx.spec.kwargs.values()]
    inner = [outline(x) for x in arguments if isinstance(x, GradientTransformation)]
    return f"{tx.spec.name}({', '.join(inner)})" if inner else tx.spec.name


def update_from(
    step: Step, state: TrainState, batches: Iterable[object], k: int, drop: bool
) -> tuple[TrainState, Metrics]:
    """One update from batches that stream; the state as it was if none came.

    Args:
        step: the step.
        state: where it starts.
        batches: the window.
        k: batches in a whole window; one alone the step takes as one call.
        drop: a window that is not whole makes no update.
    """
    acc: Gradients | None = None
    pieces: list[object] = []
    for batch in batches:
        if k == 1:
            return step(state, batch)
        acc = step.gradients(state, batch, acc)
        if "value_fn" in step.tx.needs:
            pieces.append(batch)
    if acc is None or (drop and int(acc.pieces) < k):
        return state, {}
    extra = {"value_fn": lambda params: step.value(state, params, pieces)} if pieces else {}
    return step.apply(state, acc, **extra)


CONFIG = (
    "precision device max_epochs max_steps grad_accum_steps short_window max_grad_norm nonfinite ema_decay seed "
    "log_interval eval_interval save_interval"
).split()


def as_config(settings: Mapping[str, object], optimizer: str) -> dict[str, object]:
    """What `config.json` tells of the settings: numbers and strings as they are, other things as code writes them."""
    told = {"optimizer": optimizer, **{name: settings[name] for name in CONFIG}}
    told["device"] = str(told["device"])
    plain = bool | int | float | str | None
    return {name: x if isinstance(x, plain) else show(x) for name, x in told.items()}
