"""Two modes twenty standard deviations apart in one dim: does learning find their masses?

Normal wells of sd 0.4 at -4 and 4 with masses .25 and .75; a network of 1-64-64-1 units tilts a fitted Gaussian. Chains
that cannot cross say nothing of the masses; weights do. `KL(target | learned)` in nats and the mass on the left are by
quadrature.
"""

from __future__ import annotations

import math

import torch
from learning_row import Figures, Goal, Row
from torch import Generator, Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_ebm import fit

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


def run(seed: int) -> Figures:
    """Learn by `fit`, as it ships."""
    torch.manual_seed(seed)
    data = target().sample(torch.Size([DATA])).unsqueeze(-1)
    net = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    learned = fit(net, data, generator=Generator().manual_seed(seed), progress_bar=False)
    grid = torch.linspace(-12.0, 12.0, 4801)
    with torch.no_grad():
        log_density = learned.distribution.unnormalized_log_prob(grid.unsqueeze(-1))
    divergence, left = scores(log_density, grid)
    exact = float(torch.logsumexp(log_density.double(), 0) + math.log(24 / 4800))
    log_z = learned.log_partition
    figures = {"KL": divergence, "mass on the left": left}
    if log_z is not None:
        figures |= {"log Z, error": float(log_z.value) - exact, "log Z, s.e.": float(log_z.standard_error)}
    return figures


GOALS = {"KL": Goal(high=0.01, worst=True), "mass on the left": Goal(0.23, 0.27, worst=True)}
ROWS = (Row("two modes, 1-D", run, GOALS),)
