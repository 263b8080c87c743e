"""The best paths of a linear chain (Viterbi 1967), and the best so many."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm.graphs.chains.potentials import chain_potentials


def mode(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The most probable path.

    Args:
        unary: log-potentials `(*batch, T, K)`.
        pairwise: log-potentials, broadcastable to `(*batch, T - 1, K, K)`.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Returns:
        `(*batch, T)`, of integers; 0 in padding.

    >>> mode(torch.tensor([[0.0, 1.0], [1.5, 0.0]]), 2 * torch.eye(2))
    tensor([0, 0])
    """
    return top_paths(unary, pairwise, 1, lengths)[0].squeeze(0)


@torch.no_grad()
def top_paths(unary: Tensor, pairwise: Tensor, num_paths: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The most probable paths, best first.

    Args:
        unary: log-potentials `(*batch, T, K)`.
        pairwise: log-potentials, broadcastable to `(*batch, T - 1, K, K)`.
        num_paths: how many.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Returns:
        Paths `(num_paths, *batch, T)`, 0 in padding, and their scores `(num_paths, *batch)`, detached. Where there are
        fewer possible paths, the rest have a score of -inf, and mean nothing.

    Raises:
        ValueError: if `num_paths` is not positive.

    >>> paths, scores = top_paths(torch.tensor([[0.0, 1.0], [1.5, 0.0]]), 2 * torch.eye(2), 2)
    >>> paths, scores
    (tensor([[0, 0], [1, 1]]), tensor([3.5000, 3.0000]))
    """
    if num_paths < 1:
        raise ValueError(f"top_paths: got num_paths={num_paths}, expected a positive number.")
    potentials = chain_potentials(unary, pairwise, lengths)
    unary, _, mask = potentials
    steps, states = unary.shape[-2:]
    # Of each state, the scores of the best paths so far, (*batch, K, num_paths), and where they come from.
    best = torch.full_like(unary[..., 0, :, None], -torch.inf).repeat_interleave(num_paths, -1)
    best[..., 0] = unary[..., 0, :]
    stay = torch.arange(states * num_paths, device=unary.device).reshape(states, num_paths)
    origins = []
    for step in range(1, steps):
        into = potentials.pairwise_at(step).mT.unsqueeze(-1)
        candidates = best.unsqueeze(-3) + into  # (*batch, next, previous, path)
        moved, origin = _largest(candidates.flatten(-2), num_paths)
        moved = moved + unary[..., step, :, None]
        if mask is not None:
            here = mask[..., step, None, None]
            moved, origin = torch.where(here, moved, best), torch.where(here, origin, stay)
        best = moved
        origins.append(origin)
    scores, at = _largest(best.flatten(-2), num_paths)
    path = [at]
    for origin in reversed(origins):
        path.append(origin.flatten(-2).gather(-1, path[-1]))
    paths = torch.stack(path[::-1], -1).div(num_paths, rounding_mode="floor")
    if mask is not None:
        paths = torch.where(mask.unsqueeze(-2), paths, 0)
        scores = torch.where(mask[..., :1], scores, _nothing(scores))
    return paths.movedim(-2, 0), scores.movedim(-1, 0)


def _largest(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest values along the last dim, largest first, and where they are: `max` is faster for one."""
    if number == 1:
        found = values.max(-1, keepdim=True)
        return found.values, found.indices
    if values.shape[-1] < number:
        values = torch.nn.functional.pad(values, (0, number - values.shape[-1]), value=-torch.inf)
    top = values.topk(number, -1)
    return top.values, top.indices


def _nothing(scores: Tensor) -> Tensor:
    """The scores of the paths of a chain without steps: there is one."""
    scores = torch.full_like(scores, -torch.inf)
    scores[..., 0] = 0.0
    return scores
