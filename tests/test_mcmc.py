"""`MCMC`: right posteriors, and everything around them (starts, seeds, interruptions, saving, warnings, errors)."""

import io
import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from models import (
    PRECISION,
    check_mixing,
    check_moments,
    conjugate,
    conjugate_posterior,
    data,
    default_dtype,
    eight_schools,
    gaussian_priors,
    mixed_dtypes,
    moments,
    moving_support,
    nested_plates,
    schools,
    z_limit,
)
from pyro.infer.autoguide.initialization import (
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import (
    HMC,
    MALA,
    MCMC,
    NUTS,
    AdjustedMCLMC,
    DoubleWell,
    Energy,
    EnergyDistribution,
    Funnel,
    Langevin,
    QuadraticEnergy,
    energy,
)
from pyro_ebm._core.errors import InitializationError, SamplingWarning
from pyro_ebm.infer.energy_target import EnergyTarget
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.model_target import ModelTarget

pytestmark = pytest.mark.filterwarnings("ignore::pyro_ebm._core.errors.SamplingWarning")

KERNELS = [NUTS, HMC, MALA, Langevin]
EXACT = [NUTS, HMC, MALA]


def run(
    kernel: Kernel, *args: Any, num_samples: int = 300, warmup_steps: int = 150, num_chains: int = 8, **options: Any
) -> MCMC:
    """A run with arguments of the model, and no progress bar."""
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True, **options)
    mcmc.run(*args)
    return mcmc


def draws(mcmc: MCMC, name: str = "x") -> Tensor:
    return mcmc.get_samples(group_by_chain=True)[name]


def same(first: MCMC, second: MCMC) -> None:
    """Two runs have the same draws and diagnostics, bit by bit."""
    for mine, other in [
        (first.get_samples(group_by_chain=True), second.get_samples(group_by_chain=True)),
        (first.sample_stats(), second.sample_stats()),
    ]:
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=0, equal_nan=True)


def gaussian() -> QuadraticEnergy:
    return QuadraticEnergy(torch.tensor(PRECISION), torch.tensor([1.0, -1.0]))


@pytest.fixture(scope="module")
def conjugate_run() -> tuple[MCMC, Tensor]:
    """A run to look at from many sides."""
    pyro.clear_param_store()
    pyro.set_rng_seed(11)
    x = data(1, 20)
    mcmc = MCMC(NUTS(conjugate), 500, 150, num_chains=12, disable_progbar=True)
    mcmc.run(x, prior_scale=2.0)
    return mcmc, x


# -- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "num_samples", "rung"), [(NUTS, 150, "C"), (NUTS, 20, "eager"), (MALA, 40, "C")])
def test_long_runs_are_compiled(kernel: type[Kernel], num_samples: int, rung: str) -> None:
    assert run(kernel(gaussian()), num_samples=num_samples, warmup_steps=50).attrs["program"] == rung


def test_a_short_run_of_a_slow_model_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ebm.infer.mcmc._MANY_SECONDS", 1e-6)
    whole = run(NUTS(gaussian()), num_samples=6, warmup_steps=3)
    assert whole.attrs["program"] == "C"
    monkeypatch.undo()
    second = MCMC(NUTS(gaussian()), 6, 3, num_chains=8, disable_progbar=True)
    second.load_state_dict(whole.state_dict())
    second.resume()
    assert second._run is not None
    assert second._run.settings.compile == "fast"  # as it was, however long the model takes today


# -- right posteriors ------------------------------------------------------------------------------------------------


def test_conjugate_normal_with_arguments_and_keywords(conjugate_run: tuple[MCMC, Tensor]) -> None:
    mcmc, x = conjugate_run
    check_moments(draws(mcmc, "mu"), *conjugate_posterior(x, 2.0))
    check_mixing(draws(mcmc, "mu"))


@pytest.mark.parametrize("kernel", [HMC, MALA])
def test_conjugate_normal_by_other_kernels(kernel: type[Kernel]) -> None:
    x = data(1, 20)
    mcmc = run(kernel(conjugate), x)
    check_moments(draws(mcmc, "mu"), *conjugate_posterior(x))
    check_mixing(draws(mcmc, "mu"))


@pytest.mark.parametrize("full_mass", [False, True])
@pytest.mark.parametrize("kernel", EXACT)
def test_gaussian_energy(kernel: type[Kernel], full_mass: bool) -> None:
    model = gaussian()
    mcmc = run(kernel(model, full_mass=full_mass), num_chains=16)
    covariance = torch.linalg.inv(torch.tensor(PRECISION))
    check_moments(draws(mcmc), covariance @ torch.tensor([1.0, -1.0]), covariance.diagonal().sqrt())
    product = (draws(mcmc) - covariance @ torch.tensor([1.0, -1.0])).prod(-1)
    values, errors = moments(product)
    assert abs(values[0, 0] - covariance[0, 1].item()) < z_limit(1) * errors[0, 0]
    check_mixing(draws(mcmc))
    assert mcmc.inverse_mass_matrix.shape == ((2, 2) if full_mass else (2,))


