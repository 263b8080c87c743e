"""Gibbs sampling of factor graphs, and annealing."""

import warnings

import pyro
import pytest
import torch
from discrete_cases import GRAPHS, assert_agrees, assert_invariant, begin, spin_glass
from pyro.infer.autoguide.initialization import init_to_value
from torch.distributions import constraints

from pyro_ebm import MCMC, FactorGraph, Gibbs, GraphError, InitializationError, TableEnergy, anneal, energy, spin


def _run(kernel: object, draws: int = 1000, chains: int = 16, **options: object) -> MCMC:
    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel, draws, 100, num_chains=chains, disable_progbar=True, **options)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc.run()
    return mcmc


@pytest.mark.parametrize("name", GRAPHS)
def test_agrees_with_exact_marginals(name: str) -> None:
    graph = GRAPHS[name]()
    assert_agrees(_run(Gibbs(graph)), graph)


def test_random_scan_agrees() -> None:
    graph = GRAPHS["lattice"]()
    assert_agrees(_run(Gibbs(graph, scan="random"), 2000), graph)


@pytest.mark.parametrize("name", ["various", "batch"])
def test_leaves_exact_draws_exact(name: str) -> None:
    graph = GRAPHS[name]()
    pyro.set_rng_seed(1)
    assert_invariant(Gibbs(graph), graph, 2)


def test_a_spin_glass() -> None:
    graph, data = spin_glass("field10")
    mcmc = _run(Gibbs(graph), 2000)
    error = mcmc.get_samples()["x"].std(0) / torch.as_tensor(mcmc.diagnostics()["x"]["n_eff"]).sqrt()
    assert ((mcmc.get_samples()["x"].mean(0) - torch.tensor(data["mean_spin"])).abs() < 4 * error).all()


def test_lp_is_the_log_density() -> None:
    graph = GRAPHS["various"]()
    mcmc = _run(Gibbs(graph), 300)
    draws = mcmc.get_samples(group_by_chain=True)
    torch.testing.assert_close(mcmc.sample_stats()["lp"], -graph(draws).double(), atol=1e-3, rtol=1e-4)


def test_compiled_and_eager_draws_are_the_same() -> None:
    graph = GRAPHS["various"]()
    compiled, eager = (_run(Gibbs(graph), 200, 4, compile=each) for each in (True, False))
    assert compiled.attrs["program"] == "C"
    assert torch.equal(compiled.get_samples()["label"], eager.get_samples()["label"])


def test_seeds_repeat_and_a_resumed_run_is_the_same() -> None:
    graph = GRAPHS["various"]()
    first, second = _run(Gibbs(graph), 50, 4, compile=False), _run(Gibbs(graph), 50, 4, compile=False)
    assert torch.equal(first.get_samples()["label"], second.get_samples()["label"])
    pyro.set_rng_seed(0)
    part = MCMC(Gibbs(graph), 50, 100, num_chains=4, disable_progbar=True, compile=False)
    begin(part, 3)
    rest = MCMC(Gibbs(graph), 50, 100, num_chains=4, disable_progbar=True, compile=False)
    rest.load_state_dict(part.state_dict())
    rest.resume()
    assert torch.equal(first.get_samples()["label"], rest.get_samples()["label"])


def test_arviz_has_each_variable_in_its_shape() -> None:
    mcmc = _run(Gibbs(GRAPHS["various"]()), 20, 4)
    posterior = mcmc.to_arviz()["posterior"]
    assert posterior["label"].shape == (4, 20, 2, 3)
    assert posterior["side"].shape == (4, 20, 4)
    assert posterior["label"].dtype.kind == "i"
    assert set(posterior["side"].values.flatten().tolist()) <= {-1.0, 1.0}


def test_a_batch_has_its_dims() -> None:
    assert _run(Gibbs(GRAPHS["batch"]()), 20, 4).get_samples(group_by_chain=True)["x"].shape == (4, 20, 2, 4)


def test_given_starts_and_forbidden_states() -> None:
    graph = FactorGraph()
    x = graph.variable("x", num_states=4, shape=(30,))
    table = torch.full((4, 4), torch.inf)
    table.fill_diagonal_(0)
    table[0, 1] = table[1, 0] = 1.0
    graph.factor(TableEnergy(table), x[:-1], x[1:])
    with pytest.raises(InitializationError, match="forbidden"):
        MCMC(Gibbs(graph), 5, 5, disable_progbar=True).run()
    mcmc = _run(Gibbs(graph, init_strategy=init_to_value(values={"x": torch.zeros(30).long()})), 50, 4)
    draws = mcmc.get_samples()["x"]
    assert draws.max() == 1
    assert mcmc.sample_stats()["lp"].isfinite().all()


def test_forbids_what_it_cannot_do() -> None:
    graph = GRAPHS["lattice"]()
    t = graph.variable("t", support=constraints.positive)
    graph.factor(energy(lambda t: t, event_shape=()), t)
    with pytest.raises(GraphError, match='continuous variable "t"'):
        MCMC(Gibbs(graph), 5).run()
    with pytest.raises(TypeError, match="no discrete variable"):
        MCMC(Gibbs(energy(lambda x: x.square().sum(-1), event_shape=(3,))), 5).run()
    wide = energy(lambda x: x.sum(-1), event_shape=(40,), support=spin)
    with pytest.raises(GraphError, match="GibbsWithGradients"):
        MCMC(Gibbs(wide), 5).run()
    with pytest.raises(ValueError, match="scan"):
        Gibbs(graph, scan="some")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="arguments"):
        MCMC(Gibbs(GRAPHS["lattice"]()), 5).run(1)


def test_annealing_finds_the_mode() -> None:
    for name in ("lattice", "various"):
        graph = GRAPHS[name]()
        pyro.set_rng_seed(0)
        found = anneal(graph, 300, num_chains=8, schedule="linear" if name == "lattice" else "geometric")
        torch.testing.assert_close(found.energy.min(), graph(graph.mode()))
        torch.testing.assert_close(graph(found.best), found.energy.min())


def test_annealing_a_spin_glass() -> None:
    graph, data = spin_glass("gauss6")
    pyro.set_rng_seed(0)
    found = anneal(graph, 500, num_chains=16)
    assert float(found.energy.min()) == pytest.approx(-float(data["max_logp"]), abs=1e-3)


def test_annealing_wants_good_numbers() -> None:
    with pytest.raises(ValueError, match="start"):
        anneal(GRAPHS["lattice"](), start=2.0, end=1.0)
    with pytest.raises(ValueError, match="num_steps"):
        anneal(GRAPHS["lattice"](), 0)
