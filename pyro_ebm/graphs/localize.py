"""Factors over whole variables that are sums over their elements, as groups over these elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch.distributions import Independent, Normal

from pyro_ebm.energies import (
    AnchorEnergy,
    BilinearEnergy,
    DistributionEnergy,
    Energy,
    FieldEnergy,
    IsingEnergy,
    QuadraticEnergy,
    ScaledEnergy,
    SumEnergy,
)
from pyro_ebm.graphs.factor import Factor, wire
from pyro_ebm.graphs.scaled import scaled
from pyro_ebm.graphs.variable import Variable


def localized(factor: Factor, variables: Mapping[str, Variable]) -> list[Factor]:
    """The same energy by groups of factors over elements; the factor itself where it is one, or has no such form.

    Bilinear and quadratic forms are sums over pairs, `-Σ_ij W_ij v_i h_j` and `½ Σ_ij Λ_ij x_i x_j - Σ_i b_i x_i`;
    independent normals are sums over elements.
    """
    energy = factor.energy
    if isinstance(energy, SumEnergy):
        terms = [Factor(cast(Energy, term), factor.arguments, factor.index) for term in energy.terms]
        return [each for term in terms for each in localized(term, variables)]
    if factor.grouped:
        return [factor]
    if isinstance(energy, ScaledEnergy):
        inner = localized(Factor(energy.energy, factor.arguments, factor.index), variables)
        return [scaled(energy.weight, each) for each in inner]
    given = [variables[argument.names[0]] for argument in factor.arguments]
    if isinstance(energy, BilinearEnergy):
        first, second = (torch.arange(variable.numel) for variable in given)
        pairs = torch.cartesian_prod(first, second)
        return [wire(IsingEnergy(energy.weight.flatten(-2)), [given[0][pairs[:, :1]], given[1][pairs[:, 1:]]])]
    if isinstance(energy, QuadraticEnergy):
        return _of_quadratic(energy, given[0])
    if isinstance(energy, DistributionEnergy):
        return _of_independent(energy, given[0]) or [factor]
    return [factor]


def _of_quadratic(energy: QuadraticEnergy, x: Variable) -> list[Factor]:
    symmetric = (energy.precision + energy.precision.mT) / 2
    numbers = torch.arange(x.numel)
    factors = [wire(FieldEnergy(energy.linear), [x[numbers]])]
    factors.append(wire(AnchorEnergy(symmetric.diagonal(dim1=-2, dim2=-1)), [x[numbers]]))
    rows, columns = torch.triu_indices(x.numel, x.numel, 1)
    if len(rows):
        coupling = -symmetric[..., rows, columns]
        factors.append(wire(IsingEnergy(coupling), [x[torch.stack([rows, columns], -1)]]))
    return factors


def _of_independent(energy: DistributionEnergy, x: Variable) -> list[Factor]:
    """Independent normals, each a factor of its own; nothing for another distribution."""
    base = energy.distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        return []
    shape = (*energy.batch_shape, x.numel)
    loc, scale = (each.expand(base.batch_shape).reshape(shape) for each in (base.loc, base.scale))
    return [wire(DistributionEnergy(Normal(loc, scale, validate_args=False)), [x[torch.arange(x.numel)]])]
