"""Factor graphs: structured energies over named variables, with exact and approximate answers."""

from pyro_ebm.graphs.approximate.approximation import Approximation
from pyro_ebm.graphs.approximate.belief_propagation import belief_propagation
from pyro_ebm.graphs.approximate.mean_field import mean_field
from pyro_ebm.graphs.approximate.tree_reweighted import tree_reweighted
from pyro_ebm.graphs.exact import Marginals
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.formats import Network, read_graph, read_network, write_graph
from pyro_ebm.graphs.graph import FactorGraph, join
from pyro_ebm.graphs.lattice import Sites, sites_and_edges
from pyro_ebm.graphs.networks import connected_parts
from pyro_ebm.graphs.variable import Elements, Variable

__all__ = [
    "Approximation",
    "Elements",
    "Factor",
    "FactorGraph",
    "Marginals",
    "Network",
    "Sites",
    "Variable",
    "belief_propagation",
    "connected_parts",
    "join",
    "mean_field",
    "read_graph",
    "read_network",
    "sites_and_edges",
    "tree_reweighted",
    "write_graph",
]
