"""Labels of graphs and lattices with exact log Z, against sums over all states."""

import itertools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import (
    EnergyDistribution,
    EnergyShapeError,
    FactorGraph,
    GraphDistribution,
    GraphError,
    GridCRF,
    IsingEnergy,
    PottsEnergy,
    TreewidthError,
    spin,
)
from pyro_ebm.infer.model_target import ModelTarget

STATES = torch.tensor(list(itertools.product(range(2), repeat=6))).reshape(-1, 2, 3)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(torch.float32)


def crf(batch: tuple[int, ...] = (), *, per_edge: bool = False) -> GridCRF:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if per_edge:
        return GridCRF(randn(*batch, 2, 3, 2), randn(*batch, 2, 2, 2, 2), randn(1, 3, 2, 2))
    return GridCRF(randn(*batch, 2, 3, 2), randn(2, 2))


CASES = [((), False), ((4,), False), ((4,), True), ((3, 1), True)]


@pytest.mark.parametrize(("batch", "per_edge"), CASES)
def test_against_all_states(batch: tuple[int, ...], per_edge: bool) -> None:
    d = crf(batch, per_edge=per_edge)
    assert (d.batch_shape, d.event_shape) == (batch, (2, 3))
    values = STATES.reshape(-1, *[1] * len(batch), 2, 3)
    log_prob = d.log_prob(values)
    probability = log_prob.exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(batch))
    one_hot = torch.nn.functional.one_hot(values, 2).to(probability)
    torch.testing.assert_close(d.marginals, (probability[..., None, None, None] * one_hot).sum(0))
    assert torch.equal(d.mode, STATES[log_prob.argmax(0)])
    torch.testing.assert_close(d.entropy(), -(probability * log_prob).sum(0))


def test_scores_are_read_as_documented() -> None:
    unary, horizontal, vertical = torch.randn(2, 3, 2), torch.randn(2, 2, 2, 2), torch.randn(1, 3, 2, 2)
    d = GridCRF(unary, horizontal, vertical)
    z = torch.tensor([[0, 1, 1], [1, 0, 1]])
    expected = sum(unary[i, j, z[i, j]] for i in range(2) for j in range(3))
    expected = expected + sum(horizontal[i, j, z[i, j], z[i, j + 1]] for i in range(2) for j in range(2))
    expected = expected + sum(vertical[0, j, z[0, j], z[1, j]] for j in range(3))
    torch.testing.assert_close(d.score(z), expected)


def test_draws_are_exact_and_expanded_ones_independent() -> None:
    d = crf()
    draws = d.expand((3,)).sample((4000,))
    assert draws.shape == (4000, 3, 2, 3)
    for copy in draws.unbind(1):
        frequency = copy.double().mean(0)
        error = (d.marginals[..., 1] * d.marginals[..., 0] / 4000).sqrt()
        assert bool(((frequency - d.marginals[..., 1]).abs() < 4.5 * error).all())
    assert not torch.equal(draws[:, 0], draws[:, 1])


def test_some_labels_observed() -> None:
    d = crf((4,), per_edge=True)
    observed = torch.tensor([[True, False, False], [True, True, False]])
    value = STATES[37].expand(4, 2, 3)
    agrees = ((STATES[37] == STATES) | ~observed).flatten(1).all(-1)
    log_prob = d.log_prob(STATES.unsqueeze(1))
    torch.testing.assert_close(d.log_prob_partial(value, observed), log_prob[agrees].logsumexp(0))
    given = d.condition(value, observed)
    assert bool((given.sample((50,))[..., observed] == STATES[37][observed]).all())
    assert given.expand((2, 4)).mode.shape == (2, 4, 2, 3)


def test_a_plate_of_images_and_learned_couplings() -> None:
    truth = GridCRF(torch.zeros(2, 3, 2), 0.8 * torch.eye(2))
    data = truth.sample((300,))

    def model(z: Tensor) -> None:
        coupling = pyro.param("coupling", torch.tensor(0.0))
        with pyro.plate("images", len(z)):
            pyro.sample("z", GridCRF(torch.zeros(2, 3, 2), coupling * torch.eye(2)), obs=z)

    svi = SVI(model, lambda z: None, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(120):
        svi.step(data)
    assert abs(float(pyro.param("coupling")) - 0.8) < 0.2


def test_a_batch_of_chains_is_a_loop_over_them() -> None:
    z = crf().sample((5,))

    def model() -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("images", 5):
            pyro.sample("z", GridCRF(weight * torch.arange(12.0).reshape(2, 3, 2), weight * torch.eye(2)), obs=z)

    target = ModelTarget(model, (), {})
    assert target.concern is None
    position = torch.randn(3, 1)
    value, gradient = target.log_density(position)
    for row, got, slope in zip(position, value, gradient, strict=True):
        free = row.clone().requires_grad_()
        expected = poutine.trace(poutine.condition(model, {"weight": free[0]})).get_trace().log_prob_sum()
        torch.testing.assert_close(got, expected.detach())
        torch.testing.assert_close(slope, torch.autograd.grad(expected, free)[0])


def test_pickle() -> None:
    d = crf((4,))
    copy = pickle.loads(pickle.dumps(d))
    torch.testing.assert_close(copy.log_prob(STATES.unsqueeze(1)), d.log_prob(STATES.unsqueeze(1)))


def test_any_graph_of_labels() -> None:
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(4,))
    g.factor(PottsEnergy(torch.tensor([0.5, -0.3, 0.2, 1.0])), x[torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])])
    d = GraphDistribution(g)
    states = torch.tensor(list(itertools.product(range(3), repeat=4)))
    torch.testing.assert_close(d.log_prob(states).exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(d.log_prob(states), (-g(states)).log_softmax(0))


def test_a_graph_in_an_energy_distribution_is_drawn_exactly() -> None:
    g = FactorGraph()
    x = g.variable("x", support=spin, shape=(20,))
    g.factor(IsingEnergy(torch.tensor(0.7)), x[:-1], x[1:])
    d = EnergyDistribution(g, log_normalizer=g.log_partition())
    draws = d.sample((4000,))
    assert draws.shape == (4000, 20)
    expected = float(torch.tensor(0.7).tanh())
    assert abs(float((draws[:, 3] * draws[:, 4]).mean()) - expected) < 4 * ((1 - expected**2) / 4000) ** 0.5
    assert d.expand((2,)).sample((3,)).shape == (3, 2, 20)


def two_variables() -> None:
    g = FactorGraph()
    g.variable("a", num_states=2)
    g.variable("b", num_states=2)
    GraphDistribution(g)


def real_variable() -> None:
    g = FactorGraph()
    g.variable("a", support=constraints.real)
    GraphDistribution(g)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (two_variables, GraphError, "expected one"),
        (real_variable, GraphError, "expected labels from 0"),
        (lambda: GridCRF(torch.zeros(3, 2), torch.eye(2)), EnergyShapeError, r"expected \(\*batch, H, W, K\)"),
        (lambda: GridCRF(torch.zeros(2, 3, 2), torch.eye(3)), EnergyShapeError, "horizontal scores"),
        (lambda: GridCRF(torch.zeros(2, 3, 2), torch.eye(2), torch.zeros(2, 3, 2, 2)), EnergyShapeError, "vertical"),
        (lambda: GridCRF(torch.zeros(40, 40, 2), torch.eye(2)).log_partition(), TreewidthError, "width"),
    ],
)
def test_what_does_not_fit(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
