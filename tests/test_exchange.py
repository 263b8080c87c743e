"""`Exchange`: its chains keep the posterior, its ratios are those of log Z, its runs repeat, and what it refuses."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ebm import MCMC, Energy, EnergyDistribution, Exchange, Ising, NormalizerError, SamplingWarning, energy
from pyro_ebm.infer.exchange_target import ExchangeDensity, ExchangeTarget
from pyro_ebm.mcmc import exchange
from pyro_ebm.mcmc.metric import DiagonalMetric, Whitened
from pyro_ebm.mcmc.random_walk import Parameters


@pytest.fixture(autouse=True)
def seed() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)


class Precision(Energy):
    """`E(x) = τ x² / 2`, whose log Z is `½ log(2π / τ)`."""

    def __init__(self, tau: Tensor) -> None:
        super().__init__(())
        self.tau = tau

    def forward(self, x: Tensor) -> Tensor:
        return self.tau * x**2 / 2


class Drawable(Precision):
    """The same, with exact draws."""

    def sample(self, sample_shape: torch.Size) -> Tensor:
        return torch.randn(sample_shape) / self.tau.sqrt()


def precision(x: Tensor, kind: type[Precision] = Drawable, mask: Tensor | bool = True) -> None:
    tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
        pyro.sample("x", EnergyDistribution(kind(tau)), obs=x)


class PrecisionDensity:
    """The same model for many chains at once, at `log τ`: `τ ~ Gamma(3, 2)`, 10 data with a sum of squares of 8."""

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        log_tau = position[:, 0]
        return 3 * log_tau - 2 * log_tau.exp() - 4 * log_tau.exp(), torch.zeros_like(position)

    def exchanged(self, position: Tensor, proposal: Tensor, seed: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(seed[0]))
        old, new = position[:, 0].exp(), proposal[:, 0].exp()
        squares = torch.randn(len(new), 10, generator=generator, dtype=new.dtype).square().sum(-1) / new
        return (new - old) * squares / 2


def test_the_posterior_is_kept() -> None:
    """From exact draws, `Gamma(3 + 5, 2 + 4)`, a few steps of 20,000 chains change no moment."""
    posterior = torch.distributions.Gamma(torch.tensor(8.0, dtype=torch.double), 6.0)
    generator = torch.Generator().manual_seed(2)
    density = Whitened(DiagonalMetric(torch.ones(1, dtype=torch.double)), PrecisionDensity())
    position = posterior.sample(torch.Size([20_000])).log().unsqueeze(-1)
    parameters = Parameters(torch.tensor(0.5, dtype=torch.double))
    state = exchange.init(density, position, parameters, exchange.draw_randomness(position, generator))
    for _ in range(6):
        randomness = exchange.draw_randomness(state.position, generator)
        state, info = exchange.step(density, state, randomness, parameters)
    assert 0.3 < float(info.acceptance_rate.mean()) < 0.9
    score = (state.position[:, 0].exp() - posterior.mean) / posterior.stddev
    assert abs(float(score.mean())) < 4 / math.sqrt(20_000)
    error = math.sqrt((2 + 6 / 8) / 20_000)  # of the mean square of a standardised gamma number
    assert abs(float(score.square().mean()) - 1) < 4 * error


def test_a_model_has_its_posterior() -> None:
    x = torch.randn(10)
    mcmc = MCMC(Exchange(precision, num_steps=3), 60, 20, num_chains=2, disable_progbar=True)
    mcmc.run(x)
    tau = mcmc.get_samples(group_by_chain=True)["tau"]
    posterior = torch.distributions.Gamma(3 + 5, 2 + x.square().sum() / 2)
    error = float(posterior.stddev) / math.sqrt(20)  # a sixth of the draws at the least are independent
    assert abs(float(tau.mean() - posterior.mean)) < 4 * error


def ising(x: Tensor) -> None:
    coupling = pyro.sample("coupling", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", EnergyDistribution(Ising((3, 3), coupling)), obs=x)


def ratios(target: ExchangeTarget, old: float, new: float, count: int) -> Tensor:
    """`f(y; θ) / f(y; θ')` for draws at θ', `(count,)`."""
    density = target.log_density
    assert isinstance(density, ExchangeDensity)
    position, proposal = (torch.full((count, 1), each) for each in (old, new))
    return density.exchanged(position, proposal, torch.arange(count)).double().exp()


