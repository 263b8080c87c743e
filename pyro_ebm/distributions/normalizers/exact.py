"""`Exact`: log Z without error, where there is a way to it."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.distributions import Transform

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import NormalizerError
from pyro_ebm._core.protocols import HasLogPartition
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm._core.supports import enumerable_states, enumerate_states, unconstraining
from pyro_ebm.mcmc.moves import EnergyDensity

# The grid reaches sinh(7) = 548 units from its centre, 0.015 units apart there, in one dim.
_REACH = 7.0
_POINTS = {1: 2001, 2: 401}


class Exact:
    """Log Z by the first of these that applies, differentiable in whatever the energy depends on.

    - The energy's own `log_partition()`, where there is no base: Gaussians, elimination in a `FactorGraph`, an RBM by
      its smaller layer.
    - Enumeration, where the support has at most 65,536 states.
    - Quadrature, where an event has one or two unconstrained coordinates u: the trapezoidal rule in t, with
      `u = center + scale sinh(t)`, which converges faster than any power for densities that are smooth on the scale of
      the grid.

    Args:
        center: of the grid of quadrature, in unconstrained coordinates, `(*event,)` or a number.
        scale: of the grid, likewise: about the spread of the density. Modes narrower than a hundredth of it are missed.

    >>> import torch, pyro.distributions as dist
    >>> from pyro_ebm import EnergyDistribution, energy
    >>> tilt = energy(lambda x: x**2 / 2, event_shape=())
    >>> p = EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=Exact())
    >>> p.log_prob(torch.tensor(0.0)), dist.Normal(0.0, 0.5**0.5).log_prob(torch.tensor(0.0))
    (tensor(-0.5724), tensor(-0.5724))
    """

    def __init__(self, *, center: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        if not bool((torch.as_tensor(scale) > 0).all()):
            raise ValueError(f"Exact: got scale={scale}, expected a positive one.")
        self.center, self.scale = center, scale

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """See `Normalizer`.

        Raises:
            NormalizerError: if there is no way: the density is over too many states, or over more than two coordinates.
            TreewidthError: if a graph is too wide.
        """
        energy: object = distribution.energy
        if distribution.base is None and isinstance(energy, HasLogPartition):
            return energy.log_partition()
        if enumerable_states(distribution.support, distribution.event_shape) is not None:
            return self._by_enumeration(distribution)
        if not distribution.support.is_discrete:
            transform = unconstraining(distribution.support, "Exact")
            free = transform.inverse_shape(distribution.event_shape)
            if free.numel() in _POINTS:
                return self._by_quadrature(distribution, transform, free)
        raise NormalizerError(
            f"Exact: got an energy {type(energy).__name__} over event shape {tuple(distribution.event_shape)} on "
            f"{distribution.support}, expected one with log_partition() and no base, at most 65536 states, or one or "
            "two unconstrained coordinates. Use PersistentWalkers."
        )

    def _by_enumeration(self, distribution: EnergyDensity) -> Tensor:
        like = like_of(distribution.energy)
        states = enumerate_states(distribution.support, distribution.event_shape, like.dtype, like.device)
        return torch.logsumexp(distribution.unnormalized_log_prob(_over_batch(states, distribution)), 0)

    def _by_quadrature(self, distribution: EnergyDensity, transform: Transform, free: Size) -> Tensor:
        like = like_of(distribution.energy)
        axis = torch.linspace(-_REACH, _REACH, _POINTS[free.numel()], dtype=torch.double, device=like.device)
        points = torch.cartesian_prod(*[axis] * free.numel()).reshape(-1, *free)
        center, scale = (
            torch.as_tensor(each, dtype=torch.double, device=like.device) for each in (self.center, self.scale)
        )
        log_weight = sum_rightmost((points.cosh() * scale).log() + (axis[1] - axis[0]).log(), len(free))
        position = (center + scale * points.sinh()).to(like)
        value = transform(position)
        jacobian = transform.log_abs_det_jacobian(position, value)
        log_weight = log_weight.to(like) + sum_rightmost(jacobian, jacobian.dim() - 1)
        # Where the arithmetic leaves the support there is no mass; the energy is not asked there.
        finite = value.reshape(len(value), -1).isfinite().all(-1)
        inside = distribution.support.check(value) & finite & log_weight.isfinite()
        shape = (-1, *[1] * len(distribution.event_shape))
        value = torch.where(inside.reshape(shape), value, transform(center.to(like).expand(free)))
        log_density = distribution.unnormalized_log_prob(_over_batch(value, distribution))
        log_weight = torch.where(inside, log_weight, -torch.inf)
        return torch.logsumexp(log_density + log_weight.reshape(-1, *[1] * (log_density.dim() - 1)), 0)


def _over_batch(values: Tensor, distribution: EnergyDensity) -> Tensor:
    """Values `(n, *event)` for each element of the batch, `(n, *batch, *event)`."""
    batch, event = distribution.batch_shape, distribution.event_shape
    return values.reshape(len(values), *[1] * len(batch), *event).expand(Size([len(values)]) + batch + event)
