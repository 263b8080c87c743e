"""Time series."""

from __future__ import annotations

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from posterior import Data, Posterior, sites, vector
from pyro.distributions import constraints
from torch import Tensor


def ar_k(lags: Tensor, y: Tensor) -> None:
    """An autoregression of order K.

    `y_t ~ Normal(alpha + sum_k beta_k y_{t-k}, sigma)` for t > K, `alpha, beta_k ~ Normal(0, 10)`,
    `sigma ~ HalfCauchy(2.5)`.

    Args:
        lags: `y_{t-k}`, most recent first, `(T - K, K)`.
        y: what they predict, `(T - K)`.
    """
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def arma11(y: Tensor) -> None:
    """An autoregression with a moving average of the errors, in a loop over time.

    `e_t = y_t - (mu + phi y_{t-1} + theta e_{t-1}) ~ Normal(0, sigma)`, `e_1 = y_1 - (mu + phi mu)`,
    `mu ~ Normal(0, 10)`, `phi, theta ~ Normal(0, 2)`, `sigma ~ HalfCauchy(2.5)`.

    Args:
        y: `(T)`.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    errors = [y[0] - (mu + phi * mu)]
    for before, now in pairwise(y):
        errors.append(now - (mu + phi * before + theta * errors[-1]))
    with pyro.plate("time", len(y)):
        pyro.factor("y", dist.Normal(0.0, sigma).log_prob(torch.stack(errors)))


def garch11(y: Tensor, sigma1: Tensor) -> None:
    """Volatility that comes in clusters, in a loop over time; `beta1` has bounds that depend on `alpha1`.

    `y_t ~ Normal(mu, sigma_t)`, `sigma_t² = alpha0 + alpha1 (y_{t-1} - mu)² + beta1 sigma_{t-1}²`; flat in `mu`,
    `alpha0 > 0`, `0 < alpha1 < 1` and `0 < beta1 < 1 - alpha1`.

    Args:
        y: `(T)`.
        sigma1: the volatility at the first time, a scalar.
    """
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    beta1 = pyro.sample("beta1", dist.ImproperUniform(constraints.interval(0.0, 1.0 - alpha1), (), ()))
    variances = [sigma1.square()]
    for before in y[:-1]:
        variances.append(alpha0 + alpha1 * (before - mu).square() + beta1 * variances[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def _ar_k_arguments(data: Data) -> tuple[Tensor, ...]:
    y, order = vector(data["y"]), int(data["K"])
    return y[:-1].unfold(0, order, 1).flip(-1), y[order:]


TIME_SERIES: dict[str, Posterior] = {
    "arK-arK": Posterior(ar_k, _ar_k_arguments, sites("alpha", "beta", "sigma")),
    "arma-arma11": Posterior(arma11, lambda data: (vector(data["y"]),), sites("mu", "phi", "theta", "sigma")),
    "garch-garch11": Posterior(
        garch11,
        lambda data: (vector(data["y"]), vector(data["sigma1"])),
        sites("mu", "alpha0", "alpha1", "beta1"),
    ),
}
