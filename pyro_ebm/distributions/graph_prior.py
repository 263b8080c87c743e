"""Joint draws of a graph's variables, handed out site by site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs import FactorGraph


class GraphPrior:
    """Draws each variable given those that were seen before: together a draw from the joint density.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: FactorGraph) -> None:
        self._graph = graph
        self._seen: dict[str, Tensor] = {}
        self._elements: dict[str, dict[tuple[int, ...], Tensor]] = {}
        self._joint: Mapping[str, Tensor] | None = None
        self._last: Tensor | None = None

    def draw(self, name: str, index: tuple[int, ...] | None, shape: Size) -> Tensor:
        """Draw a variable, or the element of one at an index, `(*shape, *event)`."""
        if self._joint is None:
            self._joint = self._draw_all(shape)
        whole = self._joint[name]
        place: Any = () if index is None else index
        self._last = whole[(..., *place)]
        return self._last

    def see(self, name: str, index: tuple[int, ...] | None, value: Tensor) -> None:
        """Take note of a value, drawn or not: what comes after is drawn given it."""
        if value is not self._last:
            self._joint = None
        if index is None:
            self._seen[name] = value
        else:
            self._elements.setdefault(name, {})[index] = value

    def _draw_all(self, shape: Size) -> dict[str, Tensor]:
        evidence: dict[str, Tensor | tuple[Tensor, Tensor]] = dict(self._seen)
        for name, elements in self._elements.items():
            evidence[name] = _partial(self._graph[name].shape, elements)
        graph = self._graph.condition(evidence) if evidence else self._graph
        extra = len(shape) - len(graph.batch_shape)
        if extra < 0 or shape[extra:] != graph.batch_shape:
            raise GraphError(
                f"sample_graph: got a graph of batch shape {tuple(graph.batch_shape)} for draws of shape "
                f"{tuple(shape)}, expected it to be their last dims. Give its parameters the batch dims of the plates."
            )
        return graph.complete(graph.sample(shape[:extra]))


def _partial(shape: Size, elements: Mapping[tuple[int, ...], Tensor]) -> tuple[Tensor, Tensor]:
    """Values of some elements as an array `(*batch, *shape)`, and which they are, `(*shape)`."""
    known = torch.zeros(shape, dtype=torch.bool)
    given = torch.broadcast_tensors(*elements.values())
    values = given[0].new_zeros((*given[0].shape, *shape))
    for index, value in zip(elements, given, strict=True):
        known[index] = True
        values[(..., *index)] = value
    return values, known
