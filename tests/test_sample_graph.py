"""Factor graphs among the sites of Pyro models."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import (
    MCMC,
    NUTS,
    FactorGraph,
    GraphError,
    IsingEnergy,
    PottsEnergy,
    QuadraticEnergy,
    TableEnergy,
    UnnormalizedError,
    energy,
    sample_graph,
    spin,
)
from pyro_ebm.infer.model_target import ModelTarget

Y = torch.tensor([[0.2, 1.4, 0.9], [-0.3, 0.7, 1.6]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(torch.float32)


def lattice(coupling: Tensor) -> FactorGraph:
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(2, 3))
    g.factor(PottsEnergy(coupling), x[:, :-1], x[:, 1:])
    g.factor(PottsEnergy(coupling), x[:-1], x[1:])
    return g


def mixed() -> FactorGraph:
    """Spins, labels, a real vector and a positive number, in factors of all kinds."""
    g = FactorGraph()
    s = g.variable("s", support=spin, shape=(3,))
    label = g.variable("label", num_states=3)
    r = g.variable("r", support=constraints.real, shape=(2,))
    t = g.variable("t", support=constraints.positive)
    g.factor(IsingEnergy(torch.tensor([0.5, -0.3])), s[:-1], s[1:])
    g.factor(QuadraticEnergy(torch.eye(2), torch.tensor([0.3, -0.2])), r)
    g.factor(energy(lambda a, b: 0.3 * a * b, event_shape=[(), ()], support=[spin, constraints.real]), s[:2], r[:])
    g.factor(TableEnergy(torch.tensor([0.1, 0.7, -0.4])), label)
    g.factor(
        energy(
            lambda k, u: (u - k).square(),
            event_shape=[(), ()],
            support=[constraints.integer_interval(0, 2), constraints.positive],
        ),
        label,
        t,
    )
    return g


def states(g: FactorGraph) -> list[dict[str, Tensor]]:
    """All joint states of the discrete variables."""
    discrete = [v for v in g.variables.values() if v.num_states]
    each = [itertools.product(range(v.num_states or 0), repeat=v.numel) for v in discrete]
    return [
        {v.name: v.values(torch.tensor(one).reshape(v.shape)) for v, one in zip(discrete, joint, strict=True)}
        for joint in itertools.product(*each)
    ]


def log_joint(model: Any, *args: Any) -> Tensor:
    return poutine.trace(model).get_trace(*args).log_prob_sum()


# The joint density


def test_the_joint_density_is_that_of_the_graph() -> None:
    g = mixed()
    values = {"r": torch.randn(2), "t": torch.tensor(0.7)}
    for state in states(g)[::5]:
        whole = {**state, **values}
        observed = poutine.trace(lambda whole=whole: sample_graph("g", g, whole)).get_trace()
        assert set(observed.nodes) >= {"g.s", "g.label", "g.r", "g.t", "g.factor_0"}
        torch.testing.assert_close(observed.log_prob_sum(), -g(whole))
        conditioned = poutine.condition(lambda: sample_graph("g", g), {f"g.{n}": v for n, v in whole.items()})
        torch.testing.assert_close(log_joint(conditioned), -g(whole))
        elements = {f"g.s[{i}]": v for i, v in enumerate(state["s"])} | {"g.label": state["label"]}
        by_element = poutine.condition(
            lambda: sample_graph("g", g), {**elements, **{f"g.{n}": v for n, v in values.items()}}
        )
        trace = poutine.trace(by_element).get_trace()
        assert "g.s" not in trace.nodes
        torch.testing.assert_close(trace.log_prob_sum(), -g(whole))


def test_partial_evidence_and_normalisation() -> None:
    g = lattice(torch.tensor(0.8))
    x = torch.tensor([[0, 1, 1], [0, 0, 1]])
    model = poutine.condition(lambda: sample_graph("g", g, x, normalized=True), {})
    torch.testing.assert_close(log_joint(model), -g(x) - g.log_partition())


def test_plates_and_batches() -> None:
    g = lattice(torch.tensor([[0.3], [0.8], [-0.2], [1.0]]))
    assert g.batch_shape == (4,)
    x = torch.randint(2, (4, 2, 3))

    def model() -> dict[str, Any]:
        with pyro.plate("images", 4):
            return sample_graph("g", g, x, normalized=True)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["g.factor_0"]["log_prob"].shape, torch.Size([4]))
    torch.testing.assert_close(trace.log_prob_sum(), (-g(x) - g.log_partition()).sum())


# Draws from the prior


def test_prior_draws_are_joint_draws() -> None:
    g = lattice(torch.tensor(1.0))
    with pyro.plate("draws", 4000):
        drawn = sample_graph("g", g)["x"]
    assert drawn[1, 2].shape == (4000,)
    same = float((drawn[0, 0] == drawn[0, 1]).double().mean())
    expected = float(g.marginals().factors[0][0].diagonal().sum())
    assert abs(same - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_prior_draws_given_elements_are_conditional() -> None:
    g = lattice(torch.tensor(1.0))

    def model() -> Tensor:
        with pyro.plate("draws", 4000):
            return sample_graph("g", g)["x"][0, 1]

    drawn = poutine.condition(model, {"g.x[0,0]": torch.ones(4000, dtype=torch.long)})()
    known = torch.zeros(2, 3, dtype=torch.bool)
    known[0, 0] = True
    expected = float(g.condition(x=(torch.ones(2, 3, dtype=torch.long), known)).marginals()["x"][0, 1])
    assert abs(float(drawn.double().mean()) - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_predictive() -> None:
    g = lattice(torch.tensor(0.5))
    drawn = Predictive(lambda: sample_graph("g", g), num_samples=5)()
    assert drawn["g.x[0,0]"].shape == (5, 1) or drawn["g.x[0,0]"].shape == (5,)


# Inference


def regression(y: Tensor) -> None:
    coupling = pyro.sample("coupling", dist.Gamma(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(1.0, 1.0))
    x = sample_graph("field", lattice(coupling), normalized=True)["x"]
    for i, j in itertools.product(range(2), range(3)):
        pyro.sample(f"y{i}{j}", dist.Normal(loc * x[i, j], 0.5), obs=y[i, j])


def test_summed_out_against_all_states() -> None:
    target = ModelTarget(regression, (Y,), {})
    assert len(set(target._enumeration.dims.values())) == 2
    position = torch.randn(3, 2)
    value, gradient = target.log_density(position)
    for row, got, slope in zip(position, value, gradient, strict=True):
        free = row.clone().requires_grad_()
        sites = target.constrain(free)
        terms = [
            log_joint(poutine.condition(regression, {**sites, "field.x": state["x"]}), Y)
            for state in states(lattice(torch.tensor(1.0)))
        ]
        expected = torch.stack(terms).logsumexp(0) + target.raveler.unravel(free)["coupling"]
        torch.testing.assert_close(got, expected.detach())
        torch.testing.assert_close(slope, torch.autograd.grad(expected, free)[0])


def test_summed_out_by_pyro() -> None:
    sites = {"coupling": torch.tensor(0.7), "loc": torch.tensor(1.2)}
    conditioned = poutine.condition(regression, sites)
    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(conditioned), lambda y: None, Y)
    terms = [
        log_joint(poutine.condition(regression, {**sites, "field.x": state["x"]}), Y)
        for state in states(lattice(torch.tensor(1.0)))
    ]
    assert -loss == pytest.approx(float(torch.stack(terms).logsumexp(0)))


def test_mixed_graph_under_nuts() -> None:
    """Its continuous variables, the discrete ones summed out, against quadrature."""
    g = mixed()
    mcmc = MCMC(NUTS(lambda: sample_graph("g", g)), 400, 300, num_chains=8, disable_progbar=True)
    mcmc.run()
    t = torch.linspace(1e-4, 8, 20001)
    labels = torch.arange(3.0).unsqueeze(-1)
    weight = (-torch.tensor([0.1, 0.7, -0.4]).unsqueeze(-1) - (t - labels).square()).exp().sum(0)
    mean = float((t * weight).sum() / weight.sum())
    sd = float(((t - mean).square() * weight).sum() / weight.sum()) ** 0.5
    draws = mcmc.get_samples()["g.t"]
    assert abs(float(draws.mean()) - mean) < 4 * sd / (len(draws) / 4) ** 0.5
    discrete = mcmc.sample_discrete()
    assert discrete["g.s"].shape == (3200, 3)
    assert discrete["g.label"].shape == (3200,)
    exact = (-torch.tensor([0.1, 0.7, -0.4]).unsqueeze(-1) - (t - labels).square()).exp().sum(-1)
    frequency = torch.bincount(discrete["g.label"], minlength=3) / 3200
    torch.testing.assert_close(frequency, exact / exact.sum(), atol=0.06, rtol=0)


def test_learning_by_svi() -> None:
    """A coupling learned by maximum likelihood from whole observed arrays has moments matched."""
    data = lattice(torch.tensor(0.9)).sample((300,))["x"]

    def model(x: Tensor) -> None:
        coupling = pyro.param("coupling", torch.tensor(0.0))
        with pyro.plate("images", len(x)):
            sample_graph("g", lattice(coupling), x, normalized=True)

    svi = SVI(model, lambda x: None, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(150):
        svi.step(data)
    coupling = pyro.param("coupling").detach().requires_grad_()
    expected = torch.autograd.grad(lattice(coupling).log_partition(), coupling)[0]
    observed = -lattice(torch.tensor(1.0))(data).mean()
    torch.testing.assert_close(expected, observed, atol=0.02, rtol=0)


# Errors


def test_a_missing_log_z_is_an_error() -> None:
    def model() -> None:
        coupling = pyro.sample("coupling", dist.Gamma(2.0, 2.0))
        sample_graph("g", lattice(coupling))

    with pytest.raises(UnnormalizedError, match=r"g\.factor_0"):
        ModelTarget(model, (), {})


def test_bad_observations() -> None:
    with pytest.raises(GraphError, match="expected some of"):
        sample_graph("g", lattice(torch.tensor(1.0)), {"y": torch.zeros(2, 3)})
    with pytest.raises(GraphError, match="expected a mapping"):
        sample_graph("g", mixed(), torch.zeros(2))
