"""`Estimate`: an average of weights in log space, with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """An estimate in nats, with what is known of its error.

    The standard error is from the spread of the weights that were met. It is optimistic where it matters most: weights
    that are heavy in the tail keep their largest values for regions that no chain has seen, so a small `ess`, below
    some tens, means that the value is likely low (for a log mean) by more than the standard error says. A mode that
    all chains have missed leaves no trace in it at all. An estimate from the other side is the check: see
    `pyro_ebm.mcmc.annealed`.

    Attributes:
        value: the estimate, `(*batch,)`.
        standard_error: its standard error, `(*batch,)`; infinite for a single weight.
        ess: the effective sample size `(Σ w)² / Σ w²`, `(*batch,)`, between 1 and the number of weights; 0 if all
            weights are zero.
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor


def estimate_of(log_weights: Tensor, *, reciprocal: bool = False) -> Estimate:
    """The log of the mean of independent weights: `log (1/N) Σ_n w_n`.

    Its standard error is by the delta method: that of the mean, relative to it,
    `sqrt((N / ESS - 1) / (N - 1))`. By the concavity of the logarithm the value is low by about half of its square.

    Args:
        log_weights: log w, `(N, *batch)`; -inf is a weight of zero.
        reciprocal: whether the weights are of one over what is sought, so that the value is `-log (1/N) Σ_n w_n`, and
            high where the other is low.

    Raises:
        ValueError: if there are no weights.

    References:
        Owen 2013, Monte Carlo theory, methods and examples, chapter 9.

    >>> abs(estimate_of(torch.tensor([1.0, 3.0]).log()).value.exp() - 2) < 1e-5
    tensor(True)
    >>> estimate_of(torch.full((100,), 5.0)).standard_error
    tensor(0.)
    """
    if log_weights.dim() == 0 or len(log_weights) == 0:
        raise ValueError(
            f"estimate_of: got log weights of shape {tuple(log_weights.shape)}, expected (N, *batch) with N of at "
            "least 1. Give the weights of all chains along the first dim."
        )
    num = len(log_weights)
    highest = log_weights.amax(0)
    shift = torch.where(highest.isfinite(), highest, 0)
    weights = (log_weights - shift).exp()  # the largest is one: sums and squares neither overflow nor vanish
    mean = weights.mean(0)
    variance = weights.var(0) if num > 1 else torch.full_like(mean, torch.inf)
    value = mean.log() + shift
    error = (variance / num).sqrt() / mean
    ess = weights.sum(0).square() / weights.square().sum(0)
    impossible = mean == 0
    error, ess = error.masked_fill(impossible, math.inf), ess.masked_fill(impossible, 0)
    return Estimate(-value if reciprocal else value, error, ess)
