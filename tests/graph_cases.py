"""Random factor graphs, drawn by hypothesis, and their answers by enumeration."""

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import BilinearEnergy, FactorGraph, FieldEnergy, IsingEnergy, QuadraticEnergy, TableEnergy, spin
from pyro_ebm._core.supports import enumerate_states
from pyro_ebm.graphs import Variable

MOST_STATES = 3000


@st.composite
def graphs(draw, batch_shape=None, hard_zeros=None):
    """A graph over up to nine discrete elements, with tables, couplings and dense forms; float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (2,), (3, 1)])) if batch_shape is None else batch_shape
    zeros = draw(st.booleans()) if hard_zeros is None else hard_zeros
    scale = draw(st.sampled_from([0.3, 1.0, 4.0]))

    def randn(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    g = FactorGraph()
    labels = g.variable("labels", num_states=draw(st.integers(1, 3)), shape=draw(st.sampled_from([(3,), (2, 2)])))
    spins = g.variable("spins", support=spin, shape=(draw(st.integers(1, 3)),))
    flag = g.variable("flag", support=draw(st.sampled_from([constraints.boolean, constraints.integer_interval(2, 4)])))
    count = labels.num_states or 0
    for _ in range(draw(st.integers(0, 3))):
        pair = st.permutations(range(labels.numel)).map(lambda order: order[:2])
        pairs = torch.tensor(draw(st.lists(pair, min_size=1, max_size=4)))
        shared = draw(st.booleans())
        table = randn(*batch, *(() if shared else (len(pairs),)), count, count)
        if shared and batch:
            table = table.unsqueeze(-3)
        if zeros:
            table = torch.where(torch.rand(table.shape, generator=generator) < 0.2, torch.inf, table)
            table[..., 0, 0] = 0.1  # so that a state has mass
        g.factor(TableEnergy(table, 2), labels[pairs])
    g.factor(FieldEnergy(randn(1).squeeze()), flag)
    if draw(st.booleans()):
        g.factor(TableEnergy(randn(count, count, count), 3), labels[torch.tensor([[0, 2, 1]])])
    if draw(st.booleans()):
        g.factor(FieldEnergy(randn(*batch, spins.numel)), spins[:])
    if spins.numel > 1:
        pairs = torch.tensor([[k, k + 1] for k in range(spins.numel - 1)])
        g.factor(IsingEnergy(randn(len(pairs))), spins[pairs])
        g.factor(IsingEnergy(randn(1).squeeze()), spins[pairs[:, [1, 0]]])  # duplicate scopes add
    if draw(st.booleans()):
        low, high = (0, 1) if flag.num_states == 2 else (2, 4)
        support = [labels_support(labels), spin, labels_support(flag)]
        table = randn(count, 2, high - low + 1)
        g.factor(TableEnergy(table, support=support), labels[torch.tensor([1])], spins[torch.tensor([0])], flag)
    if draw(st.booleans()):
        g.factor(QuadraticEnergy(randn(spins.numel, spins.numel)), spins)
    if draw(st.booleans()) and len(labels.shape) == 1:
        g.factor(BilinearEnergy(randn(*batch, spins.numel, 3)), spins, labels)
    return g


def labels_support(variable: Variable) -> constraints.Constraint:
    """The support of an element."""
    support = variable.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def joint_states(g: FactorGraph) -> dict[str, Tensor]:
    """All joint states by variable, `(states, *shape)`."""
    tables = [
        enumerate_states(v.support, v.shape, torch.float64, torch.device("cpu")).reshape(-1, *v.shape)
        for v in g.variables.values()
    ]
    grid = torch.cartesian_prod(*[torch.arange(len(each)) for each in tables]).reshape(-1, len(tables))
    assert len(grid) <= MOST_STATES, "too many for an oracle"
    return {
        v.name: v.values(v.states(each.long())[grid[:, k]], torch.float64)
        for k, (v, each) in enumerate(zip(g.variables.values(), tables, strict=True))
    }


def log_joint(g: FactorGraph) -> tuple[dict[str, Tensor], Tensor]:
    """All joint states, and their log densities `(states, *batch)`, by the graph's own energy."""
    states = joint_states(g)
    spread = {
        name: value.reshape(len(value), *[1] * len(g.batch_shape), *g[name].shape) for name, value in states.items()
    }
    return states, -g(spread)
