"""`fit_prior`: the aggregate posterior found, log Z by quadrature, and a prior that a model can take as it is."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from pyro_ebm import (
    EnergyDistribution,
    EnergyShapeError,
    NeuralEnergy,
    NonFiniteError,
    QuadraticEnergy,
    energy,
    fit_prior,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)


def modes() -> dist.MixtureSameFamily:
    """Two modes inside of a standard normal."""
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.5]))
    )


def network() -> NeuralEnergy:
    last = nn.Linear(32, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return NeuralEnergy(
        nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), last, nn.Flatten(0)), (1,)
    )


def standard_normal(dim: int = 1) -> dist.Independent:
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def test_two_modes_are_found() -> None:
    target = modes()
    prior = fit_prior(target.sample((10_000,)).unsqueeze(-1), standard_normal(), network(), num_steps=800)
    grid = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    width = 16 / 4000
    log_q = prior.log_prob(grid)
    # The whole mass is one: log Z by draws of the base has a standard error of about 0.004.
    assert abs(float(log_q.exp().sum() * width) - 1) < 0.02
    log_p = target.log_prob(grid.squeeze(-1))
    before, after = (
        float((log_p.exp() * (log_p - q)).sum() * width) for q in (standard_normal().log_prob(grid), log_q)
    )
    assert before > 0.2
    assert after < 0.02


class Endless(IterableDataset[Tensor]):
    """New draws each time, as an encoder gives them."""

    def __init__(self, source: dist.TorchDistribution) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.source.sample()


def test_a_gaussian_in_two_dims_is_found() -> None:
    """A quadratic energy on a standard normal: the precision of the latent values, and log Z in closed form."""
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.6]])
    truth = dist.MultivariateNormal(torch.zeros(2), covariance)
    quadratic = QuadraticEnergy(nn.Parameter(torch.zeros(2, 2)))
    prior = fit_prior(Endless(truth), standard_normal(2), quadratic, num_steps=400, learning_rate=0.1)
    z = truth.sample((2000,))
    # The excess over the truth is the divergence, and log Z is in it.
    excess = truth.log_prob(z) - prior.log_prob(z)
    assert abs(float(excess.mean())) < 0.02
    fitted = torch.linalg.inv(torch.eye(2) + quadratic.precision.detach())
    expected = 0.5 * torch.logdet(fitted)
    x = torch.zeros(2)
    assert float(standard_normal(2).log_prob(x) - prior.log_prob(x)) == pytest.approx(float(expected), abs=0.02)


def test_a_model_takes_the_prior_as_it_is() -> None:
    """It is frozen and normalised, so that it trains nothing, and the evidence is right."""
    prior = fit_prior(0.5 * torch.randn(1000, 1), standard_normal(), network(), num_steps=30)
    assert prior.is_normalized
    assert not any(each.requires_grad for each in prior.energy.parameters())

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step(torch.zeros(5, 1)))


def test_a_seed_makes_a_fit_repeatable() -> None:
    z, first = torch.randn(100, 1), network()
    second = network()
    second.load_state_dict(first.state_dict())
    priors = [
        fit_prior(z, standard_normal(), each, num_steps=5, generator=torch.Generator().manual_seed(3))
        for each in (first, second)
    ]
    assert torch.equal(*(prior.log_prob(z) for prior in priors))


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "num_noise"])
def test_numbers_are_checked(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0"):
        fit_prior(torch.zeros(3, 1), standard_normal(), network(), **options)


def test_shapes_are_checked() -> None:
    with pytest.raises(EnergyShapeError, match=r"\(3, 2\)"):
        fit_prior(torch.zeros(3, 2), standard_normal(), network())
    with pytest.raises(EnergyShapeError, match="base with batch shape"):
        fit_prior(torch.zeros(3, 1), standard_normal().expand((2,)), network())
    with pytest.raises(EnergyShapeError, match="event shape"):
        fit_prior(torch.zeros(3, 1), standard_normal(2), network())


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        fit_prior(torch.full((3, 1), float("nan")), standard_normal(), network())
    fast = energy(lambda z: -z.square().exp().exp().squeeze(-1), event_shape=(1,))
    with pytest.raises(NonFiniteError):
        fit_prior(torch.zeros(3, 1), standard_normal(), fast, num_steps=1)


def test_the_result_is_an_energy_distribution() -> None:
    base = standard_normal()
    net = network()
    prior = fit_prior(torch.randn(100, 1), base, net, num_steps=2)
    assert isinstance(prior, EnergyDistribution)
    assert prior.energy is net
    assert prior.base is base
