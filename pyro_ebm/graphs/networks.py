"""Graphs to and from networkx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import networkx as nx
import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.variable import Variable


def to_networkx(variables: Mapping[str, Variable], factors: Iterable[Factor]) -> nx.Graph:
    """See `FactorGraph.to_networkx`."""
    graph = nx.Graph()
    nodes: dict[str, list[tuple[object, ...]]] = {}
    for name, variable in variables.items():
        nodes[name] = [(name, *index) for index in product(*map(range, variable.shape))]
        graph.add_nodes_from(nodes[name], bipartite=0, num_states=variable.num_states)
    for group, factor in enumerate(factors):
        whole = [node for a in factor.arguments if a.whole for node in nodes[a.names[0]]]
        for number, row in enumerate(factor.index.tolist()):
            graph.add_node((group, number), bipartite=1, energy=type(factor.energy).__name__)
            ends = [nodes[name][element] for name, element in zip(factor.columns, row, strict=True)] + whole
            graph.add_edges_from(((group, number), end) for end in ends)
    return graph


def edge_index(graph: nx.Graph) -> Tensor:
    """The edges of a networkx graph by the numbers of their ends, `(edges, 2)`; parallel ones of a multigraph are many.

    Raises:
        GraphError: if edges have a direction, or one leads from a node to itself.
    """
    if graph.is_directed():
        raise GraphError(
            f"got a directed {type(graph).__name__}, expected an undirected graph: an edge couples both ways, and two "
            "that are opposite would couple twice. Use graph.to_undirected()."
        )
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    edges = [(numbers[one], numbers[other]) for one, other in graph.edges()]
    loop = next((one for one, other in graph.edges() if one == other), None)
    if loop is not None:
        raise GraphError(
            f"got an edge from the node {loop!r} to itself, expected distinct ends. Leave it out: "
            "graph.remove_edges_from(list(networkx.selfloop_edges(graph)))."
        )
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2)


def connected_parts(count: int, edges: Tensor) -> list[Tensor]:
    """The numbers of the nodes in each connected part of a graph with so many nodes, given its edges `(edges, 2)`."""
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges.tolist())
    return [torch.tensor(sorted(part)) for part in nx.connected_components(graph)]
