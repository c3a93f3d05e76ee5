"""Pictures of a run, of schedules, and of what rules do.

    ft.plot.history("runs/a")                          # loss, learning rate, gradient norm, speed; or of a Trainer
    ft.plot.schedule(ft.schedules.cosine_decay_schedule(3e-3, 1000), 1000)
    ft.plot.rule(ft.adam(0.1), ft.sgd(0.01))           # their paths through a valley, and the loss along them
    ft.plot.response(ft.adam(0.1))                     # their updates, while the gradient stays and when it turns

    python -m functrain.plot runs/a                    # writes runs/a/history.png

Where several things are drawn they come one after another, or as a mapping from a name to each. Functions return a
matplotlib figure, which has `savefig`; nothing opens a window, and pyplot is not touched. Colours are told apart with
any kind of colour vision (Okabe & Ito, 2008).
"""

from functrain.plot.rules import response, rule
from functrain.plot.runs import history
from functrain.plot.valleys import ravine, rosenbrock
from functrain.plot.values import schedule

__all__ = ["history", "ravine", "response", "rosenbrock", "rule", "schedule"]
