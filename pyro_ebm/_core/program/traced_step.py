"""A step, traced: a graph over flat lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_ebm._core.linalg import nan_cholesky
from pyro_ebm._core.program.rounding import agree, spreads
from pyro_ebm._core.program.trace import trace

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class TraceError(Exception):
    """A graph says something else than the step that it was traced from."""


class TracedStep:
    """A step as a graph over flat lists of tensors.

    Raises:
        TraceError: if the graph does not agree with the step, as where an operation is taken apart wrongly.
    """

    def __init__(self, step: Step, carry: Any, x: Any, constants: Any) -> None:
        self.step = step  # and so what it calls, which a graph names by a key
        parts = [pytree.tree_flatten(part) for part in (carry, x, constants)]
        self.inputs = [[own(leaf) for leaf in leaves] for leaves, _ in parts]  # no tensor stands twice
        self.y_structure: Any = None
        counts = [len(leaves) for leaves in self.inputs]

        def flat(*leaves: Tensor) -> list[Tensor]:
            at = 0
            trees = []
            for count, (_, structure) in zip(counts, parts, strict=True):
                trees.append(pytree.tree_unflatten(leaves[at : at + count], structure))
                at += count
            new, y = step(*trees)
            new_leaves, new_structure = pytree.tree_flatten(new)
            if new_structure != parts[0][1]:
                raise TypeError("a step must return a carry of the structure that it was given")
            y_leaves, self.y_structure = pytree.tree_flatten(y)
            return [*new_leaves, *y_leaves]

        self.carry_structure = parts[0][1]
        given = [leaf for leaves in self.inputs for leaf in leaves]
        self.graph: fx.GraphModule = trace(flat, given)
        with nan_cholesky():
            self._check(given, flat(*given))

    def _check(self, given: list[Tensor], expected: list[Tensor]) -> None:
        found = self.graph(*given)
        pairs = list(zip(found, expected, strict=True))
        if all(agree(x, y, torch.zeros_like(y, dtype=torch.float64)) for x, y in pairs):
            return
        rounding = spreads(self.graph, given, found)
        if not all(agree(x, y, spread) for (x, y), spread in zip(pairs, rounding, strict=True)):
            raise TraceError("the traced graph does not agree with the function")

    def leaves(self, tree: Any) -> list[Tensor]:
        found: list[Tensor] = pytree.tree_leaves(tree)
        return found

    def result(self, carry: Sequence[Tensor], ys: Sequence[Tensor]) -> tuple[Any, Any]:
        return pytree.tree_unflatten(carry, self.carry_structure), pytree.tree_unflatten(ys, self.y_structure)


def own(leaf: Tensor) -> Tensor:
    """A contiguous copy."""
    return leaf.detach().clone(memory_format=torch.contiguous_format)
