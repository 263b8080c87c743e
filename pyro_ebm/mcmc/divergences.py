"""Whether a window of the warm-up has too many divergences, and what acceptance to aim at then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where more than one in 500 transitions of a window diverge, and more than a few, the distance of the target acceptance
# from one shrinks as many times as they are too many, within bounds.
_MANY_DIVERGE, _FEWEST, _MOST_SHRINKAGE, _GREATEST_TARGET = 0.002, 3, 0.25, 0.99
# Transitions whose steps are so many times the average in the window do not count: adaptation tries such steps, but
# sampling will not take them.
_MUCH_LONGER = 2.0
# A chain that diverges more often than this is lost, and says nothing of the others' steps.
_LOST = 0.5


class Divergences(NamedTuple):
    """Counts of the transitions of each chain.

    Attributes:
        made: how many, `()`.
        step_sum: the sum of their step sizes, `()`.
        judged: how many had steps that sampling may take, `(chains,)`.
        diverged: how many of these diverged, `(chains,)`.
    """

    made: Tensor
    step_sum: Tensor
    judged: Tensor
    diverged: Tensor

    @classmethod
    def start(cls, position: Tensor) -> Divergences:
        """No transitions yet, of chains like `position` `(chains, dim)`."""
        none = torch.zeros(len(position), dtype=torch.long, device=position.device)
        return cls(none.sum(), position.new_zeros(()), none, none)

    def update(self, done: Tensor, step_size: Tensor, diverging: Tensor) -> Divergences:
        """Take in the transitions of a block, each argument `(ticks, chains)`, where `done`."""
        made = self.made + done.sum()
        step_sum = self.step_sum + torch.where(done, step_size, 0).sum()
        judged = done & (step_size <= _MUCH_LONGER * step_sum / made.clamp(min=1))
        return Divergences(made, step_sum, self.judged + judged.sum(0), self.diverged + (judged & diverging).sum(0))

    def raised(self, target: Tensor, chains: Tensor) -> Tensor:
        """The target acceptance `()` to aim at after these transitions of some chains, `(chains,)`."""
        chains = chains & (self.diverged / self.judged.clamp(min=1) < _LOST)
        diverged, judged = (int(each[chains].sum()) for each in (self.diverged, self.judged))
        if diverged < _FEWEST or diverged <= _MANY_DIVERGE * judged:
            return target
        shrinkage = max(_MANY_DIVERGE * judged / diverged, _MOST_SHRINKAGE)
        return torch.maximum(target, (1 - shrinkage * (1 - target)).clamp(max=_GREATEST_TARGET))
