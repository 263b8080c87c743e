"""The probability flow against closed forms: its density, its draws, its gradients, and its place in Pyro."""

import math
import pickle

import pyro
import pytest
import torch
from cases import LevelNet, randn, seeded
from family_cases import MASSES, gaussian, mixture_at, two_modes
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_ebm import (
    DistributionEnergy,
    EnergyShapeError,
    EnergySupportError,
    NeuralTimeConditional,
    ProbabilityFlow,
    energy,
    noise_levels,
    time_conditional,
)

DOUBLE = torch.float64
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=DOUBLE)
LEVELS = noise_levels(0.05, 40.0, 40).double()


def smoothed(sigma: float) -> MultivariateNormal:
    return MultivariateNormal(MEAN, COVARIANCE + sigma**2 * torch.eye(3, dtype=DOUBLE))


def gaussian_flow(**options: object) -> ProbabilityFlow:
    given = {"prior": smoothed(40.0), **options}
    return ProbabilityFlow(gaussian(MEAN, COVARIANCE), LEVELS, **given)  # type: ignore[arg-type]


# The density


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_the_density_of_a_gaussian(tolerance: float) -> None:
    x = smoothed(0.05).sample((50,))
    with torch.no_grad():
        found = gaussian_flow(tolerance=tolerance).log_prob(x)
    error = (found - smoothed(0.05).log_prob(x)).abs().max()
    assert error < 20 * tolerance


def test_the_density_of_two_far_modes() -> None:
    """Between the modes too, where the flow is stiff; errors are in nats."""
    x = torch.linspace(-6, 6, 61, dtype=DOUBLE)
    flow = ProbabilityFlow(two_modes(), LEVELS, prior=mixture_at(LEVELS[0]))
    with torch.no_grad():
        error = (flow.log_prob(x) - mixture_at(LEVELS[-1]).log_prob(x)).abs()
        assert float(error.max()) < 0.005
        finer = ProbabilityFlow(two_modes(), LEVELS, prior=mixture_at(LEVELS[0]), tolerance=1e-6).log_prob(x)
    assert float((finer - mixture_at(LEVELS[-1]).log_prob(x)).abs().max()) < 5e-5


def test_it_is_normalised_whatever_the_energy() -> None:
    """A network's flow integrates to one: on a line, by quadrature."""
    net = seeded(lambda: LevelNet(-1), DOUBLE, 3)
    flow = ProbabilityFlow(NeuralTimeConditional(net, (1,)), noise_levels(0.3, 10.0, 10), tolerance=1e-5)
    grid = torch.linspace(-80, 80, 16_001, dtype=DOUBLE)
    with torch.no_grad():
        density = flow.log_prob(grid[:, None]).exp()
    assert abs(float(torch.trapezoid(density, grid)) - 1) < 2e-3


def test_the_default_prior_is_noise() -> None:
    """A flow keeps divergences: of the smoothed data from the flow's density, that of their ends at the top."""
    count, low = 20_000, smoothed(0.05)
    pyro.set_rng_seed(0)
    x = low.sample((count,))
    with torch.no_grad():
        gaps = low.log_prob(x) - ProbabilityFlow(gaussian(MEAN, COVARIANCE), LEVELS, tolerance=1e-5).log_prob(x)
    noise = MultivariateNormal(torch.zeros_like(MEAN), 40.0**2 * torch.eye(3, dtype=DOUBLE))
    expected = torch.distributions.kl_divergence(smoothed(40.0), noise)
    assert abs(float(gaps.mean() - expected)) < 4 * float(gaps.std()) / math.sqrt(count) + 1e-4


def test_probes_are_unbiased() -> None:
    x, flow = randn(1, 4, 3), gaussian_flow(num_probes=2)
    with torch.no_grad():
        pyro.set_rng_seed(0)
        many = flow.log_prob(x.expand(500, 4, 3))
        exact = gaussian_flow().log_prob(x)
    error = many.std(0) / math.sqrt(500)
    assert bool(((many.mean(0) - exact).abs() < 4 * error + 1e-3).all())
    assert bool((error > 1e-3).all())


def test_gradients_in_the_value_and_the_parameters() -> None:
    x = randn(2, 5, 3).requires_grad_()
    flow = gaussian_flow(tolerance=1e-6)
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    (right,) = torch.autograd.grad(smoothed(0.05).log_prob(x).sum(), x)
    torch.testing.assert_close(score, right, rtol=1e-3, atol=1e-3)

    log_scale = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

    def at(sigma: Tensor) -> DistributionEnergy:
        return DistributionEnergy(Normal(torch.zeros((), dtype=DOUBLE), ((2 * log_scale).exp() + sigma**2).sqrt()))

    value = torch.tensor([0.2, -1.0], dtype=DOUBLE)
    learned = ProbabilityFlow(time_conditional(at, ()), LEVELS, tolerance=1e-6)
    (found,) = torch.autograd.grad(learned.log_prob(value).sum(), log_scale)
    # The noise is of variance h² at the top, not of e^2t + h²: log N(x; 0, h² r) with r = (e^2t + l²) / (e^2t + h²).
    ratio = ((2 * log_scale).exp() + 0.05**2) / ((2 * log_scale).exp() + 40.0**2)
    (expected,) = torch.autograd.grad(Normal(0.0, 40 * ratio.sqrt()).log_prob(value).sum(), log_scale)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# Draws


