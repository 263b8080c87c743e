"""Exact draws from linear chains: filter forwards, sample backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.log_space import cumulative_weights, draw
from pyro_ebm.graphs.chains.chain import filtered
from pyro_ebm.graphs.chains.potentials import chain_potentials


@torch.no_grad()
def sample(
    unary: Tensor,
    pairwise: Tensor,
    sample_shape: Sequence[int] = (),
    lengths: Tensor | None = None,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Draw paths with their exact probabilities, all in one pass.

    Args:
        unary: log-potentials `(*batch, T, K)`.
        pairwise: log-potentials, broadcastable to `(*batch, T - 1, K, K)`.
        sample_shape: of the draws of each chain.
        lengths: numbers of steps, broadcastable to `(*batch,)`.
        generator: of the random numbers; torch's global one by default.

    Returns:
        `(*sample, *batch, T)`, of integers; 0 in padding.

    Raises:
        ValueError: if a chain has no possible path.

    >>> sample(torch.zeros(4, 2), torch.tensor([[-torch.inf, 0.0], [0.0, -torch.inf]]), (1000,)).diff().abs().min()
    tensor(1)
    """
    potentials = chain_potentials(unary, pairwise, lengths)
    unary, _, mask = potentials
    steps, states = unary.shape[-2:]
    log_z, log_alpha = filtered(potentials)
    if not bool((log_z > -torch.inf).all()):
        raise ValueError(
            "sample: got log-potentials under which no path is possible (or NaN), expected at least one in every chain."
        )
    batch_shape = potentials.batch_shape
    chain = torch.arange(batch_shape.numel(), device=unary.device)
    size = Size(sample_shape).numel()
    cumulative = cumulative_weights(log_alpha[-1]).reshape(-1, states)
    state = draw(cumulative.expand(size, *cumulative.shape), generator)
    path = [state]
    for step in range(steps - 1, 0, -1):
        into = potentials.pairwise_at(step).mT  # (*b, next, previous)
        if mask is not None:  # what follows an end says nothing
            into = torch.where(mask[..., step, None, None], into, 0.0)
        log_weights = (log_alpha[step - 1].unsqueeze(-2) + into).expand(*batch_shape, states, states)
        rows = cumulative_weights(log_weights).reshape(-1, states)
        state = draw(rows.index_select(0, (chain * states + state).flatten()), generator).reshape(state.shape)
        path.append(state)
    paths = torch.stack(path[::-1], -1).reshape(*sample_shape, *batch_shape, steps)
    return paths if mask is None else torch.where(mask, paths, 0)
