"""Hierarchical models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from posterior import Data, Posterior, Samples, columns, vector
from torch import Tensor


def eight_schools_noncentered(y: Tensor, sigma: Tensor) -> None:
    """Effects of coaching in J schools, which vary around a common one.

    `y_j ~ Normal(theta_j, sigma_j)`, `theta_j = mu + tau theta_trans_j`, `theta_trans_j ~ Normal(0, 1)`,
    `mu ~ Normal(0, 5)`, `tau ~ HalfCauchy(5)`.

    Args:
        y: effects, `(J)`.
        sigma: their standard errors, `(J)`.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)


def _eight_schools_arguments(data: Data) -> tuple[Tensor, ...]:
    return vector(data["y"]), vector(data["sigma"])


def _eight_schools_parameters(samples: Samples) -> Tensor:
    mu, tau = samples["mu"].unsqueeze(-1), samples["tau"].unsqueeze(-1)
    return columns(mu + tau * samples["theta_trans"], mu, tau)


HIERARCHIES: dict[str, Posterior] = {
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools_noncentered, _eight_schools_arguments, _eight_schools_parameters
    ),
}
