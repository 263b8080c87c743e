"""The targets: data and densities that all libraries share, in NumPy alone.

Each job writes them down in its library's own idiom; what is compared is here: the data, the names and the shapes of
the draws, and the parameters whose effective sample sizes count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Draws = Mapping[str, Array]

# Eight schools: the effects of coaching, with their standard errors (Rubin 1981).
SCHOOLS_Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOLS_SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

# Logistic regression: an intercept and 24 standard normal covariates, 1,000 rows.
LOGISTIC_ROWS, LOGISTIC_COLUMNS = 1000, 25

# Gaussians: standard deviations of 100 coordinates, whose squares have the condition number 1e4.
GAUSSIAN_SCALE = np.logspace(-1, 1, 100)

# Neal's funnel, non-centred.
FUNNEL_DIM, FUNNEL_SCALE = 10, 3.0

# Rosenbrock's banana, `E(x) = a (x1 - 1)² + b (x2 - x1²)²`.
ROSENBROCK_A, ROSENBROCK_B = 0.05, 5.0


def logistic_data() -> tuple[Array, Array]:
    """Covariates `(1000, 25)`, and outcomes 0 or 1, `(1000,)`."""
    generator = np.random.default_rng(20261124)
    x = generator.normal(size=(LOGISTIC_ROWS, LOGISTIC_COLUMNS))
    x[:, 0] = 1.0
    beta = generator.normal(size=LOGISTIC_COLUMNS) / np.sqrt(LOGISTIC_COLUMNS)
    y = generator.uniform(size=LOGISTIC_ROWS) < 1 / (1 + np.exp(-x @ beta))
    return x, y.astype(np.float64)


def rotated_precision() -> Array:
    """The precision matrix of the rotated Gaussian, `(100, 100)`: the same eigenvalues, in random directions."""
    generator = np.random.default_rng(20261125)
    rotation, _ = np.linalg.qr(generator.normal(size=(len(GAUSSIAN_SCALE),) * 2))
    precision = (rotation / GAUSSIAN_SCALE**2) @ rotation.T
    symmetric: Array = 0.5 * (precision + precision.T)
    return symmetric


def _side_by_side(draws: Draws, names: tuple[str, ...]) -> Array:
    return np.concatenate([draws[n].reshape(*draws[n].shape[:2], -1) for n in names], -1)


def _funnel_parameters(draws: Draws) -> Array:
    """The funnel's own coordinates, `v` and `x_i = exp(v / 2) z_i`."""
    v = draws["v"][..., None]
    return np.concatenate([v, np.exp(0.5 * v) * draws["z"]], -1)


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        title: what it is called in the table.
        dim: number of unconstrained coordinates.
        parameters: from draws by site, `(chains, draws, *shape)`, to what counts, `(chains, draws, P)`.
    """

    title: str
    dim: int
    parameters: Callable[[Draws], Array]


def _one_site(draws: Draws) -> Array:
    return _side_by_side(draws, ("x",))


TARGETS = {
    "eight_schools": Target(
        "eight schools, non-centred", 10, lambda draws: _side_by_side(draws, ("mu", "tau", "theta_base"))
    ),
    "logistic": Target("logistic regression 1000x25", LOGISTIC_COLUMNS, lambda draws: _side_by_side(draws, ("beta",))),
    "gaussian_diagonal": Target("Gaussian 100-d, condition 1e4, diagonal", len(GAUSSIAN_SCALE), _one_site),
    "gaussian_rotated": Target("the same, rotated", len(GAUSSIAN_SCALE), _one_site),
    "funnel": Target("funnel 10-d, non-centred", FUNNEL_DIM, _funnel_parameters),
    "rosenbrock": Target("Rosenbrock 2-d", 2, _one_site),
}
