"""Where log Z may be left out, and where leaving it out is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ContextNet, harmonic, randn
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Importance, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import DoubleWell, Energy, EnergyDistribution, NeuralEnergy, QuadraticEnergy, energy, factor
from pyro_ebm._core.errors import GuideEnergyError, TwoDensitiesError, UnnormalizedError, UnnormalizedObservationError

pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites:UserWarning")

ELBOS = [Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO]
WAYS_OUT = (
    r"freeze the energy, energy\.requires_grad_\(False\).*log_normalizer=\.\.\..*PersistentWalkers.*NoiseContrastive"
)
DATA = randn(1, 50, 2, dtype=torch.float32)


def network() -> NeuralEnergy:
    return NeuralEnergy(nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0)), (2,))


def no_guide(*_: object) -> None:
    pass


def step(model, guide=no_guide, elbo=Trace_ELBO, *args: object) -> float:
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo(max_plate_nesting=1)).step(*args)


def observed(e: Energy, **settings) -> None:
    with pyro.plate("data", len(DATA)):
        pyro.sample("pixels", EnergyDistribution(e, **settings), obs=DATA)


def latent(e: Energy, base: dist.Distribution | None = None) -> None:
    z = pyro.sample("code", EnergyDistribution(e, base))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(2))


# Learned parameters under SVI


@pytest.mark.parametrize("elbo", ELBOS)
def test_a_learned_energy_of_data_is_refused(elbo) -> None:
    with pytest.raises(UnnormalizedObservationError, match=rf'observed site "pixels".*{WAYS_OUT}'):
        step(observed, no_guide, elbo, network())


@pytest.mark.parametrize("elbo", ELBOS)
def test_a_learned_prior_is_refused(elbo) -> None:
    with pytest.raises(UnnormalizedError, match=rf'latent site "code".*{WAYS_OUT}') as caught:
        step(latent, AutoNormal(latent), elbo, network())
    assert not isinstance(caught.value, UnnormalizedObservationError)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO])
def test_a_differentiable_loss_is_watched_too(elbo) -> None:
    with pytest.raises(UnnormalizedObservationError, match='"pixels"'):
        elbo(max_plate_nesting=1).differentiable_loss(observed, no_guide, network())


def test_the_message_says_what_was_got() -> None:
    with pytest.raises(UnnormalizedError, match=r"depends on 4 learned or sampled tensor\(s\) \(shapes .*, \.\.\.\)"):
        step(observed, no_guide, Trace_ELBO, network())


def test_parameters_from_the_store_are_seen() -> None:
    def by_param() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        observed(scale * energy(harmonic, (2,)))

    def by_module() -> None:
        net = pyro.module("net", nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))
        observed(NeuralEnergy(net, (2,)))

    for model in (by_param, by_module):
        with pytest.raises(UnnormalizedObservationError, match='"pixels"'):
            step(model)


def test_parameters_of_the_base_count_as_well() -> None:
    base = dist.Normal(nn.Parameter(torch.zeros(2)), 1.0).to_event(1)
    with pytest.raises(UnnormalizedError, match=r'"code".*depends on 1 learned .*\(shapes \(2,\)\)'):
        step(latent, AutoNormal(latent), Trace_ELBO, DoubleWell(2), base)


def test_conditional_energies() -> None:
    context = torch.randn(len(DATA), 3)
    with pytest.raises(UnnormalizedObservationError, match='"pixels"'):
        step(observed, no_guide, Trace_ELBO, NeuralEnergy(ContextNet(), (2,), context=context))
    encoded = nn.Linear(3, 3)(context)  # a frozen energy of learned covariates
    conditional = NeuralEnergy(ContextNet(), (2,), context=encoded).requires_grad_(False)
    with pytest.raises(UnnormalizedObservationError, match='"pixels"'):
        step(observed, no_guide, Trace_ELBO, conditional)
    step(observed, no_guide, Trace_ELBO, NeuralEnergy(ContextNet(), (2,), context=context).requires_grad_(False))


def test_an_energy_in_a_guide_is_watched() -> None:
    e = network()

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        pyro.sample("z", EnergyDistribution(e, sampler=lambda d, shape: torch.zeros(d.shape(shape))))

    with pytest.raises(GuideEnergyError, match='"z" of a guide'):
        step(model, guide)


def test_importance_weights_are_watched() -> None:
    guide = AutoNormal(latent)
    guide(DoubleWell(2))
    with pytest.raises(UnnormalizedError, match='"code"'):
        Importance(latent, guide, num_samples=2).run(network())


# Where it passes


def test_frozen_energies_pass() -> None:
    e = network().requires_grad_(False)
    for elbo in ELBOS:
        expected = float(e(DATA).sum())
        assert step(observed, no_guide, elbo, e) == pytest.approx(expected, rel=1e-5)
        pyro.clear_param_store()
        assert math.isfinite(step(latent, AutoNormal(latent), elbo, e))


def test_a_learned_argument_passes() -> None:
    e = DoubleWell(2)
    start = torch.full((2,), 0.3)

    def model() -> None:
        pyro.sample("z", EnergyDistribution(e), obs=2 * pyro.param("z_map", start.clone()))

    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert torch.allclose(2 * pyro.param("z_map"), torch.ones(2), atol=0.02)


def test_what_is_masked_out_passes() -> None:
    e = network()

    def by_handler() -> None:
        with poutine.mask(mask=False):
            observed(e)

    def by_distribution() -> None:
        pyro.sample("pixels", EnergyDistribution(e).expand((50,)).mask(False).to_event(1), obs=DATA)

    for model in (by_handler, by_distribution):
        assert step(model) == 0


def test_outside_of_inference_there_are_gradients() -> None:
    e = network()
    d = EnergyDistribution(e, dist.Normal(torch.zeros(2), 3.0).to_event(1))
    contrast = d.log_prob(DATA).mean() - d.log_prob(DATA.flip(0) + 1).mean()
    contrast.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in list(e.parameters())[:-1])
    with torch.no_grad():
        assert poutine.trace(observed).get_trace(e).log_prob_sum().shape == ()


# What is sampled upstream


def tempered(lnz: bool = False) -> None:
    beta = pyro.sample("beta", dist.Gamma(2.0, 2.0))
    e = QuadraticEnergy(beta[..., None, None] * torch.eye(2))
    pyro.sample("z", EnergyDistribution(e, log_normalizer=e.log_partition() if lnz else None))


def test_an_energy_of_a_sampled_temperature_is_refused() -> None:
    with pytest.raises(UnnormalizedError, match='latent site "z"'):
        NUTS(tempered).setup(0)
    for guide in (AutoNormal(tempered), AutoDelta(tempered)):
        with pytest.raises(UnnormalizedError, match='latent site "z"'):
            step(tempered, guide)

    def data() -> None:
        beta = pyro.sample("beta", dist.Gamma(2.0, 2.0))
        observed(beta * energy(harmonic, (2,)))

    with pytest.raises(UnnormalizedObservationError, match='observed site "pixels"'):
        NUTS(data).setup(0)


def test_with_log_z_a_sampled_temperature_is_fine() -> None:
    step(tempered, AutoNormal(tempered), Trace_ELBO, True)
    kernel = NUTS(tempered)
    kernel.setup(0, True)
    beta, z = torch.tensor(0.7), torch.tensor([0.4, -1.0])
    expected = dist.Gamma(2.0, 2.0).log_prob(beta) + dist.Normal(0.0, beta.rsqrt()).log_prob(z).sum() + beta.log()
    assert torch.allclose(kernel.potential_fn({"beta": beta.log(), "z": z}), -expected)


# Nothing but the sites moves under NUTS


def test_a_learned_energy_is_a_constant_to_nuts() -> None:
    e = QuadraticEnergy(nn.Parameter(torch.tensor([[2.0, 0.5], [0.5, 1.0]])), nn.Parameter(torch.tensor([1.0, 0.0])))
    mcmc = MCMC(NUTS(latent), num_samples=750, warmup_steps=150, disable_progbar=True)
    mcmc.run(e)
    exact = QuadraticEnergy(e.precision.detach() + torch.eye(2), e.linear.detach() + 1)
    draws = mcmc.get_samples()["code"]
    for values, expected in ((draws, exact.mean), ((draws - exact.mean).square(), exact.variance)):
        means = values.reshape(25, 30, 2).mean(1)
        assert ((means.mean(0) - expected).abs() < 5.0 * means.std(0) / 5).all()  # t with 24 degrees of freedom


def test_parameters_from_the_store_are_constants_to_nuts() -> None:
    def model() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        z = pyro.sample("z", EnergyDistribution(scale * energy(harmonic, (2,))))
        factor("tied", scale * energy(harmonic, (2,)), z)
        observed(scale * energy(harmonic, (2,)))

    kernel = NUTS(model)
    kernel.setup(0)
    z = torch.tensor([1.0, 2.0])
    assert torch.allclose(kernel.potential_fn({"z": z}), 4 * harmonic(z) + 2 * harmonic(DATA).sum())


def test_an_energy_that_depends_on_another_site_is_refused_by_nuts() -> None:
    def model() -> None:
        center = pyro.sample("center", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("z", EnergyDistribution(energy(lambda x: harmonic(x - center), (2,))))

    with pytest.raises(UnnormalizedError, match=r'latent site "z".*depends on 1 learned or sampled'):
        NUTS(model).setup(0)


# Learning with log Z


def test_maximum_likelihood_with_a_closed_form() -> None:
    x = 1.7 * torch.randn(500, 1, dtype=torch.float64)

    def model() -> None:
        precision = pyro.param("precision", torch.ones((), dtype=torch.float64), constraint=constraints.positive)
        e = QuadraticEnergy(precision.reshape(1, 1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", EnergyDistribution(e, log_normalizer=e.log_partition()), obs=x)

    svi = SVI(model, no_guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    assert pyro.param("precision").item() == pytest.approx(1 / float(x.square().mean()), rel=1e-3)


def test_learning_a_prior_by_the_elbo() -> None:
    """`z ~ N(0, 1/precision)`, `x ~ N(z, 1)`: with the exact posterior as guide the ELBO is the likelihood."""
    x = math.sqrt(3.0) * torch.randn(500, 1, dtype=torch.float64)
    log_precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model() -> None:
        e = QuadraticEnergy(log_precision.exp().reshape(1, 1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", EnergyDistribution(e, log_normalizer=e.log_partition()))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide() -> None:
        precision = 1 + log_precision.detach().exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / precision, precision.rsqrt()).to_event(1))

    optimizer = torch.optim.Adam([log_precision], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
    for _ in range(400):
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(model, guide).backward()
        optimizer.step()
        schedule.step()
    assert log_precision.exp().item() == pytest.approx(1 / (float(x.square().mean()) - 1), rel=0.03)


class ClosedForm:
    """The closed form as a `Normalizer` object."""

    def log_normalizer(self, distribution: EnergyDistribution) -> Tensor:
        return distribution.energy.log_partition()


@pytest.mark.parametrize("elbo", ELBOS)
def test_with_a_normalizer_everything_passes_with_the_right_gradient(elbo) -> None:
    e = QuadraticEnergy(nn.Parameter(torch.diag(torch.tensor([0.5, 2.0]))), nn.Parameter(torch.tensor([0.2, 0.0])))

    def model() -> None:
        observed(pyro.module("energy", e), log_normalizer=ClosedForm())

    elbo(max_plate_nesting=1).loss_and_grads(model, no_guide)
    moments = len(DATA) * 0.5 * (e.covariance + torch.outer(e.mean, e.mean)).detach()
    expected = 0.5 * DATA.mT @ DATA - moments
    assert torch.allclose(e.precision.grad, expected, atol=1e-3)
    assert torch.allclose(e.linear.grad, len(DATA) * e.mean.detach() - DATA.sum(0), atol=1e-3)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_second_density_on_one_value_is_refused(normalized: bool) -> None:
    e = QuadraticEnergy(torch.eye(2))
    log_z = e.log_partition() if normalized else None

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("again", EnergyDistribution(e, log_normalizer=log_z), obs=z)

    guide = AutoNormal(model)
    with pytest.raises(TwoDensitiesError, match="factor"):
        SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()
