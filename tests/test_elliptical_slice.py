"""`EllipticalSlice`: right posteriors under Gaussian priors, its coordinates, and what it refuses."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import check_mixing, check_moments, data, default_dtype, eight_schools, moments, schools
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions import AffineTransform

from pyro_ebm import MCMC, NUTS, EllipticalSlice, EnergyDistribution, QuadraticEnergy, energy, init_to_pathfinder
from pyro_ebm.infer.coordinates import CholeskyAffineTransform, standard_normal
from pyro_ebm.infer.model_target import ModelTarget

LIKELIHOOD_SCALE = 0.8


def run(kernel: Any, *args: Any, num_samples: int = 400, num_chains: int = 16, **options: Any) -> MCMC:
    mcmc = MCMC(kernel, num_samples, 100, num_chains=num_chains, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


def draws(mcmc: MCMC, name: str = "x") -> Tensor:
    return mcmc.get_samples(group_by_chain=True)[name]


@pytest.fixture(autouse=True)
def seed() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)


# Models


def hierarchy(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 0.7))
        pyro.sample("y", dist.Normal(theta, LIKELIHOOD_SCALE), obs=y)


TRIL = ((1.0, 0.0), (0.6, 0.5))


def correlated_effects(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.MultivariateNormal(mu, scale_tril=torch.tensor(TRIL)))
        pyro.sample("y", dist.Normal(theta, LIKELIHOOD_SCALE).to_event(1), obs=y)


def counts(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    log_scale = pyro.sample("log_scale", dist.Normal(-0.5, 0.3))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, log_scale.exp()))
        pyro.sample("y", dist.Poisson(theta.exp()), obs=y)


def scaled_and_masked(y: Tensor) -> None:
    log_scale = pyro.sample("log_scale", dist.Normal(-0.5, 0.3))
    with poutine.scale(scale=2.5):
        a = pyro.sample("a", dist.Normal(log_scale, log_scale.exp()))
    with pyro.plate("group", len(y)):
        b = pyro.sample("b", dist.Normal(a, log_scale.exp()).mask(y > 0))
        tril = log_scale.exp() * torch.tensor(TRIL, dtype=y.dtype)
        c = pyro.sample("c", dist.MultivariateNormal(a * torch.ones(2), scale_tril=tril))
        pyro.sample("y", dist.Normal(b + c.sum(-1), 1.0), obs=y)


def tilted_effects(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    well = energy(lambda x: 0.1 * (x.square() - 1).square(), event_shape=())
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", EnergyDistribution(well, dist.Normal(0.5, 2.0)))
        pyro.sample("y", dist.Normal(mu + theta, 1.0), obs=y)


# Posteriors


def gaussian_posterior(prior_mean: Tensor, prior: Tensor, y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `x ~ N(prior_mean, prior)` after `y = seen @ x` with noise."""
    noise = LIKELIHOOD_SCALE**2 * torch.eye(len(y))
    gain = prior @ seen.mT @ torch.linalg.inv(seen @ prior @ seen.mT + noise)
    covariance = prior - gain @ seen @ prior
    return prior_mean + gain @ (y - seen @ prior_mean), covariance.diagonal().sqrt()


def test_hierarchical_model_has_its_closed_form() -> None:
    y = 3 * data(1, 4)
    mcmc = run(EllipticalSlice(hierarchy), y)
    loading = torch.ones(5, 1)  # of mu and theta on the noise of mu
    prior = 4.0 * loading @ loading.mT + 0.49 * torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))
    seen = torch.cat([torch.zeros(4, 1), torch.eye(4)], 1)
    mean, sd = gaussian_posterior(torch.ones(5), prior, y, seen)
    check_moments(torch.cat([draws(mcmc, "mu")[..., None], draws(mcmc, "theta")], -1), mean, sd)
    check_mixing(draws(mcmc, "mu"), 1.05)
    assert mcmc.attrs["kernel"] == "Elliptical slice"
    assert mcmc.attrs["program"] == "C"


def test_multivariate_sites_in_a_plate_have_their_closed_form() -> None:
    y = 2 * data(2, 3, 2)
    mcmc = run(EllipticalSlice(correlated_effects), y)
    effect = torch.tensor(TRIL) @ torch.tensor(TRIL).mT
    shared = torch.cat([torch.eye(2)] * 4)
    prior = 2.25 * shared @ shared.mT + torch.block_diag(torch.zeros(2, 2), effect, effect, effect)
    seen = torch.cat([torch.zeros(6, 2), torch.eye(6)], 1)
    mean, sd = gaussian_posterior(torch.zeros(8), prior, y.flatten(), seen)
    check_moments(torch.cat([draws(mcmc, "mu"), draws(mcmc, "theta").flatten(-2)], -1), mean, sd)


