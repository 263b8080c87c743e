"""Families of energies with closed forms: Gaussians and mixtures of them, smoothed by noise."""

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_ebm import DistributionEnergy, FunctionTimeConditional, QuadraticEnergy, time_conditional

MASSES, CENTERS, SPREAD = (0.25, 0.75), (-4.0, 4.0), 0.4


def gaussian(mean: Tensor, covariance: Tensor) -> FunctionTimeConditional:
    """The family of `N(mean, covariance)`, with energies up to a constant."""

    def at(sigma: Tensor) -> QuadraticEnergy:
        noise = sigma.square()[..., None, None] * torch.eye(len(mean), dtype=mean.dtype)
        precision = torch.linalg.inv(covariance + noise)
        return QuadraticEnergy(precision, (precision @ mean[:, None]).squeeze(-1))

    return time_conditional(at, mean.shape)


def mixture_at(sigma: Tensor, dtype: torch.dtype = torch.float64) -> MixtureSameFamily:
    """Two modes on a line, ten of their spreads from the middle, smoothed."""
    scale = (SPREAD**2 + sigma.unsqueeze(-1).square()).sqrt().to(dtype)
    parts = Normal(torch.tensor(CENTERS, dtype=dtype), scale)
    return MixtureSameFamily(Categorical(torch.tensor(MASSES, dtype=dtype)), parts)


def two_modes(dtype: torch.dtype = torch.float64) -> FunctionTimeConditional:
    """The family of `mixture_at`."""
    return time_conditional(lambda sigma: DistributionEnergy(mixture_at(sigma, dtype)), ())
