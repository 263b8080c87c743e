"""Graphs to and from networkx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import networkx as nx
import torch
from torch import Tensor

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
        names = {c: n for a in factor.arguments for c, n in zip(a.columns, a.names, strict=False)}
        whole = [node for a in factor.arguments if a.whole for node in nodes[a.names[0]]]
        for number, row in enumerate(factor.index.tolist()):
            graph.add_node((group, number), bipartite=1, energy=type(factor.energy).__name__)
            ends = [nodes[names[column]][element] for column, element in enumerate(row)] + whole
            graph.add_edges_from(((group, number), end) for end in ends)
    return graph


def edge_index(graph: nx.Graph) -> Tensor:
    """The edges of a networkx graph by the numbers of their ends, `(edges, 2)`; loops are left out."""
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    edges = [(numbers[one], numbers[other]) for one, other in graph.edges if one != other]
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2)


def connected_parts(count: int, edges: Tensor) -> list[Tensor]:
    """The numbers of the nodes in each connected part of a graph with so many nodes, given its edges `(edges, 2)`."""
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges.tolist())
    return [torch.tensor(sorted(part)) for part in nx.connected_components(graph)]
