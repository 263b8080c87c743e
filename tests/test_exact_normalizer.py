"""Log Z without error: closed forms, enumeration, quadrature; and maximum likelihood through it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import randn
from torch import Tensor, nn

from pyro_ebm import (
    RBM,
    DistributionEnergy,
    DoubleWell,
    EnergyDistribution,
    Exact,
    FunctionEnergy,
    Ising,
    NegativeLogLikelihood,
    NormalizerError,
    PersistentWalkers,
    QuadraticEnergy,
    spin,
)

DOUBLE = torch.float64


def log_z(p: EnergyDistribution) -> Tensor:
    return Exact().log_normalizer(p)


def test_the_energys_own() -> None:
    root = randn(0, 3, 3)
    energy = QuadraticEnergy(root @ root.mT + torch.eye(3, dtype=DOUBLE), randn(1, 3))
    assert torch.equal(log_z(EnergyDistribution(energy)), energy.log_partition())
    rbm = RBM(5, 3).double()
    assert torch.equal(log_z(EnergyDistribution(rbm)), rbm.log_partition())


def test_enumeration_of_a_batch_with_a_base() -> None:
    field = nn.Parameter(randn(2, 2, 4))
    energy = FunctionEnergy(lambda x: (field * x).sum(-1), event_shape=(4,), support=spin, batch_shape=(2,))
    got = log_z(EnergyDistribution(energy.double()))
    exact = (2 * field.double().cosh()).log().sum(-1)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(got.sum(), field)[0]
    torch.testing.assert_close(gradient, field.tanh().detach(), rtol=1e-6, atol=1e-6)


GRIDS = {
    "normal": dist.Normal(torch.tensor(0.7, dtype=DOUBLE), 0.3),
    "heavy tail": dist.StudentT(torch.tensor(5.0, dtype=DOUBLE)),
    "gamma": dist.Gamma(torch.tensor(2.5, dtype=DOUBLE), torch.tensor(0.8, dtype=DOUBLE)),
    "beta": dist.Beta(torch.tensor(2.0, dtype=DOUBLE), torch.tensor(3.0, dtype=DOUBLE)),
    "two dims": dist.MultivariateNormal(torch.ones(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE) * 0.5 + 0.3),
    "simplex": dist.Dirichlet(torch.tensor([1.5, 2.0, 3.0], dtype=DOUBLE)),
    "batch": dist.Normal(torch.zeros(3, dtype=DOUBLE), torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_quadrature_finds_that_distributions_are_normalised(name: str) -> None:
    distribution = GRIDS[name]
    base = EnergyDistribution(FunctionEnergy(torch.zeros_like, event_shape=()), dist.Normal(0.0, 1.0))
    assert abs(float(log_z(base))) < 1e-6  # single precision
    shift = torch.tensor(0.5, dtype=DOUBLE)
    wrapped = DistributionEnergy(distribution)
    energy = wrapped + FunctionEnergy(
        lambda x: shift.expand(x.shape[: x.dim() - len(wrapped.event_shape)]),
        event_shape=wrapped.event_shape,
        support=wrapped.support,
    )
    got = log_z(EnergyDistribution(energy))
    torch.testing.assert_close(got, torch.full_like(got, -0.5), rtol=0, atol=1e-8)


def test_quadrature_asks_a_base_only_inside_its_support() -> None:
    base = dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE), validate_args=True)
    energy = FunctionEnergy(lambda x: x, event_shape=(), support=base.support)  # Gamma(2, 2), unnormalised
    got = log_z(EnergyDistribution(energy, base))
    assert float(got) == pytest.approx(-2 * math.log(2), abs=1e-6)


def test_an_energy_that_is_not_a_number_is_not_hidden() -> None:
    energy = FunctionEnergy(lambda x: torch.where(x > 0.5, torch.nan, x**2), event_shape=())
    assert bool(log_z(EnergyDistribution(energy)).isnan())


def test_quadrature_of_separated_wells_matches_the_closed_form() -> None:
    well = DoubleWell(dim=1).double()
    tilted = EnergyDistribution(well + 0.0 * well)
    torch.testing.assert_close(log_z(tilted), well.log_partition(), rtol=1e-8, atol=1e-8)


def test_the_gradient_is_that_of_log_z() -> None:
    precision = nn.Parameter(torch.tensor(1.7, dtype=DOUBLE))

    def energy(x: Tensor) -> Tensor:
        return precision * x**2 / 2

    p = EnergyDistribution(FunctionEnergy(energy, event_shape=()), dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
    (gradient,) = torch.autograd.grad(log_z(p), precision)
    assert float(gradient) == pytest.approx(-0.5 / (1 + 1.7), rel=1e-6)


def test_too_large_a_problem_is_refused() -> None:
    with pytest.raises(NormalizerError, match="PersistentWalkers"):
        log_z(EnergyDistribution(FunctionEnergy(lambda x: x.square().sum(-1), event_shape=(3,))))
    with pytest.raises(ValueError, match="scale"):
        Exact(scale=0.0)


def test_maximum_likelihood_through_a_normalizer() -> None:
    pyro.set_rng_seed(0)
    spins = Ising((3, 3), 0.3).sample((50,))["x"]
    coupling = nn.Parameter(torch.tensor(0.1))
    model = Ising((3, 3), coupling)
    exact, _ = NegativeLogLikelihood()(EnergyDistribution(model), spins)
    by_normalizer, report = NegativeLogLikelihood()(EnergyDistribution(model, log_normalizer=Exact()), spins)
    torch.testing.assert_close(by_normalizer, exact)
    assert torch.equal(report["loss"], by_normalizer.detach())
    walkers = PersistentWalkers(4000)
    by_walkers, _ = NegativeLogLikelihood()(EnergyDistribution(model, log_normalizer=walkers), spins)
    assert abs(float((by_walkers - exact).detach())) < 5.2 * float(walkers.standard_error.detach()) + 1e-5
    gradients = [torch.autograd.grad(loss, coupling)[0] for loss in (exact, by_walkers)]
    # The sum of 12 products of neighbours, of standard deviation below 12, over at least 2000 walkers that count.
    assert abs(float(gradients[0] - gradients[1])) < 4 * 12 / math.sqrt(2000)
