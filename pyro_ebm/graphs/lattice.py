"""Where the sites of a model are, and which are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import networkx as nx
import torch
from torch import Size, Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.networks import edge_index

Sites: TypeAlias = Sequence[int] | nx.Graph


def sites_and_edges(sites: Sites, *, periodic: bool = False) -> tuple[Size, Tensor]:
    """The shape of an array of sites, and the pairs of neighbours by number, `(edges, 2)`.

    Args:
        sites: the shape of a lattice, whose neighbours differ by one in one coordinate; or a networkx graph, whose
            nodes are numbered in their order.
        periodic: whether a lattice closes on itself; where it has two sites in a row, these are neighbours twice.

    Raises:
        GraphError: if there are no sites, or a networkx graph is said to be periodic.
    """
    if isinstance(sites, nx.Graph):
        if periodic:
            raise GraphError("got periodic=True with a networkx graph, expected a lattice's shape. Add edges to it.")
        return Size([sites.number_of_nodes()]), edge_index(sites)
    shape = Size(sites)
    if not shape or min(shape) < 1:
        raise GraphError(f"got sites of shape {tuple(shape)}, expected a lattice's positive sizes or a networkx graph.")
    numbers = torch.arange(shape.numel()).reshape(shape)
    edges = []
    for dim, size in enumerate(shape):
        if size > 1:
            ends = (
                (numbers, numbers.roll(-1, dim))
                if periodic
                else (numbers.narrow(dim, 0, size - 1), numbers.narrow(dim, 1, size - 1))
            )
            edges.append(torch.stack([end.flatten() for end in ends], -1))
    return shape, torch.cat(edges) if edges else torch.empty(0, 2, dtype=torch.long)
