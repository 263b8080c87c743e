"""The best states of a tree, by max-product."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm.graphs.trees.forest import Forest, Level
from pyro_ebm.graphs.trees.tree import tree_potentials


@torch.no_grad()
def mode(unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """The most probable states.

    Args:
        unary: log-potentials `(*batch, N, K)`.
        pairwise: log-potentials, broadcastable to `(*batch, N, K, K)`.
        forest: the edges.

    Returns:
        `(*batch, N)`, of integers.

    >>> mode(torch.tensor([[0.0, 1.0], [1.5, 0.0]]), 2 * torch.eye(2), Forest.from_parents([-1, 0]))
    tensor([0, 0])
    """
    potentials = tree_potentials(unary, pairwise, forest)
    below: tuple[Level, Tensor] | None = None
    answers: list[Tensor] = []  # the best states of a level's nodes, for each state of their parents
    for level, best in potentials.upward():
        if below is not None:
            lower, of_children = below
            found = (potentials.pairwise_at(lower.nodes) + of_children.unsqueeze(-2)).max(-1)
            best = best.index_add(-2, lower.parents, found.values)
            answers.append(found.indices)
        below = level, best
    state = best.argmax(-1)
    value = state.new_empty(potentials.unary.shape[:-1])
    for level, answer in zip(forest.levels, [None, *reversed(answers)], strict=True):
        if answer is not None:
            state = answer.gather(-1, state.index_select(-1, level.parents).unsqueeze(-1)).squeeze(-1)
        value[..., level.nodes] = state
    return value
