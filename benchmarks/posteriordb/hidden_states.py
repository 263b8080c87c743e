"""Mixtures and hidden Markov models, their discrete variables summed out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from posterior import Data, Posterior, sites, vector
from pyro.distributions import constraints
from torch import Tensor

LOG_ZERO = -1e30  # finite, for minus infinity less itself has no gradient; its exponential is zero all the same


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


def hmm_drive_1(signals: Tensor, scales: Tensor, concentration: Tensor) -> None:
    """A hidden Markov model of K states seen through two normal signals; in Stan's program K is two.

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
    pyro.factor("signals", _log_likelihood(theta, emission))


def hmm_drive_0(signals: Tensor, concentration: Tensor) -> None:
    """As `hmm_drive_1`, with signals that are exponential: `Exponential(rate_sk)`, `0 < rate_s1 < rate_s2`.

    Args:
        signals: u and v, `(2, N)`.
        concentration: alpha, `(K, K)`.
    """
    ordered_rows = constraints.independent(constraints.positive_ordered_vector, 1)
    theta = pyro.sample("theta", dist.Dirichlet(concentration).to_event(1))
    rate = pyro.sample("rate", dist.ImproperUniform(ordered_rows, (), (2, 2)))  # rows phi and lambda
    pyro.factor("rate_prior", dist.Normal(rate.new_tensor([0.0, 3.0]), 1.0).log_prob(rate).sum())
    emission = dist.Exponential(rate.unsqueeze(-1)).log_prob(signals.unsqueeze(1)).sum(0)
    pyro.factor("signals", _log_likelihood(theta, emission))


def hmm_example(y: Tensor) -> None:
    """A hidden Markov model of two states, `y_t ~ Normal(mu_k, 1)` in state k.

    `0 < mu_1 < mu_2`, `mu_1 ~ Normal(3, 1)`, `mu_2 ~ Normal(10, 1)`; rows of the transition matrix are uniform.

    Args:
        y: `(N)`.
    """
    theta = pyro.sample("theta", dist.Dirichlet(y.new_ones(2, 2)).to_event(1))
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(mu.new_tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    pyro.factor("y", _log_likelihood(theta, dist.Normal(mu.unsqueeze(-1), 1.0).log_prob(y)))


def _log_likelihood(theta: Tensor, emission: Tensor) -> Tensor:
    """Of a Markov chain whose states at the first time weigh one each.

    Args:
        theta: from each state to each, `(K, K)`.
        emission: log densities of what is seen, `(K, T)`.
    """
    steps = theta.log().unsqueeze(-1) + emission[:, 1:]
    paths = emission[:, :1] + _log_matrix_product(steps)  # from the first state to the last
    return paths.flatten().logsumexp(0)


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


def _drive_1_arguments(data: Data) -> tuple[Tensor, ...]:
    return vector([data["u"], data["v"]]), vector([data["tau"], data["rho"]]), vector(data["alpha"])


def _drive_0_arguments(data: Data) -> tuple[Tensor, ...]:
    return vector([data["u"], data["v"]]), vector(data["alpha"])


HIDDEN_STATES: dict[str, Posterior] = {
    "bball_drive_event_0-hmm_drive_0": Posterior(hmm_drive_0, _drive_0_arguments, sites("theta", "rate")),
    "bball_drive_event_1-hmm_drive_1": Posterior(hmm_drive_1, _drive_1_arguments, sites("theta", "location")),
    "hmm_example-hmm_example": Posterior(hmm_example, lambda data: (vector(data["y"]),), sites("theta", "mu")),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(
        low_dim_gauss_mix, lambda data: (vector(data["y"]),), sites("mu", "sigma", "theta")
    ),
}
