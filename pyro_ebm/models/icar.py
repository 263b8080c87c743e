"""The intrinsic conditional autoregression: the spatial prior of disease mapping."""

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm.energies import QuadraticEnergy, SumToZeroEnergy
from pyro_ebm.graphs import FactorGraph, Sites, connected_parts, sites_and_edges

# In units of the number of sites: what binds the mean to zero, and no more.
_TIGHTNESS = 1e-3


class ICAR(FactorGraph):
    """A prior on differences of neighbours: `E(x) = ½ Σ_ij (x_i - x_j)²`, with a sum of zero in each connected part.

    The differences leave the mean of a part free; it is held at zero by a narrow normal density, of standard deviation
    `0.001 n` for the sum of n sites, so that the prior is proper. Its log Z depends on nothing, and the scale of the
    field is a factor outside: `phi = sigma * x`, with `sigma` a site of its own. Multiply `sigma` by
    `scaling_factor ** -0.5`, and it is a typical standard deviation whatever the map.

    Args:
        sites: a networkx graph of the areas, or the shape of a lattice.
        name: of the variable, an array of the lattice's shape.

    References:
        Besag, York and Mollié 1991, Bayesian image restoration, with two applications in spatial statistics.
        Morris et al. 2019, Bayesian hierarchical spatial models: implementing the Besag York Mollié model in Stan.
    """

    def __init__(self, sites: Sites, *, name: str = "x") -> None:
        super().__init__()
        shape, edges = sites_and_edges(sites)
        x = self.variable(name, support=constraints.real, shape=shape)
        if len(edges):
            self.factor(QuadraticEnergy(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), x[edges])
        for part in connected_parts(x.numel, edges):
            tight = torch.tensor(_TIGHTNESS * len(part))
            self.factor(SumToZeroEnergy(len(part), tight), x[part.unsqueeze(0)])

    @property
    def scaling_factor(self) -> Tensor:
        """The geometric mean of the marginal variances, `()`.

        References:
            Riebler, Sørbye, Simpson and Rue 2016, An intuitive Bayesian spatial model for disease mapping.
        """
        (name,) = self.variables
        return self.marginals().variance(name).log().mean().exp()
