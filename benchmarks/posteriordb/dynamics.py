"""Ordinary differential equations, solved by Runge-Kutta steps of a fixed length in the model itself."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from posterior import Data, Posterior, sites, vector
from torch import Tensor

STEPS_A_YEAR = 8  # of hares and lynxes; the error is far below the tolerance that the Stan program sets
STEPS_A_SAMPLE = 10  # between measurements of a drug
NO_LESS = 1e-10  # of a drug: what a solver's error leaves below zero has no logarithm


def runge_kutta(derivative: Callable[[float, Tensor], Tensor], start: Tensor, times: Tensor, steps: int) -> Tensor:
    """Solutions of `dz/dt = derivative(t, z)` by the classical method of order four.

    Args:
        derivative: of time and state.
        start: the state at time zero, `(D)`.
        times: ascending, `(N)`.
        steps: between two of the times.

    Returns:
        The states at those times, `(N, D)`.
    """
    states, state, now = [], start, 0.0
    for then in times.tolist():
        length = (then - now) / steps
        for step in range(steps):
            time = now + step * length
            first = derivative(time, state)
            second = derivative(time + length / 2, state + length / 2 * first)
            third = derivative(time + length / 2, state + length / 2 * second)
            fourth = derivative(time + length, state + length * third)
            state = state + length / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(state)
        now = then
    return torch.stack(states)


def lotka_volterra(times: Tensor, first: Tensor, later: Tensor) -> None:
    """Hares and lynxes.

    `du/dt = (alpha - beta v) u`, `dv/dt = (-gamma + delta u) v`; counts are log-normal about them with scale `sigma`;
    `alpha, gamma ~ Normal(1, 0.5)`, `beta, delta ~ Normal(0.05, 0.05)`, all positive; `sigma ~ LogNormal(-1, 1)`,
    the state at time zero `LogNormal(log 10, 1)`.

    Args:
        times: of the counts, `(N)`.
        first: counts at time zero, `(2)`.
        later: `(N, 2)`.
    """
    size = torch.tensor([1.0, 0.05, 1.0, 0.05], dtype=times.dtype)
    spread = torch.tensor([0.5, 0.05, 0.5, 0.05], dtype=times.dtype)
    theta = pyro.sample("theta", dist.ImproperUniform(dist.constraints.positive, (), (4,)))
    pyro.factor("theta_prior", dist.Normal(size, spread).log_prob(theta).sum())
    start = pyro.sample("z_init", dist.LogNormal(size.new_tensor(10.0).log(), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    alpha, beta, gamma, delta = theta

    def derivative(time: float, state: Tensor) -> Tensor:
        hares, lynxes = state
        return torch.stack([(alpha - beta * lynxes) * hares, (delta * hares - gamma) * lynxes])

    states = runge_kutta(derivative, start, times, STEPS_A_YEAR)
    pyro.sample("y_init", dist.LogNormal(start.log(), sigma).to_event(1), obs=first)
    with pyro.plate("time", len(times)):
        pyro.sample("y", dist.LogNormal(states.log(), sigma).to_event(1), obs=later)


def one_comp_mm_elim_abs(dose: Tensor, volume: Tensor, times: Tensor, concentrations: Tensor) -> None:
    """A drug that is absorbed at a first-order rate, and eliminated by Michaelis and Menten's law.

    `dC/dt = exp(-k_a t) k_a D / V - V_m C / (V (K_m + C))`, `C(0) = 0`; measurements are log-normal about C with scale
    `sigma`; all four parameters `HalfCauchy(1)`.

    Args:
        dose: D.
        volume: V.
        times: of the measurements, `(N)`.
        concentrations: `(N)`.
    """
    k_a, k_m, v_m, sigma = (pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m", "sigma"))

    def derivative(time: float, state: Tensor) -> Tensor:
        absorbed = torch.exp(-k_a * time) * dose * k_a / volume
        return absorbed - v_m / volume * state / (k_m + state)

    states = runge_kutta(derivative, k_a.new_zeros(1), times, STEPS_A_SAMPLE).squeeze(-1)
    with pyro.plate("time", len(times)):
        pyro.sample("C_hat", dist.LogNormal(states.clamp(min=NO_LESS).log(), sigma), obs=concentrations)


def _lotka_volterra_arguments(data: Data) -> tuple[Tensor, ...]:
    return vector(data["ts"]), vector(data["y_init"]), vector(data["y"])


def _one_comp_arguments(data: Data) -> tuple[Tensor, ...]:
    return tuple(vector(data[name]) for name in ("D", "V", "times", "C_hat"))


DYNAMICS: dict[str, Posterior] = {
    "hudson_lynx_hare-lotka_volterra": Posterior(
        lotka_volterra, _lotka_volterra_arguments, sites("theta", "z_init", "sigma")
    ),
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": Posterior(
        one_comp_mm_elim_abs, _one_comp_arguments, sites("k_a", "K_m", "V_m", "sigma")
    ),
}