def test_draws_of_a_gaussian() -> None:
    count = 20_000
    x = gaussian_flow().sample((count,), generator=torch.Generator().manual_seed(0))
    right = smoothed(0.05)
    assert bool(((x.mean(0) - MEAN).abs() < 4 * (right.variance / count).sqrt()).all())
    errors = ((right.variance[:, None] * right.variance + right.covariance_matrix.square()) / count).sqrt()
    assert bool(((torch.cov(x.mT) - right.covariance_matrix).abs() < 4 * errors + 0.01).all())


def test_draws_of_two_far_modes() -> None:
    x = ProbabilityFlow(two_modes(), LEVELS).sample((20_000,), generator=torch.Generator().manual_seed(1))
    assert abs(float((x > 0).double().mean()) - MASSES[1]) < 4 * math.sqrt(MASSES[0] * MASSES[1] / 20_000)
    assert not x.requires_grad


def test_transport_is_the_inverse_of_the_density_s_way() -> None:
    """Quantiles are kept along the flow of a line: noise at quantile q arrives at quantile q."""
    quantiles = torch.tensor([0.01, 0.1, 0.2, 0.5, 0.9, 0.99], dtype=DOUBLE)
    grid = torch.linspace(-200, 200, 400_001, dtype=DOUBLE)
    cdf = torch.cumulative_trapezoid(mixture_at(LEVELS[0]).log_prob(grid).exp(), grid)
    noise = grid[torch.searchsorted(cdf, quantiles)]
    flow = ProbabilityFlow(two_modes(), noise_levels(0.05, 40.0, 400).double())
    with torch.no_grad():
        arrived = flow.transport(noise)
    reached = mixture_at(LEVELS[-1]).cdf(arrived)
    torch.testing.assert_close(reached, quantiles, rtol=0, atol=0.003)


def test_seeds_repeat() -> None:
    flow = gaussian_flow()
    before = torch.random.get_rng_state()
    x, y, z = (flow.sample((5,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)
    assert torch.equal(before, torch.random.get_rng_state())


# As a distribution


def test_shapes_batches_and_dtypes() -> None:
    net = seeded(lambda: LevelNet(2), torch.float32, 0)
    family = NeuralTimeConditional(net, (2,), context=randn(0, 4, 2, dtype=torch.float32))
    flow = ProbabilityFlow(family, noise_levels(0.1, 10.0, 5))
    assert (flow.batch_shape, flow.event_shape) == ((4,), (2,))
    x = flow.sample((3,))
    assert x.shape == (3, 4, 2)
    assert x.dtype == torch.float32
    with torch.no_grad():
        together = flow.log_prob(x)
        assert together.shape == (3, 4)
        assert together.dtype == torch.float32
        assert flow.expand((6, 4)).sample().shape == (6, 4, 2)
        assert flow.expand((6, 4)).log_prob(x[0]).shape == (6, 4)
        for number in range(4):
            alone = NeuralTimeConditional(net, (2,), context=family.context[number])  # type: ignore[index]
            one = ProbabilityFlow(alone, flow.levels).log_prob(x[:, number])
            torch.testing.assert_close(one, together[:, number], rtol=1e-3, atol=2e-3)
        copied = pickle.loads(pickle.dumps(flow))
        torch.testing.assert_close(copied.log_prob(x), together)


def test_a_site_in_a_model() -> None:
    """Pyro's trace of a model with a flow as prior and as likelihood has the exact log joint density."""
    prior = ProbabilityFlow(gaussian(MEAN, COVARIANCE), LEVELS, prior=smoothed(40.0))
    data = smoothed(1.0).sample((6,))

    def model() -> None:
        pyro.sample("z", prior)
        with pyro.plate("data", 6, subsample_size=2) as index:
            pyro.sample("x", prior, obs=data[index])

    trace = pyro.poutine.trace(model).get_trace()
    z, seen = trace.nodes["z"]["value"], trace.nodes["data"]["value"]
    assert z.shape == (3,)
    expected = smoothed(0.05).log_prob(z) + 3 * smoothed(0.05).log_prob(data[seen]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=0.01)


def test_wrong_arguments() -> None:
    family = gaussian(MEAN, COVARIANCE)
    with pytest.raises(ValueError, match="falling"):
        ProbabilityFlow(family, LEVELS.flip(0))
    with pytest.raises(EnergyShapeError, match="to_event"):
        ProbabilityFlow(family, LEVELS, prior=Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="num_probes"):
        ProbabilityFlow(family, LEVELS, num_probes=0)
    with pytest.raises(ValueError, match="tolerance"):
        ProbabilityFlow(family, LEVELS, tolerance=0.0)
    positive = torch.distributions.constraints.positive
    with pytest.raises(EnergySupportError, match="real numbers"):
        ProbabilityFlow(
            time_conditional(lambda _: energy(lambda x: x, (), support=positive), (), support=positive), LEVELS
        )
    with pytest.raises(EnergyShapeError, match="event shape"):
        ProbabilityFlow(family, LEVELS, validate_args=False).log_prob(torch.zeros(5, 2, dtype=DOUBLE))


# The integration


def test_steps_follow_the_tolerance() -> None:
    x, errors = smoothed(0.05).sample((20,)), []
    for tolerance in (1e-3, 1e-8):
        with torch.no_grad():
            found = gaussian_flow(tolerance=tolerance).log_prob(x)
        errors.append(float((found - smoothed(0.05).log_prob(x)).abs().max()))
        assert errors[-1] < 20 * tolerance
    assert errors[1] < errors[0]


def test_the_integration_gives_up() -> None:
    broken = energy(lambda x: (x / 0.0).square().sum(-1), event_shape=(2,))
    with pytest.raises(RuntimeError, match="smooth"):
        ProbabilityFlow(time_conditional(lambda s: broken, (2,)), LEVELS).log_prob(torch.zeros(3, 2, dtype=DOUBLE))
