"""Gaussian Markov random fields."""

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm.energies import QuadraticEnergy
from pyro_ebm.graphs import FactorGraph, Sites, sites_and_edges


class GaussianMRF(FactorGraph):
    """A smooth Gaussian field: `E(x) = ½ Σ_ij w_ij (x_i - x_j)² + ½ Σ_i κ_i x_i² - Σ_i b_i x_i`.

    Its precision is sparse: `Λ = κ + Σ_ij w_ij (e_i - e_j)(e_i - e_j)ᵀ`. Log Z, means, variances and draws are exact.

    Args:
        sites: the shape of a lattice, or a networkx graph.
        coupling: w: a number, or a tensor `(*batch, edges)` in the order of the graph's edges (of a lattice: dim by
            dim, each in row-major order), or one that broadcasts.
        anchor: κ, which must be positive somewhere in each connected part: a number, or `(*batch, sites)`.
        linear: b: a number, or `(*batch, sites)`.
        periodic: whether the lattice closes on itself.
        name: of the variable, an array of the lattice's shape.

    References:
        Rue and Held 2005, Gaussian Markov Random Fields.

    >>> GaussianMRF((2, 2), 1.0, 0.5).marginals().variance("x")
    tensor([[0.7556, 0.7556],
            [0.7556, 0.7556]])
    """

    def __init__(
        self,
        sites: Sites,
        coupling: float | Tensor,
        anchor: float | Tensor,
        linear: float | Tensor = 0.0,
        *,
        periodic: bool = False,
        name: str = "x",
    ) -> None:
        super().__init__()
        shape, edges = sites_and_edges(sites, periodic=periodic)
        x = self.variable(name, support=constraints.real, shape=shape)
        if len(edges):
            pull = torch.as_tensor(coupling)[..., None, None] * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            self.factor(QuadraticEnergy(pull), x[edges])
        own = torch.as_tensor(anchor)[..., None, None]
        self.factor(QuadraticEnergy(own, torch.as_tensor(linear).to(own)[..., None]), x[torch.arange(x.numel)])