@pytest.mark.parametrize("num_chains", [4, 64])
@pytest.mark.parametrize("kernel", [HMC, AdjustedMCLMC])
def test_chains_come_to_a_bulk_that_is_far_away(kernel: Callable[..., Kernel], num_chains: int) -> None:
    """Of a regression's level and slope, where steps must be tiny at first, trajectories are short until then."""
    random = torch.Generator().manual_seed(0)
    design = torch.stack([torch.ones(200), 66 + 4 * torch.randn(200, generator=random)], -1)
    outcome = design @ torch.tensor([-60_000.0, 1_300.0]) + 19_000 * torch.randn(200, generator=random)

    def energy_of(x: Tensor) -> Tensor:
        residual = outcome - (design @ x[..., :2, None]).squeeze(-1)
        return 200 * x[..., 2] + 0.5 * residual.square().sum(-1) * (-2 * x[..., 2]).exp()

    mcmc = run(
        kernel(energy(energy_of, event_shape=(3,))),
        num_samples=500,
        warmup_steps=1000,
        num_chains=num_chains,
        save_warmup=True,
    )
    values, errors = moments(draws(mcmc))
    expected = torch.linalg.lstsq(design, outcome.unsqueeze(-1)).solution.squeeze(-1).numpy()
    assert (abs(values[0, :2] - expected) < z_limit(8) * errors[0, :2]).all()
    check_mixing(draws(mcmc))
    first = mcmc._require_run().warmup.draws.draws()["n_steps"][:, :75]
    assert 32 < first.max() <= 64


def test_unadjusted_langevin_has_just_the_bias_of_its_step() -> None:
    """In whitened coordinates its stationary covariance is `P⁻¹ (1 - ε P / 2)⁻¹`."""
    mcmc = run(Langevin(gaussian(), full_mass=True), num_samples=1000, num_chains=32)
    epsilon = 0.5 * mcmc.attrs["step_size"] ** 2
    factor = torch.linalg.cholesky(mcmc.inverse_mass_matrix)
    precision = factor.mT @ torch.tensor(PRECISION) @ factor
    whitened = torch.linalg.inv(precision @ (torch.eye(2) - 0.5 * epsilon * precision))
    covariance = factor @ whitened @ factor.mT
    mean = torch.linalg.solve(torch.tensor(PRECISION), torch.tensor([1.0, -1.0]))
    check_moments(draws(mcmc), mean, covariance.diagonal().sqrt())
    check_mixing(draws(mcmc))
    assert mcmc.sample_stats()["acceptance_rate"].mean() > 0.9


def test_eight_schools_agree_with_stock_pyro() -> None:
    args = schools()
    mcmc = run(NUTS(eight_schools), *args, num_samples=250, warmup_steps=100, num_chains=16)
    reference = pyro.infer.MCMC(pyro.infer.NUTS(eight_schools), num_samples=200, warmup_steps=100, disable_progbar=True)
    reference.run(*args)
    for name in ("mu", "tau", "eta"):
        ours, theirs = draws(mcmc, name), reference.get_samples(group_by_chain=True)[name]
        if name == "tau":  # its tail is so heavy that a run's own error of its variance means nothing
            ours, theirs = ours.log(), theirs.log()
        values, errors = moments(theirs)
        check_moments(ours, *values, error=errors)
        check_mixing(ours)


def test_moving_support_agrees_with_quadrature() -> None:
    y = torch.tensor([1.5])
    mcmc = run(NUTS(moving_support, target_accept_prob=0.9), y, num_chains=16, num_samples=250, warmup_steps=100)
    with default_dtype(torch.float64):
        upper = torch.linspace(1e-3, 30, 3001)[:, None]
        fraction = (torch.arange(2000) + 0.5) / 2000
        log_weight = torch.distributions.Gamma(3.0, 1.0).log_prob(upper)
        log_weight = log_weight + torch.distributions.Normal(upper * fraction, 1.0).log_prob(y.double())
        weight = log_weight.exp() / log_weight.exp().sum()
        for name, value in {"upper": upper.expand_as(weight), "x": upper * fraction}.items():
            mean = (weight * value).sum().item()
            sd = (weight * (value - mean).square()).sum().sqrt().item()
            check_moments(draws(mcmc, name), mean, sd)
            check_mixing(draws(mcmc, name))
    assert (draws(mcmc, "x").squeeze(-1) < draws(mcmc, "upper")).all()


@pytest.mark.parametrize("kernel", [NUTS, MALA])
def test_energies_on_constrained_supports(kernel: type[Kernel]) -> None:
    shape = 3.0
    gamma = energy(lambda x: x - (shape - 1) * x.log(), event_shape=(), support=constraints.positive)
    mcmc = run(kernel(gamma), num_chains=16)
    assert (draws(mcmc) > 0).all()
    check_moments(draws(mcmc), shape, math.sqrt(shape))
    check_mixing(draws(mcmc))

    concentration = torch.tensor([2.0, 1.0, 3.0])
    dirichlet = energy(
        lambda x: -((concentration - 1) * x.log()).sum(-1), event_shape=(3,), support=constraints.simplex
    )
    mcmc = run(kernel(dirichlet), num_chains=16)
    torch.testing.assert_close(draws(mcmc).sum(-1), torch.ones(16, 300))
    truth = torch.distributions.Dirichlet(concentration)
    check_moments(draws(mcmc), truth.mean, truth.variance.sqrt())
    check_mixing(draws(mcmc))


