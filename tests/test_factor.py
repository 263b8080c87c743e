"""`factor` is `pyro.factor` with minus the energy, and keeps watch over log Z."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import harmonic
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.inspect import generate_graph_specification, get_dependencies, get_model_relations
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import NeuralEnergy, QuadraticEnergy, energy, factor
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError, UnnormalizedError

PRECISION = 1.5

attraction = energy(lambda x, y: 0.5 * PRECISION * (x - y).square(), [(), ()])
pull = energy(lambda x: 0.5 * (x - 2).square().sum(-1), (2,))


def pyro_factor(name: str, e, *values: Tensor) -> None:
    pyro.factor(name, -e(*values))


def pair(join=factor) -> None:
    x = pyro.sample("x", dist.Normal(1.0, 1.0))
    y = pyro.sample("y", dist.Normal(-1.0, 2.0))
    join("near", attraction, x, y)


def in_plates(join=factor) -> None:
    center = pyro.sample("center", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 4, dim=-2):
        with pyro.plate("columns", 3, dim=-1), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            join("each", pull, z)
            join("repeated", pull, center)
        with poutine.mask(mask=torch.tensor([[True], [False], [True], [True]])):
            join("rows_alone", attraction, z[..., :1, 0], center[..., 0])


def subsampled(join=factor) -> None:
    with pyro.plate("data", 10, subsample=torch.tensor([1, 3])):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        join("near", attraction, z, torch.ones(2))


# The joint density of `pair`: a Gaussian
JOINT = QuadraticEnergy(
    torch.tensor([[1 + PRECISION, -PRECISION], [-PRECISION, 0.25 + PRECISION]]), torch.tensor([1.0, -0.25])
)


@pytest.mark.parametrize("model", [pair, in_plates, subsampled])
def test_it_equals_pyro_factor_in_traces(model) -> None:
    traces = []
    for join in (factor, pyro_factor):
        pyro.set_rng_seed(1)
        trace = poutine.trace(model).get_trace(join)
        trace.compute_log_prob()
        traces.append(trace)
    ours, theirs = traces
    assert list(ours.nodes) == list(theirs.nodes)
    for name, site in theirs.nodes.items():
        if site["type"] != "sample":
            continue
        mine = ours.nodes[name]
        assert torch.equal(mine["log_prob"], site["log_prob"]), name
        assert mine["value"].shape == site["value"].shape
        assert mine["is_observed"] == site["is_observed"]
        assert mine["infer"] == site["infer"]
        assert mine["cond_indep_stack"] == site["cond_indep_stack"]


@pytest.mark.parametrize("model", [pair, in_plates, subsampled])
def test_graphs_of_the_model_show_it(model) -> None:
    ours, theirs = (get_model_relations(model, (join,)) for join in (factor, pyro_factor))
    for key in ("sample_sample", "plate_sample", "observed"):
        assert ours[key] == theirs[key]
    assert get_dependencies(model, (factor,)) == get_dependencies(model, (pyro_factor,))
    graphs = [generate_graph_specification(relations) for relations in (ours, theirs)]
    assert graphs[0]["edge_list"] == graphs[1]["edge_list"]
    assert graphs[0]["plate_groups"] == graphs[1]["plate_groups"]


def test_rendered() -> None:
    ours, theirs = (pyro.render_model(pair, (join,)).source for join in (factor, pyro_factor))
    assert "x -> near" in ours
    assert ours == theirs


# Inference


def test_it_joins_two_sites_under_nuts() -> None:
    mcmc = MCMC(NUTS(pair), num_samples=900, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    draws = torch.stack([mcmc.get_samples()["x"], mcmc.get_samples()["y"]], -1)
    for values, expected in ((draws, JOINT.mean), ((draws - JOINT.mean).square(), JOINT.variance)):
        means = values.reshape(30, 30, 2).mean(1)  # means of batches that are longer than the autocorrelation
        error = means.std(0) / math.sqrt(30)
        assert ((means.mean(0) - expected).abs() < 5.0 * error).all()  # Student's t with 29 degrees of freedom


@pytest.mark.parametrize("model", [pair, in_plates, subsampled])
@pytest.mark.parametrize("vectorize", [False, True])
def test_it_equals_pyro_factor_under_svi(model, vectorize: bool) -> None:
    fits = []
    for join in (factor, pyro_factor):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = AutoMultivariateNormal(model)
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=vectorize, max_plate_nesting=2)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        losses = [svi.step(join) for _ in range(20)]
        fits.append((losses, {name: value.detach() for name, value in guide.named_parameters()}))
    (losses, parameters), (expected_losses, expected) = fits
    assert losses == expected_losses
    assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_discrete_sites_are_summed_out_exactly() -> None:
    fields, coupling = (0.3, -0.8), 0.7
    bond = energy(lambda s, t: -coupling * (2 * s - 1) * (2 * t - 1), [(), ()], support=constraints.boolean)
    field = [energy(lambda s, h=h: -h * (2 * s - 1), (), support=constraints.boolean) for h in fields]

    @config_enumerate
    def ising() -> None:
        spins = [pyro.sample(f"s{i}", dist.Bernoulli(0.5).mask(False)) for i in range(2)]
        for i, spin in enumerate(spins):
            factor(f"field{i}", field[i], spin)
        factor("bond", bond, *spins)

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(ising, lambda: None)
    terms = [coupling * s * t + fields[0] * s + fields[1] * t for s, t in itertools.product((-1.0, 1.0), repeat=2)]
    assert -loss == pytest.approx(math.log(sum(map(math.exp, terms))), abs=1e-5)


# What it refuses


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r'at factor "f": got function, expected an Energy\..*energy\(fn, event_shape='):
        factor("f", pyro_factor, torch.zeros(()))
    with pytest.raises(TypeError, match=r'at factor "f": got 1 values, expected 2, one for each variable'):
        factor("f", attraction, torch.zeros(()))
    with pytest.raises(EnergyShapeError, match=r'at factor "f": got a value of shape \(3,\), .*event shape \(2,\)'):
        factor("f", pull, torch.zeros(3))
    with pytest.raises(EnergyShapeError, match=r'at factor "f": got batch shapes .*\(3,\), \(4,\), .*broadcast'):
        factor("f", attraction, torch.zeros(3), torch.zeros(4))
    with pytest.raises(EnergyShapeError, match=r"energy returned shape \(5, 2\), expected \(5,\)"):
        factor("f", energy(lambda x: x, (2,)), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="Shape mismatch inside plate"), pyro.plate("data", 3):
        factor("f", pull, torch.zeros(4, 2))


def test_the_batch_of_the_energy_broadcasts_with_the_values() -> None:
    e = QuadraticEnergy(torch.eye(2).expand(3, 2, 2))
    with poutine.trace() as handler, pyro.plate("data", 3):
        factor("f", e, torch.ones(2))
    handler.trace.compute_log_prob()
    assert handler.trace.nodes["f"]["log_prob"].tolist() == [-1, -1, -1]


def _network() -> NeuralEnergy:
    return NeuralEnergy(nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1), nn.Flatten(0)), (2,))


def _with_network(e: NeuralEnergy) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    factor("network", e, z)


def test_learned_parameters_raise_under_svi_until_they_are_frozen() -> None:
    e = _network()
    svi = SVI(_with_network, AutoMultivariateNormal(_with_network), pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(UnnormalizedError, match=r'"network": got an unnormalised energy.*requires_grad_\(False\)'):
        svi.step(e)
    e.requires_grad_(False)
    assert math.isfinite(svi.step(e))


def test_a_sampled_temperature_raises_and_pyro_factor_says_that_it_is_meant() -> None:
    def model(join) -> None:
        beta = pyro.sample("beta", dist.Gamma(2.0, 2.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        join("tempered", beta * energy(harmonic, (2,)), z)

    with pytest.raises(UnnormalizedError, match='"tempered"'):
        NUTS(model).setup(0, factor)
    NUTS(model).setup(0, pyro_factor)


def test_parameters_that_nuts_does_not_move_are_constants() -> None:
    kernel = NUTS(_with_network)
    kernel.setup(0, _network())
    assert set(kernel.initial_params) == {"z"}


def test_a_value_outside_of_the_support() -> None:
    on_positive = energy(lambda x: x, event_shape=(), support=torch.distributions.constraints.positive)
    with pyro.validation_enabled(True), pytest.raises(EnergySupportError, match='at factor "f": got a value outside'):
        factor("f", on_positive, torch.tensor(-1.0))
