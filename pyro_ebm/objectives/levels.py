"""Noise levels in a loss: densities at them, and random ones for each datum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_ebm._core.protocols import Density
from pyro_ebm._core.randomness import uniform
from pyro_ebm.energies import Energy


class BareDensity:
    """The unnormalised density `exp(-E(x))` of an energy over one variable."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    @property
    def batch_shape(self) -> Size:
        """That of the energy."""
        return self.energy.batch_shape

    @property
    def event_shape(self) -> Size:
        """That of the energy."""
        return self.energy.event_shape

    @property
    def support(self) -> Constraint:
        """That of the energy."""
        return self.energy.support

    def log_prob(self, value: Tensor, /) -> Tensor:
        """`-E(x)`, `(*sample, *batch, *event)` to `(*sample, *batch)`."""
        log_prob: Tensor = -self.energy(value)
        return log_prob


def density_at(family: Callable[[Tensor], Density | Energy], sigma: Tensor) -> Density:
    """The densities of a family at levels `(*batch,)`."""
    found = family(sigma)
    return BareDensity(found) if isinstance(found, Energy) else found


def spread_quantiles(shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform numbers in (0, 1) that together are spread evenly, `shape`: what is averaged over them varies little."""
    count = max(1, shape.numel())
    offset = uniform((), like, generator)
    even = torch.arange(count, dtype=like.dtype, device=like.device) / count
    edge = torch.finfo(like.dtype).eps
    return ((even + offset) % 1).clamp(edge, 1 - edge).reshape(shape)


def level_quantile(levels: Distribution, quantile: Tensor, what: str) -> Tensor:
    """The levels at quantiles of a distribution over them.

    Raises:
        ValueError: if the distribution has no quantile function, or levels that are not positive.
    """
    try:
        sigma = levels.icdf(quantile)
    except NotImplementedError:
        raise ValueError(
            f"{what}: got levels {levels}, which have no icdf, expected a distribution that has one: "
            "log_uniform(lowest, highest), or torch.distributions.LogNormal."
        ) from None
    if sigma.shape != quantile.shape or not bool((sigma > 0).all()):
        raise ValueError(f"{what}: got levels {levels}, expected a distribution of one positive number.")
    return sigma
