"""Small discrete graphs with exact answers, and what a run says of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm import MCMC, FactorGraph, FieldEnergy, IsingEnergy, PottsEnergy, TableEnergy, energy, spin

LATTICES = Path(__file__).parents[2] / "shared" / "data" / "exact_lattice"


def spin_glass(name: str) -> tuple[FactorGraph, dict[str, np.ndarray]]:
    """A spin glass with its exact answers; skips where the data are not there."""
    path = LATTICES / f"spinglass_{name}.npz"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    data = dict(np.load(path))
    across, down, field = (torch.tensor(data[key]).float() for key in ("Jh", "Jv", "h"))
    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=field.shape)
    graph.factor(IsingEnergy(across.flatten()), x[:, :-1], x[:, 1:])
    graph.factor(IsingEnergy(down.flatten()), x[:-1], x[1:])
    graph.factor(FieldEnergy(field.flatten()), x[:])
    return graph, data


def lattice() -> FactorGraph:
    """Spins on a small grid, in a field."""
    torch.manual_seed(0)
    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=(3, 4))
    graph.factor(IsingEnergy(0.5 * torch.randn(9)), x[:, :-1], x[:, 1:])
    graph.factor(IsingEnergy(0.5 * torch.randn(8)), x[:-1], x[1:])
    graph.factor(FieldEnergy(torch.tensor(0.2)), x[:])
    return graph


def various() -> FactorGraph:
    """Labels and spins, with factors over one, two and three of them."""
    torch.manual_seed(1)
    graph = FactorGraph()
    label = graph.variable("label", num_states=3, shape=(2, 3))
    side = graph.variable("side", support=spin, shape=(4,))
    graph.factor(TableEnergy(torch.randn(4, 3, 3), 2), label[:, :-1], label[:, 1:])
    graph.factor(TableEnergy(torch.randn(3, 3)), label[:-1], label[1:])
    graph.factor(IsingEnergy(torch.randn(3)), side[:-1], side[1:])
    three = TableEnergy(
        torch.randn(4, 3, 3, 2),
        3,
        support=[constraints.integer_interval(0, 2), constraints.integer_interval(0, 2), spin],
    )
    graph.factor(three, label[torch.tensor([[0, 1], [1, 2], [4, 5], [0, 5]])], side[:])
    return graph


def batch() -> FactorGraph:
    """Two graphs in one."""
    torch.manual_seed(2)
    graph = FactorGraph()
    x = graph.variable("x", num_states=3, shape=(4,))
    graph.factor(PottsEnergy(torch.tensor([[0.5], [1.5]])), x[:-1], x[1:])
    graph.factor(TableEnergy(torch.randn(3)), x[:1])
    return graph


def free_energy() -> FactorGraph:
    """A restricted Boltzmann machine without its hidden units: one energy over all bits."""
    torch.manual_seed(3)
    weight, bias = torch.randn(6, 5), torch.randn(6)

    def value(v: Tensor) -> Tensor:
        return -(v @ bias) - torch.nn.functional.softplus(v @ weight).sum(-1)

    graph = FactorGraph()
    x = graph.variable("x", support=constraints.boolean, shape=(6,))
    graph.factor(energy(value, event_shape=(6,), support=constraints.boolean), x)
    return graph


def counts() -> FactorGraph:
    """Two counts, by a polynomial of their numbers."""
    graph = FactorGraph()
    x = graph.variable("x", num_states=7, shape=(2,))

    def value(x: Tensor) -> Tensor:
        return (0.2 * (x - 3) ** 2).sum(-1) + 0.05 * x.prod(-1)

    graph.factor(energy(value, event_shape=(2,), support=constraints.integer_interval(0, 6)), x)
    return graph


def known() -> FactorGraph:
    """That of various variables, some of them known: some factors are constants."""
    value = torch.tensor([[2, 0, 1], [1, 1, 0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sides = torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([True, True, False, False])
    return various().condition(label=(value, mask), side=sides)


def known_batch() -> FactorGraph:
    """The same, with three sets of values."""
    values = torch.tensor([[[2, 0, 1], [1, 1, 0]], [[0, 0, 0], [2, 1, 0]], [[1, 2, 2], [0, 0, 0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    return various().condition(label=(values, mask))


GRAPHS = {each.__name__: each for each in (lattice, various, batch, free_energy, counts, known, known_batch)}


def assert_agrees(mcmc: MCMC, graph: FactorGraph, errors: float = 4.0) -> None:
    """Means of all elements, and of the squares of labels, are the exact ones within so many standard errors."""
    exact, diagnostics = graph.marginals(), mcmc.diagnostics()
    for name, draws in mcmc.get_samples().items():
        values = graph[name].values(torch.arange(exact[name].shape[-1])).float()
        for power in (1, 2) if len(values) > 2 else (1,):
            mean = (exact[name] * values**power).sum(-1)
            spread = (exact[name] * values ** (2 * power)).sum(-1) - mean**2
            size = torch.as_tensor(diagnostics[name]["n_eff"]).clamp(max=len(draws))
            error = (spread / size).sqrt()
            assert ((draws.float() ** power).mean(0) - mean).abs().le(errors * error + 1e-6).all(), name


def assert_invariant(kernel: object, graph: FactorGraph, steps: int) -> None:
    """Chains that start at exact draws have the exact marginals after a few steps."""
    chains = 4000
    starts = {name: value.float() for name, value in graph.sample((chains,)).items()}
    mcmc = MCMC(kernel, 1, 0, starts, chains, thinning=steps, disable_progbar=True)
    mcmc.run()
    exact = graph.marginals()
    for name, draws in mcmc.get_samples().items():
        states = torch.nn.functional.one_hot(graph[name].states(draws), exact[name].shape[-1]).float()
        error = (exact[name] * (1 - exact[name]) / chains).sqrt()
        assert ((states.mean(0) - exact[name]).abs() <= 4.5 * error + 1e-6).all(), name


def begin(mcmc: MCMC, blocks: int) -> None:
    """Start a run, and leave it after so many blocks of ticks."""
    target = mcmc._build((), {})
    position = target.initial_points(mcmc.kernel.init_strategy, mcmc.num_chains)
    mcmc._run, mcmc._target = mcmc._make_run(target, position, "no"), target
    for _ in range(blocks):
        mcmc._run.advance()
