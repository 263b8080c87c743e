"""Minibatches: random subsets of the data, drawn outside of a step, from which a log density is estimated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity


class Subsample(NamedTuple):
    """What a minibatch takes of some data: `subsample_size` out of `size`, without replacement."""

    size: int
    subsample_size: int

    def first(self, device: torch.device) -> Tensor:
        """The indices of a minibatch that is always the same, `(subsample_size,)`."""
        return torch.arange(self.subsample_size, device=device)

    def draw(self, lead: Sequence[int], generator: Generator) -> Tensor:
        """The indices of random minibatches, `(*lead, subsample_size)`.

        They cost no more than their own size: subsets are drawn with replacement, and what repeats is drawn again.
        That is the same for each index, so that every sequence of different ones is as probable as any other.
        """
        shape, device = (*lead, self.subsample_size), generator.device
        if 2 * self.subsample_size > self.size:
            keys = torch.rand((*lead, self.size), generator=generator, device=device, dtype=torch.float64)
            return keys.argsort(-1)[..., : self.subsample_size]
        chosen = torch.randint(self.size, shape, generator=generator, device=device)
        while True:
            values, order = chosen.sort(dim=-1, stable=True)
            repeated = torch.zeros_like(chosen, dtype=torch.bool)
            repeated.scatter_(-1, order[..., 1:], values[..., 1:] == values[..., :-1])
            if not bool(repeated.any()):
                return chosen
            again = torch.randint(self.size, shape, generator=generator, device=device)
            chosen = torch.where(repeated, again, chosen)


def draw_minibatches(subsamples: Sequence[Subsample], lead: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
    """Independent minibatches of each, `(*lead, subsample_size)`."""
    return tuple(each.draw(lead, generator) for each in subsamples)


def at_minibatch(log_density: Callable[..., tuple[Tensor, Tensor]], minibatch: Sequence[Tensor]) -> LogDensity:
    """A log density that takes indices after the position, as it is estimated from one minibatch."""
    return (lambda position: log_density(position, *minibatch)) if minibatch else log_density
