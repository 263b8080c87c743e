"""Coordinates of a site: a vector of reals, and the bijection from it to the site's value."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import AffineTransform, Independent, MultivariateNormal, Normal, Transform, constraints

from pyro_ebm._core.supports import unconstraining
from pyro_ebm.distributions import EnergyDistribution


class Coordinates(Protocol):
    """A choice of coordinates."""

    def __call__(self, fn: Any, name: str, /) -> Transform:
        """The map from coordinates to values of the site `name` with distribution `fn`."""
        ...


def unconstrained(fn: Any, name: str) -> Transform:
    """Coordinates that know only the support: torch's bijection from the reals.

    Raises:
        EnergySupportError: if the support is discrete or has no such bijection.
    """
    return unconstraining(fn.support, f'site "{name}"')


def standard_normal(fn: Any, name: str) -> Transform:
    """Coordinates z of a Gaussian site, or of an energy's Gaussian base, that are standard normal a priori.

    `x = loc + scale z`, or `x = loc + L z` with the Cholesky factor L of a covariance matrix.

    Raises:
        TypeError: if the site has another distribution.
    """
    base = fn
    while isinstance(base, (Independent, MaskedDistribution, ExpandedDistribution, EnergyDistribution)):
        base = base.base if isinstance(base, EnergyDistribution) else base.base_dist
    if isinstance(base, Normal):
        return AffineTransform(base.loc, base.scale)
    if isinstance(base, MultivariateNormal):
        return CholeskyAffineTransform(base.loc, base.scale_tril)
    got = "an energy without a base" if base is None else f"a {type(base).__name__}"
    raise TypeError(
        f'site "{name}": got {got}, expected a Normal or MultivariateNormal: elliptical slice sampling needs a '
        "Gaussian base. Give an energy one, EnergyDistribution(energy, base); write a positive site as exp of a normal "
        "one; or use NUTS."
    )


class CholeskyAffineTransform(Transform):
    """`x = loc + L z`, in batches.

    Args:
        loc: `(*batch, dim)`.
        scale_tril: L, lower-triangular with a positive diagonal, `(*batch, dim, dim)`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = loc, scale_tril

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ x.unsqueeze(-1)).squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        centred = (y - self.loc).unsqueeze(-1)
        solved: Tensor = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        return solved.squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`log det L`, `(*batch,)`."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])