def test_double_well_agrees_with_quadrature() -> None:
    well = DoubleWell(dim=1, barrier=0.3)
    mcmc = run(NUTS(well), num_samples=900)
    with default_dtype(torch.float64):
        x = torch.linspace(-6, 6, 4001)
        weight = torch.softmax(-DoubleWell(dim=1, barrier=0.3)(x.unsqueeze(-1)), 0)
        check_moments(draws(mcmc), 0.0, (weight * x.square()).sum().sqrt().item())
    check_mixing(draws(mcmc))


def test_energy_distribution_with_base_and_batch_shape() -> None:
    loc = torch.tensor([-2.0, 0.0, 4.0])
    tilted = EnergyDistribution(energy(lambda x: 0.5 * x.square(), event_shape=()), dist.Normal(loc, 1.0))
    mcmc = run(NUTS(tilted))
    assert draws(mcmc).shape == (8, 300, 3)
    check_moments(draws(mcmc), 0.5 * loc, math.sqrt(0.5))
    check_mixing(draws(mcmc))


def test_quadratic_energy_prior_is_the_normal_prior() -> None:
    def model(prior: Any, x: Tensor) -> None:
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.tensor([1.0, -2.0])
    posterior = torch.linalg.inv(torch.tensor(PRECISION) + torch.eye(2))
    for prior in gaussian_priors().values():
        pyro.set_rng_seed(2)
        mcmc = run(HMC(model), prior, x)
        check_moments(draws(mcmc, "z"), posterior @ x, posterior.diagonal().sqrt())
        check_mixing(draws(mcmc, "z"))


def test_double_precision_and_mixed_precision() -> None:
    with default_dtype(torch.float64):
        mcmc = run(MALA(conjugate), data(1, 20), num_samples=5, warmup_steps=5)
    assert draws(mcmc, "mu").dtype == torch.float64
    mcmc = run(MALA(mixed_dtypes), torch.tensor(0.3, dtype=torch.float64), num_samples=5, warmup_steps=5)
    assert {name: value.dtype for name, value in mcmc.get_samples().items()} == {
        "single": torch.float32,
        "double": torch.float64,
    }


# -- adaptation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_adapts_that_shall_not(kernel: type[Kernel]) -> None:
    mcmc = run(
        kernel(gaussian(), step_size=0.25, adapt_step_size=False, adapt_mass_matrix=False),
        num_samples=20,
        warmup_steps=30,
    )
    assert mcmc.attrs["step_size"] == 0.25
    assert torch.equal(mcmc.inverse_mass_matrix, torch.ones(2))


def test_hmc_makes_the_number_of_steps_it_is_given() -> None:
    mcmc = run(HMC(gaussian(), num_steps=3), num_samples=10, warmup_steps=20)
    assert (mcmc.sample_stats()["n_steps"] == 3).all()


def test_a_run_without_warmup() -> None:
    mcmc = run(NUTS(gaussian(), step_size=0.5), num_samples=10, warmup_steps=0)
    assert draws(mcmc).shape == (8, 10, 2)
    assert mcmc.attrs["step_size"] == 0.5


def test_warmup_is_as_long_as_sampling_by_default() -> None:
    assert MCMC(NUTS(gaussian()), num_samples=70).warmup_steps == 70


# -- results ---------------------------------------------------------------------------------------------------------


def test_shapes_of_draws() -> None:
    y = data(2, 3, 4)
    mcmc = run(MALA(nested_plates), y, num_samples=6, warmup_steps=5, num_chains=5)
    shapes = {"mu": (), "group_effect": (3, 1), "scale": (3, 4)}
    for name, shape in shapes.items():
        grouped, flat = draws(mcmc, name), mcmc.get_samples()[name]
        assert grouped.shape == (5, 6, *shape)
        assert torch.equal(flat, grouped.reshape(30, *shape))
        assert mcmc.get_samples(num_samples=11)[name].shape == (11, *shape)
        assert mcmc.get_samples(num_samples=11, group_by_chain=True)[name].shape == (5, 11, *shape)
    assert set(mcmc.get_samples()) == set(shapes)


def test_resampled_draws_are_draws(conjugate_run: tuple[MCMC, Tensor]) -> None:
    mcmc, _ = conjugate_run
    assert torch.isin(mcmc.get_samples(num_samples=50)["mu"], mcmc.get_samples()["mu"]).all()
    grouped = mcmc.get_samples(num_samples=50, group_by_chain=True)["mu"]
    for chain in range(12):
        assert torch.isin(grouped[chain], draws(mcmc, "mu")[chain]).all()


def test_sites_are_resampled_together() -> None:
    mcmc = run(MALA(eight_schools), *schools(), num_samples=20, warmup_steps=5, num_chains=2)
    everything, some = mcmc.get_samples(), mcmc.get_samples(num_samples=7)
    for i in range(7):
        (index,) = (everything["mu"] == some["mu"][i]).nonzero()[0]
        assert torch.equal(everything["eta"][index], some["eta"][i])


def test_only_some_sites_are_kept() -> None:
    mcmc = run(MALA(eight_schools), *schools(), num_samples=4, warmup_steps=4, save_params=["tau"])
    assert set(mcmc.get_samples()) == {"tau"}
    assert {"tau"} == mcmc.diagnostics().keys() - {"divergences", "acceptance rate"}
    with pytest.raises(ValueError, match=r"save_params \['theta'\].*\['eta', 'mu', 'tau'\]"):
        run(MALA(eight_schools), *schools(), num_samples=4, warmup_steps=4, save_params=["theta"])


