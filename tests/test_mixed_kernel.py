"""Graphs of discrete and continuous variables, against enumeration and quadrature."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pyro
import pytest
import torch
from discrete_cases import begin
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import HMC, MALA, MCMC, NUTS, ChEES, FactorGraph, GraphError, Mixed, PottsEnergy, SamplingWarning, energy

DATA = torch.tensor([0.3, 1.0, 2.0, 1.5])


@contextmanager
def _quiet() -> Iterator[None]:
    """A few divergences while step sizes adapt are nothing here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        yield


def _graph() -> FactorGraph:
    """Labels on a chain, the scale of what they say of data, and a vector that two of them pull at."""
    graph = FactorGraph()
    label = graph.variable("label", num_states=3, shape=(4,))
    scale = graph.variable("scale", support=constraints.positive)
    shift = graph.variable("shift", support=constraints.real, shape=(2,))
    graph.factor(PottsEnergy(torch.tensor(0.5)), label[:-1], label[1:])
    graph.factor(energy(lambda a, s: 0.5 * ((a - DATA) / s) ** 2 + s.log(), event_shape=[(), ()]), label[:], scale)
    graph.factor(energy(lambda s: s, event_shape=()), scale)
    graph.factor(energy(_pull, event_shape=[(4,), (2,)]), label, shift)
    return graph


def _pull(label: Tensor, shift: Tensor) -> Tensor:
    return 0.5 * (shift - label[..., :2]).square().sum(-1)


def _exact() -> tuple[Tensor, Tensor]:
    """The means of labels and scale: all labels, by a fine grid of log scales."""
    labels = torch.tensor(list(itertools.product(range(3), repeat=4))).double()
    log_scale = torch.linspace(-7, 4, 4001).double()
    scale = log_scale.exp()
    equal = 0.5 * (labels[:, 1:] == labels[:, :-1]).sum(-1)
    misfit = 0.5 * ((labels[:, None] - DATA) / scale[:, None]).square().sum(-1)
    log_weight = equal[:, None] - misfit - 4 * log_scale - scale + log_scale
    weight = (log_weight - log_weight.max()).exp()
    weight = weight / weight.sum()
    return weight.sum(1) @ labels, (weight.sum(0) * scale).sum()


@pytest.mark.parametrize("continuous", [NUTS, HMC, MALA, partial(NUTS, max_tree_depth=5, full_mass=True)])
def test_agrees_with_enumeration_and_quadrature(continuous: Callable[..., NUTS]) -> None:
    graph = _graph()
    pyro.set_rng_seed(0)
    mcmc = MCMC(Mixed(graph, continuous=continuous), 800, 300, num_chains=16, disable_progbar=True)
    with _quiet():
        mcmc.run()
    labels, scale = _exact()
    draws, table = mcmc.get_samples(), mcmc.diagnostics()
    for name, expected in (("label", labels), ("scale", scale), ("shift", labels[:2])):
        values = draws[name].double()
        error = values.std(0) / torch.as_tensor(table[name]["n_eff"]).sqrt()
        assert ((values.mean(0) - expected).abs() < 4 * error).all(), name
    by_chain = mcmc.get_samples(group_by_chain=True)
    lp = -graph(by_chain) + by_chain["scale"].log()
    torch.testing.assert_close(mcmc.sample_stats()["lp"], lp, atol=1e-3, rtol=1e-3)


def test_seeds_repeat_and_a_resumed_run_is_the_same() -> None:
    def make() -> MCMC:
        return MCMC(Mixed(_graph()), 30, 30, num_chains=4, disable_progbar=True, compile=False)

    runs = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        runs.append(make())
        with _quiet():
            runs[-1].run()
    assert torch.equal(runs[0].get_samples()["scale"], runs[1].get_samples()["scale"])
    pyro.set_rng_seed(3)
    part, again = make(), make()
    begin(part, 4)
    again.load_state_dict(part.state_dict())
    with _quiet():
        again.resume()
    assert torch.equal(runs[0].get_samples()["label"], again.get_samples()["label"])


def test_discrete_elements_keep_their_scale() -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(Mixed(_graph()), 20, 100, num_chains=4, disable_progbar=True)
    with _quiet():
        mcmc.run()
    diagonal = mcmc.inverse_mass_matrix
    diagonal = diagonal if diagonal.dim() == 1 else diagonal.diagonal()
    assert torch.equal(diagonal[:4], torch.ones(4))
    assert mcmc.attrs["kernel"] == "Gibbs within NUTS"
    posterior = mcmc.to_arviz()["posterior"]
    assert {name: posterior[name].shape for name in posterior} == {
        "label": (4, 20, 4),
        "scale": (4, 20),
        "shift": (4, 20, 2),
    }


def test_a_vector_of_both_kinds_is_taken() -> None:
    graph = FactorGraph()
    place = graph.variable("place", support=constraints.real)
    side = graph.variable("side", support=constraints.boolean)
    graph.factor(energy(lambda x: 0.5 * (x[..., 0] - 2 * x[..., 1]).square(), event_shape=(2,)), place[()], side[()])
    pyro.set_rng_seed(0)
    mcmc = MCMC(Mixed(graph), 500, 200, num_chains=8, disable_progbar=True)
    with _quiet():
        mcmc.run()
    assert mcmc.get_samples()["side"].mean() == pytest.approx(0.5, abs=0.1)
    assert mcmc.get_samples()["place"].mean() == pytest.approx(1.0, abs=0.2)


def test_forbids_what_it_cannot_do() -> None:
    graph = FactorGraph()
    x = graph.variable("x", num_states=2, shape=(2,))
    graph.factor(PottsEnergy(torch.tensor(1.0)), x[:1], x[1:])
    with pytest.raises(GraphError, match="Use Gibbs"):
        MCMC(Mixed(graph), 5).run()
    with pytest.raises(TypeError, match="ChEES"):
        Mixed(_graph(), continuous=ChEES)
    with pytest.raises(TypeError, match="no discrete"):
        MCMC(Mixed(energy(lambda x: x.square(), event_shape=())), 5).run()
