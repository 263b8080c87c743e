"""The Potts model."""

import torch
from torch import Tensor

from pyro_ebm.energies import PottsEnergy, TableEnergy
from pyro_ebm.graphs import FactorGraph, Sites, sites_and_edges


class Potts(FactorGraph):
    """Labels that like to agree with their neighbours: `E(x) = -Σ_ij J_ij [x_i = x_j] - Σ_i h_i(x_i)`.

    Args:
        sites: the shape of a lattice, or a networkx graph.
        num_states: the number of labels.
        coupling: J: a number, or a tensor `(*batch, edges)` in the order of the graph's edges (of a lattice: dim by
            dim, each in row-major order), or one that broadcasts; a `Parameter` is learned.
        field: h: log-potentials of the labels, `(num_states,)`, or `(*batch, sites, num_states)`.
        periodic: whether the lattice closes on itself.
        name: of the variable, an array of the lattice's shape.

    References:
        Potts 1952, Some generalized order-disorder transformations.

    >>> Potts((2, 2), 3, 1.0).mode()["x"]
    tensor([[0, 0],
            [0, 0]])
    """

    def __init__(
        self,
        sites: Sites,
        num_states: int,
        coupling: float | Tensor,
        field: Tensor | None = None,
        *,
        periodic: bool = False,
        name: str = "x",
    ) -> None:
        super().__init__()
        shape, edges = sites_and_edges(sites, periodic=periodic)
        x = self.variable(name, num_states=num_states, shape=shape)
        if len(edges):
            self.factor(PottsEnergy(torch.as_tensor(coupling)), x[edges])
        if field is not None:
            self.factor(TableEnergy(-field, 1), x[torch.arange(x.numel)])