def test_diagnostics_are_laid_out_as_by_pyro(conjugate_run: tuple[MCMC, Tensor]) -> None:
    mcmc, x = conjugate_run
    stock = pyro.infer.MCMC(pyro.infer.NUTS(conjugate), num_samples=5, warmup_steps=5, disable_progbar=True)
    stock.run(x)
    mine, theirs = mcmc.diagnostics(), stock.diagnostics()
    assert mine.keys() == theirs.keys()
    assert mine["mu"].keys() == theirs["mu"].keys()
    assert list(mine["divergences"]) == list(mine["acceptance rate"]) == [f"chain {i}" for i in range(12)]
    assert all(isinstance(index, list) for index in mine["divergences"].values())
    assert mine["mu"]["n_eff"].shape == ()
    assert 100 < mine["mu"]["n_eff"] < 12 * 500 * 5
    assert mine["mu"]["r_hat"] < 1.02
    assert all(0.5 < rate <= 1 for rate in mine["acceptance rate"].values())


def test_diagnostics_have_the_shape_of_their_site() -> None:
    mcmc = run(MALA(nested_plates), data(2, 3, 4), num_samples=8, warmup_steps=5)
    assert mcmc.diagnostics()["scale"]["r_hat"].shape == (3, 4)


def test_summary(conjugate_run: tuple[MCMC, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    mcmc, _ = conjugate_run
    mcmc.summary(prob=0.8)
    text = capsys.readouterr().out
    for word in ("mean", "hdi_10%", "hdi_90%", "ess_bulk", "r_hat", "mcse_mean", "mu", "Number of divergences: 0"):
        assert word in text
    row = next(line for line in text.splitlines() if line.startswith("mu")).split()
    assert float(row[1]) == pytest.approx(draws(mcmc, "mu").mean().item(), abs=6e-4)  # three decimals are shown


def test_before_a_run_there_is_nothing() -> None:
    mcmc = MCMC(NUTS(gaussian()), num_samples=10)
    for what in (mcmc.get_samples, mcmc.diagnostics, mcmc.summary, mcmc.to_arviz, mcmc.state_dict, mcmc.resume):
        with pytest.raises(RuntimeError, match=r"run"):
            what()


def test_a_second_run_starts_afresh() -> None:
    mcmc = run(MALA(conjugate), data(1, 20), num_samples=10, warmup_steps=10, num_chains=2)
    first = draws(mcmc, "mu")
    mcmc.run(data(1, 20) + 100.0)
    assert (draws(mcmc, "mu") - first).abs().min() > 1
    assert draws(mcmc, "mu").shape == (2, 10)


# -- starts ----------------------------------------------------------------------------------------------------------


def still(model: Any, initial_params: dict[str, Tensor], num_chains: int = 3) -> MCMC:
    """A run that hardly moves, so that its draw tells where it started."""
    kernel = MALA(model, step_size=1e-4, adapt_step_size=False)
    return run(
        kernel,
        *(schools() if model is eight_schools else ()),
        num_samples=1,
        warmup_steps=0,
        num_chains=num_chains,
        initial_params=initial_params,
    )


def test_initial_params_for_each_chain_or_for_all() -> None:
    starts = {"mu": torch.tensor([-1.0, 0.0, 2.0]), "tau": torch.tensor(0.5), "eta": torch.randn(3, 8)}
    mcmc = still(eight_schools, starts)
    torch.testing.assert_close(draws(mcmc, "mu")[:, 0], starts["mu"], atol=1e-3, rtol=0)
    torch.testing.assert_close(draws(mcmc, "tau")[:, 0], torch.full((3,), 0.5).exp(), atol=1e-2, rtol=0)
    torch.testing.assert_close(draws(mcmc, "eta")[:, 0], starts["eta"], atol=1e-2, rtol=0)


def test_initial_params_of_an_energy_are_unconstrained() -> None:
    gamma = energy(lambda x: x.sum(-1), event_shape=(2,), support=constraints.positive)
    mcmc = still(gamma, {"x": torch.tensor([0.0, 1.0])})
    torch.testing.assert_close(draws(mcmc)[:, 0], torch.tensor([1.0, math.e]).expand(3, 2), atol=1e-2, rtol=0)


def test_initial_params_that_do_not_fit() -> None:
    good = {"mu": torch.tensor(0.0), "tau": torch.tensor(0.0), "eta": torch.zeros(8)}
    with pytest.raises(InitializationError, match=r'site "eta" got shape \(4, 8\), expected \(8,\), or \(3, 8\)'):
        still(eight_schools, {**good, "eta": torch.zeros(4, 8)})
    with pytest.raises(InitializationError, match=r"got sites \['mu', 'tau'\], expected \['eta', 'mu', 'tau'\]"):
        still(eight_schools, {name: good[name] for name in ("mu", "tau")})
    with pytest.raises(InitializationError, match=r"chains \[1\].*finite"):
        still(eight_schools, {**good, "mu": torch.tensor([0.0, torch.nan, 0.0])})
    with pytest.raises(InitializationError, match=r"chains \[0, 1, 2\]"):
        still(eight_schools, {**good, "tau": torch.tensor(torch.inf)})


def started(strategy: Callable[..., Any], chains: int = 400) -> dict[str, Tensor]:
    """Constrained starts of `prior_model`, by site."""
    target = ModelTarget(prior_model, (), {})
    return target.constrain(target.initial_points(strategy, chains))


def prior_model() -> None:
    a = pyro.sample("a", dist.Normal(3.0, 0.5))
    with pyro.plate("items", 2):
        pyro.sample("b", dist.LogNormal(a, 0.1))
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(1.0))


def test_init_to_uniform() -> None:
    target = ModelTarget(prior_model, (), {})
    for strategy, radius in [(init_to_uniform, 2.0), (init_to_uniform(radius=0.1), 0.1)]:
        points = target.initial_points(strategy, 400)
        assert points.shape == (400, 3)
        assert points.abs().max() <= radius
        assert points.abs().max() > 0.95 * radius
        assert len(points.unique()) > 1000


def test_init_to_feasible() -> None:
    starts = started(init_to_feasible, 3)
    assert torch.equal(starts["a"], torch.zeros(3))
    assert torch.equal(starts["b"], torch.ones(3, 2))


def test_init_to_sample() -> None:
    starts = started(init_to_sample)
    assert (starts["a"].mean() - 3.0).abs() < z_limit(2) * 0.5 / 20
    assert (starts["a"].std() - 0.5).abs() < z_limit(2) * 0.5 / math.sqrt(800)


def test_init_to_median_and_mean() -> None:
    median = started(init_to_median(num_samples=99), 20)
    assert (median["a"] - 3.0).abs().max() < z_limit(20) * 0.5 * math.sqrt(math.pi / 2 / 99)
    mean = started(init_to_mean, 3)
    torch.testing.assert_close(mean["a"], torch.full((3,), 3.0))
    torch.testing.assert_close(mean["b"], torch.full((3, 2), math.exp(3.0 + 0.5 * 0.01)))


def test_init_to_value_falls_back() -> None:
    starts = started(init_to_value(values={"a": torch.tensor(7.0)}), 50)
    torch.testing.assert_close(starts["a"], torch.full((50,), 7.0))
    assert len(starts["b"].unique()) > 90
    starts = started(init_to_value(values={"a": torch.tensor(7.0)}, fallback=init_to_mean), 3)
    torch.testing.assert_close(starts["b"], torch.full((3, 2), math.exp(7.0 + 0.5 * 0.01)))


def test_init_to_generated_gives_each_chain_its_own() -> None:
    count = iter(range(100))
    starts = started(
        init_to_generated(generate=lambda: init_to_value(values={"a": torch.tensor(float(next(count)))})), 4
    )
    assert starts["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("strategy", [init_to_uniform, init_to_feasible, init_to_mean, init_to_sample, init_to_median])
def test_energies_start_by_every_strategy(strategy: Callable[..., Any]) -> None:
    target = EnergyTarget(EnergyDistribution(gaussian()))
    points = target.initial_points(strategy, 3)
    assert points.shape == (3, 2)
    assert points.isfinite().all()


def test_energies_start_at_values() -> None:
    gamma = EnergyDistribution(energy(lambda x: x, event_shape=(), support=constraints.positive))
    target = EnergyTarget(gamma)
    points = target.initial_points(init_to_value(values={"x": torch.tensor(5.0)}), 3)
    torch.testing.assert_close(target.constrain(points)["x"], torch.full((3,), 5.0))


def test_the_init_strategy_of_a_kernel_is_used() -> None:
    kernel = MALA(prior_model, step_size=1e-4, adapt_step_size=False, init_strategy=init_to_mean)
    mcmc = run(kernel, num_samples=1, warmup_steps=0)
    torch.testing.assert_close(draws(mcmc, "a")[:, 0], torch.full((8,), 3.0), atol=1e-2, rtol=0)


def test_starts_are_retried_until_the_density_is_finite() -> None:
    half = energy(lambda x: torch.where(x[..., 0] < 1.0, torch.nan, 0.5 * x.square().sum(-1)), event_shape=(2,))
    target = EnergyTarget(EnergyDistribution(half))
    points = target.initial_points(init_to_uniform, 200)
    assert (points[:, 0] >= 1.0).all()
    assert (points[:, 0] < 2.0).all()
    spread = points[:, 0].double()  # uniform on [1, 2], whatever the number of tries
    assert (spread.mean() - 1.5).abs() < z_limit(1) * math.sqrt(1 / 12 / 200)

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(x < 1.0, torch.nan, 0.0))

    assert (ModelTarget(model, (), {}).initial_points(init_to_uniform, 50) >= 1.0).all()


def test_the_site_without_a_finite_density_is_named() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("fine", dist.Normal(mu, 1.0), obs=torch.tensor(0.0))
        pyro.sample("broken", dist.Normal(mu, 1.0), obs=y)

    mcmc = MCMC(NUTS(model), 5, disable_progbar=True, num_chains=3)
    with pytest.raises(InitializationError, match=r"3 of 3 chains.*\['broken'\].*init_strategy"):
        mcmc.run(torch.tensor(torch.nan))


def test_a_gradient_that_is_not_finite_is_named() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("corner", (0.0 * mu).sqrt())

    with pytest.raises(InitializationError, match="gradient is not"):
        MCMC(NUTS(model), 5, disable_progbar=True).run()


def test_an_energy_without_a_finite_density() -> None:
    nowhere = energy(lambda x: x * torch.nan, event_shape=())
    with pytest.raises(InitializationError, match="log density was nan"):
        MCMC(NUTS(nowhere), 5, disable_progbar=True).run()


# -- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_seeds_repeat(kernel: type[Kernel]) -> None:
    runs = []
    for number in (3, 3, 4):
        pyro.set_rng_seed(number)
        runs.append(run(kernel(conjugate), data(1, 20), num_samples=8, warmup_steps=25, num_chains=3))
    same(runs[0], runs[1])
    assert not torch.equal(draws(runs[0], "mu"), draws(runs[2], "mu"))
    assert len(draws(runs[0], "mu")[:, 0].unique()) == 3  # and each chain has its own random numbers


# -- progress --------------------------------------------------------------------------------------------------------


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    mcmc = MCMC(NUTS(conjugate), 40, 40, num_chains=3)
    mcmc.run(data(1, 20))
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in ("Warmup", "Sample: 100%", "80/80", "chains=3", "step size=", "acc. prob="):
        assert word in captured.err
    mcmc = MCMC(NUTS(conjugate), 4, 4, disable_progbar=True)
    mcmc.run(data(1, 20))
    assert capsys.readouterr() == ("", "")


# -- interruptions and saving ----------------------------------------------------------------------------------------


class Interrupting(Energy):
    """A Gaussian which acts as if the user pressed Ctrl-C at one of its evaluations."""

    def __init__(self) -> None:
        super().__init__((2,))
        self.gaussian = gaussian()
        self.evaluations, self.interrupt_at = 0, math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations == self.interrupt_at:
            raise KeyboardInterrupt
        return self.gaussian(x)


def make(kernel: type[Kernel], model: Any, **options: Any) -> MCMC:
    pyro.set_rng_seed(5)
    options = {"num_samples": 12, "warmup_steps": 24, "num_chains": 3} | options
    return MCMC(kernel(model), disable_progbar=True, **options)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_interrupted_run_goes_on_to_the_same_draws(kernel: type[Kernel]) -> None:
    model = Interrupting()
    whole = make(kernel, model, save_warmup=True)
    whole.run()
    total = model.evaluations

    model.evaluations = 0
    mcmc = make(kernel, model, save_warmup=True)
    stops = [int(total * fraction) for fraction in (0.5, 0.2, 0.2, 0.3)]
    model.interrupt_at = stops[0]
    with pytest.warns(SamplingWarning, match="interrupted"):
        mcmc.run()
    for stop in stops[1:]:
        model.interrupt_at = model.evaluations + stop
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            mcmc.resume()
    model.interrupt_at = math.inf
    mcmc.resume()
    same(mcmc, whole)
    for mine, other in zip(mcmc.warmup_draws(), whole.warmup_draws(), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_an_interruption_keeps_the_draws_so_far() -> None:
    model = Interrupting()
    whole = make(MALA, model, num_samples=60, compile=False)
    whole.run()

    model.interrupt_at = 2 * model.evaluations - 20
    mcmc = make(MALA, model, num_samples=60, compile=False)
    with pytest.warns(
        SamplingWarning, match=r"interrupted: \d+ of 60 draws of each of 3 chains are kept; resume\(\)"
    ) as seen:
        mcmc.run()
    (kept,) = (int(number) for number in re.findall(r"interrupted: (\d+)", str(seen[0].message)))
    assert 20 <= kept < 60
    assert draws(mcmc).shape == (3, kept, 2)
    assert torch.equal(draws(mcmc), draws(whole)[:, :kept])
    assert mcmc.to_arviz().posterior.sizes["draw"] == kept
    assert seen[0].filename == __file__
    with pytest.raises(RuntimeError, match="leave them out"):
        mcmc.resume(3)
    mcmc.resume()
    same(mcmc, whole)


def test_an_interruption_in_the_warmup_leaves_no_draws_yet() -> None:
    model = Interrupting()
    model.interrupt_at = 40
    mcmc = make(NUTS, model, warmup_steps=100)
    with pytest.warns(SamplingWarning, match="interrupted: 0 of 12 draws"):
        mcmc.run()
    for what in (mcmc.get_samples, mcmc.diagnostics, mcmc.summary, mcmc.to_arviz):
        with pytest.raises(RuntimeError, match=r"no draws yet.*resume\(\)"):
            what()
    mcmc.resume()
    assert draws(mcmc).shape == (3, 12, 2)


def interruptible(x: Tensor, clock: dict[str, float]) -> None:
    clock["now"] += 1
    if clock["now"] == clock["stop"]:
        raise KeyboardInterrupt
    conjugate(x)


@pytest.mark.parametrize("fraction", [0.4, 0.9])
def test_a_saved_run_goes_on_to_the_same_draws(fraction: float) -> None:
    clock = {"now": 0.0, "stop": math.inf}
    whole = make(NUTS, interruptible)
    whole.run(data(1, 20), clock=clock)

    clock.update(now=0.0, stop=int(clock["now"] * fraction))
    first = make(NUTS, interruptible)
    with pytest.warns(SamplingWarning, match="interrupted"):
        first.run(data(1, 20), clock=clock)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)

    pyro.set_rng_seed(99)  # another session
    second = MCMC(NUTS(interruptible), 12, 24, num_chains=3, disable_progbar=True)
    second.load_state_dict(torch.load(file, weights_only=True))
    clock["stop"] = math.inf
    second.resume(data(1, 20), clock=clock)
    same(second, whole)
    assert second.run_time > 0
    assert second.diagnostics().keys() == whole.diagnostics().keys()


@pytest.mark.parametrize("full_mass", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_saved_runs_of_every_kernel(kernel: type[Kernel], full_mass: bool) -> None:
    model = Interrupting()
    make_one = partial(make, lambda m: kernel(m, full_mass=full_mass), model, save_warmup=True)
    whole = make_one()
    whole.run()
    total, model.evaluations = model.evaluations, 0
    for fraction in (0.4, 0.95):
        model.evaluations, model.interrupt_at = 0, int(fraction * total)
        first = make_one()
        with pytest.warns(SamplingWarning, match="interrupted"):
            first.run()
        model.interrupt_at = math.inf
        second = make_one()
        second.load_state_dict(first.state_dict())
        second.resume()
        same(second, whole)


def test_a_finished_run_is_saved_too() -> None:
    whole = make(MALA, gaussian())
    whole.run()
    loaded = make(MALA, gaussian())
    loaded.load_state_dict(whole.state_dict())
    loaded.resume()
    same(loaded, whole)


def test_saved_runs_that_do_not_fit() -> None:
    saved = make(NUTS, conjugate)
    saved.run(data(1, 20))
    state = saved.state_dict()
    for other, name in [
        (make(HMC, conjugate), "kernel NUTS, expected HMC"),
        (make(NUTS, conjugate, num_chains=4), "num_chains 3, expected 4"),
        (make(NUTS, conjugate, num_samples=13), "num_samples 12, expected 13"),
        (make(NUTS, conjugate, warmup_steps=25), "warmup_steps 24, expected 25"),
        (make(NUTS, conjugate, save_warmup=True), "save_warmup False, expected True"),
        (make(partial(NUTS, max_tree_depth=5), conjugate), "max_tree_depth 10, expected 5"),
        (make(partial(NUTS, full_mass=True), conjugate), "full_mass None, expected True"),
    ]:
        with pytest.raises(ValueError, match=name):
            other.load_state_dict(state)
    other = make(NUTS, eight_schools)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"sites \{'mu': \[\]\}.*eta"):
        other.resume(*schools())


# -- chains in need of attention -------------------------------------------------------------------------------------


def test_divergences_are_counted_by_chain() -> None:
    with pytest.warns(SamplingWarning, match="divergent transitions") as seen:
        mcmc = run(
            NUTS(Funnel(dim=5), step_size=0.6, adapt_step_size=False, adapt_mass_matrix=False),
            num_samples=50,
            warmup_steps=20,
            num_chains=12,
        )
    diverging = mcmc.sample_stats()["diverging"]
    assert diverging.any()
    table = mcmc.diagnostics()["divergences"]
    for chain in range(12):
        assert table[f"chain {chain}"] == diverging[chain].nonzero().flatten().tolist()
    counts = {chain: int(number) for chain, number in enumerate(diverging.sum(-1)) if number}
    message = next(str(w.message) for w in seen if "divergent" in str(w.message))
    total = sum(counts.values())
    assert message.startswith(f"{total} divergent transitions in {len(counts)} of 12 chains")
    shown = list(counts.items())[:10]
    assert ", ".join(f"{chain}: {number}" for chain, number in shown) in message
    assert "target_accept_prob" in message
    assert {w.filename for w in seen} == {__file__}


class Island(Energy):
    """A standard normal without a density beyond 6, but for the point 1000, which no leapfrog leaves."""

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == 1000, 0.0, torch.where(x.abs() < 6, 0.5 * x.square(), torch.nan))


