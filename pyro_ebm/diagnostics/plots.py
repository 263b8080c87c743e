"""Pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def plot_history(history: Mapping[str, Sequence[float]], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw what a training reported, against its steps: a panel for each name, with a running mean.

    Args:
        history: a number for each step, by name, as `Training.history` has them.
        axes: where to draw, one for each name; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or not an axis for each name.
    """
    from matplotlib import pyplot

    if not history:
        raise ValueError("plot_history: got an empty history, expected one of at least one step.")
    if axes is None:
        columns = min(3, len(history))
        rows = math.ceil(len(history) / columns)
        _, grid = pyplot.subplots(rows, columns, squeeze=False, figsize=(4 * columns, 2.5 * rows), layout="constrained")
        axes = list(grid.flat)[: len(history)]
        for unused in list(grid.flat)[len(history) :]:
            unused.set_axis_off()
    if len(axes) != len(history):
        raise ValueError(f"plot_history: got {len(axes)} axes for {len(history)} names, expected one for each.")
    for ax, (name, values) in zip(axes, history.items(), strict=True):
        ax.plot(range(1, len(values) + 1), values, color="0.8", linewidth=0.6)
        width = max(1, len(values) // 50)
        parts = [values[i : i + width] for i in range(0, len(values) - width + 1, width)]
        ax.plot([width * (i + 0.5) for i in range(len(parts))], [sum(part) / width for part in parts], color="C0")
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xlabel("step", fontsize=8)
    return axes
