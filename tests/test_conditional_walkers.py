"""Walkers of their own for each datum, against closed forms."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_ebm import (
    MCMC,
    NUTS,
    AnchorError,
    ConditionalWalkers,
    EnergyDistribution,
    EnergyShapeError,
    StaleWalkersError,
    StochasticPotentialError,
    TrainingWarning,
    energy,
)


def tilted(slope: Tensor, context: Tensor, normalizer: object) -> EnergyDistribution:
    """`N(0, 1) exp(-slope c x)`, whose log Z is `(slope c)² / 2`, and whose mean is `-slope c`."""
    tilt = energy(lambda x: slope * context * x, event_shape=(), batch_shape=context.shape)
    return EnergyDistribution(tilt, dist.Normal(0.0, 1.0), log_normalizer=normalizer)  # type: ignore[arg-type]


def contexts(count: int) -> Tensor:
    return torch.linspace(-2.0, 2.0, count, dtype=torch.double)


def test_log_z_of_each_datum_is_tracked() -> None:
    pyro.set_rng_seed(0)
    context, slope = contexts(20), nn.Parameter(torch.zeros((), dtype=torch.double))
    walkers = ConditionalWalkers(20, 500, num_groups=16)
    index = torch.arange(20)
    for value in torch.linspace(0, 1, 21).tolist():
        with torch.no_grad():
            slope.fill_(value)
        for rows in index.split(5):  # minibatches, each of which follows by itself
            log_prob = tilted(slope, context[rows], walkers[rows]).log_prob(torch.zeros(5).double())
    exact = 0.5 * context.square()
    error = (walkers.value - exact) / walkers.standard_error
    assert float(error.abs().max()) < 5.5  # of t with 15 degrees of freedom, twenty of them
    torch.testing.assert_close(log_prob.detach(), dist.Normal(0.0, 1.0).log_prob(torch.zeros(5)) - walkers.value[15:])


def test_the_gradient_is_that_of_log_z() -> None:
    pyro.set_rng_seed(1)
    context, slope = contexts(200), nn.Parameter(torch.tensor(0.8, dtype=torch.double))
    walkers = ConditionalWalkers(200)
    log_z = -tilted(slope, context, walkers[:]).log_prob(torch.zeros(200).double())
    log_z.sum().backward()
    assert slope.grad is not None
    exact = float((0.8 * context.square()).sum())
    # Σ c E[x] by 16 walkers for each datum, whose weights are within a factor of two of equal.
    assert abs(float(slope.grad) - exact) < 4.5 * float((context.square() * 2 / 16).sum().sqrt())


def test_walkers_that_are_left_behind_start_anew() -> None:
    pyro.set_rng_seed(2)
    context, slope = contexts(8), nn.Parameter(torch.zeros((), dtype=torch.double))
    walkers = ConditionalWalkers(8, 200, num_groups=8)
    data = torch.zeros(8).double()
    tilted(slope, context, walkers[:]).log_prob(data)
    with torch.no_grad():
        slope.fill_(3.0)  # at c = 2 no walker of the base is of use
    tilted(slope, context, walkers[:]).log_prob(data)
    error = walkers.value - 4.5 * context.square()
    assert float((error / walkers.standard_error).abs().max()) < 8  # of t with 7 degrees of freedom, eight of them


def test_svi_learns_a_conditional_energy_under_subsampling() -> None:
    pyro.set_rng_seed(3)
    pyro.clear_param_store()
    count = 400
    context = contexts(count)
    x = -0.7 * context + torch.randn(count, dtype=torch.double)
    walkers = ConditionalWalkers(count)

    def model() -> None:
        slope = pyro.param("slope", torch.zeros((), dtype=torch.double))
        with pyro.plate("data", count, subsample_size=100) as index:
            pyro.sample("x", tilted(slope, context[index], walkers[index]), obs=x[index])

    svi = SVI(model, lambda: None, ClippedAdam({"lr": 0.03, "lrd": 0.985}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    likeliest = float(-(context * x).sum() / context.square().sum())
    # With walkers for each datum, of the noise of a minibatch what is left of it at the end of a falling step size.
    assert abs(float(pyro.param("slope").detach()) - likeliest) < 0.02


def posterior_model(walkers: ConditionalWalkers, context: Tensor, x: Tensor) -> Callable[[], None]:
    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=torch.double), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", tilted(slope, context, walkers[:]), obs=x)

    return model


def test_nuts_over_parameters_with_frozen_walkers() -> None:
    """By conjugacy: `x` given its context is `N(-slope c, 1)`."""
    pyro.set_rng_seed(6)
    context = contexts(30)
    x = -0.5 * context + torch.randn(30, dtype=torch.double)
    precision = 1 + float(context.square().sum())
    mean, sd = -float((context * x).sum()) / precision, precision**-0.5
    walkers = ConditionalWalkers(30, 500)
    with pytest.raises(StochasticPotentialError, match="freeze"):
        MCMC(NUTS(posterior_model(walkers, context, x)), num_samples=2, warmup_steps=2).run()
    slope = nn.Parameter(torch.tensor(mean, dtype=torch.double))
    tilted(slope, context, walkers[:]).log_prob(x)
    walkers.freeze()
    mcmc = MCMC(NUTS(posterior_model(walkers, context, x)), num_samples=300, warmup_steps=200, num_chains=4)
    mcmc.run()
    draws = mcmc.get_samples()["slope"]
    # The score of walkers, 1000 for each datum that weigh within a factor of two of equal, errs by
    # sqrt(Σ c² 2 / 1000), against a posterior precision of 1 + Σ c²; 400 draws or more count.
    error = math.hypot(math.sqrt(2 * (precision - 1) / 1000) / precision, sd / 20)
    assert abs(float(draws.mean()) - mean) < 4.5 * error
    assert abs(float(draws.std()) / sd - 1) < 4.5 / math.sqrt(2 * 400) + 0.05
    with torch.no_grad():
        slope.fill_(mean + 5)
    with pytest.raises(AnchorError, match="unfreeze"):
        walkers[:].check(tilted(slope, context, walkers[:]))
    with pytest.raises(AnchorError, match="frozen"):
        tilted(slope, context, walkers[:]).log_prob(x)
    pickled = pickle.loads(pickle.dumps(walkers))
    assert pickled.is_frozen
    walkers.unfreeze()
    assert tilted(slope, context, walkers[:]).log_prob(x).isfinite().all()


def test_walkers_frozen_far_from_the_posterior_are_told_of_after_nuts() -> None:
    pyro.set_rng_seed(7)
    context = contexts(30)
    walkers = ConditionalWalkers(30, 100)
    tilted(torch.tensor(4.0), context, walkers[:]).log_prob(torch.zeros(30).double())
    walkers.freeze()
    mcmc = MCMC(NUTS(posterior_model(walkers, context, torch.zeros(30).double())), num_samples=100, warmup_steps=50)
    with pytest.raises(AnchorError, match='at site "x", at'):
        mcmc.run()


def test_walkers_are_refreshed_and_checked_by_datum() -> None:
    pyro.set_rng_seed(9)
    context, slope = contexts(6), nn.Parameter(torch.tensor(0.5, dtype=torch.double))
    walkers = ConditionalWalkers(6, 400, num_groups=8)
    p = tilted(slope, context[:3], walkers[:3])
    with pytest.raises(RuntimeError, match="3 data that no walker has seen"):
        walkers[:3].check(p)
    p.log_prob(torch.zeros(3).double())
    with torch.no_grad():
        slope.fill_(3.0)
        with pytest.raises(StaleWalkersError, match="refresh"):
            p.log_prob(torch.zeros(3).double())
    walkers[:3].refresh(p, num_steps=20)
    with torch.no_grad():
        error = -p.log_prob(torch.zeros(3).double()) - 0.5 * math.log(2 * math.pi) - 4.5 * context[:3].square()
    # of t with 7 degrees of freedom, three of them
    assert float((error / walkers.standard_error[:3]).abs().max()) < 8
    walkers.freeze()
    walkers[:3].check(p)


def test_frozen_walkers_start_for_no_datum() -> None:
    walkers = ConditionalWalkers(6)
    tilted(torch.tensor(1.0), contexts(3), walkers[:3]).log_prob(torch.zeros(3).double())
    walkers.freeze()
    with pytest.raises(AnchorError, match="3 data that no walker has seen"):
        tilted(torch.tensor(1.0), contexts(3), walkers[3:]).log_prob(torch.zeros(3).double())


def test_walkers_that_stand_still_are_told_of() -> None:
    """Where densities narrow faster than the step of MALA follows."""
    pyro.set_rng_seed(8)
    precision, walkers = nn.Parameter(torch.ones((), dtype=torch.double)), ConditionalWalkers(3, 100)
    narrow = energy(lambda x: (precision - 1) * x**2 / 2, event_shape=(), batch_shape=(3,))
    p = EnergyDistribution(narrow, dist.Normal(0.0, 1.0), log_normalizer=walkers[:])

    def narrow_on(times: int) -> None:
        for _ in range(times):
            p.log_prob(torch.zeros(3).double())
            with torch.no_grad():
                precision.mul_(1.2)

    with pytest.warns(TrainingWarning, match="ConditionalWalkers: got .* stand still") as told:
        narrow_on(80)
    assert len(told) == 1
    assert told[0].filename == __file__  # the user's line


def test_saved_walkers_go_on_to_the_same_numbers() -> None:
    pyro.set_rng_seed(4)
    context, slope = contexts(6), nn.Parameter(torch.zeros((), dtype=torch.double))
    walkers = ConditionalWalkers(6)
    data = torch.zeros(3).double()
    tilted(slope, context[:3], walkers[:3]).log_prob(data)
    assert walkers.value.isnan().tolist() == [False] * 3 + [True] * 3
    other = ConditionalWalkers(6)
    other.load_state_dict(walkers.state_dict())
    pickled = pickle.loads(pickle.dumps(walkers))
    with torch.no_grad():
        slope.fill_(0.3)
    answers = [
        torch.cat([tilted(slope, context[rows], each[rows]).log_prob(data) for rows in (slice(0, 3), slice(3, 6))])
        for each in (walkers, other, pickled)
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_draws_are_of_each_context() -> None:
    pyro.set_rng_seed(5)
    context = contexts(3)
    drawn = tilted(torch.tensor(1.0), context, ConditionalWalkers(3, 200)[:]).sample((2000,))
    assert drawn.shape == (2000, 3)
    # 400 walkers at most are behind 2000 draws.
    assert float((drawn.mean(0) + context).abs().max()) < 4.5 * (1 / 200) ** 0.5


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(EnergyShapeError, match="one context for each"):
        tilted(torch.tensor(1.0), contexts(5), ConditionalWalkers(10)[:4]).log_prob(torch.zeros(5).double())


@pytest.mark.parametrize("options", [{"num_data": 0}, {"num_data": 3, "num_walkers": 2}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="ConditionalWalkers"):
        ConditionalWalkers(**options)
