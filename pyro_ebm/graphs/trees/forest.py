"""Rooted forests: nodes by their depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """The nodes of one depth.

    Attributes:
        nodes: their numbers, `(n,)`.
        parents: for each, its parent's place among the nodes of the level above, `(n,)`; empty for roots.
    """

    nodes: Tensor
    parents: Tensor


@dataclass(frozen=True)
class Forest:
    """A forest whose edges point from parents to children.

    Attributes:
        parents: the number of each node's parent, `(N,)`; -1 for a root.
        levels: the nodes by depth, roots first.
        children: the numbers of all nodes that have a parent, `(E,)`.
    """

    parents: Tensor
    levels: tuple[Level, ...]
    children: Tensor

    def to(self, device: torch.device) -> Forest:
        """The same on a device."""
        levels = tuple(Level(level.nodes.to(device), level.parents.to(device)) for level in self.levels)
        return Forest(self.parents.to(device), levels, self.children.to(device))

    @classmethod
    def from_parents(cls, parents: Tensor | Sequence[int]) -> Forest:
        """The forest of an array of parents, in any order.

        Args:
            parents: the number of each node's parent, `(N,)`; -1 for a root.

        Raises:
            ValueError: if it is not a forest.

        >>> [level.nodes.tolist() for level in Forest.from_parents([-1, 0, 0, 1]).levels]
        [[0], [1, 2], [3]]
        """
        array = torch.as_tensor(parents)
        if array.dim() != 1 or len(array) == 0 or array.is_floating_point() or array.dtype == torch.bool:
            raise ValueError(
                f"Forest: got parents of shape {tuple(array.shape)} and {array.dtype}, expected integers (N,) with "
                "N > 0: the number of each node's parent, -1 for a root."
            )
        numbers = array.tolist()
        children: list[list[int]] = [[] for _ in numbers]
        roots: list[int] = []
        for node, parent in enumerate(numbers):
            if not -1 <= parent < len(numbers):
                raise ValueError(
                    f"Forest: got parent {parent} of node {node}, expected a number from -1 to {len(numbers) - 1}; -1 "
                    "is for a root."
                )
            (roots if parent < 0 else children[parent]).append(node)
        levels: list[Level] = []
        nodes, places = roots, list[int]()
        found = 0
        while nodes:
            found += len(nodes)
            levels.append(Level(array.new_tensor(nodes).long(), array.new_tensor(places).long()))
            places = [place for place, node in enumerate(nodes) for _ in children[node]]
            nodes = [child for node in nodes for child in children[node]]
        if found < len(numbers):
            raise ValueError(
                f"Forest: got {len(numbers) - found} of {len(numbers)} nodes that no root leads to, expected no cycle. "
                "Leave one edge of each cycle out, or use a graph with exact elimination."
            )
        has_parent = [node for node, parent in enumerate(numbers) if parent >= 0]
        return cls(array.long(), tuple(levels), array.new_tensor(has_parent).long())
