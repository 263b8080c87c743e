"""`MonteCarloEM`: chains that have the posterior, gradients that find the maximum, and what it saves and refuses."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_ebm import (
    BatchingError,
    Energy,
    EnergyDistribution,
    Exact,
    MonteCarloEM,
    NonFiniteError,
    PersistentWalkers,
    UnnormalizedError,
    energy,
)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    yield
    pyro.clear_param_store()


def held(parameters: Any) -> None:
    """An optimiser that leaves the parameters alone."""


def run(model: Callable[..., Any], *args: Any, steps: int, **options: Any) -> MonteCarloEM:
    em = MonteCarloEM(model, held, **options)
    for _ in range(steps):
        em.step(*args)
    return em


def check_normal(scores: Tensor) -> None:
    """Independent standard normal numbers, by mean and variance within four standard errors."""
    count = scores.numel()
    assert abs(float(scores.mean())) < 4 / math.sqrt(count)
    assert abs(float(scores.var()) - 1) < 4 * math.sqrt(2 / count)


# -- the chains have the posterior -----------------------------------------------------------------------------------


def gaussian(x: Tensor, subsample_size: int | None = None) -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(x), subsample_size=subsample_size) as idx:
        z = pyro.sample("z", dist.Normal(loc, 2.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[idx])


@pytest.mark.parametrize("num_chains", [1, 2])
def test_chains_have_the_posterior(num_chains: int) -> None:
    x = 3 * torch.randn(2000)
    em = run(gaussian, x, steps=25, num_chains=num_chains)
    mean, variance = (0.5 / 4 + x) / 1.25, 1 / 1.25
    assert em.values["z"].shape == ((2000,) if num_chains == 1 else (num_chains, 2000))
    check_normal((em.values["z"] - mean) / math.sqrt(variance))
    assert 0.45 < em.acceptance_rate < 0.7


def test_chains_wait_for_their_minibatch() -> None:
    x = 3 * torch.randn(1000)
    em = run(gaussian, x, 500, steps=60)
    saved = em.state_dict()["chains"]
    z = saved["position"].flatten()
    check_normal((z - (0.5 / 4 + x) / 1.25) * math.sqrt(1.25))
    assert int(saved["num_visits"].sum()) == 60 * 500


def test_a_constrained_site_has_its_jacobian() -> None:
    counts = torch.distributions.Poisson(4.0).sample((2000,))

    def model() -> None:
        with pyro.plate("data", 2000):
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=counts)

    em = run(model, steps=40)
    posterior = torch.distributions.Gamma(3.0 + counts, 2.0)
    score = (em.values["rate"] - posterior.mean) / posterior.stddev
    assert abs(float(score.mean())) < 4 / math.sqrt(2000)
    # The variance of the square of a standardised gamma number is 2 + 6 / shape.
    error = math.sqrt(float((2 + 6 / (3 + counts)).mean()) / 2000)
    assert abs(float(score.square().mean()) - 1) < 4 * error


@pytest.mark.parametrize("num_chains", [1, 2])
def test_sites_inside_of_a_datum_move_together(num_chains: int) -> None:
    """Two sites, one in a plate within the plate of the data: their posterior is one Gaussian."""
    x = 2 * torch.randn(600, 3)

    def model() -> None:
        with pyro.plate("data", 600, dim=-2):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-1):
                part = pyro.sample("part", dist.Normal(level, 1.0))
                pyro.sample("x", dist.Normal(part, 1.0), obs=x)

    em = run(model, steps=80, num_chains=num_chains)
    level, part = em.values["level"], em.values["part"]
    assert part.shape[-2:] == (600, 3)
    # Without the parts, x is normal around the level with variance 2.
    variance = 1 / (1 + 3 / 2)
    check_normal((level.squeeze(-1) - variance * x.sum(-1) / 2) / math.sqrt(variance))
    check_normal((part - (level + x) / 2) * math.sqrt(2))


class Spread(Energy):
    """`E(x; z) = e^z x² / 2`, whose log Z depends on z: `½ log 2π - z / 2`."""

    def __init__(self, z: Tensor) -> None:
        super().__init__((), batch_shape=z.shape)
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        return self.z.exp() * x**2 / 2


def test_a_log_normalizer_that_depends_on_latent_values_stays() -> None:
    x = torch.full((1500,), 2.0)

    def model(normalized: bool) -> None:
        with pyro.plate("data", 1500):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            log_normalizer = 0.5 * math.log(2 * math.pi) - z / 2 if normalized else None
            pyro.sample("x", EnergyDistribution(Spread(z), log_normalizer=log_normalizer), obs=x)

    em = run(model, True, steps=30)
    grid = torch.linspace(-8, 8, 2001, dtype=torch.double)
    weight = (-(grid**2) / 2 + grid / 2 - grid.exp() * 2).softmax(0)
    mean = (weight * grid).sum()
    deviation = (weight * (grid - mean).square()).sum().sqrt()
    z = em.values["z"].double()
    assert abs(float(z.mean() - mean)) < 4 * float(deviation) / math.sqrt(1500)
    with pytest.raises(UnnormalizedError, match=r'site "x".*depends on other latent sites'):
        run(model, False, steps=1)


# -- the parameters are learned --------------------------------------------------------------------------------------


class Tilt(Energy):
    """`a z² / 2 - b z`, which makes a standard normal one of precision `1 + a` and mean `b / (1 + a)`."""

    def __init__(self) -> None:
        super().__init__(())
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.a * z**2 / 2 - self.b * z


class LearnedPrior:
    """Latent values with a learned energy as their prior, seen with noise of variance 0.25."""

    def __init__(self, **normalizer: Any) -> None:
        self.tilt = Tilt()
        self.prior = EnergyDistribution(self.tilt, dist.Normal(0.0, 1.0), **normalizer)

    def __call__(self, x: Tensor) -> None:
        pyro.module("tilt", self.tilt)
        with pyro.plate("data", len(x), subsample_size=len(x) // 2) as idx:
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[idx])


def test_a_learned_prior_is_found() -> None:
    """With log Z, the maximum of the likelihood has the mean of the data, and their variance less that of the noise."""
    x = 0.5 + 0.95 * torch.randn(400)
    walkers = PersistentWalkers(500)
    model = LearnedPrior(log_normalizer=walkers)
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.97})
    em = MonteCarloEM(model, optim, num_steps=3)
    for step in range(150):
        em.step(x)
        optim.step()
        assert walkers.num_refreshes == step  # the walkers start at the first parameters
    a, b = model.tilt.a.item(), model.tilt.b.item()
    # What is left is the noise of the last, short steps: at most 0.008 with three other seeds.
    assert abs(b / (1 + a) - float(x.mean())) < 0.03
    assert abs(1 / (1 + a) - (float(x.var(unbiased=False)) - 0.25)) < 0.04
    assert set(em.report()) == {"complete_data_nll", "acceptance_rate"}


def test_the_loss_is_that_of_data_and_latent_values() -> None:
    x = torch.randn(10)
    em = run(gaussian, x, steps=1, num_chains=3)
    z = em.values["z"]
    expected = -(dist.Normal(0.5, 2.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)).sum() / 3
    assert em.loss == pytest.approx(float(expected), rel=1e-5)
    half = run(gaussian, x, 5, steps=1)
    z, loc = half.values["z"], torch.tensor(0.5)
    seen = half.state_dict()["chains"]["num_visits"] > 0
    assert int(seen.sum()) == 5
    at = half.state_dict()["chains"]["position"].flatten()
    expected = -2 * (dist.Normal(loc, 2.0).log_prob(at) + dist.Normal(at, 1.0).log_prob(x))[seen].sum()
    assert half.loss == pytest.approx(float(expected), rel=1e-5)


def test_a_run_goes_on_bit_for_bit() -> None:
    x = torch.randn(20)

    def begin() -> tuple[LearnedPrior, PersistentWalkers, Any, MonteCarloEM]:
        walkers = PersistentWalkers(50)
        model, optim = LearnedPrior(log_normalizer=walkers), pyro.optim.Adam({"lr": 0.02})
        return model, walkers, optim, MonteCarloEM(model, optim, num_chains=2)

    model, walkers, optim, em = begin()
    for _ in range(4):
        em.step(x)
    saved = copy.deepcopy((em.state_dict(), walkers.state_dict(), optim.get_state(), model.tilt.state_dict()))
    expected = [em.step(x) for _ in range(4)]
    pyro.clear_param_store()
    pyro.set_rng_seed(99)
    model, walkers, optim, em = begin()
    em.load_state_dict(saved[0])
    walkers.load_state_dict(saved[1])
    optim.set_state(saved[2])
    model.tilt.load_state_dict(saved[3])
    assert [em.step(x) for _ in range(4)] == expected


def test_the_model_may_choose_the_minibatch() -> None:
    x = torch.randn(6)

    def model(idx: Tensor) -> None:
        with pyro.plate("data", 6, subsample=idx):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[idx])

    em = MonteCarloEM(model, held)
    em.step(torch.tensor([0, 2]))
    em.step(torch.tensor([2, 5, 1]))
    assert em.state_dict()["chains"]["num_visits"].tolist() == [1, 1, 2, 0, 0, 1]


# -- what is refused -------------------------------------------------------------------------------------------------


def shared() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(mu, 1.0))


def discrete() -> None:
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Bernoulli(0.5))


def nothing_latent() -> None:
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))


def coupled() -> None:
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("sum", -(z.sum() ** 2))


def other_subsample() -> None:
    with pyro.plate("data", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("parts", 4, subsample_size=2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (shared, "'mu'.*lie in no plate.*pyro.param"),
        (discrete, 'discrete latent site "k"'),
        (nothing_latent, "no latent site"),
        (coupled, 'site "sum" outside of plate "data"'),
        (other_subsample, 'subsample of plate "parts"'),
    ],
)
def test_other_models_are_refused(model: Callable[[], None], message: str) -> None:
    with pytest.raises(BatchingError, match=message):
        MonteCarloEM(model, held).step()


def test_a_missing_log_normalizer_is_refused() -> None:
    with pytest.raises(UnnormalizedError, match='latent site "z"'):
        MonteCarloEM(LearnedPrior(), held).step(torch.zeros(4))


def test_a_frozen_energy_needs_no_log_normalizer() -> None:
    """Its log Z is a constant: the posterior is right. `E = 3 z² / 2` on a standard normal has precision 4."""
    prior = EnergyDistribution(energy(lambda z: 1.5 * z**2, event_shape=()), dist.Normal(0.0, 1.0))
    x = torch.randn(1500)

    def model() -> None:
        with pyro.plate("data", 1500):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    em = run(model, steps=30)
    check_normal((em.values["z"] - x / 2) * math.sqrt(8))


def test_log_normalizers_of_other_kinds_serve() -> None:
    model = LearnedPrior(log_normalizer=Exact())
    assert math.isfinite(MonteCarloEM(model, held).step(torch.zeros(4)))


def test_data_of_another_size_are_refused() -> None:
    em = run(gaussian, torch.zeros(4), steps=1)
    with pytest.raises(BatchingError, match="of size 5, expected 4"):
        em.step(torch.zeros(5))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    em = run(gaussian, torch.zeros(4), steps=1)
    pyro.get_param_store()["loc"] = torch.tensor(float("nan"))
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="loss of nan"):
        em.step(torch.zeros(4))


@pytest.mark.parametrize("name", ["num_chains", "num_steps"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0"):
        MonteCarloEM(gaussian, held, **{name: 0})
