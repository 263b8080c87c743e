"""Bayesian inference of an energy's parameter: the coupling of an Ising model on a torus of 4 x 4 spins.

Twenty exact draws at a coupling of 0.3 are seen; the prior is normal with variance one. Log Z depends on the coupling,
so that the posterior is doubly intractable in general; here it is exact, by elimination on a fine grid. What counts is
how far mean and standard deviation are from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from learning_row import Figures, Goal, Row
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor

from pyro_ebm import MCMC, NUTS, AnchorError, EnergyDistribution, Exact, Exchange, Ising, PersistentWalkers
from pyro_ebm.distributions.normalizers.normalizer import Normalizer

COUPLING, COUNT = 0.3, 20
GOALS = {"bias of the mean in sd": Goal(-0.1, 0.1), "ratio of the sd": Goal(0.95, 1.05)}


def torus(coupling: Tensor) -> Ising:
    return Ising((4, 4), coupling, periodic=True)


def observations(seed: int) -> Tensor:
    """Exact draws, `(20, 4, 4)`."""
    torch.manual_seed(1000 + seed)
    return torus(torch.tensor(COUPLING)).sample((COUNT,))["x"]


def model(x: Tensor, normalizer: Normalizer | None = None) -> None:
    """The program."""
    coupling = pyro.sample("coupling", dist.Normal(0.0, 1.0))
    density = EnergyDistribution(torus(coupling), log_normalizer=normalizer)
    with pyro.plate("data", len(x)):
        pyro.sample("x", density, obs=x)


def exact_posterior(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, by a grid."""
    coupling = torch.linspace(0.0, 0.8, 801, dtype=torch.double)
    log_z = torus(coupling.unsqueeze(-1)).log_partition()
    agreement = -torus(torch.ones((), dtype=torch.double))(x.double()).sum()
    weight = (coupling * agreement - len(x) * log_z - coupling**2 / 2).softmax(0)
    mean = (weight * coupling).sum()
    return float(mean), float((weight * (coupling - mean) ** 2).sum().sqrt())


def compared(x: Tensor, mean: float, deviation: float) -> Figures:
    exact_mean, exact_deviation = exact_posterior(x)
    return {
        "bias of the mean in sd": (mean - exact_mean) / exact_deviation,
        "ratio of the sd": deviation / exact_deviation,
    }


def by_svi(seed: int, *, steps: int = 600) -> Figures:
    """A normal guide, the mean of whose last half of iterates counts; walkers follow every draw of the coupling."""
    x = observations(seed)
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    walkers = PersistentWalkers(500)
    start = init_to_value(values={"coupling": torch.tensor(0.2)})
    guide = AutoNormal(model, init_loc_fn=start, init_scale=0.02)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = []
    for step in range(steps):
        svi.step(x, walkers)
        if step >= steps // 2:
            found.append((guide.locs.coupling.item(), guide.scales.coupling.item()))
    mean, deviation = torch.tensor(found).mean(0).tolist()
    return compared(x, mean, deviation)


def by_mcmc(x: Tensor, kernel: NUTS | Exchange, *args: Normalizer, draws: int = 500) -> Figures:
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=draws // 4, num_chains=4, disable_progbar=True)
    mcmc.run(x, *args)
    found = mcmc.get_samples()["coupling"].double()
    return compared(x, float(found.mean()), float(found.std()))


def by_exact(seed: int) -> Figures:
    x = observations(seed)
    pyro.set_rng_seed(seed)
    return by_mcmc(x, NUTS(model), Exact())


def by_frozen_walkers(seed: int) -> Figures:
    """Walkers are frozen where a first, short run has its mean, twice."""
    x = observations(seed)
    pyro.set_rng_seed(seed)
    walkers, anchor = PersistentWalkers(4000), torch.tensor(0.2)
    for _ in range(2):
        freeze_at(walkers, anchor)
        mcmc = MCMC(NUTS(model), num_samples=50, warmup_steps=50, num_chains=4, disable_progbar=True)
        with contextlib.suppress(AnchorError):  # the first anchor is far away: its draws say where to go
            mcmc.run(x, walkers)
        anchor = mcmc.get_samples()["coupling"].mean()
    freeze_at(walkers, anchor)
    return by_mcmc(x, NUTS(model), walkers)


def freeze_at(walkers: PersistentWalkers, coupling: Tensor) -> None:
    walkers.unfreeze()
    walkers.refresh(EnergyDistribution(torus(coupling), log_normalizer=walkers), 100)
    walkers.freeze()


def by_exchange(num_moves: int | None) -> Callable[[int], Figures]:
    def run(seed: int) -> Figures:
        x = observations(seed)
        pyro.set_rng_seed(seed)
        return by_mcmc(x, Exchange(model, num_auxiliary_moves=num_moves), draws=400)

    return run


ROWS: tuple[Row, ...] = (
    Row("Ising coupling, SVI with walkers", by_svi, GOALS),
    Row("Ising coupling, NUTS with frozen walkers", by_frozen_walkers, GOALS),
    Row("Ising coupling, NUTS with exact log Z", by_exact, GOALS),
    Row("Ising coupling, exchange, exact draws", by_exchange(None), GOALS),
    Row("Ising coupling, exchange, 20 sweeps", by_exchange(20), GOALS),
)
