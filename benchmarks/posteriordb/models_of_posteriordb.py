"""Eight posteriors of posteriordb as Pyro models: ordinary ones, written for one chain, and batched by `pyro_ebm.MCMC`.

Each model has the density of the Stan program of the same name, up to a constant: the same priors, flat ones where the
program declares none, and the same constraints, declared as supports. What a program transforms of its data is made in
`Posterior.arguments`. Sites with a flat prior take torch's default dtype: set it to `torch.float64` before a run.

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari 2025, posteriordb: testing, benchmarking and developing
    Bayesian inference algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Data = Mapping[str, Any]
Samples = Mapping[str, Tensor]

LOG_ZERO = -1e30  # finite, for minus infinity less itself has no gradient; its exponential is zero all the same
JITTER = 1e-10  # the Stan program's, on the diagonal of the Gaussian process's covariance
POSITIONS = tuple(float(x) for x in range(-10, 11, 2))  # where the Gaussian process is observed


@dataclass(frozen=True)
class Posterior:
    """A model with what ties it to its reference.

    Attributes:
        model: the Pyro model, for one chain.
        arguments: from the data of the reference to the model's arguments, in float64.
        parameters: from constrained samples by site, each `(chains, draws, *shape)`, to the reference's parameters in
            the reference's order, `(chains, draws, P)`.
    """

    model: Callable[..., None]
    arguments: Callable[[Data], tuple[Tensor, ...]]
    parameters: Callable[[Samples], Tensor]


def _vector(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _columns(*values: Tensor) -> Tensor:
    """Values `(chains, draws, *shape)` side by side, `(chains, draws, P)`."""
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in values], -1)


def _sites(*names: str) -> Callable[[Samples], Tensor]:
    """The parameters of a reference that are sites, and nothing else."""
    return lambda samples: _columns(*(samples[name] for name in names))


# Regressions


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


def _ar_k_arguments(data: Data) -> tuple[Tensor, ...]:
    y, order = _vector(data["y"]), int(data["K"])
    return y[:-1].unfold(0, order, 1).flip(-1), y[order:]


def kidscore_interaction(design: Tensor, kid_score: Tensor) -> None:
    """A linear regression with an interaction.

    `kid_score ~ Normal(beta_1 + beta_2 mom_hs + beta_3 mom_iq + beta_4 mom_hs mom_iq, sigma)`, `beta` flat,
    `sigma ~ HalfCauchy(2.5)`.

    Args:
        design: `(N, 4)`.
        kid_score: `(N)`.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), design.shape[-1:]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("child", len(kid_score)):
        pyro.sample("kid_score", dist.Normal(design @ beta, sigma), obs=kid_score)


def _kidscore_arguments(data: Data) -> tuple[Tensor, ...]:
    mom_hs, mom_iq = _vector(data["mom_hs"]), _vector(data["mom_iq"])
    return torch.stack([torch.ones_like(mom_iq), mom_hs, mom_iq, mom_hs * mom_iq], -1), _vector(data["kid_score"])