@pytest.mark.parametrize("kernel", EXACT)
def test_a_chain_in_a_region_without_a_density_harms_no_other(kernel: type[Kernel]) -> None:
    starts = torch.linspace(-1, 1, 12)
    starts[2] = 1000.0
    island = kernel(Island(), step_size=0.5)
    with pytest.warns(SamplingWarning) as seen:
        mcmc = run(island, num_samples=1000, warmup_steps=0, num_chains=12, initial_params={"x": starts})
    messages = " ".join(str(w.message) for w in seen)
    assert re.search(r"\b2: 1000\b", messages)
    assert "1 of 12 chains did not move (chains [2])" in messages
    stats = mcmc.sample_stats()
    assert stats["diverging"][2].all()
    assert (stats["acceptance_rate"][2] == 0).all()
    assert (draws(mcmc)[2] == 1000).all()
    others = draws(mcmc)[torch.arange(12) != 2]
    assert others.isfinite().all()
    check_moments(others, 0.0, 1.0)
    check_mixing(others)


def test_a_chain_in_a_region_without_a_density_is_brought_along_by_the_warmup() -> None:
    starts = torch.linspace(-1, 1, 12)
    starts[2] = 1000.0
    with pytest.warns(SamplingWarning, match=r"1 of 12 chains \(chains \[2\]\) were left behind in the warm-up"):
        mcmc = run(NUTS(Island()), num_chains=12, initial_params={"x": starts})
    assert mcmc.attrs["chains_moved"] == 1
    check_moments(draws(mcmc), 0.0, 1.0)
    check_mixing(draws(mcmc))
    assert 0.2 < float(mcmc.inverse_mass_matrix) < 5  # adapted to the others


