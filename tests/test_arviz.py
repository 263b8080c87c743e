"""Conversion to ArviZ: groups, names, dims and coords; what is in them agrees with what is computed by hand."""

import warnings
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from models import MASK, MODELS, ModelCase, data, eight_schools, moving_support, schools, unconstrained_by_site
from pyro.infer import Predictive
from torch import Tensor

from pyro_ebm import HMC, MALA, MCMC, NUTS, DoubleWell, Energy, EnergyDistribution, QuadraticEnergy, energy, to_arviz
from pyro_ebm._core.errors import SamplingWarning
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.model_target import ModelTarget

mpl.use("Agg")
CHAINS, DRAWS = 4, 60
COMMON = {"lp", "energy", "energy_error", "acceptance_rate", "step_size", "diverging", "non_finite"}

pytestmark = pytest.mark.filterwarnings("ignore::pyro_ebm._core.errors.SamplingWarning")


def run(kernel: Kernel, *args: Any, num_samples: int = 6, num_chains: int = 3, **keywords: Any) -> MCMC:
    """A short run: what is converted need not have converged."""
    options = {
        name: keywords.pop(name) for name in ("save_params", "save_warmup", "initial_params") if name in keywords
    }
    mcmc = MCMC(kernel, num_samples, 6, num_chains=num_chains, disable_progbar=True, **options)
    mcmc.run(*args, **keywords)
    return mcmc


def case(name: str) -> ModelCase:
    (found,) = (each for each in MODELS if each.name == name)
    return found


def run_case(name: str, **options: Any) -> MCMC:
    each = case(name)
    return run(MALA(each.make()), *each.arguments(), **each.keywords(), **options)


def variables(data: Any, group: str) -> set[str]:
    return set(data[group].data_vars)


