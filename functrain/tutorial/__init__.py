"""Optimizers and a training loop written out, to be read from top to bottom.

    optimizer_from_scratch.py     SGD with momentum, AdamW: how each formula comes about, and the line that computes it
    trainer_from_scratch.py       the loop around them: what each step is for, and what breaks without it

    from functrain.tutorial import AdamWFromScratch, TrainerFromScratch

Both files stand alone: tensors and loops, nothing of torch.optim, nothing of functrain. Tests hold them equal to
torch.optim, to functrain's rules and to `ft.Trainer`; what they say breaks is broken there. They are for learning: what
they leave out, `functrain` has. `docs/learn/` goes through them with numbers and pictures.
"""

from functrain.tutorial.optimizer_from_scratch import AdamWFromScratch, SGDFromScratch
from functrain.tutorial.trainer_from_scratch import TrainerFromScratch, warmup_cosine

__all__ = ["AdamWFromScratch", "SGDFromScratch", "TrainerFromScratch", "warmup_cosine"]
