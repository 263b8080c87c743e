"""Gibbs with gradients and discrete Langevin: exact whatever the gradient says."""

import pyro
import pytest
import torch
from discrete_cases import GRAPHS, assert_agrees, assert_invariant, spin_glass
from pyro.distributions import Bernoulli
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import (
    MCMC,
    DiscreteLangevin,
    EnergyDistribution,
    FactorGraph,
    GibbsWithGradients,
    GraphError,
    energy,
)

KERNELS = {
    "gwg": GibbsWithGradients,
    "langevin": DiscreteLangevin,
    "ordinal": lambda model: DiscreteLangevin(model, ordinal=True),
}


def _run(kernel: object, draws: int = 1000, chains: int = 16, **options: object) -> MCMC:
    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel, draws, 200, num_chains=chains, disable_progbar=True, **options)  # type: ignore[arg-type]
    mcmc.run()
    return mcmc


@pytest.mark.parametrize("kernel", ["gwg", "langevin"])
@pytest.mark.parametrize("name", GRAPHS)
def test_agrees_with_exact_marginals(name: str, kernel: str) -> None:
    graph = GRAPHS[name]()
    thinning = 8 if kernel == "gwg" else 2
    assert_agrees(_run(KERNELS[kernel](graph), thinning=thinning), graph)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["various", "counts"])
def test_leaves_exact_draws_exact(name: str, kernel: str) -> None:
    graph = GRAPHS[name]()
    pyro.set_rng_seed(0)
    assert_invariant(KERNELS[kernel](graph), graph, 3)


def _misled(x: Tensor) -> Tensor:
    """An energy whose gradient points the wrong way."""
    truth = (torch.linspace(-1, 1, 4) * x).sum(-1)
    return truth.detach() - (truth - truth.detach())


@pytest.mark.parametrize("kernel", ["gwg", "langevin"])
def test_a_wrong_gradient_does_no_harm(kernel: str) -> None:
    graph = FactorGraph()
    x = graph.variable("x", support=constraints.boolean, shape=(4,))
    graph.factor(energy(_misled, event_shape=(4,), support=constraints.boolean), x)
    mcmc = _run(KERNELS[kernel](graph), 2000)
    expected = torch.sigmoid(-torch.linspace(-1, 1, 4))
    error = 0.5 / torch.as_tensor(mcmc.diagnostics()["x"]["n_eff"]).sqrt()
    assert ((mcmc.get_samples()["x"].mean(0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("kernel", ["gwg", "langevin"])
def test_energies_and_distributions_are_taken_as_they_are(kernel: str) -> None:
    chance = torch.tensor([0.2, 0.5, 0.7])
    flat = energy(lambda x: 0.0 * x.sum(-1), event_shape=(3,), support=constraints.boolean)
    mcmc = _run(KERNELS[kernel](EnergyDistribution(flat, Bernoulli(chance).to_event(1))))
    assert ((mcmc.get_samples()["x"].mean(0) - chance).abs() < 0.03).all()


def test_the_step_size_adapts_and_acceptance_is_recorded() -> None:
    graph, _ = spin_glass("field10")
    mcmc = _run(DiscreteLangevin(graph), 300)
    assert float(mcmc.sample_stats()["acceptance_rate"].mean()) == pytest.approx(0.574, abs=0.06)
    assert 0 < mcmc.attrs["step_size"] < 1
    fixed = DiscreteLangevin(graph, step_size=0.05, adapt_step_size=False)
    assert _run(fixed, 20).attrs["step_size"] == pytest.approx(0.05)


def test_one_element_at_most_changes_in_a_step() -> None:
    draws = _run(GibbsWithGradients(GRAPHS["various"]()), 100, 4).get_samples(group_by_chain=True)
    changed = [(value[:, 1:] != value[:, :-1]).flatten(2).sum(-1) for value in draws.values()]
    assert int(sum(changed).max()) == 1  # type: ignore[union-attr]


def test_seeds_repeat() -> None:
    first, second = (_run(DiscreteLangevin(GRAPHS["counts"]()), 20, 4).get_samples()["x"] for _ in range(2))
    assert torch.equal(first, second)


def test_gains_of_tables_are_exact_and_one_evaluation_is_one_call() -> None:
    calls = []

    def value(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return (x * torch.linspace(-1, 1, 5)).sum(-1)

    kernel = GibbsWithGradients(energy(value, event_shape=(5,), support=constraints.boolean))
    mcmc = MCMC(kernel, 30, 0, num_chains=2, disable_progbar=True, compile=False)
    mcmc.run()
    assert sum(shape == (2, 5) for shape in calls) <= 30 + 5


def test_forbids_what_it_cannot_do() -> None:
    graph = GRAPHS["lattice"]()
    graph.variable("t", support=constraints.positive)
    with pytest.raises(GraphError, match='continuous variable "t"'):
        MCMC(GibbsWithGradients(graph), 5).run()
    with pytest.raises(ValueError, match="step_size"):
        DiscreteLangevin(graph, step_size=2.0)
    with pytest.raises(TypeError, match="Pyro model"):
        MCMC(GibbsWithGradients(lambda: None), 5).run()
