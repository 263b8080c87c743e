"""Graphs that are paths or forests of equal variables: their tables as the arrays that the faster kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.concrete import is_transformed, to_numpy
from pyro_ebm._core.shapes import broadcast
from pyro_ebm.graphs.chains import chain
from pyro_ebm.graphs.chains import decoding as chain_decoding
from pyro_ebm.graphs.chains import sampling as chain_sampling
from pyro_ebm.graphs.elimination.elimination import require_mass
from pyro_ebm.graphs.tables import LogTables
from pyro_ebm.graphs.trees import decoding as tree_decoding
from pyro_ebm.graphs.trees import sampling as tree_sampling
from pyro_ebm.graphs.trees import tree
from pyro_ebm.graphs.trees.forest import Forest

# Below so many elements elimination is as fast.
_FEWEST_ELEMENTS = 16
# A step along a path costs about this part of one from level to level.
_MOST_PARTS = 4


@dataclass(frozen=True, eq=False)
class Layout:
    """How elements hang together.

    Attributes:
        forest: each element's parent.
        path: the elements in the order of the path, `(N,)`, or of several, end to end; nothing if it is not one.
        children: for each group of pairs, the element whose edge to its parent each factor is on, `(F,)`.
        flipped: for each group of pairs, whether its first variable is the child, `(F,)`.
    """

    forest: Forest
    path: Tensor | None
    children: tuple[Tensor, ...]
    flipped: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class ForestTables:
    """A forest's log-potentials.

    Attributes:
        tables: what they were made of.
        layout: how elements hang together.
        unary: `(*batch, N, K)`, along the path if it is one.
        pairwise: of the edge to each element from its parent, `[parent, child]`: `(*batch, N, K, K)`; of a path
            `(*batch, N - 1, K, K)`, or one matrix for all.
        constant: what is added to log Z, `(*batch,)`.
    """

    tables: LogTables
    layout: Layout
    unary: Tensor
    pairwise: Tensor
    constant: Tensor

    def log_partition(self) -> Tensor:
        """Log Z, `(*batch,)`."""
        if self.layout.path is not None:
            return self.constant + chain.log_partition(self.unary, self.pairwise)
        return self.constant + tree.log_partition(self.unary, self.pairwise, self.layout.forest)

    def entropy(self) -> Tensor:
        """The entropy, `(*batch,)`."""
        if self.layout.path is not None:
            return chain.entropy(self.unary, self.pairwise)
        return tree.entropy(self.unary, self.pairwise, self.layout.forest)

    def marginals(self) -> tuple[list[Tensor], list[Tensor]]:
        """As `elimination.marginals`."""
        if self.layout.path is not None:
            single = self._in_place(chain.marginals(self.unary, self.pairwise), -2)
            steps = chain.pairwise_marginals(self.unary, self.pairwise)
            first = steps.new_zeros(*steps.shape[:-3], 1, *steps.shape[-2:])
            pairs = self._in_place(torch.cat([first, steps], -3), -3)
        else:
            single = tree.marginals(self.unary, self.pairwise, self.layout.forest)
            pairs = tree.pairwise_marginals(self.unary, self.pairwise, self.layout.forest)
        batch = self.tables.batch_shape
        groups = []
        edges = iter(zip(self.layout.children, self.layout.flipped, strict=True))
        for group in self.tables.groups:
            if group.arity == 2:
                children, flipped = next(edges)
                rows = pairs.index_select(-3, children)
                groups.append(torch.where(flipped[:, None, None], rows.mT, rows))
            elif group.arity == 1:
                groups.append(single.index_select(-2, group.scopes[:, 0].to(single.device)))
            else:
                groups.append(single.new_ones(*batch, len(group.scopes)))
        return list(single.unbind(-2)), groups

    def mode(self) -> Tensor:
        """As `elimination.mode`."""
        if self.layout.path is not None:
            best, scores = chain_decoding.top_paths(self.unary, self.pairwise, 1)
            require_mass("mode", self.constant + scores)
            return self._in_place(best.squeeze(0), -1)
        states = tree_decoding.mode(self.unary, self.pairwise, self.layout.forest)
        require_mass("mode", self.constant + tree.score(states, self.unary, self.pairwise, self.layout.forest))
        return states

    def sample(self, sample_shape: Size, generator: Generator | None) -> Tensor:
        """As `elimination.sample`."""
        require_mass("sample", self.constant)  # of the rest the kernels see to it
        if self.layout.path is not None:
            drawn = chain_sampling.sample(self.unary, self.pairwise, sample_shape, generator=generator)
            return self._in_place(drawn, -1)
        return tree_sampling.sample(self.unary, self.pairwise, self.layout.forest, sample_shape, generator=generator)

    def _in_place(self, along: Tensor, dim: int) -> Tensor:
        """From the order of the path to that of elements."""
        path = self.layout.path
        return along if path is None else torch.empty_like(along).index_copy(dim, path, along)


def forest_tables(tables: LogTables) -> ForestTables | None:
    """The arrays of a graph that is a path or a forest; nothing if it is not, or where elimination serves as well.

    Under transforms of `torch.func` it is nothing: there the kernels' scaling would have to branch on values.
    """
    counts = tables.num_states
    if len(counts) < _FEWEST_ELEMENTS or any(count != counts[0] for count in counts):
        return None
    if any(group.arity > 2 or is_transformed(group.log_potentials) for group in tables.groups):
        return None
    pairs = [group for group in tables.groups if group.arity == 2]
    batch, states, like = tables.batch_shape, counts[0], tables.like
    layout = _layout(len(counts), tuple(to_numpy(group.scopes).tobytes() for group in pairs), like.device)
    if layout is None:
        return None
    unary = like.new_zeros(*batch, len(counts), states)
    constant = like.new_zeros(batch)
    for group in tables.groups:
        rows = group.log_potentials.expand(*group.batch_shape, len(group.scopes), *group.sizes)
        if group.arity == 1:
            unary = unary.index_add(-2, group.scopes[:, 0].to(like.device), rows.expand(*batch, *rows.shape[-2:]))
        elif group.arity == 0:
            constant = constant + rows.sum(-1)
    pairwise = _pairwise(tables, layout)
    if layout.path is not None:
        unary = unary.index_select(-2, layout.path)
        pairwise = pairwise if pairwise.dim() == 2 else pairwise.index_select(-3, layout.path[1:])
    return ForestTables(tables, layout, unary, pairwise, constant)


def _pairwise(tables: LogTables, layout: Layout) -> Tensor:
    """`(*b, N, K, K)`, or `(K, K)` where all edges of a path share a matrix."""
    pairs = [group for group in tables.groups if group.arity == 2]
    count, states = len(tables.num_states), tables.num_states[0]
    if layout.path is not None and len(pairs) == 1 and pairs[0].log_potentials.dim() == 3:
        table, flipped = pairs[0].log_potentials, layout.flipped[0]
        if len(table) == 1 and len(flipped) == count - 1 and bool((flipped == flipped[0]).all()):
            return table[0].mT if bool(flipped[0]) else table[0]
    batch = broadcast([group.batch_shape for group in pairs], "FactorGraph")
    pairwise = tables.like.new_zeros(*batch, count, states, states)
    for group, children, flipped in zip(pairs, layout.children, layout.flipped, strict=True):
        rows = torch.where(flipped[:, None, None], group.log_potentials.mT, group.log_potentials)
        pairwise = pairwise.index_add(-3, children, rows.expand(*batch, len(group.scopes), states, states))
    return pairwise


@lru_cache(maxsize=64)
def _layout(count: int, packed: Sequence[bytes], device: torch.device) -> Layout | None:
    """Root every part of a forest at an end of it; nothing if there is a cycle. Tensors are on the device."""
    scopes = [np.frombuffer(data, dtype=np.int64).reshape(-1, 2) for data in packed]
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for one, other in (pair for each in scopes for pair in each.tolist()):
        neighbours[one].add(other)
        neighbours[other].add(one)
    parents = [-2] * count
    visited = []
    for root in sorted(range(count), key=lambda each: len(neighbours[each]) != 1):  # the ends first
        if parents[root] != -2:
            continue
        parents[root] = -1
        queue = [root]
        for one in queue:
            for other in neighbours[one]:
                if parents[other] == -2:
                    parents[other] = one
                    queue.append(other)
        visited += queue
    if sum(map(len, neighbours)) // 2 != sum(parent >= 0 for parent in parents):
        return None
    up = np.array(parents)
    children = [np.where(up[each[:, 0]] == each[:, 1], each[:, 0], each[:, 1]) for each in scopes]
    flipped = [up[each[:, 0]] == each[:, 1] for each in scopes]
    forest = Forest.from_parents(parents)
    # Parts that follow one another are one path, with nothing between them; levels serve many short ones better.
    is_path = max(map(len, neighbours)) <= 2 and len(forest.levels) * _MOST_PARTS >= count
    return Layout(
        forest.to(device),
        torch.tensor(visited, device=device) if is_path else None,
        tuple(torch.from_numpy(each).to(device) for each in children),
        tuple(torch.from_numpy(each).to(device) for each in flipped),
    )
