"""Factor graphs: structured energies over named variables, with exact and approximate answers."""

from pyro_ebm.graphs.exact import Marginals
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.graph import FactorGraph, join
from pyro_ebm.graphs.lattice import Sites, sites_and_edges
from pyro_ebm.graphs.networks import connected_parts
from pyro_ebm.graphs.variable import Elements, Variable

__all__ = [
    "Elements",
    "Factor",
    "FactorGraph",
    "Marginals",
    "Sites",
    "Variable",
    "connected_parts",
    "join",
    "sites_and_edges",
]
