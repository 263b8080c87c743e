"""Two modes ten standard deviations apart in one dim: does learning find their masses?

Normal wells of sd 0.4 at -4 and 4 with masses .25 and .75; a network of 1-64-64-1 units tilts a fitted Gaussian. Chains
that cannot cross say nothing of the masses; weights do. `KL(target | learned)` in nats and the mass on the left are by
quadrature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

DATA = 10_000


def target() -> MixtureSameFamily:
    """The two wells."""
    return MixtureSameFamily(Categorical(torch.tensor([0.25, 0.75])), Normal(torch.tensor([-4.0, 4.0]), 0.4))


def scores(log_density: Tensor, grid: Tensor) -> tuple[float, float]:
    """`KL(target | learned)` and the mass left of zero, of an unnormalised log density on a grid."""
    log_learned = log_density.double() - torch.logsumexp(log_density.double(), 0)
    log_target = target().log_prob(grid).double()
    log_target = log_target - torch.logsumexp(log_target, 0)
    divergence = (log_target.exp() * (log_target - log_learned)).sum()
    return float(divergence), float(log_learned.exp()[grid < 0].sum())