@pytest.mark.parametrize("num_moves", [None, 8])
def test_ratios_of_densities_are_those_of_log_partitions(num_moves: int | None) -> None:
    """`E_θ'[f(y; θ) / f(y; θ')] = Z(θ) / Z(θ')`, for each datum; the sweeps start at data far from these."""
    target = ExchangeTarget(ising, (torch.ones(2, 3, 3),), {}, num_moves)
    found = ratios(target, 0.3, 0.2, 120)
    log_z = [Ising((3, 3), each).log_partition() for each in (0.3, 0.2)]
    expected = math.exp(2 * float(log_z[0] - log_z[1]))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(len(found))


def test_langevin_moves_draw_data_too() -> None:
    """Here `E[f(y; τ) / f(y; τ')]` is `(τ' / τ)^(n/2)`, of n data."""
    target = ExchangeTarget(precision, (torch.ones(4), Precision), {}, 10)
    found = ratios(target, math.log(1.5), math.log(1.2), 100)
    expected = (1.2 / 1.5) ** 2
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(len(found))


def test_data_that_are_masked_do_not_count() -> None:
    mask = torch.tensor([True, True, False, False])
    target = ExchangeTarget(precision, (torch.ones(4), Drawable, mask), {}, None)
    found = ratios(target, math.log(1.5), math.log(1.2), 100)
    assert abs(float(found.mean()) - 1.2 / 1.5) < 4 * float(found.std()) / math.sqrt(len(found))


def test_a_run_goes_on_bit_for_bit() -> None:
    def begin(stop_at: int) -> MCMC:
        calls = itertools.count()

        def model(x: Tensor) -> None:
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            precision(x)

        return MCMC(Exchange(model, num_steps=2), 10, 5, num_chains=2, disable_progbar=True)

    x = torch.randn(4)
    whole, part, again = begin(-1), begin(80), begin(-1)
    pyro.set_rng_seed(4)
    whole.run(x)
    pyro.set_rng_seed(4)
    with pytest.warns(SamplingWarning, match="interrupted"):
        part.run(x)
    again.load_state_dict(part.state_dict())
    again.resume(x)
    assert torch.equal(again.get_samples()["tau"], whole.get_samples()["tau"])
    assert whole.to_arviz().posterior.attrs["unnormalized_sites"] == ["x"]


def normalized(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", EnergyDistribution(Precision(tau), log_normalizer=0.5 * (2 * math.pi / tau).log()), obs=x)


def scaled(x: Tensor) -> None:
    with pyro.poutine.scale(scale=2.0):
        precision(x)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (normalized, (torch.ones(2),), "without an observed energy"),
        (scaled, (torch.ones(2),), "scale of 2.0"),
        (precision, (torch.ones(2), Precision), "num_auxiliary_moves"),
    ],
)
def test_what_it_cannot_do_is_refused(model: Any, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(NormalizerError, match=message):
        MCMC(Exchange(model), 1, 0, disable_progbar=True).run(*args)


def test_it_is_for_models() -> None:
    kernel = Exchange(EnergyDistribution(energy(lambda x: x**2, event_shape=())))
    with pytest.raises(TypeError, match="expected a Pyro model"):
        MCMC(kernel, 1, 0, disable_progbar=True).run()


@pytest.mark.parametrize("name", ["num_auxiliary_moves", "num_steps"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0"):
        Exchange(precision, **{name: 0})
