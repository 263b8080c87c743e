"""Objectives over finite supports against enumeration."""

import math

import networkx as nx
import pytest
import torch
from cases import randn
from torch import Tensor, nn

from pyro_ebm import (
    ConcreteScoreMatching,
    DiscreteEnergyDiscrepancy,
    EnergyDistribution,
    FactorGraph,
    Ising,
    NegativeLogLikelihood,
    NoiseContrastive,
    Objective,
    PseudoLikelihood,
    RatioMatching,
    TableEnergy,
    energy,
    spin,
)

SPINS = 10
STATES = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * SPINS)


def couplings() -> tuple[Tensor, Tensor]:
    matrix = torch.triu(0.3 * randn(0, SPINS, SPINS), 1)
    return matrix, 0.2 * randn(1, SPINS)


def dense(matrix: Tensor, field: Tensor) -> EnergyDistribution:
    """Spins as a plain energy."""
    return EnergyDistribution(energy(lambda x: -((x @ matrix) * x).sum(-1) - x @ field, field.shape, support=spin))


def wired(matrix: Tensor, field: Tensor) -> EnergyDistribution:
    """The same as a factor graph."""
    graph = nx.complete_graph(SPINS)
    one, other = torch.triu_indices(SPINS, SPINS, 1)
    return EnergyDistribution(Ising(graph, nn.Parameter(matrix[one, other]), nn.Parameter(field)))


def some_data(count: int = 50) -> Tensor:
    return STATES[torch.randint(len(STATES), (count,), generator=torch.Generator().manual_seed(0))]


def flipped(x: Tensor, site: int) -> Tensor:
    return torch.cat([x[..., :site], -x[..., site : site + 1], x[..., site + 1 :]], -1)


def formula(objective: Objective, density: EnergyDistribution, data: Tensor) -> Tensor:
    """The loss from a table of all states' log densities, site by site."""
    total = torch.zeros(()).double()
    for site in range(SPINS):
        ratio = density.log_prob(flipped(data, site)) - density.log_prob(data)
        if isinstance(objective, PseudoLikelihood):
            total = total + torch.nn.functional.softplus(ratio).mean()
        elif isinstance(objective, RatioMatching):
            total = total + (1 / (1 + torch.exp(-ratio))).square().mean()
        else:
            total = total + (torch.exp(2 * ratio) - 2 * torch.exp(-ratio) + 1).mean()
    return total


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching(), ConcreteScoreMatching()])
@pytest.mark.parametrize("build", [dense, wired])
def test_formula_on_ten_spins(objective: Objective, build: object) -> None:
    density, data = build(*couplings()), some_data()  # type: ignore[operator]
    torch.testing.assert_close(objective(density, data)[0], formula(objective, density, data))


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching(), ConcreteScoreMatching()])
def test_a_graph_and_its_energy_have_the_same_gradient(objective: Objective) -> None:
    matrix, field = couplings()
    gradients = []
    for build in (dense, wired):
        leaves = matrix.clone().requires_grad_(), field.clone().requires_grad_()
        density = build(*leaves)
        loss, _ = objective(density, some_data())
        if build is wired:
            own = list(density.energy.parameters())
            gradients.append(torch.autograd.grad(loss, own))
        else:
            by_matrix, by_field = torch.autograd.grad(loss, leaves)
            one, other = torch.triu_indices(SPINS, SPINS, 1)
            gradients.append((by_matrix[one, other], by_field))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching(), ConcreteScoreMatching()])
def test_the_expected_loss_is_least_at_the_truth(objective: Objective) -> None:
    """Over all states, weighted by the truth: the gradient vanishes there, and the loss is larger elsewhere."""
    matrix, field = (each[..., :5] for each in couplings())
    matrix, states = matrix[:5], torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 5)
    truth = dense(matrix, field).log_prob(states).softmax(0)

    def expected(density: EnergyDistribution) -> Tensor:
        losses = torch.stack([objective(density, state.unsqueeze(0))[0] for state in states])
        return (truth * losses).sum()

    leaf = field.clone().requires_grad_()
    loss = expected(dense(matrix, leaf))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.abs().max() < 1e-10
    assert expected(dense(matrix, field + 0.1)) > loss


def test_three_labels_with_higher_factors() -> None:
    graph = FactorGraph()
    x = graph.variable("x", num_states=3, shape=(5,))
    scopes = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 0, 2]])
    graph.factor(TableEnergy(randn(0, 3, 3, 3, 3), arity=3), x[scopes])
    graph.factor(TableEnergy(randn(1, 3, 3), arity=2), x[:-1], x[1:])
    graph.factor(TableEnergy(randn(2, 5, 3), arity=1), x[:])
    data = torch.randint(3, (20, 5), generator=torch.Generator().manual_seed(0))
    as_graph = EnergyDistribution(graph)
    as_function = EnergyDistribution(energy(lambda v: graph(v), (5,), support=graph.support))
    for objective in (PseudoLikelihood(), ConcreteScoreMatching()):
        torch.testing.assert_close(objective(as_graph, data)[0], objective(as_function, data)[0])
    total = torch.zeros(()).double()
    for site in range(5):
        changed = data.unsqueeze(0).repeat(3, 1, 1)
        changed[..., site] = torch.arange(3).unsqueeze(-1)
        conditional = as_graph.log_prob(changed).log_softmax(0)
        total = total - conditional.gather(0, data[:, site].unsqueeze(0)).mean()
    torch.testing.assert_close(PseudoLikelihood()(as_graph, data)[0], total)


