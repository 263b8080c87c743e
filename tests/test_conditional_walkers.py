"""Walkers of their own for each datum, against closed forms."""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_ebm import ConditionalWalkers, EnergyDistribution, EnergyShapeError, energy


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
