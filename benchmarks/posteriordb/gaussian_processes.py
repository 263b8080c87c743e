"""Gaussian processes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from posterior import Data, Posterior, Samples, columns, sites, vector
from torch import Tensor

JITTER = 1e-10  # the Stan program's, on the diagonal of the covariance
POSITIONS = tuple(float(x) for x in range(-10, 11, 2))  # where the process is observed


def gp_pois_regr(positions: Tensor, counts: Tensor) -> None:
    """Counts whose log rate is a Gaussian process, in whitened coordinates.

    `k_n ~ Poisson(exp(f_n))`, `f = L f_tilde`, `f_tilde_n ~ Normal(0, 1)`, `L Lᵀ = C + 1e-10 I`,
    `C_nm = alpha² exp(-(x_n - x_m)² / (2 rho²))`, `rho ~ Gamma(25, 4)`, `alpha ~ HalfNormal(2)`.

    Args:
        positions: x, `(N)`.
        counts: k, `(N)`.
    """
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    with pyro.plate("data", len(counts)):
        f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Poisson(_log_rate(positions, rho, alpha, f_tilde).exp()), obs=counts)


def gp_regr(positions: Tensor, y: Tensor) -> None:
    """A Gaussian process with noise, the process itself integrated out.

    `y ~ MultivariateNormal(0, C + sigma I)`, C as in `gp_pois_regr`; `rho ~ Gamma(25, 4)`, `alpha ~ HalfNormal(2)`,
    `sigma ~ HalfNormal(1)`.

    Args:
        positions: x, `(N)`.
        y: `(N)`.
    """
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = _covariance(positions, rho, alpha) + sigma * torch.eye(len(y), dtype=y.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def _covariance(positions: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
    """C, `(*lead, N, N)`, for `rho` and `alpha` of shape `(*lead)`."""
    distance = positions.unsqueeze(-1) - positions
    return alpha[..., None, None].square() * torch.exp(-0.5 * (distance / rho[..., None, None]).square())


def _log_rate(positions: Tensor, rho: Tensor, alpha: Tensor, f_tilde: Tensor) -> Tensor:
    """`L f_tilde`, `(*lead, N)`, for `rho` and `alpha` of shape `(*lead)`."""
    jitter = JITTER * torch.eye(len(positions), dtype=positions.dtype)
    root: Tensor = torch.linalg.cholesky(_covariance(positions, rho, alpha) + jitter)
    return (root @ f_tilde.unsqueeze(-1)).squeeze(-1)


def _gp_pois_arguments(data: Data) -> tuple[Tensor, ...]:
    if tuple(data["x"]) != POSITIONS:
        raise ValueError(
            f"gp_pois_regr: got positions {data['x']}, expected {list(POSITIONS)}: f is read off at these."
        )
    return vector(POSITIONS), vector(data["k"])


def _gp_pois_parameters(samples: Samples) -> Tensor:
    rho, alpha, f_tilde = (samples[name] for name in ("rho", "alpha", "f_tilde"))
    return columns(rho, alpha, _log_rate(vector(POSITIONS).to(f_tilde), rho, alpha, f_tilde))


GAUSSIAN_PROCESSES: dict[str, Posterior] = {
    "gp_pois_regr-gp_pois_regr": Posterior(gp_pois_regr, _gp_pois_arguments, _gp_pois_parameters),
    "gp_pois_regr-gp_regr": Posterior(
        gp_regr, lambda data: (vector(data["x"]), vector(data["y"])), sites("rho", "alpha", "sigma")
    ),
}
