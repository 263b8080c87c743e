"""Discrete sites summed out by elimination, against Pyro's own enumeration and against sums over all states."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch import Tensor

from pyro_ebm import MCMC, NUTS, BatchingError, TreewidthError
from pyro_ebm.infer.model_target import ModelTarget

DATA = torch.tensor([[0.3, 2.5, 3.4], [-0.8, 1.1, 0.2]], dtype=torch.float64)
POTTS = torch.eye(2, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def mixture() -> None:
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
    with pyro.plate("data", 3):
        label = pyro.sample("label", dist.Categorical(weight))
        pyro.sample("x", dist.Normal(loc[label], 1.0), obs=DATA[0])


def nested() -> None:
    """A discrete site at every level of nested plates."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    kind = pyro.sample("kind", dist.Bernoulli(torch.sigmoid(loc)))
    with pyro.plate("groups", 2, dim=-2):
        logits = torch.stack(torch.broadcast_tensors(loc, 1 - kind, 2 * kind * loc), -1)
        group = pyro.sample("group", dist.Categorical(logits=logits))
        with pyro.plate("data", 3, dim=-1):
            label = pyro.sample("label", dist.Bernoulli(0.2 + 0.2 * group))
            pyro.sample("x", dist.Normal(loc + label + kind, 1.0 + group), obs=DATA)


def chain() -> None:
    """A hidden Markov model, for two series at once, that says nothing of being one."""
    stay = pyro.sample("stay", dist.Beta(3.0, 1.0))
    with pyro.plate("series", 2):
        state = torch.tensor(0.0)
        for t in range(3):
            state = pyro.sample(f"state{t}", dist.Bernoulli(torch.where(state == 0, 1 - stay, stay)))
            pyro.sample(f"x{t}", dist.Normal(2.0 * state, 1.0), obs=DATA[:, t])


def grid() -> None:
    """Sites of a lattice that meet in factors."""
    coupling = pyro.sample("coupling", dist.Normal(0.0, 1.0))
    x = {}
    for i, j in itertools.product(range(2), range(3)):
        x[i, j] = pyro.sample(f"z{i}{j}", dist.Categorical(logits=torch.zeros(2)))
        pyro.sample(f"x{i}{j}", dist.Normal(x[i, j].to(DATA), 1.0), obs=DATA[i, j])
    for (i, j), here in x.items():
        for other in {(i + 1, j), (i, j + 1)} & x.keys():
            pyro.factor(f"{i}{j}{other}", coupling * POTTS[here, x[other]])


def events() -> None:
    """Discrete sites with event dims, scaled and masked."""
    logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        bits = pyro.sample("bits", dist.OneHotCategorical(logits=torch.stack([logit, -logit, 0 * logit])))
        with poutine.mask(mask=torch.tensor([True, False, True])), poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(bits @ torch.arange(3.0), 1.0), obs=DATA[0])


MODELS = [mixture, nested, chain, grid, events]


def by_pyro(model: Callable[[], Any], values: dict[str, Tensor], num_plates: int) -> Tensor:
    """The log joint density of the continuous sites by Pyro's enumeration."""
    enumerated = poutine.enum(config_enumerate(poutine.condition(model, values)), first_available_dim=-1 - num_plates)
    trace = poutine.trace(enumerated).get_trace()
    evaluator = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=num_plates)
    return evaluator.log_prob(trace)


@pytest.mark.parametrize("model", MODELS)
def test_value_and_gradient_are_those_of_pyro(model: Callable[[], Any]) -> None:
    target = ModelTarget(model, (), {})
    assert target.concern is None
    position = torch.randn(4, target.raveler.dim)
    value, gradient = target.log_density(position)
    for chain_, row in enumerate(position):
        free = row.clone().requires_grad_()
        unconstrained = target.raveler.unravel(free)
        sites = target.constrain(free)
        expected = by_pyro(model, sites, target.structure.max_plate_nesting)
        for name, site in target.structure.latents.items():
            expected = expected + site.transform.log_abs_det_jacobian(unconstrained[name], sites[name]).sum()
        torch.testing.assert_close(value[chain_], expected.detach())
        torch.testing.assert_close(gradient[chain_], torch.autograd.grad(expected, free)[0])


