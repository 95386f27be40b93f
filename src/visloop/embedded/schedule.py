"""The learning-rate schedule of every stage: warm-up, constant, linear decay at the end. The decay is what makes a stage tip."""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Report = Callable[[str], None]
"""Takes one line of progress."""

FLOOR = 0.1


def scale_rate(step: int, *, steps: int, warmup: int, down: float) -> float:
    """Factor on the learning rate at ``step`` (from 0): up over ``warmup`` steps, down to 0.1 over the last ``down`` share."""
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (steps - step) / (down * steps) if down else 1.0
    return min(1.0, rising, FLOOR + (1 - FLOOR) * max(0.0, min(1.0, falling)))


def make_schedule(optimizer: Optimizer, *, steps: int, warmup: int, down: float) -> LambdaLR:
    """A torch scheduler over ``scale_rate``; call ``step`` after every optimizer step."""
    return LambdaLR(optimizer, lambda step: scale_rate(step, steps=steps, warmup=warmup, down=down))