BASES: dict[str, Callable[[], Any]] = {
    "batch": lambda: dist.Normal(torch.tensor([-2.0, 0.0, 4.0]), 2.0),
    "independent": lambda: dist.Normal(torch.tensor([-2.0, 0.0, 4.0]), 2.0).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(torch.tensor([-2.0, 0.0, 4.0]), 4 * torch.eye(3)),
    "masked": lambda: dist.Normal(torch.tensor([-2.0, 0.0, 4.0]), 2.0).mask(True),
    "torch's own": lambda: torch.distributions.Normal(torch.tensor([-2.0, 0.0, 4.0]), 2.0),
}


@pytest.mark.parametrize("name", BASES)
def test_energy_with_a_gaussian_base(name: str) -> None:
    """`N(m, 4)` times `exp(-x² / 2)` is `N(m / 5, 4 / 5)`, elementwise."""
    base = BASES[name]()
    tilt = (
        QuadraticEnergy(torch.eye(3), torch.zeros(3))
        if base.event_shape
        else energy(lambda x: 0.5 * x.square(), event_shape=())
    )
    mcmc = run(EllipticalSlice(EnergyDistribution(tilt, base)))
    check_moments(draws(mcmc), torch.tensor([-0.4, 0.0, 0.8]), math.sqrt(0.8))


def test_expanded_energy_distribution() -> None:
    prior = EnergyDistribution(energy(lambda x: 0.5 * x.square(), event_shape=()), dist.Normal(1.0, 2.0))
    mcmc = run(EllipticalSlice(prior.expand(torch.Size([2]))))
    assert draws(mcmc).shape == (16, 400, 2)
    check_moments(draws(mcmc), 0.2, math.sqrt(0.8))


@pytest.mark.parametrize(
    ("model", "y", "names"),
    [(counts, (0.0, 2.0, 5.0, 1.0), ["mu", "log_scale", "theta"]), (tilted_effects, (1.0, -2.0), ["mu", "theta"])],
)
def test_agrees_with_nuts(model: Callable[[Tensor], None], y: tuple[float, ...], names: list[str]) -> None:
    mine = run(EllipticalSlice(model), torch.tensor(y), num_samples=2000)
    theirs = run(NUTS(model, target_accept_prob=0.95), torch.tensor(y), num_samples=250)
    for name in names:
        values, errors = moments(draws(theirs, name))
        check_moments(draws(mine, name), *values, error=errors)


def test_a_likelihood_without_a_gradient() -> None:
    """A normal that counts twice above a step, and nobody asks for a gradient."""
    step = 0.4

    def stairs(x: Tensor) -> Tensor:
        assert not x.requires_grad
        return -math.log(2.0) * (x > step).to(x)

    mcmc = run(EllipticalSlice(EnergyDistribution(energy(stairs, event_shape=()), dist.Normal(0.0, 1.0))))
    normal = torch.distributions.Normal(0.0, 1.0)
    density, above = float(normal.log_prob(torch.tensor(step)).exp()), 1 - float(normal.cdf(torch.tensor(step)))
    mean = density / (1 + above)
    second = (1 + above + step * density) / (1 + above)
    check_moments(draws(mcmc), mean, math.sqrt(second - mean**2))


def test_a_model_is_never_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.func, "grad_and_value")
    assert draws(run(EllipticalSlice(hierarchy), data(1, 4), num_samples=5), "theta").shape == (16, 5, 4)


# Coordinates


@pytest.mark.parametrize("model", [hierarchy, correlated_effects, counts, scaled_and_masked, tilted_effects])
def test_coordinates_are_standard_normal_a_priori(model: Callable[[Tensor], None]) -> None:
    """The density of z is that of x times `dx/dz`, whatever masks and scales there are."""
    with default_dtype(torch.float64):
        y = {correlated_effects: data(2, 3, 2)}.get(model, torch.tensor([2.0, -1.0, 1.0]))
        y = y.clamp(min=0) if model is counts else y
        plain = ModelTarget(model, (y,), {})
        target = EllipticalSlice(model).target((y,), {})
        z = data(3, 6, target.raveler.dim)
        values = target.constrain(z)
        x = plain.raveler.ravel(values)
        log_det = torch.stack([torch.func.jacfwd(_to_x(target))(row).logdet() for row in z])
        found, gradient = target.log_density(z)
        torch.testing.assert_close(found, plain.log_density(x)[0] + log_det)
        assert not gradient.any()
        if model is hierarchy:
            likelihood = torch.distributions.Normal(values["theta"], LIKELIHOOD_SCALE).log_prob(y).sum(-1)
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            torch.testing.assert_close(found, prior + likelihood)


