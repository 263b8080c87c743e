"""Sums and draws in log space, where states may be impossible: weights of zero, log weights of -inf."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

Dims = int | tuple[int, ...]


def finite_max(x: Tensor, dim: Dims) -> Tensor:
    """The maximum along dims, kept as dims of one, detached; 0 where it is not finite."""
    highest = x.detach().amax(dim, keepdim=True)
    return torch.where(highest.isfinite(), highest, torch.zeros_like(highest))


def logsumexp(x: Tensor, dim: Dims) -> Tensor:
    """`log Σ exp(x)` along dims, with gradients of zero, never NaN, where every term is -inf.

    >>> x = torch.full((2,), -torch.inf, requires_grad=True)
    >>> logsumexp(x, -1).backward()
    >>> x.grad
    tensor([0., 0.])
    """
    highest = finite_max(x, dim)
    total = (x - highest).exp().sum(dim)
    some = total != 0
    log = torch.where(some, total, torch.ones_like(total)).log()
    return torch.where(some, log + highest.reshape(total.shape), torch.full_like(total, -torch.inf))


def below_max(log_weights: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Log weights less their maximum over some dims, a constant to the gradient; what is all -inf stays so."""
    return log_weights - log_weights.detach().amax(dims, keepdim=True).nan_to_num(neginf=0.0)


def cumulative_weights(log_weights: Tensor) -> Tensor:
    """Cumulative sums of the weights along the last dim, up to a factor: what `draw` takes."""
    return (log_weights - finite_max(log_weights, -1)).exp().cumsum(-1)


def draw(cumulative: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw a state with probability proportional to its weight; never one of weight zero, if there is another.

    Args:
        cumulative: cumulative sums of the weights, `(*lead, K)`.
        generator: of the random numbers.

    Returns:
        States `(*lead,)`, of integers.
    """
    lead = cumulative.shape[:-1]
    uniform = torch.rand((*lead, 1), generator=generator, dtype=cumulative.dtype, device=cumulative.device)
    # In (0, total]: so that the first state whose cumulative weight reaches it has a weight of its own.
    threshold = (1 - uniform) * cumulative[..., -1:]
    return torch.searchsorted(cumulative.contiguous(), threshold).squeeze(-1)
