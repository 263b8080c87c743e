"""Each way to a silent wrong answer has an error of its own: log Z dropped, shared, stale, frozen too far away."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Importance, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_ebm import (
    MCMC,
    NUTS,
    AnchorError,
    CompiledWalkersError,
    CoupledPlateError,
    EnergyDistribution,
    EnumeratedContextError,
    Exact,
    GuideEnergyError,
    LogNormalizerUncertainError,
    NeuralEnergy,
    NoDensityError,
    Normalizer,
    PersistentChains,
    PersistentWalkers,
    QuadraticEnergy,
    SharedNormalizerError,
    ShortRun,
    StaleWalkersError,
    StepTooLargeError,
    StochasticPotentialError,
    TwoDensitiesError,
    UnnormalizedError,
    UnnormalizedObservationError,
    WalkersDivergedError,
    energy,
    factor,
)

DATA = torch.linspace(-1.0, 2.0, 30)


def base() -> dist.TorchDistribution:
    return dist.Normal(0.0, 1.0)


def tilted(slope: Tensor, normalizer: Normalizer | Tensor | None = None) -> EnergyDistribution:
    """`N(0, 1) exp(-slope x)`, whose log Z is `slope² / 2`."""
    batch = slope.shape
    tilt = energy(lambda x: slope * x, event_shape=(), batch_shape=batch)
    return EnergyDistribution(tilt, base(), log_normalizer=normalizer)


def learned_prior(normalizer: Normalizer | None) -> Callable[[], None]:
    """A model of a latent for each datum, whose prior has a slope to be learned."""

    def model() -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(DATA)):
            z = pyro.sample("z", tilted(slope, normalizer))
            pyro.sample("x", dist.Normal(z, 0.5), obs=DATA)

    return model


def sampled_slope(normalizer: Normalizer | None, scale: float = 1.0) -> Callable[[], None]:
    """A model of the slope, given data of its density."""

    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, scale))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", tilted(slope, normalizer), obs=DATA)

    return model


def step(
    model: Callable[[], None],
    elbo: Callable[..., pyro.infer.ELBO] = Trace_ELBO,
    guide: Callable[[], object] | None = None,
    *,
    steps: int = 1,
    rate: float = 0.01,
) -> None:
    svi = SVI(model, AutoNormal(model) if guide is None else guide, Adam({"lr": rate}), elbo())
    for _ in range(steps):
        svi.step()


def run(model: Callable[[], None]) -> None:
    MCMC(NUTS(model), num_samples=30, warmup_steps=60, num_chains=2, disable_progbar=True, compile=False).run()


# The cases


def log_z_dropped_by_svi() -> None:
    step(learned_prior(None))


def log_z_dropped_under_nuts() -> None:
    run(sampled_slope(None))


def log_z_dropped_at_data_given_a_latent() -> None:
    step(sampled_slope(None))


def a_gradient_alone_under_nuts() -> None:
    run(sampled_slope(PersistentChains(100)))


def walkers_that_move_under_nuts() -> None:
    run(sampled_slope(PersistentWalkers(100)))


def an_elbo_that_weighs_by_values() -> None:
    step(learned_prior(PersistentChains(100)), lambda: RenyiELBO(num_particles=2))


def importance_weights_by_gradients_alone() -> None:
    model = learned_prior(PersistentChains(100))
    Importance(model, AutoNormal(model), num_samples=2).run()


def a_score_function_guide() -> None:
    def model() -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        label = pyro.sample("label", dist.Bernoulli(0.5))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", tilted(slope, normalizer), obs=DATA + label)

    def guide() -> None:
        pyro.sample("label", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    normalizer = PersistentChains(100)
    step(model, guide=guide)


def a_likelihood_reported_by_chains() -> None:
    chains = PersistentChains(100)
    distribution = tilted(nn.Parameter(torch.tensor(0.5)), chains)
    distribution.log_prob(DATA)
    with torch.no_grad():
        distribution.log_prob(DATA)


def a_density_of_short_chains() -> None:
    tilted(torch.tensor(0.5), ShortRun(10)).log_prob(DATA)


def two_densities_on_one_value() -> None:
    def model() -> None:
        z = pyro.sample("z", tilted(torch.tensor(0.5)))
        pyro.sample("again", tilted(torch.tensor(-0.5)), obs=z)

    step(model)


def one_log_z_for_many_contexts() -> None:
    tilted(torch.linspace(-1.0, 1.0, 5), torch.tensor(0.3))


def a_report_by_stale_walkers() -> None:
    slope = nn.Parameter(torch.tensor(0.0))
    distribution = tilted(slope, PersistentWalkers(200))
    distribution.log_prob(DATA)
    with torch.no_grad():
        slope += 4.0
        distribution.log_prob(DATA)


def walkers_frozen_far_away_in_svi() -> None:
    walkers = PersistentWalkers(200)
    tilted(torch.tensor(-3.0), walkers).log_prob(DATA)
    walkers.freeze()
    step(learned_prior(walkers))


def walkers_frozen_far_away_under_nuts() -> None:
    walkers = PersistentWalkers(200)
    tilted(torch.tensor(4.0), walkers).log_prob(DATA)
    walkers.freeze()
    run(sampled_slope(walkers))


def a_factor_between_elements_of_a_minibatch() -> None:
    spring = energy(lambda a, b: (a - b).square(), event_shape=[(), ()])

    def model() -> None:
        with pyro.plate("data", len(DATA), subsample_size=10) as index:
            z = pyro.sample("z", base())
            factor("chain", spring, z, z.roll(1, 0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=DATA[index])

    step(model)


def a_factor_over_a_whole_minibatch() -> None:
    whole = energy(lambda z: z.sum(-1).square(), event_shape=(10,))

    def model() -> None:
        with pyro.plate("data", len(DATA), subsample_size=10) as index:
            z = pyro.sample("z", base())
            pyro.sample("x", dist.Normal(z, 0.5), obs=DATA[index])
        factor("sum", whole, z)

    step(model)


def walkers_in_a_compiled_elbo() -> None:
    step(learned_prior(PersistentWalkers(100)), JitTrace_ELBO)


def an_energy_in_a_guide() -> None:
    def model() -> None:
        pyro.sample("z", base())

    def guide() -> None:
        pyro.sample("z", tilted(pyro.param("slope", torch.tensor(0.5)), PersistentWalkers(100)))

    step(model, guide=guide)


def an_enumerated_context() -> None:
    def model() -> None:
        label = pyro.sample("label", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", tilted(torch.tensor([-1.0, 0.0, 1.0])[label]), obs=DATA)

    step(model, lambda: TraceEnum_ELBO(max_plate_nesting=1), guide=lambda: None)


def an_enumerated_context_under_nuts() -> None:
    def model() -> None:
        label = pyro.sample("label", dist.Categorical(torch.ones(3)))
        pyro.sample("z", tilted(torch.tensor([-1.0, 0.0, 1.0])[label]))

    run(model)


def a_learning_rate_that_is_too_large() -> None:
    step(learned_prior(PersistentWalkers(100)), steps=3, rate=20.0)


def parameters_that_are_not_finite() -> None:
    distribution = tilted(nn.Parameter(torch.tensor(0.5)), PersistentWalkers(100))
    distribution.log_prob(DATA)
    with torch.no_grad():
        pyro_slope(distribution).fill_(torch.nan)
    distribution.log_prob(DATA)


def pyro_slope(distribution: EnergyDistribution) -> Tensor:
    (cell,) = distribution.energy.fn.__closure__  # type: ignore[union-attr, operator]
    slope: Tensor = cell.cell_contents
    return slope


def a_log_z_that_is_not_known() -> None:
    narrow = QuadraticEnergy(nn.Parameter(torch.zeros(30, 30)))
    reference = dist.Normal(torch.zeros(30), 1.0).to_event(1)
    distribution = EnergyDistribution(narrow, reference, log_normalizer=PersistentWalkers(4))
    optimizer = torch.optim.Adam(narrow.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        distribution.log_prob(torch.zeros(30)).neg().backward()
        optimizer.step()
    with torch.no_grad():
        distribution.log_prob(torch.zeros(30))


CASES: list[tuple[Callable[[], None], type[Exception], str]] = [
    (log_z_dropped_by_svi, UnnormalizedError, "z"),
    (log_z_dropped_under_nuts, UnnormalizedObservationError, "x"),
    (log_z_dropped_at_data_given_a_latent, UnnormalizedObservationError, "x"),
    (a_gradient_alone_under_nuts, StochasticPotentialError, "not frozen"),
    (walkers_that_move_under_nuts, StochasticPotentialError, "not frozen"),
    (an_elbo_that_weighs_by_values, NoDensityError, "RenyiELBO"),
    (importance_weights_by_gradients_alone, NoDensityError, "importance sampling"),
    (a_score_function_guide, NoDensityError, 'site "label" is not reparameterised'),
    (a_likelihood_reported_by_chains, NoDensityError, "to be reported"),
    (a_density_of_short_chains, NoDensityError, "draws alone"),
    (two_densities_on_one_value, TwoDensitiesError, 'the value of site "z"'),
    (one_log_z_for_many_contexts, SharedNormalizerError, "one for each"),
    (a_report_by_stale_walkers, StaleWalkersError, "walkers.refresh"),
    (walkers_frozen_far_away_in_svi, AnchorError, "frozen"),
    (walkers_frozen_far_away_under_nuts, AnchorError, 'at site "x", at'),
    (a_factor_between_elements_of_a_minibatch, CoupledPlateError, "10 of 30"),
    (a_factor_over_a_whole_minibatch, CoupledPlateError, "whole site"),
    (walkers_in_a_compiled_elbo, CompiledWalkersError, "Jit"),
    (an_energy_in_a_guide, GuideEnergyError, "of a guide"),
    (an_enumerated_context, EnumeratedContextError, '"label"'),
    (an_enumerated_context_under_nuts, EnumeratedContextError, '"label"'),
    (a_learning_rate_that_is_too_large, StepTooLargeError, "learning rate"),
    (parameters_that_are_not_finite, WalkersDivergedError, "not finite"),
    (a_log_z_that_is_not_known, LogNormalizerUncertainError, "standard error"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("misuse", "error", "says"), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_misuse_has_its_error(misuse: Callable[[], None], error: type[Exception], says: str) -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with pytest.raises(error, match=says) as raised:
        misuse()
    assert type(raised.value) is error


# The right use of the same passes


def test_with_log_z_the_same_models_pass() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    step(learned_prior(PersistentWalkers(100)))
    step(learned_prior(PersistentWalkers(100)), lambda: RenyiELBO(num_particles=2))
    step(learned_prior(PersistentChains(100)))
    run(sampled_slope(Exact()))


def test_a_factor_of_its_own_elements_passes() -> None:
    pyro.clear_param_store()
    own = energy(lambda a: a.square(), event_shape=())

    def model() -> None:
        with pyro.plate("data", len(DATA), subsample_size=10) as index:
            z = pyro.sample("z", base())
            factor("own", own, z)
            pyro.sample("x", dist.Normal(z, 0.5), obs=DATA[index])

    step(model)


def test_an_exact_energy_may_be_a_guide() -> None:
    pyro.clear_param_store()

    def guide() -> None:
        pyro.sample("z", tilted(torch.tensor(0.5), Exact()))

    step(lambda: pyro.sample("z", base()), guide=guide)


def test_a_network_that_is_frozen_needs_no_log_z() -> None:
    pyro.clear_param_store()
    net = nn.Sequential(nn.Linear(1, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))
    prior = EnergyDistribution(
        NeuralEnergy(net, event_shape=(1,)).requires_grad_(False), dist.Normal(torch.zeros(1), 1.0).to_event(1)
    )

    def model() -> None:
        with pyro.plate("data", len(DATA)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=DATA.unsqueeze(-1))

    step(model)
