"""The base that data suggest: what an energy tilts."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError
from pyro_ebm._core.statistics import frequencies, mean_and_covariance
from pyro_ebm._core.supports import is_everywhere, same_support, state_range, strip_independent

# Of the mean variance: added to every variance, so that elements that do not vary leave the base proper.
_RIDGE = 1e-3


def fitted_base(data: Tensor, support: Constraint = constraints.real) -> Distribution | None:
    """A normalised distribution near to data, with their event shape: the base of an energy that is to be learned.

    Over real numbers it is a Gaussian with the data's mean and covariance (variances alone, with fewer than 10 data for
    each dim), a thousandth of the mean variance added to each. Over booleans and numbers of states it is independent
    elements with the data's frequencies, one count added to each.

    Args:
        data: `(N, *event)`.
        support: where events live.

    Returns:
        The base; `None`, which stands for the flat one, over other finite supports, such as spins.

    Raises:
        EnergySupportError: for a support on which there is none: a half-line, say.
        EnergyShapeError: if there is no event.

    >>> fitted_base(torch.randn(100, 2)).event_shape
    torch.Size([2])
    """
    if data.dim() == 0 or len(data) == 0:
        raise EnergyShapeError(f"fitted_base: got data of shape {tuple(data.shape)}, expected (N, *event).")
    if is_everywhere(support):
        return _gaussian(data)
    found = state_range(support)
    if found is None:
        raise EnergySupportError(
            f"fitted_base: got {support}, expected real numbers or a finite support. Give a base on it: "
            "EnergyDistribution(energy, base)."
        )
    low, step, states = found
    if (low, step) != (0, 1):
        return None
    shares = frequencies(data, torch.arange(states, device=data.device))
    event_dim = data.dim() - 1
    if same_support(strip_independent(support), constraints.boolean):
        binary: Distribution = dist.Bernoulli(shares[..., 1]).to_event(event_dim)
        return binary
    several: Distribution = dist.Categorical(shares).to_event(event_dim)
    return several


def _gaussian(data: Tensor) -> Distribution:
    mean, covariance = mean_and_covariance(data.reshape(len(data), -1))
    variance = covariance.diagonal()
    ridge = _RIDGE * variance.mean()
    if not bool(ridge > 0):
        raise ValueError(
            f"fitted_base: got {len(data)} data that are all alike, expected some spread. Give a base of your own: "
            "EnergyDistribution(energy, base)."
        )
    event_dim = data.dim() - 1
    if event_dim == 1 and bool((covariance != torch.diag_embed(variance)).any()):
        full: Distribution = dist.MultivariateNormal(mean, covariance + ridge * torch.eye(len(mean)).to(mean))
        return full
    scale = (variance + ridge).sqrt()
    shape = data.shape[1:]
    diagonal: Distribution = dist.Normal(mean.reshape(shape), scale.reshape(shape)).to_event(event_dim)
    return diagonal
