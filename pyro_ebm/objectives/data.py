"""What goes into a loss, checked: data, and log densities at them."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError, NonFiniteError
from pyro_ebm._core.protocols import Density, UnnormalizedDensity
from pyro_ebm._core.shapes import broadcast, leading_shape
from pyro_ebm._core.supports import num_states, same_support, strip_independent
from pyro_ebm._core.validation import validation_enabled


class Domain(Enum):
    """The supports that an objective takes."""

    ANY = "any support"
    REAL = "real numbers"
    FINITE = "booleans, spins or integer intervals"
    BINARY = "booleans or spins"

    def contains(self, support: Constraint) -> bool:
        """Whether a support is among them."""
        if self is Domain.REAL:
            return same_support(strip_independent(support), constraints.real)
        states = num_states(support)
        return self is Domain.ANY or (states is not None if self is Domain.FINITE else states == 2)

    @property
    def advice(self) -> str:
        """What to do about another one."""
        if self is Domain.REAL:
            return (
                "For discrete data use PseudoLikelihood; for a constrained support map data to the reals, with the "
                "energy's change of variables."
            )
        return "For real data use NoiseContrastive, ScoreMatching or EnergyDiscrepancy."


def checked_data(density: Density, data: Tensor, domain: Domain, what: str) -> Tensor:
    """Data of a density, expanded to its batch shape.

    Raises:
        EnergyShapeError: if they do not have its event shape, or there are none.
        EnergySupportError: if its support is not in the domain.
        NonFiniteError: if they are not finite.
        ValueError: if they are not in its support.
        TypeError: if they are integers, where gradients in them are needed.
    """
    if not domain.contains(density.support):
        raise EnergySupportError(
            f"{what}: got a distribution on {density.support}, expected one on {domain.value}. {domain.advice}"
        )
    lead = leading_shape(data, density.event_shape, what)
    if data.numel() == 0:
        raise EnergyShapeError(f"{what}: got data of shape {tuple(data.shape)}, expected at least one event.")
    if domain is Domain.REAL and not data.is_floating_point():
        raise TypeError(f"{what}: got data of dtype {data.dtype}, expected floats. Use data.to(the energy's dtype).")
    if not bool(data.isfinite().all()):
        raise NonFiniteError(
            f"{what}: got {int((~data.isfinite()).sum())} data elements that are not finite, of {data.numel()}. "
            "Drop or impute them."
        )
    if validation_enabled() and not bool(density.support.check(data).all()):
        raise ValueError(f"{what}: got data outside of the distribution's support {density.support}.")
    return data.expand(*broadcast([lead, density.batch_shape], what), *density.event_shape)


def lead_of(density: Density, data: Tensor) -> Size:
    """The `(*sample, *batch)` part of the shape of checked data."""
    return Size(data.shape[: data.dim() - len(density.event_shape)])


def log_density(density: Density, value: Tensor, where: str, *, may_be_forbidden: bool = False) -> Tensor:
    """The log density, unnormalised where it can be, at `(*sample, *batch, *event)`: `(*sample, *batch)`.

    Args:
        density: the density.
        value: where.
        where: what to call it in errors: "data", "noise".
        may_be_forbidden: whether it may be minus infinity, as it is at noise outside of the support.

    Raises:
        NonFiniteError: if it is not finite.
    """
    if isinstance(density, UnnormalizedDensity):
        log_prob = density.unnormalized_log_prob(value)
    else:
        log_prob = density.log_prob(value)
    fine = log_prob.isfinite()
    if may_be_forbidden:
        fine = fine | (log_prob == -torch.inf)
    if not bool(fine.all()):
        bad = log_prob.detach()[~fine]
        raise NonFiniteError(
            f"the energy at {where}: got {-float(bad[0])} for {bad.numel()} of {fine.numel()} values. "
            + (
                "A forbidden state has been observed, or the energy overflows: look at its parameters."
                if where == "data"
                else "The energy overflows there: lower the learning rate, or give it a base that confines."
            )
        )
    return log_prob