def test_factors_over_whole_variables_fall_back_on_evaluation() -> None:
    whole = energy(lambda v: 0.1 * v.sum(-1) ** 2, (20,), support=spin)
    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=(20,))
    graph.factor(whole, x)
    data = torch.ones(3, 20)
    torch.testing.assert_close(
        PseudoLikelihood()(EnergyDistribution(graph), data)[0], PseudoLikelihood()(EnergyDistribution(whole), data)[0]
    )


def test_pseudo_likelihood_is_nearly_as_good_as_maximum_likelihood() -> None:
    """Divergences at N = 2000 on ten spins: with 55 parameters, of some 55 / 2N = .014 nats."""
    matrix, field = couplings()
    truth = dense(matrix, field).log_prob(STATES).log_softmax(0)
    draws = torch.multinomial(truth.exp(), 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    divergences = []
    for objective in (NegativeLogLikelihood(), PseudoLikelihood(), RatioMatching()):
        density = wired(torch.zeros_like(matrix), torch.zeros_like(field))
        if isinstance(objective, NegativeLogLikelihood):
            objective = _ByEnumeration()
        optimizer = torch.optim.LBFGS(density.energy.parameters(), max_iter=60, line_search_fn="strong_wolfe")

        def closure(density: EnergyDistribution = density, objective: Objective = objective) -> Tensor:
            optimizer.zero_grad()
            loss, _ = objective(density, STATES[draws])
            loss.backward()
            return loss

        optimizer.step(closure)
        learned = density.log_prob(STATES).detach().log_softmax(0)
        divergences.append(float((truth.exp() * (truth - learned)).sum()))
    likelihood, pseudo, ratio = divergences
    assert likelihood < 0.03  # 55 parameters: N times twice the divergence is chi-squared with 55, 1e-4 above 102
    assert pseudo < 1.5 * likelihood
    assert ratio < 4 * likelihood


class _ByEnumeration(Objective):
    """Maximum likelihood with log Z over all states, which is faster than elimination on a complete graph."""

    def _loss(self, distribution: object, data: Tensor, generator: object) -> tuple[Tensor, dict[str, Tensor]]:
        log_z = distribution.unnormalized_log_prob(STATES).logsumexp(0)  # type: ignore[attr-defined]
        return log_z - distribution.unnormalized_log_prob(data).mean(), {}  # type: ignore[attr-defined]


def test_likelihood_of_a_graph() -> None:
    density = EnergyDistribution(Ising((2, 3), nn.Parameter(torch.tensor(0.4).double())))
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6).reshape(-1, 2, 3)
    loss, report = NegativeLogLikelihood()(density, states[:5])
    log_z = density.unnormalized_log_prob(states).logsumexp(0)
    torch.testing.assert_close(loss, log_z - density.unnormalized_log_prob(states[:5]).mean())
    torch.testing.assert_close(report["log_partition"], log_z.detach())


def test_noise_is_fitted_to_frequencies() -> None:
    data = torch.tensor([[1.0, -1.0, 1.0]] * 7 + [[-1.0, -1.0, 1.0]]).double()
    objective = NoiseContrastive(num_noise=500)
    objective(EnergyDistribution(energy(lambda x: x.sum(-1), (3,), support=spin)), data)
    expected = torch.tensor([[2, 8], [9, 1], [1, 9]]).double() / 10
    torch.testing.assert_close(objective.noise.frequencies, expected)


def test_discrete_energy_discrepancy_by_enumeration() -> None:
    """The mean over both perturbations, of three spins, as M grows."""
    epsilon, many = 0.2, 2000
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    weight = randn(0, 3)
    density = EnergyDistribution(energy(lambda x: -(x @ weight) + x.prod(-1), (3,), support=spin))
    log_p = density.unnormalized_log_prob(states)
    differ = (states.unsqueeze(0) != states.unsqueeze(1)).sum(-1)
    kernel = epsilon ** differ.double() * (1 - epsilon) ** (3 - differ)
    exact = (-log_p + kernel @ (kernel @ log_p.exp()).log())[[0, 3, 5]].mean()
    objective = DiscreteEnergyDiscrepancy(epsilon, num_perturbations=many, w=0.0)
    losses = torch.stack(
        [objective(density, states[[0, 3, 5]], generator=torch.Generator().manual_seed(n))[0] for n in range(400)]
    )
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - exact) < 4 * error + 5 / many


def test_labels_change_to_all_others_alike() -> None:
    objective = DiscreteEnergyDiscrepancy(0.3)
    generator = torch.Generator().manual_seed(0)
    changed = objective._changed(torch.ones(40_000, dtype=torch.long), 4, generator)
    counts = torch.bincount(changed, minlength=4) / len(changed)
    expected = torch.tensor([0.1, 0.7, 0.1, 0.1])
    assert ((counts - expected).abs() < 4 * (expected * (1 - expected) / len(changed)).sqrt()).all()
