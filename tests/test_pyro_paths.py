"""Energy distributions as sites: plates, handlers and predictive draws of Pyro."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ContextNet, harmonic, randn
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import DoubleWell, EnergyDistribution, NeuralEnergy, QuadraticEnergy, energy

STANDARD_ERRORS = 4.5


def refuses(d: EnergyDistribution, sample_shape: torch.Size) -> Tensor:
    """A sampler that must not be called; what it raises is nothing that Pyro would catch."""
    raise KeyboardInterrupt("sampled")


def gaussian(*batch: int) -> QuadraticEnergy:
    root = randn(3, *batch, 2, 2, dtype=torch.float32)
    return QuadraticEnergy(root @ root.mT + torch.eye(2), randn(4, *batch, 2, dtype=torch.float32))


def prior_model() -> Tensor:
    z = pyro.sample("z", EnergyDistribution(gaussian()))
    with pyro.plate("data", 3, dim=-1):
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5))
    return z


def log_prob_of(model, **values: Tensor) -> Tensor:
    return poutine.trace(poutine.condition(model, values)).get_trace().log_prob_sum()


# Plates


def test_a_bare_site() -> None:
    d = EnergyDistribution(gaussian())
    assert pyro.sample("z", d).shape == (2,)
    with poutine.trace():
        assert pyro.sample("z", d, obs=torch.ones(2)).tolist() == [1, 1]


def test_a_plate_expands_the_density() -> None:
    e = gaussian()

    def model() -> Tensor:
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            return pyro.sample("z", EnergyDistribution(e))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 3, 2)
    assert site["fn"].energy is e
    assert torch.equal(site["log_prob"], -e(site["value"]))


def test_plates_line_up_with_the_batch_of_the_energy() -> None:
    e = gaussian(3)

    def model() -> Tensor:
        columns = pyro.plate("columns", 3, dim=-1)
        with pyro.plate("rows", 4, dim=-2), columns:
            first = pyro.sample("first", EnergyDistribution(e))
        with columns:
            second = pyro.sample("second", EnergyDistribution(e).to_event(0))
        with pyro.plate("blocks", 4):
            pyro.sample("third", EnergyDistribution(e).to_event(1))
        return first + second

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["first"]["log_prob"].shape == (4, 3)
    assert trace.nodes["second"]["log_prob"].shape == (3,)
    assert trace.nodes["third"]["log_prob"].shape == (4,)
    assert torch.allclose(trace.nodes["third"]["log_prob"], -e(trace.nodes["third"]["value"]).sum(-1))


def test_a_plate_of_another_size_is_refused() -> None:
    def model() -> None:
        with pyro.plate("data", 5, subsample_size=2):
            pyro.sample("z", EnergyDistribution(gaussian(5)))

    with pytest.raises(ValueError, match="Shape mismatch inside plate"):
        model()


def test_a_subsampled_plate_scales_a_conditional_energy() -> None:
    net, context = ContextNet(), torch.randn(10, 3)
    for parameter in net.parameters():
        parameter.requires_grad_(False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample_size=4) as index:
            e = NeuralEnergy(net, (2,), context=context[index])
            pyro.sample("x", EnergyDistribution(e), obs=x[index])

    x = torch.randn(10, 2)
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    index = trace.nodes["data"]["value"]
    expected = -net(x[index], context[index])
    assert torch.allclose(trace.nodes["x"]["unscaled_log_prob"], expected)
    assert torch.allclose(trace.nodes["x"]["log_prob"], 2.5 * expected)


# Handlers


def test_condition_block_and_replay() -> None:
    z = torch.tensor([0.3, -0.2])
    x = torch.zeros(3)
    expected = -gaussian()(z) + dist.Normal(z.sum(), 0.5).log_prob(x).sum()
    assert torch.allclose(log_prob_of(prior_model, z=z, x=x), expected)

    hidden = poutine.trace(poutine.block(prior_model, hide=["z"])).get_trace()
    assert "z" not in hidden.nodes
    assert "x" in hidden.nodes

    first = poutine.trace(prior_model).get_trace()
    second = poutine.trace(poutine.replay(prior_model, trace=first)).get_trace()
    assert torch.equal(first.nodes["z"]["value"], second.nodes["z"]["value"])


def test_mask_and_scale() -> None:
    z, x = torch.tensor([0.3, -0.2]), torch.zeros(3)
    d = EnergyDistribution(gaussian())
    whole = log_prob_of(prior_model, z=z, x=x)
    assert torch.allclose(log_prob_of(poutine.scale(prior_model, 0.5), z=z, x=x), 0.5 * whole)
    assert log_prob_of(poutine.mask(prior_model, False), z=z, x=x) == 0

    def masked() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("z", d)

    z = torch.randn(3, 2)
    assert torch.allclose(log_prob_of(masked, z=z), d.log_prob(z)[[0, 2]].sum())


def test_do_cuts_the_site_out() -> None:
    z = torch.tensor([5.0, 5.0])
    trace = poutine.trace(poutine.do(prior_model, {"z": z})).get_trace()
    assert abs(float(trace.nodes["x"]["value"].mean()) - 10) < STANDARD_ERRORS * 0.5 / math.sqrt(3)


def test_uncondition_samples_again() -> None:
    def model() -> Tensor:
        return pyro.sample("z", EnergyDistribution(gaussian()), obs=torch.full((2,), 100.0))

    assert (poutine.uncondition(model)() < 50).all()


# Predictive


@pytest.mark.parametrize("parallel", [False, True])
def test_prior_predictive_draws_are_right(parallel: bool) -> None:
    count = 2000 if parallel else 500
    draws = Predictive(prior_model, num_samples=count, parallel=parallel)()
    e = gaussian()
    assert draws["z"].shape[0] == count
    assert draws["x"].shape == (count, 3)
    z, x = draws["z"].reshape(count, 2), draws["x"]
    assert ((z.mean(0) - e.mean).abs() < STANDARD_ERRORS * (e.variance / count).sqrt()).all()
    assert ((z.var(0) / e.variance - 1).abs() < STANDARD_ERRORS * math.sqrt(2 / count)).all()
    variance = e.covariance.sum() + 0.25
    assert ((x.mean(0) - e.mean.sum()).abs() < STANDARD_ERRORS * (variance / count).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < STANDARD_ERRORS * math.sqrt(2 / count)).all()


def test_prior_predictive_draws_of_an_energy_without_exact_ones() -> None:
    def model() -> None:
        pyro.sample("z", EnergyDistribution(energy(harmonic, (1,))))

    z = Predictive(model, num_samples=400, parallel=True)()["z"]
    assert len(z.unique()) == 400
    assert abs(float(z.mean())) < STANDARD_ERRORS / 20
    assert abs(float(z.var()) - 1) < STANDARD_ERRORS * math.sqrt(2 / 400)


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive_uses_the_draws_given_and_makes_none(parallel: bool) -> None:
    def model() -> None:
        z = pyro.sample("z", EnergyDistribution(gaussian(), sampler=refuses))
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("x", dist.Normal(z[..., 0], 1e-3))

    z = torch.randn(20, 1, 2) if parallel else torch.randn(20, 2)
    draws = Predictive(model, {"z": z}, parallel=parallel)()["x"]
    assert torch.allclose(draws, z.reshape(20, 2)[:, :1].expand(20, 3), atol=1e-2)


def test_prior_predictive_of_a_large_discrete_energy_with_a_sampler() -> None:
    def spins(d: EnergyDistribution, sample_shape: torch.Size) -> Tensor:
        return torch.ones(d.shape(sample_shape))

    def model() -> None:
        e = energy(lambda s: s.sum(-1), (40,), support=constraints.boolean)
        pyro.sample("s", EnergyDistribution(e, sampler=spins))

    assert torch.equal(Predictive(model, num_samples=3)()["s"], torch.ones(3, 40))


# Inspection and copies


def test_networks_are_seen_through() -> None:
    """Pyro tracks dependencies by tensors of a class of its own."""
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))

    def model() -> None:
        z = pyro.sample("z", EnergyDistribution(NeuralEnergy(net, (2,)), sampler=refuses))
        pyro.sample(
            "x", EnergyDistribution(NeuralEnergy(ContextNet(), (2,), context=z.repeat(2)[:3])), obs=z.new_zeros(2)
        )

    assert pyro.infer.inspect.get_model_relations(model)["sample_sample"] == {"z": [], "x": ["z"]}


def test_inspection_sees_dependencies_and_makes_no_draws() -> None:
    def model() -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        e = QuadraticEnergy(torch.eye(2), b.expand(2))
        z = pyro.sample("z", EnergyDistribution(e, sampler=refuses))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.zeros(3))

    relations = pyro.infer.inspect.get_model_relations(model)
    assert relations["sample_sample"] == {"b": [], "z": ["b"], "x": ["z"]}
    assert relations["sample_dist"]["z"] == "EnergyDistribution"
    dependencies = pyro.infer.inspect.get_dependencies(model)["prior_dependencies"]
    assert dependencies["z"] == {"z": set(), "b": set()}


class Model(pyro.nn.PyroModule):
    """A module whose prior is made once."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = DoubleWell(2)
        self.prior = EnergyDistribution(self.energy, dist.Normal(torch.zeros(2), 2.0).to_event(1))

    def forward(self) -> Tensor:
        return pyro.sample("z", self.prior.expand((3,)).to_event(1))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_models_and_traces_are_copied_with_their_distributions(how) -> None:
    z = torch.randn(3, 2)
    model = Model()
    assert torch.equal(log_prob_of(how(model), z=z), log_prob_of(model, z=z))
    site = poutine.trace(poutine.condition(model, {"z": z})).get_trace().nodes["z"]
    assert torch.equal(how(site["fn"]).log_prob(z), site["fn"].log_prob(z))
