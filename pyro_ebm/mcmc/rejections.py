"""Whether steps fail too often in a window of the warm-up, and what acceptance to aim at then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where more than one in 500 transitions of a window diverge, and more than a few, the distance of the target acceptance
# from one shrinks as many times as they are too many, within bounds.
_MANY_DIVERGE, _FEWEST, _MOST_SHRINKAGE, _GREATEST_TARGET = 0.002, 3, 0.1, 0.99
# Likewise where chains are stuck for more than this share of the time: in sampling, which takes the same steps
# everywhere, they stay there for ten times as long.
_MUCH_STUCK, _FEWEST_STUCK, _STUCK_SHRINKAGE = 0.0005, 2, 0.5
# Transitions whose steps are so many times the average in the window do not count: adaptation tries such steps, but
# sampling will not take them.
_MUCH_LONGER = 2.0
# A chain that fails more often than this is lost, and says nothing of the others' steps.
_LOST = 0.5


class Rejections(NamedTuple):
    """Counts of what each chain makes of the steps that it is given.

    Attributes:
        made: how many transitions, `()`.
        step_sum: the sum of their step sizes, `()`.
        judged: how many had steps that sampling may take, `(chains,)`.
        diverged: how many of these diverged, `(chains,)`.
        looks: at how many times chains were looked at, `()`.
        stuck: at how many of these they were stuck, `(chains,)`.
    """

    made: Tensor
    step_sum: Tensor
    judged: Tensor
    diverged: Tensor
    looks: Tensor
    stuck: Tensor

    @classmethod
    def start(cls, position: Tensor) -> Rejections:
        """No transitions yet, of chains like `position` `(chains, dim)`."""
        none = torch.zeros(len(position), dtype=torch.long, device=position.device)
        return cls(none.sum(), position.new_zeros(()), none, none, none.sum(), none)

    def update(self, done: Tensor, step_size: Tensor, diverging: Tensor) -> Rejections:
        """Take in the transitions of a block, each argument `(ticks, chains)`, where `done`."""
        made = self.made + done.sum()
        step_sum = self.step_sum + torch.where(done, step_size, 0).sum()
        judged = done & (step_size <= _MUCH_LONGER * step_sum / made.clamp(min=1))
        diverged = self.diverged + (judged & diverging).sum(0)
        return self._replace(made=made, step_sum=step_sum, judged=self.judged + judged.sum(0), diverged=diverged)

    def look(self, stuck: Tensor) -> Rejections:
        """Take in which chains are where they move by steps shorter than usual only, `(chains,)`."""
        return self._replace(looks=self.looks + 1, stuck=self.stuck + stuck)

    def raised(self, target: Tensor, chains: Tensor) -> Tensor:
        """The target acceptance `()` to aim at after these transitions of some chains, `(chains,)`."""
        looks = self.looks.expand_as(self.stuck)
        shrinkage = min(
            _shrinkage(self.diverged, self.judged, chains, _MANY_DIVERGE, _FEWEST, _MOST_SHRINKAGE),
            _shrinkage(self.stuck, looks, chains, _MUCH_STUCK, _FEWEST_STUCK, _STUCK_SHRINKAGE),
        )
        raised = torch.maximum(target, (1 - shrinkage * (1 - target)).clamp(max=_GREATEST_TARGET))
        return target if shrinkage == 1 else raised


def _shrinkage(failed: Tensor, tried: Tensor, chains: Tensor, usual: float, fewest: int, most: float) -> float:
    """What the distance of the target from one is multiplied by, for so many failures of those tried, `(chains,)`."""
    chains = chains & (failed / tried.clamp(min=1) < _LOST)
    failures, trials = (int(each[chains].sum()) for each in (failed, tried))
    return max(usual * trials / failures, most) if failures >= fewest and failures > usual * trials else 1.0
