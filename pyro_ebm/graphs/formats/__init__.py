"""File formats of discrete networks: UAI, libDAI's `.fg`, and BIF."""

from pyro_ebm.graphs.formats.network import Network
from pyro_ebm.graphs.formats.reading import read_graph, read_network, write_graph

__all__ = ["Network", "read_graph", "read_network", "write_graph"]
