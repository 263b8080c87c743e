"""Conditional distributions of a discrete graph's elements, in blocks of elements that do not interact.

Inside, an element's state is the number of its value, a float, and the states of a block are `(elements, chains)`.
Exact for factors of any arity and any numbers of states: what a factor says of an element is a row of its table, found
by the states of its other elements. Factors over two elements of two states are sums `h_i + Σ_j J_ij s_j`, by gathers
or, where they are many, by a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

# Up to so many terms are written out: a compiler joins them into one loop.
_WRITTEN_OUT = 12


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of tables, found by the states of neighbors.

    Attributes:
        table: log-potentials of an element's states in the rows, `(K, rows)` or, for two states, the log odds
            `(1, rows)`; `None` where they come from the context, its entry `number`.
        base: which row each term starts from, `(terms, elements)`.
        strides: what a neighbor's state adds, `(terms, arity - 1, elements)`.
        neighbors: which row of the sources each neighbor is, likewise.
        number: which of the context's tables it reads.
    """

    table: Tensor | None
    base: Tensor
    strides: Tensor
    neighbors: Tensor
    number: int = -1

    def __call__(self, sources: Tensor, context: Sequence[Tensor]) -> Tensor:
        """The sum of the rows of each element, `(K or 1, elements, chains)`."""
        total: Tensor | None = None
        for term in range(len(self.base)):
            row = self.base[term].unsqueeze(-1)
            for other in range(self.strides.shape[1]):
                stride = self.strides[term, other].unsqueeze(-1)
                row = row + stride * sources[self.neighbors[term, other]].long()
            each = self._rows(row, sources.shape[-1], context)
            total = each if total is None else total + each
        return cast(Tensor, total)

    def _rows(self, row: Tensor, chains: int, context: Sequence[Tensor]) -> Tensor:
        if self.table is not None:
            return self.table[:, row]
        table = context[self.number]  # (K or 1, rows, chains)
        return table.gather(1, row.expand(len(table), -1, chains))


@dataclass(frozen=True, eq=False)
class ElementBlock:
    """The conditional distributions of elements that do not interact: a `Block` for samplers.

    Attributes:
        elements: which they are, `(elements,)`.
        num_states: of each.
        sources: the numbers of the blocks that it reads.
        bias: what does not depend on others, `(K or 1, elements, 1)`.
        weights: of pairs of two states: a matrix `(elements, rows of the sources)`, or by neighbor
            `(degree, elements)`.
        neighbors: of these, `(degree, elements)`; `None` with a matrix.
        lookups: all else.
    """

    elements: Tensor
    num_states: int
    sources: tuple[int, ...]
    bias: Tensor
    weights: Tensor | None
    neighbors: Tensor | None
    lookups: tuple[Lookup, ...]

    @property
    def num_elements(self) -> int:
        """How many elements there are."""
        return len(self.elements)

    def logits(self, states: Sequence[Tensor], context: Sequence[Tensor]) -> Tensor:
        """Conditional log-probabilities `(K, elements, chains)`; of two states the log odds `(elements, chains)`."""
        total = self.bias.expand(-1, -1, states[0].shape[-1])
        if self.sources:
            sources = (
                states[self.sources[0]] if len(self.sources) == 1 else torch.cat([states[n] for n in self.sources])
            )
            if self.weights is not None:
                total = total + self._linear(self.weights, sources)
            for lookup in self.lookups:
                total = total + lookup(sources, context)
        elif self.lookups:
            nothing = states[0][:0]
            for lookup in self.lookups:
                total = total + lookup(nothing, context)
        return total[0] if self.num_states == 2 else total

    def _linear(self, weights: Tensor, sources: Tensor) -> Tensor:
        if self.neighbors is None:
            return weights @ sources
        if len(weights) > _WRITTEN_OUT:
            return (weights.unsqueeze(-1) * sources[self.neighbors]).sum(0)
        total = weights[0].unsqueeze(-1) * sources[self.neighbors[0]]
        for term in range(1, len(weights)):
            total = total + weights[term].unsqueeze(-1) * sources[self.neighbors[term]]
        return total