@pytest.fixture(scope="module")
def schools_run() -> MCMC:
    """Eight schools, converged well enough for plots and LOO."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    mcmc = MCMC(NUTS(eight_schools), DRAWS, 60, num_chains=CHAINS, disable_progbar=True, save_warmup=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        mcmc.run(*schools())
    return mcmc


@pytest.fixture(scope="module")
def schools_data(schools_run: MCMC) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return schools_run.to_arviz()


# -- groups, dims and coords -----------------------------------------------------------------------------------------


def test_groups(schools_data: Any) -> None:
    assert set(schools_data.groups()) == {
        "posterior",
        "sample_stats",
        "observed_data",
        "log_likelihood",
        "warmup_posterior",
        "warmup_sample_stats",
    }
    assert variables(schools_data, "posterior") == {"mu", "tau", "eta", "theta"}
    assert variables(schools_data, "observed_data") == variables(schools_data, "log_likelihood") == {"y"}


def test_dims_and_coords_come_from_plates(schools_data: Any) -> None:
    posterior = schools_data.posterior
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["eta"].dims == posterior["theta"].dims == ("chain", "draw", "school")
    assert schools_data.log_likelihood["y"].dims == ("chain", "draw", "school")
    assert schools_data.observed_data["y"].dims == ("school",)
    assert posterior["school"].values.tolist() == list(range(8))
    assert dict(posterior.sizes) == {"chain": CHAINS, "draw": DRAWS, "school": 8}


def test_dims_without_plates_have_names_of_arviz() -> None:
    nested = run_case("nested plates").to_arviz()
    assert nested.posterior["mu"].dims == ("chain", "draw")
    assert nested.posterior["group_effect"].dims == ("chain", "draw", "group", "group_effect_dim_1")
    assert nested.posterior["scale"].dims == ("chain", "draw", "group", "unit")
    assert nested.log_likelihood["y"].dims == ("chain", "draw", "group", "unit")
    events = run_case("neural prior").to_arviz()
    assert events.posterior["z"].dims == ("chain", "draw", "items", "z_dim_1")
    assert events.observed_data["x"].dims == ("items", "x_dim_1")
    assert events.log_likelihood["x"].dims == ("chain", "draw", "items")
    matrices = run_case("LKJ and multivariate normal").to_arviz()
    assert matrices.posterior["corr"].dims == ("chain", "draw", "corr_dim_0", "corr_dim_1")


def test_dims_and_coords_that_are_given(schools_run: MCMC) -> None:
    names = list("ABCDEFGH")
    converted = schools_run.to_arviz(dims={"eta": ["place"]}, coords={"place": names, "school": names})
    assert converted.posterior["eta"].dims == ("chain", "draw", "place")
    assert converted.posterior["theta"].dims == ("chain", "draw", "school")
    assert converted.posterior["place"].values.tolist() == names
    assert converted.observed_data["school"].values.tolist() == names


@pytest.mark.parametrize("each", MODELS, ids=lambda each: each.name)
def test_every_model_converts_without_a_warning(each: ModelCase) -> None:
    mcmc = run(MALA(each.make()), *each.arguments(), **each.keywords())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = mcmc.to_arviz()
    assert set(each.latents) <= variables(converted, "posterior")
    for name, shape in each.latents.items():
        assert converted.posterior[name].shape == (3, 6, *shape)
        np.testing.assert_array_equal(
            converted.posterior[name].values, mcmc.get_samples(group_by_chain=True)[name].numpy()
        )
    assert not any(name.startswith("warmup") for name in converted.groups())


def test_energies_convert() -> None:
    batch = EnergyDistribution(energy(lambda x: x.square().sum(-1), event_shape=(2,), batch_shape=(3,)))
    converted = run(MALA(batch)).to_arviz()
    assert converted.groups() == ["posterior", "sample_stats"]
    assert converted.posterior["x"].dims == ("chain", "draw", "x_dim_0", "x_dim_1")
    assert converted.posterior["x"].shape == (3, 6, 3, 2)


# -- what is in the groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "more"),
    [(NUTS, {"tree_depth", "n_steps", "reached_max_treedepth"}), (HMC, {"n_steps"}), (MALA, set())],
)
def test_names_of_sample_stats(kernel: type[Kernel], more: set[str]) -> None:
    converted = run(kernel(QuadraticEnergy(torch.eye(2)))).to_arviz()
    assert variables(converted, "sample_stats") == COMMON | more
    for name in COMMON | more:
        assert converted.sample_stats[name].dims == ("chain", "draw")
        assert converted.sample_stats[name].shape == (3, 6)
    assert converted.sample_stats["diverging"].dtype == bool
    assert converted.posterior.attrs["kernel"] == kernel.__name__


def test_lp_is_the_log_density_of_the_stored_draws(schools_run: MCMC, schools_data: Any) -> None:
    target = schools_run.target
    assert isinstance(target, ModelTarget)
    position = unconstrained_by_site(target, schools_run.get_samples(group_by_chain=True))
    lp, _ = target.log_density(position.flatten(0, 1))
    stored = torch.as_tensor(schools_data.sample_stats["lp"].values).flatten()
    # A sum of some thirty terms in single precision; the logarithm undoes the exponential up to rounding.
    torch.testing.assert_close(stored, lp, rtol=1e-4, atol=1e-3)


def test_the_energy_is_the_hamiltonian(schools_data: Any) -> None:
    """Kinetic energy at a draw: positive, and about half the number of coordinates."""
    stats = schools_data.sample_stats
    kinetic = stats["energy"] + stats["lp"]
    assert (kinetic > -1e-3).all()
    assert 2.0 < float(kinetic.mean()) < 8.0
    assert ((stats["n_steps"] >= 1) & (stats["n_steps"] < 2 ** (stats["tree_depth"] + 1))).all()
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()


def test_observed_data_are_data(schools_data: Any) -> None:
    np.testing.assert_array_equal(schools_data.observed_data["y"].values, schools()[0].numpy())
    factors = run_case("factors").to_arviz()
    assert "observed_data" not in factors.groups()
    assert "log_likelihood" not in factors.groups()
    reparametrised = run_case("reparametrised").to_arviz()
    assert variables(reparametrised, "observed_data") == {"y"}
    assert variables(reparametrised, "log_likelihood") == {"y"}


def test_log_likelihood_has_masks_and_no_scales() -> None:
    mcmc = run_case("masked and scaled")
    found = mcmc.to_arviz().log_likelihood
    mu = mcmc.get_samples(group_by_chain=True)["mu"].unsqueeze(-1)
    y, mask = data(11, 5), torch.tensor(MASK)
    by_hand = {
        "masked": torch.distributions.Normal(mu, 1.0).log_prob(y) * mask,
        "scaled": torch.distributions.Normal(mu, 2.0).log_prob(y),
        "masked_distribution": torch.distributions.Normal(mu, 3.0).log_prob(y) * mask,
        "off": torch.zeros(3, 6),
    }
    assert set(found.data_vars) == set(by_hand)
    for name, expected in by_hand.items():
        np.testing.assert_allclose(found[name].values, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_log_likelihood_of_a_moving_support() -> None:
    mcmc = run(MALA(moving_support), data(10, 4))
    x = mcmc.get_samples(group_by_chain=True)["x"]
    expected = torch.distributions.Normal(x, 1.0).log_prob(data(10, 4))
    np.testing.assert_allclose(mcmc.to_arviz().log_likelihood["y"].values, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_log_likelihood_can_be_left_out(schools_run: MCMC) -> None:
    converted = schools_run.to_arviz(log_likelihood=False)
    assert "log_likelihood" not in converted.groups()
    assert variables(converted, "posterior") == {"mu", "tau", "eta", "theta"}


def test_deterministic_sites_follow_from_the_draws(schools_run: MCMC, schools_data: Any) -> None:
    draws = schools_run.get_samples(group_by_chain=True)
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    np.testing.assert_allclose(schools_data.posterior["theta"].values, theta.numpy(), rtol=1e-5, atol=1e-6)


def test_reparametrised_sites_follow_from_the_draws() -> None:
    mcmc = run_case("reparametrised")
    draws = mcmc.get_samples(group_by_chain=True)
    posterior = mcmc.to_arviz().posterior
    mu, tau = draws["mu"].unsqueeze(-1), draws["tau"].unsqueeze(-1)
    theta = mu + tau**0.7 * (draws["theta_decentered"] - 0.3 * mu)
    np.testing.assert_allclose(posterior["theta"].values, theta.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(posterior["phi"].values, 1.0 + 2.0 * draws["phi_base"].numpy(), rtol=1e-5, atol=1e-6)
    assert posterior["theta"].dims == ("chain", "draw", "data")


def test_warmup(schools_run: MCMC, schools_data: Any) -> None:
    draws, stats = schools_run.warmup_draws()
    assert schools_data.warmup_posterior.sizes["draw"] == 60
    for name, value in draws.items():
        np.testing.assert_array_equal(schools_data.warmup_posterior[name].values, value.numpy())
    assert variables(schools_data, "warmup_sample_stats") == set(stats) == variables(schools_data, "sample_stats")
    assert len(np.unique(schools_data.warmup_sample_stats["step_size"])) > 10  # it adapts
    assert len(np.unique(schools_data.sample_stats["step_size"])) == 1


def test_only_some_sites() -> None:
    converted = run(MALA(eight_schools), *schools(), save_params=["tau"]).to_arviz()
    assert variables(converted, "posterior") == {"tau"}
    assert "log_likelihood" not in converted.groups()
    assert variables(converted, "observed_data") == {"y"}


def test_attributes(schools_run: MCMC, schools_data: Any) -> None:
    attrs = schools_data.posterior.attrs
    assert attrs["inference_library"] == "pyro_ebm"
    assert attrs["kernel"] == "NUTS"
    assert attrs["tuning_steps"] == 60
    assert attrs["sampling_time"] > 0
    assert attrs["step_size"] == pytest.approx(float(schools_data.sample_stats["step_size"][0, 0]))
    assert attrs["unnormalized_sites"] == []


def test_unnormalised_data_are_marked() -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("wells", EnergyDistribution(DoubleWell(dim=1)), obs=torch.zeros(1))

    assert run(MALA(model)).to_arviz().posterior.attrs["unnormalized_sites"] == ["wells"]


# -- predictive draws and other data ---------------------------------------------------------------------------------


def generative_schools(sigma: Tensor, y: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + 5.0 * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_predictive_draws_and_constant_data() -> None:
    y, sigma = schools()
    mcmc = run(MALA(generative_schools), sigma, y=y)
    prior = Predictive(generative_schools, num_samples=7)(sigma)
    predictive = Predictive(generative_schools, mcmc.get_samples())(sigma)
    converted = to_arviz(
        mcmc,
        prior=prior,
        posterior_predictive={"y": predictive["y"]},
        constant_data={"sigma": sigma},
        dims={"sigma": ["school"]},
    )
    assert variables(converted, "prior") == {"mu", "eta", "theta"}
    assert variables(converted, "prior_predictive") == {"y"}
    assert converted.prior["mu"].shape == (1, 7)
    assert converted.prior["mu"].dims == converted.posterior["mu"].dims  # Predictive gives it one dim more
    assert converted.prior["eta"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(converted.prior_predictive["y"].values[0], prior["y"].numpy())
    assert converted.posterior_predictive["y"].dims == ("chain", "draw", "school")
    # Draw j of chain i is the prediction from draw j of chain i.
    np.testing.assert_array_equal(converted.posterior_predictive["y"].values[2, 4], predictive["y"][2 * 6 + 4].numpy())
    assert converted.constant_data["sigma"].dims == ("school",)
    np.testing.assert_array_equal(converted.constant_data["sigma"].values, sigma.numpy())
    with pytest.raises(ValueError, match=r'posterior_predictive site "y" got 5 draws, expected 3 chains times 6 draws'):
        mcmc.to_arviz(posterior_predictive={"y": predictive["y"][:5]})


# -- ArviZ's own functions -------------------------------------------------------------------------------------------


def test_statistics(schools_data: Any) -> None:
    summary = az.summary(schools_data)
    assert "theta[0]" in summary.index
    assert "tau" in summary.index
    loo = az.loo(schools_data)
    assert loo.n_data_points == 8
    # Leave-one-out of eight schools, as in the literature, is about -30.8.
    assert -35 < loo.elpd_loo < -28
    assert az.waic(schools_data).elpd_waic == pytest.approx(loo.elpd_loo, abs=0.5)
    assert az.bfmi(schools_data).shape == (CHAINS,)
    assert (az.bfmi(schools_data) > 0.2).all()
    assert float(az.rhat(schools_data)["mu"]) < 1.1
    assert float(az.ess(schools_data)["mu"]) > 20


def test_plots(schools_data: Any) -> None:
    import matplotlib.pyplot as plt

    for plot in (
        lambda: az.plot_trace(schools_data, var_names=["mu", "tau"]),
        lambda: az.plot_energy(schools_data),
        lambda: az.plot_forest(schools_data, var_names=["theta"]),
        lambda: az.plot_pair(schools_data, var_names=["mu", "tau"], divergences=True),
    ):
        assert plot() is not None
        plt.close("all")


def test_a_file_keeps_everything(schools_data: Any, tmp_path: Path) -> None:
    file = tmp_path / "schools.nc"
    schools_data.to_netcdf(str(file))
    again = az.from_netcdf(str(file))
    assert set(again.groups()) == set(schools_data.groups())
    for group in schools_data.groups():
        assert again[group].equals(schools_data[group])
    assert again.posterior.attrs["kernel"] == "NUTS"
    assert again.posterior["theta"].dims == ("chain", "draw", "school")


# -- chains in their own rows, and runs of Pyro ----------------------------------------------------------------------


class Spot(Energy):
    """A standard normal without a density beyond 6, but for a flat spot at 1000, which no leapfrog leaves."""

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == 1000.0, 0.0, torch.where(x.abs() < 6, 0.5 * x.square(), torch.nan))


def test_chain_two_is_row_two_of_twelve() -> None:
    starts = torch.zeros(12)
    starts[2] = 1000.0
    kernel = MALA(Spot(), adapt_step_size=False, adapt_mass_matrix=False)
    diverging = (
        run(kernel, num_samples=13, num_chains=12, initial_params={"x": starts}).to_arviz().sample_stats["diverging"]
    )
    assert diverging.sel(chain=2).all()
    assert not diverging.drop_sel(chain=2).any()


def stock_run(num_samples: int = 5, **options: Any) -> pyro.infer.MCMC:
    mcmc = pyro.infer.MCMC(
        pyro.infer.NUTS(eight_schools), num_samples=num_samples, warmup_steps=5, disable_progbar=True, **options
    )
    mcmc.run(*schools())
    return mcmc


def test_runs_of_pyro_convert() -> None:
    mcmc = stock_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = to_arviz(mcmc)
    assert set(converted.groups()) == {"posterior", "sample_stats", "observed_data", "log_likelihood"}
    assert variables(converted, "posterior") == {"mu", "tau", "eta", "theta"}
    assert converted.posterior["theta"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(converted.posterior["mu"].values[0], mcmc.get_samples()["mu"].numpy())
    assert converted.sample_stats["diverging"].shape == (1, 5)
    assert converted.posterior.attrs["inference_library"] == "pyro"


def test_chain_two_of_pyro_is_row_two_of_twelve() -> None:
    """As if Pyro had run twelve chains, of which chains 2 and 10 diverged."""
    mcmc = stock_run(num_samples=13)
    mcmc.num_chains = 12
    mcmc._samples = {name: value.expand(12, *value.shape[1:]) for name, value in mcmc._samples.items()}
    divergences = {f"chain {i}": [] for i in range(12)} | {"chain 2": [0, 3], "chain 10": [4]}
    mcmc.diagnostics = lambda: {"divergences": divergences}
    diverging = to_arviz(mcmc).sample_stats["diverging"]
    assert diverging.shape == (12, 13)
    assert np.argwhere(diverging.values).tolist() == [[2, 0], [2, 3], [10, 4]]


def test_kernels_of_pyro_without_divergences() -> None:
    kernel = pyro.infer.mcmc.RandomWalkKernel(eight_schools)
    mcmc = pyro.infer.MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*schools())
    converted = to_arviz(mcmc)
    assert not converted.sample_stats["diverging"].any()
    assert "log_likelihood" in converted.groups()


def test_a_potential_function_of_pyro() -> None:
    kernel = pyro.infer.NUTS(potential_fn=lambda params: 0.5 * params["x"].square().sum())
    mcmc = pyro.infer.MCMC(
        kernel, num_samples=5, warmup_steps=5, initial_params={"x": torch.zeros(2)}, disable_progbar=True
    )
    mcmc.run()
    converted = to_arviz(mcmc)
    assert converted.groups() == ["posterior", "sample_stats"]
    assert converted.posterior["x"].shape == (1, 5, 2)


def test_a_run_of_pyro_over_a_model_that_cannot_be_batched() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z > 0:
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    mcmc = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    with pytest.warns(UserWarning, match="only draws and divergences are converted") as seen:
        converted = to_arviz(mcmc)
    assert converted.groups() == ["posterior", "sample_stats"]
    assert seen[0].filename == __file__
