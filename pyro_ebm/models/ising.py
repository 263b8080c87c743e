"""The Ising model."""

import torch
from torch import Tensor

from pyro_ebm._core.supports import spin
from pyro_ebm.energies import FieldEnergy, IsingEnergy
from pyro_ebm.graphs import FactorGraph, Sites, sites_and_edges


class Ising(FactorGraph):
    """Spins that like to agree with their neighbours: `E(x) = -Σ_ij J_ij x_i x_j - Σ_i h_i x_i`, each in {-1, +1}.

    At temperature T the coupling and the field are those of the physics over T.

    Args:
        sites: the shape of a lattice, or a networkx graph.
        coupling: J: a number, or a tensor `(*batch, edges)` in the order of the graph's edges (of a lattice: dim by
            dim, each in row-major order), or one that broadcasts; a `Parameter` is learned.
        field: h: a number, or a tensor `(*batch, sites)` or one that broadcasts.
        periodic: whether the lattice closes on itself.
        name: of the variable, an array of the lattice's shape.

    References:
        Ising 1925, Beitrag zur Theorie des Ferromagnetismus.

    >>> Ising((3, 3), 0.4, periodic=True).log_partition()
    tensor(8.4565)
    """

    def __init__(
        self,
        sites: Sites,
        coupling: float | Tensor,
        field: float | Tensor | None = None,
        *,
        periodic: bool = False,
        name: str = "x",
    ) -> None:
        super().__init__()
        shape, edges = sites_and_edges(sites, periodic=periodic)
        x = self.variable(name, support=spin, shape=shape)
        if len(edges):
            self.factor(IsingEnergy(torch.as_tensor(coupling)), x[edges])
        if field is not None:
            self.factor(FieldEnergy(torch.as_tensor(field)), x[torch.arange(x.numel)])
