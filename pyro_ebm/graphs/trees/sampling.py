"""Exact draws from trees: messages up, states down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.log_space import cumulative_weights, draw
from pyro_ebm.graphs.trees.forest import Forest
from pyro_ebm.graphs.trees.tree import tree_potentials, upward_messages


@torch.no_grad()
def sample(
    unary: Tensor,
    pairwise: Tensor,
    forest: Forest,
    sample_shape: Sequence[int] = (),
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Draw states with their exact probabilities, all in one pass.

    Args:
        unary: log-potentials `(*batch, N, K)`.
        pairwise: log-potentials, broadcastable to `(*batch, N, K, K)`.
        forest: the edges.
        sample_shape: of the draws of each tree.
        generator: of the random numbers; torch's global one by default.

    Returns:
        `(*sample, *batch, N)`, of integers.

    Raises:
        ValueError: if a tree has no possible states.

    >>> always_equal = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    >>> sample(torch.zeros(3, 2), always_equal, Forest.from_parents([-1, 0, 0]), (1000,)).diff().abs().max()
    tensor(0)
    """
    potentials = tree_potentials(unary, pairwise, forest)
    log_z, messages = upward_messages(potentials)
    if not bool((log_z > -torch.inf).all()):
        raise ValueError(
            "sample: got log-potentials under which nothing is possible (or NaN), expected some state in every tree."
        )
    batch_shape, states = potentials.batch_shape, potentials.unary.shape[-1]
    size = Size(sample_shape).numel()
    value = torch.empty(size, *potentials.unary.shape[:-1], dtype=torch.long, device=log_z.device)
    state = value
    for depth, (level, weights) in enumerate(zip(forest.levels, messages, strict=True)):
        if depth == 0:
            rows = cumulative_weights(weights)
            state = draw(rows.expand(size, *rows.shape), generator)
        else:
            log_weights = weights.unsqueeze(-2) + potentials.pairwise_at(level.nodes)
            rows = cumulative_weights(log_weights).reshape(-1, states)
            place = torch.arange(weights.shape[:-1].numel(), device=rows.device).reshape(weights.shape[:-1])
            place = place * states + state.index_select(-1, level.parents)
            state = draw(rows.index_select(0, place.flatten()), generator).reshape(place.shape)
        value[..., level.nodes] = state
    return value.reshape(*sample_shape, *batch_shape, -1)
