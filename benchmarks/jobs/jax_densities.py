"""The targets as log densities of one flat vector of unconstrained coordinates, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import targets

JaxArray = Any
LogDensity = Callable[[JaxArray], JaxArray]


def log_density(target: str) -> LogDensity:
    """The log density of a target, up to a constant."""
    if target == "eight_schools":
        sigma, y = jnp.array(targets.SCHOOLS_SIGMA), jnp.array(targets.SCHOOLS_Y)

        def eight_schools(q: JaxArray) -> JaxArray:
            mu, log_tau, theta_base = q[0], q[1], q[2:]
            tau = jnp.exp(log_tau)
            prior = -0.5 * (mu / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + log_tau - 0.5 * jnp.sum(theta_base**2)
            return prior - 0.5 * jnp.sum(((y - mu - tau * theta_base) / sigma) ** 2)

        return eight_schools
    if target == "logistic":
        design, outcome = (jnp.array(each) for each in targets.logistic_data())

        def logistic(beta: JaxArray) -> JaxArray:
            logits = design @ beta
            return jnp.sum(outcome * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(beta**2)

        return logistic
    if target == "funnel":
        return lambda q: -0.5 * (q[0] / targets.FUNNEL_SCALE) ** 2 - 0.5 * jnp.sum(q[1:] ** 2)
    if target == "gaussian_diagonal":
        scale = jnp.array(targets.GAUSSIAN_SCALE)
        return lambda x: -0.5 * jnp.sum((x / scale) ** 2)
    if target == "gaussian_rotated":
        precision = jnp.array(targets.rotated_precision())
        return lambda x: -0.5 * jnp.dot(x, precision @ x)
    a, b = targets.ROSENBROCK_A, targets.ROSENBROCK_B
    return lambda x: -a * (x[0] - 1) ** 2 - b * (x[1] - x[0] ** 2) ** 2


def sites(target: str, q: JaxArray) -> dict[str, JaxArray]:
    """Unconstrained `(chains, draws, dim)` to constrained draws by site."""
    if target == "eight_schools":
        return {"mu": q[..., 0], "tau": jnp.exp(q[..., 1]), "theta_base": q[..., 2:]}
    if target == "logistic":
        return {"beta": q}
    if target == "funnel":
        return {"v": q[..., 0], "z": q[..., 1:]}
    return {"x": q}
