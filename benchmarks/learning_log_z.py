"""Is the log Z that is reported after learning right, and is its error bar?

- A restricted Boltzmann machine of 16 hidden units on digits of 8 x 8 pixels, binarised at half, for 2,000 updates: log
  Z is exact by the hidden units.
- A hybrid program in one dim and in two: `x = z + noise`, with an energy prior of z that is learned by ordinary SVI
  with an amortised normal guide; log Z is by quadrature. In one dim the likeliest prior is normal with a known mean and
  variance, which are to be found within 0.01.

Each row is 20 runs: `error` is the root mean square of the errors of log Z in nats, `worst` the largest, and `covered`
the share of the runs in which two standard errors cover the truth.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from learning_row import Figures, Goal, Row
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from pyro_ebm import RBM, EnergyDistribution, Exact, NeuralEnergy, PersistentWalkers, energy

RUNS = 20
MEAN, VARIANCE, NOISE, COUNT = 1.486, 0.350, 0.5, 2000


def over_runs(one: Callable[[int], tuple[float, float, Figures]], seed: int) -> Figures:
    """The figures of 20 runs, each of which gives the error of log Z, its standard error, and figures of its own."""
    found = [one(RUNS * seed + number) for number in range(RUNS)]
    errors = torch.tensor([error for error, _, _ in found])
    bars = torch.tensor([bar for _, bar, _ in found])
    figures = {name: max(own[name] for _, _, own in found) for name in found[0][2]}
    return {
        "error": float(errors.square().mean().sqrt()),
        "worst": float(errors.abs().max()),
        "covered": float((errors.abs() <= 2 * bars).double().mean()),
        **figures,
    }


def machine_of_digits(seed: int) -> tuple[float, float, Figures]:
    """A restricted Boltzmann machine."""
    generator = Generator().manual_seed(seed)
    data = torch.tensor(load_digits().data[:1500] >= 8, dtype=torch.get_default_dtype())
    rbm = RBM(64, 16, means=data.mean(0), generator=generator)
    walkers = PersistentWalkers(generator=generator)
    distribution = EnergyDistribution(rbm, log_normalizer=walkers)
    updates = 2000
    optimizer = torch.optim.SGD(rbm.parameters(), 0.05)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        optimizer.zero_grad()
        batch = data[torch.randint(len(data), (100,), generator=generator)]
        distribution.log_prob(batch).mean().neg().backward()
        optimizer.step()
        rbm.update_offsets(batch, 0.01)
    distribution.log_prob(data)  # the walkers follow the last update
    return float((walkers.value - rbm.log_partition()).detach()), float(walkers.standard_error), {}


def program(prior: EnergyDistribution, x: Tensor, seed: int, *, steps: int, rate: float) -> None:
    """Learn the prior of `x = z + noise` by SVI with an amortised normal guide."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    dim = x.shape[-1]

    def model() -> None:
        pyro.module("energy", prior.energy)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide() -> None:
        slope, offset = pyro.param("slope", 0.5 * torch.eye(dim)), pyro.param("offset", torch.zeros(dim))
        scale = pyro.param("scale", 0.4 * torch.ones(dim), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ slope + offset, scale).to_event(1))

    optimizer = ClippedAdam({"lr": rate, "lrd": 0.01 ** (1 / steps), "clip_norm": 10.0})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step()
    prior.log_prob(torch.zeros(dim))  # the walkers follow the last update


class Curve(nn.Module):
    """`½ a z² - b z` for each element, zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        """The tilt at `(*sample, dim)`."""
        return (0.5 * self.curvature * z.square() - self.slope * z).sum(-1)


def prior_in_one_dim(seed: int) -> tuple[float, float, Figures]:
    """A normal tilt, whose maximum likelihood is known."""
    generator = Generator().manual_seed(seed)
    normal = torch.randn(COUNT, 1, generator=generator)
    normal = (normal - normal.mean()) / normal.std(correction=0)
    x = MEAN + (VARIANCE + NOISE**2) ** 0.5 * normal
    curve, walkers = Curve(), PersistentWalkers(generator=generator)
    prior = EnergyDistribution(
        energy(curve, event_shape=(1,)), dist.Normal(torch.zeros(1), 1.0).to_event(1), log_normalizer=walkers
    )
    program(prior, x, seed, steps=2000, rate=0.05)
    precision = 1 + float(curve.curvature.detach())
    mean, variance = float(curve.slope.detach()) / precision, 1 / precision
    exact = Exact().log_normalizer(prior)
    return (
        float((walkers.value - exact).detach()),
        float(walkers.standard_error),
        {"mean, worst error": abs(mean - MEAN), "variance, worst error": abs(variance - VARIANCE)},
    )


def prior_in_two_dims(seed: int) -> tuple[float, float, Figures]:
    """A network's tilt, for a ring."""
    generator = Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(COUNT, generator=generator)
    radius = 2 + 0.15 * torch.randn(COUNT, generator=generator)
    z = radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
    x = z + NOISE * torch.randn(COUNT, 2, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0))
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    walkers = PersistentWalkers(generator=generator)
    prior = EnergyDistribution(
        NeuralEnergy(net, event_shape=(2,)), dist.Normal(torch.zeros(2), 1.5).to_event(1), log_normalizer=walkers
    )
    program(prior, x, seed, steps=600, rate=2e-3)
    exact = Exact().log_normalizer(prior)
    return float((walkers.value - exact).detach()), float(walkers.standard_error), {}


ROWS = (
    Row(
        "log Z of a machine of digits",
        lambda seed: over_runs(machine_of_digits, seed),
        {"error": Goal(high=0.05), "covered": Goal(low=0.9)},
    ),
    Row(
        "SVI with an energy prior, 1-D",
        lambda seed: over_runs(prior_in_one_dim, seed),
        {
            "error": Goal(high=0.1),
            "covered": Goal(low=0.9),
            "mean, worst error": Goal(high=0.01),
            "variance, worst error": Goal(high=0.01),
        },
    ),
    Row(
        "SVI with an energy prior, 2-D",
        lambda seed: over_runs(prior_in_two_dims, seed),
        {"error": Goal(high=0.1), "covered": Goal(low=0.9)},
    ),
)
