"""The covariance of the draws of all chains, pooled, as they come: what the metric is estimated from."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ebm.mcmc.metric import Metric

# Stan's shrinkage of the estimate towards a small multiple of the identity, with the weight of five draws.
_PRIOR_DRAWS, _PRIOR_VARIANCE = 5.0, 1e-3


class PooledCovariance(NamedTuple):
    """Running moments over chains and draws.

    Attributes:
        num_draws: number of draws, `()`.
        mean: their mean, `(dim,)`.
        scatter: the sum of squared deviations, `(dim,)`, or of their outer products, `(dim, dim)`.

    References:
        Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """

    num_draws: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def start(cls, dim: int, *, dense: bool, like: Tensor) -> "PooledCovariance":
        """No draws yet."""
        mean = torch.zeros(dim, dtype=like.dtype, device=like.device)
        return cls(mean.new_zeros(()), mean, mean.new_zeros((dim, dim)) if dense else mean)

    def update(self, position: Tensor, done: Tensor) -> "PooledCovariance":
        """Take in the draws `(chains, dim)` of the chains that are `done`, `(chains,)`."""
        weight = done.to(position.dtype)
        new = weight.sum()
        count = self.num_draws + new
        position = torch.where(done.unsqueeze(-1), position, 0)  # what the others say may not be finite
        mean = position.sum(0) / new.clamp(min=1)
        deviation = (position - mean) * weight.unsqueeze(-1)
        shift = torch.where(new > 0, mean - self.mean, 0)
        correction = self.num_draws * new / count.clamp(min=1)
        if self.scatter.dim() == 1:
            scatter = deviation.square().sum(0) + correction * shift.square()
        else:
            scatter = deviation.mT @ deviation + correction * torch.outer(shift, shift)
        return PooledCovariance(count, self.mean + shift * new / count.clamp(min=1), self.scatter + scatter)

    def metric(self) -> Metric:
        """The metric whose inverse mass matrix is the covariance, shrunk a little."""
        estimate = self.scatter / (self.num_draws - 1).clamp(min=1)
        keep = self.num_draws / (self.num_draws + _PRIOR_DRAWS)
        prior = _PRIOR_VARIANCE * (1 - keep)
        if estimate.dim() == 1:
            return Metric((keep * estimate + prior).sqrt())
        diagonal = keep * estimate.diagonal() + prior
        factor, info = torch.linalg.cholesky_ex(keep * estimate + prior * torch.eye(len(estimate)).to(estimate))
        return Metric(torch.where(info == 0, factor, diagonal.sqrt().diag()))  # too few draws for a full matrix
