"""The targets in torch: the very models that `pyro.infer.MCMC` and `pyro_ebm.MCMC` both run, and plain densities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import targets
import torch
from torch import Tensor


def eight_schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta_base = pyro.sample("theta_base", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_base, sigma), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def funnel() -> None:
    v = pyro.sample("v", dist.Normal(0.0, targets.FUNNEL_SCALE))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([targets.FUNNEL_DIM - 1]).to_event(1))
    pyro.deterministic("x", (0.5 * v).exp() * z)


def diagonal_gaussian(scale: Tensor, x: Tensor) -> Tensor:
    """The energy at `(*batch, 100)`, `(*batch,)`."""
    return 0.5 * (x / scale).square().sum(-1)


def quadratic(precision: Tensor, x: Tensor) -> Tensor:
    """The energy at `(*batch, 100)`, `(*batch,)`."""
    return 0.5 * ((x @ precision) * x).sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    """The energy at `(*batch, 2)`, `(*batch,)`."""
    first, second = x[..., 0], x[..., 1]
    return targets.ROSENBROCK_A * (first - 1).square() + targets.ROSENBROCK_B * (second - first.square()).square()


def model(target: str) -> tuple[Callable[..., None], tuple[Tensor, ...]] | None:
    """The Pyro model of a target with its arguments; `None` for a plain density."""
    if target == "eight_schools":
        return eight_schools, (torch.tensor(targets.SCHOOLS_SIGMA), torch.tensor(targets.SCHOOLS_Y))
    if target == "logistic":
        x, y = targets.logistic_data()
        return logistic, (torch.tensor(x), torch.tensor(y))
    if target == "funnel":
        return funnel, ()
    return None


def density(target: str) -> Callable[[Tensor], Tensor]:
    """The energy of a target that is a plain density."""
    if target == "gaussian_diagonal":
        return partial(diagonal_gaussian, torch.tensor(targets.GAUSSIAN_SCALE))
    if target == "gaussian_rotated":
        return partial(quadratic, torch.tensor(targets.rotated_precision()))
    return rosenbrock
