"""Log Z in `EnergyDistribution.log_prob`: as a tensor, and as a `Normalizer` object."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import randn
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_ebm import EnergyDistribution, QuadraticEnergy, energy


def precision(*batch: int) -> Tensor:
    root = randn(3, *batch, 3, 3)
    return root @ root.mT + torch.eye(3, dtype=torch.float64)


class QuadratureLogZ:
    """Log Z of a one-dimensional energy, by sums over a fine grid."""

    def __init__(self) -> None:
        self.calls = 0

    def log_normalizer(self, distribution: EnergyDistribution) -> Tensor:
        self.calls += 1
        grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
        log_prob = distribution.unnormalized_log_prob(grid)
        return torch.logsumexp(log_prob, dim=-1) + torch.log(grid[1] - grid[0])


class Quartic(nn.Module):
    """`a x² + b x⁴`, with learned `log a` and `log b`."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([-0.3, -1.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.logs.exp()
        return a * x.square() + b * x.square().square()


# Log Z


def test_a_closed_form_makes_it_a_multivariate_normal() -> None:
    matrix, linear = precision(4).requires_grad_(), randn(8, 3).requires_grad_()
    e = QuadraticEnergy(matrix, linear)
    d = EnergyDistribution(e, log_normalizer=e.log_partition())
    mean = torch.linalg.solve(matrix, linear.expand(4, 3))
    normal = dist.MultivariateNormal(mean, precision_matrix=matrix)
    x = randn(9, 5, 4, 3)
    assert d.is_normalized
    assert torch.allclose(d.log_prob(x), normal.log_prob(x))
    ours = torch.autograd.grad(d.log_prob(x).sum(), [matrix, linear])
    theirs = torch.autograd.grad(normal.log_prob(x).sum(), [matrix, linear])
    for mine, other in zip(ours, theirs, strict=True):
        symmetric = (mine, other) if mine.dim() < 3 else ((mine + mine.mT) / 2, (other + other.mT) / 2)
        assert torch.allclose(*symmetric)


@pytest.mark.parametrize("base", [None, dist.Normal(torch.tensor(0.5, dtype=torch.float64), 2.0)])
def test_a_normalizer_object_gives_the_value_and_the_gradient_of_log_z(base: Distribution | None) -> None:
    net = Quartic()
    normalizer = QuadratureLogZ()
    d = EnergyDistribution(energy(net, ()), base, log_normalizer=normalizer)
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    assert d.is_normalized
    assert torch.trapezoid(d.log_prob(grid).exp(), grid).item() == pytest.approx(1, abs=1e-9)

    x = torch.tensor([0.2, -1.1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(d.log_prob(x).sum(), net.logs)
    for i in range(2):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                net.logs[i] += step
                ends.append(d.log_prob(x).sum())
                net.logs[i] -= step
        assert gradient[i].item() == pytest.approx(float(ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_a_normalizer_object_is_shared_by_expanded_copies() -> None:
    normalizer = QuadratureLogZ()
    d = EnergyDistribution(energy(Quartic(), ()), log_normalizer=normalizer)
    x = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(d.expand((3,)).log_prob(x), d.log_prob(x))
    assert normalizer.calls == 2


# Kullback-Leibler


def test_no_closed_form_of_its_base_is_taken_for_its_own() -> None:
    normal = dist.Normal(0.0, 1.0)
    tilted = EnergyDistribution(energy(lambda x: -2 * x, ()), normal, log_normalizer=torch.tensor(2.0))  # N(2, 1)
    with pytest.raises(NotImplementedError):
        kl_divergence(normal, tilted)

    def model() -> None:
        pyro.sample("z", tilted)

    def guide() -> None:
        pyro.sample("z", dist.Normal(2.0, 1.0))

    svi = SVI(model, guide, pyro.optim.Adam({}), TraceMeanField_ELBO(num_particles=50))
    assert svi.evaluate_loss() == pytest.approx(0, abs=1e-5)  # the guide is exact: no variance

    def far() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    loss = TraceMeanField_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0).loss(model, far)
    assert abs(loss - 2.0) < 4.5 * 2 / math.sqrt(4000)  # log q - log p = 2 - 2x
