"""Pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_graph(graph: nx.Graph, ax: Axes | None = None, *, labels: bool = True) -> Axes:
    """Draw a factor graph: variables are circles, factors are squares.

    Elements of a two-dimensional array lie on their lattice, and factors between their variables; other graphs are
    laid out by networkx.

    Args:
        graph: from `FactorGraph.to_networkx()`.
        ax: where to draw; by default a new figure.
        labels: whether variables are named.

    Returns:
        The axes.

    Raises:
        ValueError: if the graph has no nodes with `bipartite` set, as those of `to_networkx` have.
    """
    from matplotlib import pyplot

    kinds = nx.get_node_attributes(graph, "bipartite")
    if not kinds or len(kinds) < len(graph):
        raise ValueError("plot_graph: got a graph whose nodes are not all marked, expected FactorGraph.to_networkx().")
    if ax is None:
        _, ax = pyplot.subplots()
    variables = [node for node, kind in kinds.items() if kind == 0]
    factors = [node for node, kind in kinds.items() if kind == 1]
    places = _layout(graph, variables, factors)
    nx.draw_networkx_edges(graph, places, ax=ax, edge_color="0.6")
    nx.draw_networkx_nodes(graph, places, variables, ax=ax, node_color="white", edgecolors="black", node_size=300)
    nx.draw_networkx_nodes(graph, places, factors, ax=ax, node_color="black", node_shape="s", node_size=30)
    if labels:
        names = {node: node[0] + (str(list(node[1:])) if len(node) > 1 else "") for node in variables}
        nx.draw_networkx_labels(graph, places, names, ax=ax, font_size=7)
    ax.set_axis_off()
    return ax


def _layout(graph: nx.Graph, variables: list[Any], factors: list[Any]) -> dict[Any, tuple[float, float]]:
    """Where nodes are: `{node: (x, y)}`."""
    if not all(len(node) == 3 for node in variables) or len({node[0] for node in variables}) > 1:
        laid_out: dict[Any, tuple[float, float]] = nx.spring_layout(graph, seed=0)
        return laid_out
    places = {node: (float(node[2]), -float(node[1])) for node in variables}
    for factor in factors:
        ends = [places[node] for node in graph[factor]]
        x, y = (sum(each) / len(ends) for each in zip(*ends, strict=True))
        places[factor] = (x, y) if len(ends) > 1 else (x + 0.3, y + 0.3)
    return places