def all_states(model: Callable[[], Any], values: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Every joint state of the discrete sites, and its probability given the others."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    choices: list[list[tuple[str, tuple[int, ...], Tensor]]] = []
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and name not in values:
            fn = node["fn"]
            if not getattr(fn, "has_enumerate_support", False):
                continue
            support = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
            for index in itertools.product(*map(range, fn.batch_shape)):
                choices.append([(name, index, each) for each in support])
    shapes = {name: trace.nodes[name]["value"].shape for name, *_ in (each[0] for each in choices)}
    states, log_probs = [], []
    for joint in itertools.product(*choices):
        state = {name: torch.zeros(shape, dtype=joint[0][2].dtype) for name, shape in shapes.items()}
        for name, index, each in joint:
            state[name][index] = each
        scored = poutine.trace(poutine.condition(model, {**values, **state})).get_trace()
        states.append(state)
        log_probs.append(scored.log_prob_sum())
    return states, torch.stack(log_probs).softmax(0)


@pytest.mark.parametrize("model", MODELS)
def test_draws_have_the_frequencies_of_the_conditional(model: Callable[[], Any]) -> None:
    target = ModelTarget(model, (), {})
    position = 0.5 * torch.randn(target.raveler.dim)
    count = 4000
    drawn = target.sample_discrete(position.expand(count, -1))
    states, probabilities = all_states(model, target.constrain(position))
    assert drawn.keys() == states[0].keys()
    for state, probability in zip(states, probabilities.tolist(), strict=True):
        same = torch.stack([(drawn[n] == v).reshape(count, -1).all(-1) for n, v in state.items()]).all(0)
        error = (probability * (1 - probability) / count) ** 0.5
        assert abs(float(same.double().mean()) - probability) < 5 * error + 1e-3


def test_sites_that_never_meet_share_a_dim() -> None:
    def long_chain() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        state = torch.tensor(0.0)
        for t in range(100):
            state = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.6 * state))
            pyro.sample(f"x{t}", dist.Normal(state, scale), obs=torch.tensor(0.5))

    target = ModelTarget(long_chain, (), {})
    assert len(set(target._enumeration.dims.values())) == 2
    position = torch.randn(3, 1)
    value, _ = target.log_density(position)
    for row, got in zip(position, value, strict=True):
        scale = row.exp()[0]
        obs = dist.Normal(torch.tensor([0.0, 1.0]), scale).log_prob(torch.tensor(0.5))
        move = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log()
        alpha = move[0] + obs
        for _ in range(99):
            alpha = (alpha.unsqueeze(-1) + move).logsumexp(0) + obs
        expected = alpha.logsumexp(0) + dist.LogNormal(0.0, 1.0).log_prob(scale) + row[0]
        torch.testing.assert_close(got, expected)


def outside_its_plate() -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))


def beside_its_plate() -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))


def without_a_plate() -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))


def crossing_plates() -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(0.5))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(0.5))
    with rows, columns:
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=DATA)


def all_at_once() -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    total = sum(pyro.sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(40))
    pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (outside_its_plate, BatchingError, 'site "x": got size 2 at dim -1'),
        (beside_its_plate, BatchingError, 'site "x": it depends on the discrete site "z", but lies outside'),
        (without_a_plate, BatchingError, "dims outside of plates"),
        (crossing_plates, BatchingError, "plates that cross"),
        (all_at_once, TreewidthError, "40 discrete sites at once"),
    ],
)
def test_what_cannot_be_summed_out_says_so(model: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ModelTarget(model, (), {})


def test_a_run_is_one_c_program_and_has_draws_of_discrete_sites() -> None:
    mcmc = MCMC(NUTS(mixture), 30, 30, num_chains=4, compile=True, disable_progbar=True)
    mcmc.run()
    assert mcmc.attrs["program"] == "C"
    assert mcmc.sample_discrete()["label"].shape == (120, 3)
    posterior = mcmc.to_arviz(discrete=True).posterior
    assert posterior["label"].dims == ("chain", "draw", "data")
    assert set(posterior["label"].values.ravel()) <= {0, 1, 2}
    assert "label" not in mcmc.to_arviz().posterior