def _to_x(target: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: target.raveler.ravel(target.constrain(z))


def test_cholesky_transform_in_batches() -> None:
    loc, raw = data(1, 3, 1, 4), data(2, 5, 4, 4)
    tril = raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
    transform, z = CholeskyAffineTransform(loc, tril), data(3, 3, 5, 4)
    x = transform(z)
    torch.testing.assert_close(x, loc + torch.einsum("bij,abj->abi", tril, z))
    torch.testing.assert_close(transform.inv(x), z, rtol=1e-3, atol=1e-3)
    log_det = transform.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(log_det, tril.logdet().expand(3, 5))


def test_coordinates_look_through_wrappers() -> None:
    loc = data(1, 2, 3)
    for fn in (dist.Normal(loc, 0.5).to_event(1).mask(True), dist.Normal(loc, 0.5).to_event(2)):
        transform = standard_normal(fn, "x")
        assert isinstance(transform, AffineTransform)
        torch.testing.assert_close(transform(torch.zeros(2, 3)), loc)


def test_starts() -> None:
    at = {"mu": torch.tensor(3.0), "theta": torch.tensor([1.0, 2.0])}
    target = EllipticalSlice(hierarchy).target((torch.zeros(2),), {})
    z = target.initial_points(init_to_value(values=at), 3)
    torch.testing.assert_close(z, torch.tensor([1.0, -2 / 0.7, -1 / 0.7]).expand(3, 3))
    values = target.constrain(z)
    assert all(torch.allclose(values[name][1], at[name]) for name in at)


# The run


def same(first: MCMC, second: MCMC, tolerance: float = 0.0) -> None:
    for mine, other in [(first.get_samples(), second.get_samples()), (first.sample_stats(), second.sample_stats())]:
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=tolerance, atol=tolerance)


def test_compiled_equals_eager_and_seeds_repeat() -> None:
    with default_dtype(torch.float64):
        y, runs = data(1, 4), []
        for compile in (True, False, False):
            pyro.set_rng_seed(5)
            runs.append(run(EllipticalSlice(hierarchy), y, num_samples=20, num_chains=3, compile=compile))
    compiled, eager, again = runs
    assert (compiled.attrs["program"], eager.attrs["program"]) == ("C", "eager")
    same(compiled, eager, 1e-8)
    same(eager, again)


def test_a_loaded_run_goes_on_to_the_same_draws() -> None:
    y = data(1, 4)
    first = run(EllipticalSlice(hierarchy), y, num_samples=10, num_chains=3)
    second = MCMC(EllipticalSlice(hierarchy), 10, 100, num_chains=3, disable_progbar=True)
    second.load_state_dict(first.state_dict())
    second.resume(y)
    same(first, second)


def test_nothing_adapts(capsys: pytest.CaptureFixture[str]) -> None:
    mcmc = MCMC(EllipticalSlice(hierarchy), 10, 10, num_chains=2)
    mcmc.run(data(1, 4))
    assert torch.equal(mcmc.inverse_mass_matrix, torch.ones(5))
    assert math.isnan(mcmc.attrs["step_size"])
    assert "step size" not in capsys.readouterr().err
    assert mcmc.to_arviz().posterior["theta"].shape == (2, 10, 4)


# What it refuses


def discrete(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)


def log_normal() -> None:
    pyro.sample("rate", dist.LogNormal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (eight_schools, schools, r'site "tau": got a HalfCauchy, expected a Normal or MultivariateNormal'),
        (log_normal, tuple, r'site "rate": got a LogNormal, expected a Normal or MultivariateNormal'),
        (discrete, lambda: (torch.tensor(0.3),), r'at site "k" got a discrete distribution.*MixtureSameFamily'),
        (QuadraticEnergy(torch.eye(2), torch.zeros(2)), tuple, r'site "x": got an energy without a base.*base\)'),
        (
            EnergyDistribution(energy(lambda x: x, event_shape=()), dist.StudentT(3.0)),
            tuple,
            r'site "x": got a StudentT, expected a Normal',
        ),
    ],
)
def test_what_is_not_gaussian_is_refused(model: Any, args: Callable[[], tuple[Any, ...]], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(EllipticalSlice(model), *args())


@pytest.mark.parametrize("name", ["step_size", "target_accept_prob", "full_mass", "adapt_mass_matrix"])
def test_what_it_has_no_use_for_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        EllipticalSlice(hierarchy, **{name: 0.5})


@pytest.mark.parametrize("strategy", [init_to_pathfinder, init_to_pathfinder(radius=1.0)], ids=["plain", "partial"])
def test_starts_by_gradients_are_refused(strategy: object) -> None:
    with pytest.raises(ValueError, match="needs gradients"):
        EllipticalSlice(lambda: None, init_strategy=strategy)