def test_a_chain_that_runs_into_such_a_region_comes_back() -> None:
    """The half normal, by a density that is not a number on the other side."""
    half = energy(lambda x: torch.where(x > 0, 0.5 * x.square(), torch.nan), event_shape=())
    with pytest.warns(SamplingWarning, match="divergent"):
        mcmc = run(MALA(half), num_samples=2000, num_chains=16)
    assert (draws(mcmc) > 0).all()
    assert mcmc.sample_stats()["diverging"].any()
    mean = math.sqrt(2 / math.pi)
    check_moments(draws(mcmc), mean, math.sqrt(1 - mean**2))


def test_trees_cut_short_are_warned_of() -> None:
    stretched = QuadraticEnergy(torch.diag(torch.tensor([1.0, 1e4])))
    with pytest.warns(SamplingWarning, match="max_tree_depth"):
        run(
            NUTS(stretched, max_tree_depth=2, step_size=0.01, adapt_step_size=False, adapt_mass_matrix=False),
            num_samples=20,
            warmup_steps=0,
        )


def test_a_good_run_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplingWarning)
        run(NUTS(gaussian()), num_samples=30, warmup_steps=60)


# -- errors ----------------------------------------------------------------------------------------------------------


def test_kernels_of_another_kind() -> None:
    for kernel in (pyro.infer.NUTS(conjugate), conjugate, NUTS):
        with pytest.raises(TypeError, match=r"expected a kernel of pyro_ebm: NUTS\(model\)"):
            MCMC(kernel, num_samples=10)


