"""Quadratic factors and their coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, constraints

from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.supports import same_support, strip_independent
from pyro_ebm.energies import (
    AnchorEnergy,
    BilinearEnergy,
    DifferenceEnergy,
    DistributionEnergy,
    Energy,
    FieldEnergy,
    IsingEnergy,
    QuadraticEnergy,
    ScaledEnergy,
    SumEnergy,
    SumToZeroEnergy,
)
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.partial import FieldOfOther, PartialEnergy
from pyro_ebm.graphs.scaled import GroupScaledEnergy
from pyro_ebm.graphs.variable import Variable

_QUADRATIC = (
    QuadraticEnergy,
    AnchorEnergy,
    DifferenceEnergy,
    FieldEnergy,
    IsingEnergy,
    BilinearEnergy,
    FieldOfOther,
    SumToZeroEnergy,
)


def is_gaussian(variable: Variable) -> bool:
    """Whether a variable may be part of a Gaussian: it lives on all reals."""
    return same_support(strip_independent(variable.support), constraints.real)


def is_quadratic(energy: Energy) -> bool:
    """Whether an energy is known to be quadratic in its variables."""
    if isinstance(energy, (ScaledEnergy, GroupScaledEnergy, PartialEnergy)):
        return is_quadratic(energy.energy)
    if isinstance(energy, SumEnergy):
        return all(is_quadratic(cast(Energy, term)) for term in energy.terms)
    if isinstance(energy, DistributionEnergy):
        distribution = energy.distribution
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        return isinstance(distribution, (Normal, MultivariateNormal))
    return isinstance(energy, _QUADRATIC)


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """Factors `½ xᵀ Λ x - bᵀ x + c` over `elements (F, r)`: `(*batch, F, r, r)`, `(*batch, F, r)`, and c summed.

    In double precision, for they are differences of energies, which may be large.
    """

    elements: Tensor
    precision: Tensor
    linear: Tensor
    constant: Tensor


def quadratic_form(factor: Factor, variables: Mapping[str, Variable], offsets: Mapping[str, int]) -> QuadraticForm:
    """The coefficients of a quadratic factor, read off its values at a few points."""
    energy = factor.energy
    if factor.names and not is_quadratic(energy):
        raise GraphError(
            f"FactorGraph: got the factor {type(energy).__name__} over {list(factor.names)}, expected quadratic ones "
            "(QuadraticEnergy, a DistributionEnergy of a Normal, ...): exact answers for real variables are Gaussian. "
            "Sample the graph instead."
        )
    elements = factor.elements(variables, offsets)
    if isinstance(energy, (QuadraticEnergy, SumToZeroEnergy)):
        precision, linear = ((energy.precision + energy.precision.mT) / 2).double(), energy.linear.double()
        if not factor.grouped or not energy.batch_shape:
            precision, linear = precision.unsqueeze(-3), linear.unsqueeze(-2)
        size = elements.shape[1]
        precision = precision.expand(*precision.shape[:-3], factor.num_factors, size, size)
        linear = linear.expand(*linear.shape[:-2], factor.num_factors, size)
        batch = torch.broadcast_shapes(precision.shape[:-3], linear.shape[:-2])
        return QuadraticForm(elements, precision, linear, linear.new_zeros(batch))
    points = _points(elements.shape[1])
    values, start = [], 0
    for event in energy.event_shapes:
        lead = [len(points)] + [1] * len(energy.batch_shape)
        values.append(points[:, start : start + event.numel()].reshape(*lead, *event))
        start += event.numel()
    named = chain(energy.named_parameters(), energy.named_buffers())
    exact = {name: tensor.double() for name, tensor in named if tensor.is_floating_point()}
    at = torch.func.functional_call(energy, exact, tuple(values))
    if factor.grouped:
        at = at.expand(*at.shape[:-1], factor.num_factors) if energy.batch_shape else at.unsqueeze(-1)
        at = at.expand(*at.shape[:-1], factor.num_factors)
    else:
        at = at.unsqueeze(-1)
    return _coefficients(at, elements)


def _points(size: int) -> Tensor:
    """Zero, the unit vectors, their negatives, and the sums of two: `(points, r)`."""
    unit = torch.eye(size, dtype=torch.float64)
    first, second = torch.triu_indices(size, size, 1)
    return torch.cat([unit.new_zeros(1, size), unit, -unit, unit[first] + unit[second]])


def _coefficients(at: Tensor, elements: Tensor) -> QuadraticForm:
    """From energies at the points, `(points, *batch, F)`."""
    size = elements.shape[1]
    zero, plus, minus = at[0], at[1 : size + 1].movedim(0, -1), at[size + 1 : 2 * size + 1].movedim(0, -1)
    pairs = at[2 * size + 1 :].movedim(0, -1)
    first, second = torch.triu_indices(size, size, 1)
    mixed = pairs - plus[..., first] - plus[..., second] + zero.unsqueeze(-1)
    precision = torch.diag_embed(plus + minus - 2 * zero.unsqueeze(-1)).flatten(-2)
    both = torch.cat([first * size + second, second * size + first])
    precision = precision.index_copy(-1, both, torch.cat([mixed, mixed], -1)).unflatten(-1, (size, size))
    return QuadraticForm(elements, precision, (minus - plus) / 2, zero.sum(-1))
