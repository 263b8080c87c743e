"""Colours of elements, so that no factor has two of one colour: those of a colour can be updated at once."""

from __future__ import annotations

import networkx as nx
import torch
from torch import Tensor

from pyro_ebm.graphs.tables import LogTables


def neighbor_pairs(tables: LogTables) -> Tensor:
    """The pairs of elements that share a factor, each once and smaller number first, `(E, 2)`."""
    count = len(tables.num_states)
    keys = []
    for group in tables.groups:
        first, second = torch.triu_indices(group.scopes.shape[1], group.scopes.shape[1], 1)
        pairs = group.scopes[:, torch.stack([first, second], -1)].reshape(-1, 2).sort(-1).values
        keys.append(pairs[:, 0] * count + pairs[:, 1])
    key = torch.cat(keys).unique() if keys else torch.empty(0, dtype=torch.long)
    pairs = torch.stack([key // count, key % count], -1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def color(num_elements: int, pairs: Tensor) -> Tensor:
    """A colour for each element, such that no pair has the same: two if that is enough, few otherwise.

    Args:
        num_elements: the number N of elements.
        pairs: which must differ, `(E, 2)`.

    Returns:
        Colours `0, 1, ...`, `(N,)`.

    References:
        Gonzalez, Low, Gretton and Guestrin 2011, Parallel Gibbs sampling: from colored fields to thin junction trees.

    >>> color(4, torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])).tolist()
    [0, 1, 0, 1]
    """
    sides = _two_sides(num_elements, pairs)
    if sides is not None:
        return sides
    graph = nx.Graph()
    graph.add_nodes_from(range(num_elements))
    graph.add_edges_from(pairs.tolist())
    found = nx.greedy_color(graph, strategy="largest_first")
    return torch.tensor([found[element] for element in range(num_elements)])


def _two_sides(num_elements: int, pairs: Tensor) -> Tensor | None:
    """Two colours by the distance from the first element of each component, or `None` if a cycle is odd."""
    starts, neighbors = _adjacency(num_elements, pairs)
    side = torch.full((num_elements,), -1)
    side[starts[1:] == starts[:-1]] = 0  # alone
    while True:
        unseen = (side < 0).nonzero().flatten()
        if not len(unseen):
            break
        frontier, distance = unseen[:1], 0
        while len(frontier):
            side[frontier] = distance % 2
            first, length = starts[frontier], starts[frontier + 1] - starts[frontier]
            offset = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
            reached = neighbors[first.repeat_interleave(length) + offset]
            frontier = reached[side[reached] < 0].unique()
            distance += 1
    return None if bool((side[pairs[:, 0]] == side[pairs[:, 1]]).any()) else side


def _adjacency(num_elements: int, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbors of all elements in a row, and where each element's start, `(N + 1,)`."""
    both = torch.cat([pairs, pairs.flip(-1)])
    both = both[both[:, 0].argsort()]
    starts = torch.zeros(num_elements + 1, dtype=torch.long)
    starts[1:] = torch.bincount(both[:, 0], minlength=num_elements).cumsum(0)
    return starts, both[:, 1]
