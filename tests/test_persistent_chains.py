"""Plain persistent chains, and short ones."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_ebm import (
    EnergyDistribution,
    NegativeLogLikelihood,
    PersistentChains,
    QuadraticEnergy,
    ShortRun,
    energy,
)


def test_svi_learns_the_maximum_likelihood() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x = 0.6 * torch.randn(500, dtype=torch.double) + 0.4
    chains = PersistentChains(2000)

    def model() -> None:
        slope, curvature = (pyro.param(name, torch.zeros((), dtype=torch.double)) for name in ("slope", "curvature"))
        tilt = energy(lambda z: slope * z + 0.5 * curvature * z.square(), event_shape=())
        with pyro.plate("data", len(x)):
            pyro.sample("x", EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=chains), obs=x)

    svi = SVI(model, lambda: None, ClippedAdam({"lr": 0.03, "lrd": 0.99}), Trace_ELBO())
    for _ in range(500):
        svi.step()
    precision = 1 + float(pyro.param("curvature").detach())
    mean = -float(pyro.param("slope").detach()) / precision
    # Chains of 2000 have their mean to sd / √2000 = .013 at a time; what is learned averages over many times.
    assert abs(mean - float(x.mean())) < 0.02
    assert abs(precision**-0.5 - float(x.std())) < 0.02
    assert set(chains.report()) == {"acceptance_rate"}


def test_the_likelihood_reports_what_chains_know() -> None:
    pyro.set_rng_seed(3)
    quadratic = QuadraticEnergy(nn.Parameter(torch.zeros(2, 2)))
    chains = PersistentChains(100)
    distribution = EnergyDistribution(quadratic, dist.Normal(torch.zeros(2), 1.0).to_event(1), log_normalizer=chains)
    loss, report = NegativeLogLikelihood()(distribution, torch.randn(50, 2))
    loss.backward()
    assert set(report) == {"loss", "acceptance_rate"}


def test_weights_are_forgotten() -> None:
    pyro.set_rng_seed(1)
    quadratic = QuadraticEnergy(nn.Parameter(torch.zeros(2, 2)))
    chains = PersistentChains(400)
    distribution = EnergyDistribution(quadratic, dist.Normal(torch.zeros(2), 1.0).to_event(1), log_normalizer=chains)
    distribution.log_prob(torch.zeros(2))
    with torch.no_grad():
        quadratic.precision += 0.3 * torch.eye(2)
    distribution.log_prob(torch.zeros(2))
    population = chains.state_dict()["population"]
    assert bool((population["log_weight"] == 0).all())
    assert len(population["log_partition"].unique()) == 1


def test_saved_chains_go_on_to_the_same_numbers() -> None:
    pyro.set_rng_seed(2)
    slope = nn.Parameter(torch.tensor(0.0))

    def at(chains: PersistentChains) -> Tensor:
        tilt = energy(lambda z: slope * z, event_shape=())
        return EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=chains).log_prob(torch.tensor(0.0))

    one, other = PersistentChains(50), PersistentChains(50)
    at(one)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        slope += 0.2
    assert torch.equal(at(one), at(other))


def test_short_chains_leave_the_base_and_do_not_arrive() -> None:
    tilt = energy(lambda z: 0.5 * (z - 6.0).square(), event_shape=())

    def mean(steps: int) -> float:
        short = ShortRun(steps, generator=torch.Generator().manual_seed(0))
        drawn = EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=short).sample((2000,))
        return float(drawn.mean())

    assert abs(mean(1) - 3.0) > 0.3
    assert abs(mean(60) - 3.0) < 4.5 * (0.5 / 2000) ** 0.5


def test_shapes_of_short_draws() -> None:
    tilt = energy(lambda z: z.sum(-1), event_shape=(2,), batch_shape=(3,))
    short = EnergyDistribution(tilt, dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), log_normalizer=ShortRun(2))
    assert short.sample((5, 4)).shape == (5, 4, 3, 2)
    assert short.expand(torch.Size([7, 3])).sample().shape == (7, 3, 2)


@pytest.mark.parametrize("make", [lambda: ShortRun(0), lambda: PersistentChains(4)])
def test_options_are_checked(make: object) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        make()  # type: ignore[operator]
