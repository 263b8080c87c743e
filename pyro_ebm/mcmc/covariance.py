"""The covariance of the draws of all chains, pooled, as they come: what the metric is estimated from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric, Metric

# Correlations are shrunk towards none, with the weight of five draws, and of ever fewer once there are more than ten
# for each of the dimensions. The relative error of every direction's variance is then small, be it ever so narrow, and
# what shrinks correlations widens narrow directions. Variances are not shrunk: a fixed variance to shrink them to, as
# in Stan, would be wrong for parameters on other scales.
_PRIOR_DRAWS, _ENOUGH_DRAWS = 5.0, 10.0
# Condition number of the correlations, beside what chance makes, from which a dense metric pays; in few dimensions its
# cost does not count.
_WORTH_A_FACTOR, _ALWAYS_DENSE = 4.0, 16
# Draws that a low-rank estimate keeps, numbers in them at most, and how far from one a stretch must be to be worth its
# column.
_KEPT_DRAWS, _KEPT_NUMBERS, _NEGLIGIBLE = 256, 2**26, 1.2
# With fewer draws than dims, an eigenvalue that is no more than so many times the next one's is there by chance.
_STANDS_OUT = 3.0


class MetricEstimator(Protocol):
    """What learns a metric from draws; a `NamedTuple` of tensors."""

    @property
    def num_draws(self) -> Tensor:
        """Number of draws so far, `()`."""
        ...

    def update(self, draws: Tensor) -> MetricEstimator:
        """Take in draws `(draws, dim)`."""
        ...

    def metric(self) -> Metric:
        """The metric whose inverse mass matrix is the estimate."""
        ...


def _positive(variance: Tensor) -> Tensor:
    """Variances, one where nothing has moved."""
    return torch.where(variance > 0, variance, 1)


class PooledVariance(NamedTuple):
    """Running means and variances over chains and draws: for a diagonal metric.

    Attributes:
        num_draws: number of draws, `()`.
        mean: their mean, `(dim,)`.
        scatter: the sum of squared deviations, `(dim,)`.

    References:
        Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """

    num_draws: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def start(cls, like: Tensor) -> PooledVariance:
        """No draws yet, of vectors like `like` `(dim,)`."""
        return cls(like.new_zeros(()), torch.zeros_like(like), torch.zeros_like(like))

    def update(self, draws: Tensor) -> PooledVariance:
        """Take in draws `(draws, dim)`."""
        count, mean, shift, correction = _merged(self.num_draws, self.mean, draws)
        scatter = (draws - draws.mean(0)).square().sum(0) + correction * shift.square()
        return PooledVariance(count, mean, self.scatter + scatter) if len(draws) else self

    @property
    def variance(self) -> Tensor:
        """The estimate, `(dim,)`."""
        return _positive(self.scatter / (self.num_draws - 1).clamp(min=1))

    def metric(self) -> DiagonalMetric:
        """The metric whose inverse mass matrix is the estimate."""
        return DiagonalMetric(self.variance.sqrt())


class PooledCovariance(NamedTuple):
    """Running means and covariances over chains and draws: for a dense or block-diagonal metric.

    Attributes:
        num_draws: number of draws, `()`.
        mean: their mean, `(dim,)`.
        scatter: the sum of the outer products of deviations, `(dim, dim)`.
        mask: which entries to estimate, `(dim, dim)`; the others are zero.
    """

    num_draws: Tensor
    mean: Tensor
    scatter: Tensor
    mask: Tensor

    @classmethod
    def start(cls, like: Tensor, mask: Tensor | None = None) -> PooledCovariance:
        """No draws yet, of vectors like `like` `(dim,)`."""
        dim = len(like)
        everywhere = torch.ones(dim, dim, dtype=torch.bool, device=like.device)
        return cls(
            like.new_zeros(()), torch.zeros_like(like), like.new_zeros(dim, dim), everywhere if mask is None else mask
        )

    def update(self, draws: Tensor) -> PooledCovariance:
        """Take in draws `(draws, dim)`."""
        count, mean, shift, correction = _merged(self.num_draws, self.mean, draws)
        deviation = draws - draws.mean(0)
        scatter = deviation.mT @ deviation + correction * torch.outer(shift, shift)
        return self._replace(num_draws=count, mean=mean, scatter=self.scatter + scatter) if len(draws) else self

    def metric(self) -> DenseMetric:
        """The metric whose inverse mass matrix is the estimate; its diagonal where the draws are too few for more."""
        scale, correlation = self._standardised()
        factor, info = torch.linalg.cholesky_ex(correlation)
        return DenseMetric(torch.where(info == 0, scale.unsqueeze(-1) * factor, scale.diag()))

    def _standardised(self) -> tuple[Tensor, Tensor]:
        """Standard deviations `(dim,)`, and correlations, shrunk and masked, `(dim, dim)`."""
        covariance = self.scatter / (self.num_draws - 1).clamp(min=1)
        scale = _positive(covariance.diagonal()).sqrt()
        kept = self.num_draws / (self.num_draws + self._prior_draws())
        off_diagonal = torch.where(self.mask, kept * covariance / torch.outer(scale, scale), 0)
        return scale, off_diagonal - off_diagonal.diagonal().diag() + torch.eye(len(scale)).to(scale)

    def _prior_draws(self) -> Tensor:
        """The weight of the prior, in draws, for the rows of each block, `(dim, 1)`."""
        block = self.mask.sum(-1, keepdim=True)
        return _PRIOR_DRAWS * (_ENOUGH_DRAWS * block / self.num_draws.clamp(min=1)).clamp(max=1).square()


class ChosenCovariance(NamedTuple):
    """A pooled covariance that makes a dense metric only where one pays: else a diagonal one.

    A dense metric costs two products with a `(dim, dim)` matrix in each step, and saves steps in proportion to the
    square root of the condition number of the correlations. The condition number that independent coordinates would
    show by chance is known (Marchenko and Pastur 1967, Distribution of eigenvalues for some sets of random matrices).

    Attributes:
        covariance: of the draws.
    """

    covariance: PooledCovariance

    @property
    def num_draws(self) -> Tensor:
        """Number of draws so far, `()`."""
        return self.covariance.num_draws

    def update(self, draws: Tensor) -> ChosenCovariance:
        """Take in draws `(draws, dim)`."""
        return ChosenCovariance(self.covariance.update(draws))

    def metric(self) -> DenseMetric | DiagonalMetric:
        """The metric whose inverse mass matrix is the estimate, or its diagonal."""
        scale, correlation = self.covariance._standardised()
        spread = torch.linalg.eigvalsh(correlation)
        ratio = (len(scale) / self.num_draws).sqrt()
        by_chance = ((1 + ratio) / (1 - ratio)).square() if ratio < 1 else torch.inf
        if bool(spread[-1] / spread[0].clamp(min=1e-12) > _WORTH_A_FACTOR * by_chance) or len(scale) <= _ALWAYS_DENSE:
            return self.covariance.metric()
        return DiagonalMetric(scale)


class LowRankCovariance(NamedTuple):
    """Variances of all draws and the strongest correlations of the last ones: for a low-rank metric.

    The correlation matrix `C` of the kept draws is approximated by its eigenvectors with the greatest and least
    eigenvalues, in time and memory linear in the dimension.

    Attributes:
        variance: running means and variances.
        recent: the last draws, `(kept, dim)`.
        rank: `(rank,)`; only its length counts.
    """

    variance: PooledVariance
    recent: Tensor
    rank: Tensor

    @classmethod
    def start(cls, like: Tensor, rank: int) -> LowRankCovariance:
        """No draws yet, of vectors like `like` `(dim,)`."""
        return cls(PooledVariance.start(like), like.new_zeros(0, len(like)), like.new_zeros(min(rank, len(like))))

    @property
    def num_draws(self) -> Tensor:
        """Number of draws so far, `()`."""
        return self.variance.num_draws

    def update(self, draws: Tensor) -> LowRankCovariance:
        """Take in draws `(draws, dim)`."""
        kept = max(2, min(_KEPT_DRAWS, _KEPT_NUMBERS // max(draws.shape[-1], 1)))
        recent = torch.cat([self.recent[-kept:], draws[-kept:]])[-kept:]
        return self._replace(variance=self.variance.update(draws), recent=recent)

    def metric(self) -> LowRankMetric:
        """The metric whose inverse mass matrix is the estimate."""
        scale, rank, kept = self.variance.variance.sqrt(), len(self.rank), len(self.recent)
        directions, stretch = self.recent.new_zeros(len(scale), rank), self.recent.new_ones(rank)
        if kept < 2:
            return LowRankMetric(scale, directions, stretch)
        standard = (self.recent - self.recent.mean(0)) / scale / (kept - 1) ** 0.5
        if kept < len(scale):
            spread, vectors = _outstanding(standard, rank)
        else:
            _, singular, right = torch.linalg.svd(standard, full_matrices=False)
            spread, vectors = singular.square(), right.mT
        # Directions that the draws span, shrunk towards one as the variances are.
        root = ((kept * spread + _PRIOR_DRAWS) / (kept + _PRIOR_DRAWS)).sqrt()
        worth = torch.where((root > _NEGLIGIBLE) | ((root < 1 / _NEGLIGIBLE) & (kept > 4 * len(scale))), root, 1)
        strongest = worth.log().abs().topk(min(rank, len(worth))).indices
        directions[:, : len(strongest)] = vectors[:, strongest]
        stretch[: len(strongest)] = worth[strongest]
        return LowRankMetric(scale, directions, stretch)


def _outstanding(standard: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The directions in which fewer draws than dims, X `(draws, dim)`, spread by more than chance.

    Independent dims already show the eigenvalues `dim / draws` and more, the more so where draws follow one another. So
    an eigenvalue counts where it stands out from the first that no column is left for, and what it has beyond that is
    the density's own.

    Returns:
        Their variances `(found,)`, one where they do not stand out, and orthonormal vectors `(dim, found)`.
    """
    values, vectors = torch.linalg.eigh(standard @ standard.mT)  # ascending
    found = min(rank, len(values) - 1)
    chance, largest = values[-found - 1], values[-found:]
    stands_out = largest > _STANDS_OUT * chance.clamp(min=1)
    spread = torch.where(stands_out, 1 + largest - chance.clamp(min=1), 1)
    across = standard.mT @ (vectors[:, -found:] / largest.clamp(min=torch.finfo(values.dtype).tiny).sqrt())
    return spread, torch.where(stands_out, across, 0)


def _merged(num_draws: Tensor, mean: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The new count and mean, and what the shift of the mean adds to the scatter."""
    new = len(draws)
    count = num_draws + new
    shift = (draws.mean(0) if new else mean) - mean
    return count, mean + shift * new / count.clamp(min=1), shift, num_draws * new / count.clamp(min=1)