def logmesquite_logvash(design: Tensor, log_weight: Tensor) -> None:
    """A linear regression of the log weight of mesquite bushes on logs of volume, area, shape and height, and on group.

    `log_weight ~ Normal(X beta, sigma)` where a row of X is `(1, log(diam1 diam2 canopy_height), log(diam1 diam2),
    log(diam1 / diam2), log(total_height), group)`; `beta` and `sigma > 0` flat.

    Args:
        design: X, `(N, 6)`.
        log_weight: `(N)`.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), design.shape[-1:]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("bush", len(log_weight)):
        pyro.sample("log_weight", dist.Normal(design @ beta, sigma), obs=log_weight)


def _logmesquite_arguments(data: Data) -> tuple[Tensor, ...]:
    names = ("diam1", "diam2", "canopy_height", "total_height")
    diam1, diam2, canopy_height, total_height = (_vector(data[name]).log() for name in names)
    area = diam1 + diam2
    columns = [torch.ones_like(area), area + canopy_height, area, diam1 - diam2, total_height, _vector(data["group"])]
    return torch.stack(columns, -1), _vector(data["weight"]).log()


def blr(design: Tensor, y: Tensor) -> None:
    """A linear regression.

    `y ~ Normal(X beta, sigma)`, `beta_d ~ Normal(0, 10)`, `sigma ~ HalfNormal(10)`.

    Args:
        design: X, `(N, D)`.
        y: `(N)`.
    """
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([design.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def _blr_arguments(data: Data) -> tuple[Tensor, ...]:
    return _vector(data["X"]), _vector(data["y"])


# Hierarchy


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
    return _vector(data["y"]), _vector(data["sigma"])


def _eight_schools_parameters(samples: Samples) -> Tensor:
    mu, tau = samples["mu"].unsqueeze(-1), samples["tau"].unsqueeze(-1)
    return _columns(mu + tau * samples["theta_trans"], mu, tau)


# A Gaussian process


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


def _log_rate(positions: Tensor, rho: Tensor, alpha: Tensor, f_tilde: Tensor) -> Tensor:
    """`L f_tilde`, `(*lead, N)`, for `rho` and `alpha` of shape `(*lead)`."""
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    distance = positions.unsqueeze(-1) - positions
    kernel = alpha.square() * torch.exp(-0.5 * (distance / rho).square())
    jitter = JITTER * torch.eye(len(positions), dtype=positions.dtype)
    root: Tensor = torch.linalg.cholesky(kernel + jitter)
    return (root @ f_tilde.unsqueeze(-1)).squeeze(-1)


def _gp_arguments(data: Data) -> tuple[Tensor, ...]:
    if tuple(data["x"]) != POSITIONS:
        raise ValueError(
            f"gp_pois_regr: got positions {data['x']}, expected {list(POSITIONS)}: f is read off at these."
        )
    return _vector(POSITIONS), _vector(data["k"])


def _gp_parameters(samples: Samples) -> Tensor:
    rho, alpha, f_tilde = (samples[name] for name in ("rho", "alpha", "f_tilde"))
    return _columns(rho, alpha, _log_rate(_vector(POSITIONS).to(f_tilde), rho, alpha, f_tilde))


# Discrete variables, summed out


def low_dim_gauss_mix(y: Tensor) -> None:
    """A mixture of two normals in ascending order.

    `y_n ~ theta Normal(mu_1, sigma_1) + (1 - theta) Normal(mu_2, sigma_2)`, `mu_1 < mu_2`, `mu_i ~ Normal(0, 2)`,
    `sigma_i ~ HalfNormal(2)`, `theta ~ Beta(5, 5)`.

    Args:
        y: `(N)`.
    """
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    log_weights = torch.stack([theta.log(), (-theta).log1p()]).unsqueeze(-1)
    log_components = dist.Normal(mu.unsqueeze(-1), sigma.unsqueeze(-1)).log_prob(y)  # `(2, N)`: fast with N last
    with pyro.plate("data", len(y)):
        pyro.factor("y", (log_weights + log_components).logsumexp(0))


def _low_dim_gauss_mix_arguments(data: Data) -> tuple[Tensor, ...]:
    return (_vector(data["y"]),)


def hmm_drive_1(signals: Tensor, scales: Tensor, concentration: Tensor) -> None:
    """A hidden Markov model of K states seen through two signals; in Stan's program K is two.

    `theta_j ~ Dirichlet(concentration_j)` is row j of the transition matrix; signal s at time t in state k is
    `Normal(location_sk, scale_s)`; `location_s1 < location_s2`, `location_s1 ~ Normal(0, 1)`,
    `location_s2 ~ Normal(3, 1)`. States at the first time weigh one each.

    Args:
        signals: u and v, `(2, N)`.
        scales: tau and rho, `(2)`.
        concentration: alpha, `(K, K)`.
    """
    ordered_rows = constraints.independent(constraints.ordered_vector, 1)
    theta = pyro.sample("theta", dist.Dirichlet(concentration).to_event(1))
    location = pyro.sample("location", dist.ImproperUniform(ordered_rows, (), (2, 2)))  # rows phi and lambda
    pyro.factor("location_prior", dist.Normal(location.new_tensor([0.0, 3.0]), 1.0).log_prob(location).sum())
    emission = dist.Normal(location.unsqueeze(-1), scales[:, None, None]).log_prob(signals.unsqueeze(1)).sum(0)
    steps = theta.log().unsqueeze(-1) + emission[:, 1:]
    paths = emission[:, :1] + _log_matrix_product(steps)  # from the first state to the last
    pyro.factor("signals", paths.flatten().logsumexp(0))


def _log_matrix_product(matrices: Tensor) -> Tensor:
    """The log of a product of matrices, from their logs: `(K, K, T)` to `(K, K)`, time last for speed.

    Neighbours are multiplied in pairs, all pairs at once, which takes about log2(T) steps. Identities fill T up to a
    power of two.
    """
    size, length = matrices.shape[1:]
    identity = LOG_ZERO * (1 - torch.eye(size, dtype=matrices.dtype))
    missing = 2 ** (length - 1).bit_length() - length
    product = torch.cat([matrices, identity.unsqueeze(-1).expand(-1, -1, missing)], -1)
    while product.shape[-1] > 1:
        left, right = product.unflatten(-1, (-1, 2)).unbind(-1)
        product = (left.unsqueeze(2) + right.unsqueeze(0)).logsumexp(1)
    return product.squeeze(-1)


def _hmm_drive_1_arguments(data: Data) -> tuple[Tensor, ...]:
    return _vector([data["u"], data["v"]]), _vector([data["tau"], data["rho"]]), _vector(data["alpha"])


POSTERIORS: dict[str, Posterior] = {
    "arK-arK": Posterior(ar_k, _ar_k_arguments, _sites("alpha", "beta", "sigma")),
    "bball_drive_event_1-hmm_drive_1": Posterior(hmm_drive_1, _hmm_drive_1_arguments, _sites("theta", "location")),
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools_noncentered, _eight_schools_arguments, _eight_schools_parameters
    ),
    "gp_pois_regr-gp_pois_regr": Posterior(gp_pois_regr, _gp_arguments, _gp_parameters),
    "kidiq-kidscore_interaction": Posterior(kidscore_interaction, _kidscore_arguments, _sites("beta", "sigma")),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(
        low_dim_gauss_mix, _low_dim_gauss_mix_arguments, _sites("mu", "sigma", "theta")
    ),
    "mesquite-logmesquite_logvash": Posterior(logmesquite_logvash, _logmesquite_arguments, _sites("beta", "sigma")),
    "sblrc-blr": Posterior(blr, _blr_arguments, _sites("beta", "sigma")),
}