def test_models_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"got a str, expected a Pyro model"):
        run(NUTS("model"))
    with pytest.raises(TypeError, match="only a model takes arguments"):
        run(NUTS(gaussian()), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "got num_samples 0, expected at least 1"),
        ({"num_samples": 10, "num_chains": 0}, "got num_chains 0, expected at least 1"),
        ({"num_samples": 10, "warmup_steps": -1}, "got warmup_steps -1, expected at least 0"),
    ],
)
def test_lengths_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCMC(NUTS(conjugate), **options)


@pytest.mark.parametrize(
    ("make_kernel", "message"),
    [
        (lambda: NUTS(conjugate, step_size=0.0), "NUTS: got step_size 0.0, expected a positive number"),
        (
            lambda: MALA(conjugate, target_accept_prob=1.0),
            r"MALA: got target_accept_prob 1.0, expected a number in \(0",
        ),
        (lambda: NUTS(conjugate, max_tree_depth=0), "NUTS: got max_tree_depth 0, expected at least 1"),
        (lambda: HMC(conjugate, trajectory_length=-1.0), "HMC: got trajectory_length -1.0, expected a positive number"),
        (lambda: HMC(conjugate, num_steps=0), "HMC: got num_steps 0, expected at least 1"),
    ],
)
def test_kernel_arguments_out_of_range(make_kernel: Callable[[], Kernel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_kernel()


def test_the_number_of_chains_decides_the_metric() -> None:
    many = run(MALA(gaussian()), num_samples=5, warmup_steps=40, num_chains=64)
    few = run(MALA(gaussian()), num_samples=5, warmup_steps=20, num_chains=1)
    assert many.inverse_mass_matrix.shape == (2, 2)
    assert few.inverse_mass_matrix.shape == (2,)
    assert np.isfinite(many.inverse_mass_matrix.numpy()).all()


def test_an_energy_over_two_variables_belongs_into_a_model() -> None:
    spring = energy(lambda a, b: (a - b).square(), event_shape=[(), ()])
    with pytest.raises(TypeError, match=r"energy over 2 variables.*factor\(name, energy"):
        MCMC(NUTS(spring), num_samples=1, disable_progbar=True).run()


def test_a_loaded_run_says_to_resume() -> None:
    mcmc = run(NUTS(QuadraticEnergy(torch.eye(2))), num_samples=20, warmup_steps=20)
    other = MCMC(NUTS(QuadraticEnergy(torch.eye(2))), num_samples=20, warmup_steps=20, num_chains=mcmc.num_chains)
    other.load_state_dict(mcmc.state_dict())
    with pytest.raises(RuntimeError, match=r"a saved run is loaded. Call resume\(\*args\)"):
        other.get_samples()


def test_a_run_that_cannot_start_leaves_the_last_one() -> None:
    mcmc = run(NUTS(QuadraticEnergy(torch.eye(2))), num_samples=20, warmup_steps=20)
    before = mcmc.get_samples()["x"]
    mcmc.kernel.model = QuadraticEnergy(torch.eye(3))
    mcmc.initial_params = {"x": torch.zeros(7)}
    with pytest.raises(InitializationError):
        mcmc.run()
    assert torch.equal(mcmc.get_samples()["x"], before)


def test_a_density_that_is_not_finite_is_told_from_one_that_is_steep() -> None:
    half = energy(lambda x: torch.where(x > 0, 0.5 * x.square(), torch.nan), event_shape=())
    with pytest.warns(SamplingWarning, match="met a density or gradient that is not finite"):
        mcmc = run(MALA(half), num_chains=4)
    stats = mcmc.sample_stats()
    assert torch.equal(stats["non_finite"], stats["diverging"])
