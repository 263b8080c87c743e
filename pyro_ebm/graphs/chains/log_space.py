"""Sum-product on chains in log space: right for any log-potentials, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.log_space import finite_max, logsumexp
from pyro_ebm.graphs.chains.potentials import ChainPotentials


def filter_in_log_space(potentials: ChainPotentials) -> tuple[Tensor, Tensor]:
    """The forward recursion `α_t(j) = u_t(j) + log Σ_i exp(α_{t-1}(i) + p(i, j))`.

    It is made of plain operations on tensors, without branches on their values, so it can be traced, batched and
    differentiated by any transformation.

    Returns:
        Log Z in nats, `(*batch,)`; and α, each step with a constant taken off, `(T, *batch, K)`. In padding, α
        stays what it was.
    """
    unary, mask = potentials.unary, potentials.mask
    alpha, total = _rescaled(unary[..., 0, :])
    alphas = [alpha]
    for step in range(1, unary.shape[-2]):
        moved = logsumexp(alpha.unsqueeze(-1) + potentials.pairwise_at(step), -2)
        new, scale = _rescaled(moved + unary[..., step, :])
        if mask is not None:
            here = mask[..., step]
            new, scale = torch.where(here.unsqueeze(-1), new, alpha), torch.where(here, scale, 0.0)
        alpha, total = new, total + scale
        alphas.append(alpha)
    log_z = total + logsumexp(alpha, -1)
    if mask is not None:  # a chain without steps has one path, of score 0
        log_z = torch.where(mask[..., 0], log_z, 0.0)
    return log_z, torch.stack(alphas)


def _rescaled(alpha: Tensor) -> tuple[Tensor, Tensor]:
    scale = finite_max(alpha, -1)
    return alpha - scale, scale.squeeze(-1)


def log_partition_by_pairs(potentials: ChainPotentials) -> Tensor:
    """Log Z, `(*batch,)`, by products of neighbouring matrices in log space, then of neighbouring products, and so on.

    It is K times the work of the forward recursion, in `log T` steps rather than T.
    """
    unary, _, mask = potentials
    steps, states = unary.shape[-2:]
    products = potentials.full_pairwise() + unary[..., 1:, None, :]
    if mask is not None:  # padding leaves everything as it is
        identity = torch.eye(states, dtype=unary.dtype, device=unary.device).log()
        products = torch.where(mask[..., 1:, None, None], products, identity)
    while steps > 2:
        pairs = (steps - 1) // 2
        first, second = products[..., : 2 * pairs : 2, :, :], products[..., 1 : 2 * pairs : 2, :, :]
        joined = logsumexp(first.unsqueeze(-1) + second.unsqueeze(-3), -2)
        products = torch.cat([joined, products[..., 2 * pairs :, :, :]], -3)
        steps = products.shape[-3] + 1
    log_z = logsumexp((unary[..., 0, :, None] + products.squeeze(-3)).flatten(-2), -1)
    return log_z if mask is None else torch.where(mask[..., 0], log_z, 0.0)


def gradient_in_log_space(
    weight: Tensor, potentials: ChainPotentials, full_pairwise: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradient of `Σ weight log Z`.

    Args:
        weight: `(*batch,)`.
        potentials: the chain.
        full_pairwise: whether log-potentials that are shared get a gradient for each step and batch element.

    Returns:
        The gradients of `unary` and `pairwise`, of their shapes; the latter `(*batch, T - 1, K, K)` if full.
    """
    pairwise = potentials.full_pairwise() if full_pairwise else potentials.pairwise

    def log_partition(unary: Tensor, pairwise: Tensor) -> Tensor:
        return filter_in_log_space(ChainPotentials(unary, pairwise, potentials.mask))[0]

    pull_back: Any = torch.func.vjp(log_partition, potentials.unary, pairwise)[1]
    gradients: tuple[Tensor, Tensor] = pull_back(weight)
    return gradients
