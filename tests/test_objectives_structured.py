"""Objectives with decoding, against enumeration of all answers."""

import pytest
import torch
from objective_cases import LABEL, SPIN, data, distribution
from torch import Tensor, nn

from pyro_ebm import (
    EnergyDistribution,
    GraphDistribution,
    LinearChainCRF,
    NegativeLogLikelihood,
    Perceptron,
    SquareSquare,
    StructuredHinge,
)


def answers(domain: str) -> Tensor:
    if domain == SPIN:
        return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6).reshape(-1, 2, 3)
    return torch.cartesian_prod(*[torch.arange(3)] * 4)


@pytest.mark.parametrize("domain", [SPIN, LABEL])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_against_all_answers(domain: str, batch: tuple[int, ...]) -> None:
    trained, seen = distribution(domain, batch=batch), data(domain, 15, *batch)
    every = answers(domain)
    event = every.dim() - 1
    energies = trained.energy(every.reshape(-1, *[1] * len(batch), *every.shape[1:]))  # (answers, *batch)
    at_data = trained.energy(seen)
    spread = every.reshape(-1, *[1] * (1 + len(batch)), *every.shape[1:])
    hamming = (spread != seen).flatten(-event).sum(-1)  # (answers, N, *batch)
    energies = energies.unsqueeze(1)
    torch.testing.assert_close(Perceptron()(trained, seen)[0], (at_data - energies.amin(0)).mean())
    hinge = (0.7 * hamming - energies).amax(0) + at_data
    torch.testing.assert_close(StructuredHinge(0.7)(trained, seen)[0], hinge.mean())
    wrong = torch.where(hamming == 0, torch.inf, energies).amin(0)
    square = at_data.square() + (1.5 - wrong).clamp(min=0).square()
    torch.testing.assert_close(SquareSquare(1.5)(trained, seen)[0], square.mean())
    assert (hinge > -1e-12).all()


@pytest.mark.parametrize("objective", [Perceptron(), StructuredHinge(), SquareSquare(3.0)])
def test_gradient_by_differences(objective: nn.Module) -> None:
    trained, seen = distribution(LABEL), data(LABEL, 15)
    parameter = next(trained.energy.parameters())
    loss, _ = objective(trained, seen)
    (gradient,) = torch.autograd.grad(loss, parameter)
    direction = torch.randn_like(parameter)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            parameter += sign * 1e-6 * direction
            ends.append(objective(trained, seen)[0])
            parameter -= sign * 1e-6 * direction
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-6)


def test_a_chain_learns_to_label() -> None:
    """The label is that of the sign of the covariate: every loss finds it."""
    covariates = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    labels = (covariates > 0).long()
    for objective in (Perceptron(), StructuredHinge(), NegativeLogLikelihood()):
        weight = nn.Parameter(torch.tensor([0.1, -0.1]))
        pairwise = nn.Parameter(torch.zeros(2, 2))
        optimizer = torch.optim.Adam([weight, pairwise], lr=0.1)
        for _ in range(60):
            crf = LinearChainCRF(covariates.unsqueeze(-1) * weight, pairwise)
            optimizer.zero_grad()
            loss, report = objective(crf, labels)
            loss.backward()
            optimizer.step()
        assert (crf.mode == labels).double().mean() > 0.97
        assert len(report) == 2 or isinstance(objective, NegativeLogLikelihood)


def test_all_ways_to_hold_a_graph_agree() -> None:
    graph = distribution(LABEL).energy
    seen = data(LABEL, 10)
    for objective in (Perceptron(), StructuredHinge(), SquareSquare(), NegativeLogLikelihood()):
        losses = [objective(each, seen)[0] for each in (EnergyDistribution(graph), GraphDistribution(graph))]
        torch.testing.assert_close(*losses)
