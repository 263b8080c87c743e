"""Sets of factors without a cycle, and how often factors appear in them: the weights of tree-reweighted messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor


def maximal_forest(scopes: Sequence[Sequence[int]], num_elements: int, order: Iterable[int]) -> list[int]:
    """Take factors in an order, as long as they close no cycle: with pairs of elements it is Kruskal's spanning forest.

    Args:
        scopes: the elements of each factor.
        num_elements: how many elements there are.
        order: in which order to take factors, by number.

    Returns:
        The numbers of those taken.
    """
    parents = list(range(num_elements))

    def root(element: int) -> int:
        while parents[element] != element:
            parents[element] = parents[parents[element]]
            element = parents[element]
        return element

    taken = []
    for number in order:
        roots = [root(element) for element in scopes[number]]
        if len(set(roots)) == len(roots):
            taken.append(number)
            for other in roots[1:]:
                parents[other] = roots[0]
    return taken


def appearance(
    scopes: Sequence[Sequence[int]], num_elements: int, num_forests: int, generator: Generator | None = None
) -> Tensor:
    """In which part of random maximal forests each factor appears, `(F,)` in float64, all of them positive.

    Each forest takes first what has appeared least so far, in a random order, so that parts are about even. More
    forests are made than asked for if some factor is in none of these.

    Raises:
        ValueError: if no forest is asked for.
    """
    if num_forests < 1:
        raise ValueError(f"tree_reweighted: got num_forests={num_forests}, expected at least 1.")
    counts = torch.zeros(len(scopes), dtype=torch.float64)
    made = 0
    while made < num_forests or bool((counts == 0).any()):
        ties = torch.rand(len(scopes), dtype=torch.float64, generator=generator)
        counts[maximal_forest(scopes, num_elements, (counts + ties).argsort().tolist())] += 1
        made += 1
    return counts / made
