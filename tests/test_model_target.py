"""A Pyro model as a batched density: against Pyro's own potential, and what cannot be batched."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import parametrize, randn
from models import MODELS, ModelCase, check_moments, conjugate, data, default_dtype, mixed_dtypes, unconstrained_by_site
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import MCMC, NUTS, DoubleWell, EnergyDistribution, LinearChainCRF, NeuralEnergy, energy
from pyro_ebm._core.errors import (
    BatchingError,
    EnergyShapeError,
    SamplingWarning,
    UnnormalizedError,
    UnnormalizedObservationError,
)
from pyro_ebm._core.program import CompiledFunction, build_program
from pyro_ebm._core.program.program import CProgram
from pyro_ebm.infer.model_target import ModelTarget

CHAINS = 7


def build(case: ModelCase) -> ModelTarget:
    return ModelTarget(case.make(), case.arguments(), case.keywords())


def random_position(target: ModelTarget, chains: int = CHAINS) -> Tensor:
    return torch.empty(chains, target.raveler.dim, dtype=target.like.dtype).uniform_(-1.5, 1.5)


def pyro_oracle(case: ModelCase) -> Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """Log density and constrained values by Pyro's own machinery, one chain at a time."""
    _, potential, transforms, _ = initialize_model(
        case.make(), model_args=case.arguments(), model_kwargs=case.keywords()
    )

    def oracle(free: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return -potential(free), {name: transforms[name].inv(value) for name, value in free.items()}

    return oracle


# -- the density -----------------------------------------------------------------------------------------------------


@parametrize(MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_density_gradient_and_values_are_those_of_pyro(case: ModelCase, dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        target = build(case)
        assert {name: tuple(site.shape) for name, site in target.structure.latents.items()} == case.latents
        assert target.like.dtype == dtype
        position = random_position(target)
        value, gradient = target.log_density(position)
        constrained = target.constrain(position)
        oracle = case.oracle or pyro_oracle(case)
        # Sums of tens of terms, each rounded: their order differs.
        tolerance = 200 * torch.finfo(dtype).eps
        for chain in range(CHAINS):
            leaves = {n: u.clone().requires_grad_() for n, u in target.raveler.unravel(position[chain]).items()}
            expected, values = oracle(leaves)
            slopes = torch.autograd.grad(expected, list(leaves.values()))
            slope = target.raveler.ravel(dict(zip(leaves, slopes, strict=True)))
            scale = 1 + expected.abs().item()
            torch.testing.assert_close(value[chain], expected.detach(), rtol=tolerance, atol=tolerance * scale)
            size = 1 + slope.abs().max().item()
            torch.testing.assert_close(gradient[chain], slope, rtol=tolerance, atol=tolerance * size)
            for name, expected_value in values.items():
                torch.testing.assert_close(constrained[name][chain], expected_value.detach())
    assert not value.requires_grad
    assert not gradient.requires_grad


@parametrize(MODELS)
def test_one_chain_is_a_row_of_many(case: ModelCase) -> None:
    with default_dtype(torch.float64):
        target = build(case)
        position = random_position(target)
        values, gradients = target.log_density(position)
        for chain in (0, CHAINS - 1):
            value, gradient = target.log_density(position[chain : chain + 1])
            torch.testing.assert_close(value[0], values[chain])
            torch.testing.assert_close(gradient[0], gradients[chain])


@parametrize(MODELS)
def test_leading_dims_of_constrained_values(case: ModelCase) -> None:
    target = build(case)
    position = random_position(target, 6)
    flat = target.constrain(position)
    for lead in [(), (6,), (2, 3)]:
        for name, value in target.constrain(position.reshape(*lead, -1) if lead else position[0]).items():
            assert value.shape == (*lead, *case.latents[name])
            torch.testing.assert_close(value, flat[name].reshape(value.shape) if lead else flat[name][0])


@parametrize([case for case in MODELS if case.oracle is None])
def test_constrained_values_lie_in_the_support_and_map_back(case: ModelCase) -> None:
    with default_dtype(torch.float64):
        target = build(case)
        position = random_position(target)
        values = target.constrain(position)
        for name, site in target.structure.latents.items():
            assert site.support.check(values[name]).all(), name
        torch.testing.assert_close(unconstrained_by_site(target, values), position)


def test_draws_beyond_a_chunk_are_constrained_alike() -> None:
    (case,) = (case for case in MODELS if case.name == "moving support")
    target = build(case)
    position = random_position(target, 600)
    whole = target.constrain(position)
    torch.testing.assert_close(target.constrain(position[590:])["x"], whole["x"][590:])


def test_dtypes_of_sites_are_kept() -> None:
    y = torch.tensor(0.3, dtype=torch.float64)
    target = ModelTarget(mixed_dtypes, (y,), {})
    assert target.like.dtype == torch.float64
    position = random_position(target)
    values = target.constrain(position)
    assert values["single"].dtype == torch.float32
    assert values["double"].dtype == torch.float64
    value, gradient = target.log_density(position)
    assert value.dtype == gradient.dtype == torch.float64
    single, log_double = position[:, :2], position[:, 2]
    expected = (
        torch.distributions.Normal(0.0, 1.0).log_prob(single).sum(-1)
        + torch.distributions.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0).log_prob(log_double.exp())
        + log_double
        + torch.distributions.Normal(single.sum(-1), log_double.exp()).log_prob(y)
    )
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)  # the first site is in single precision


def test_a_chain_without_a_density_leaves_the_others_alone() -> None:
    """The others agree to the last bit or so with a batch that has no such chain."""

    def model() -> None:
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
        covariance = torch.eye(2) + r * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=torch.ones(2))

    target = ModelTarget(model, (), {})
    good = torch.tensor([[-0.2], [0.5]])
    bad = torch.tensor([[-0.2], [3.0], [0.5]])  # with r = 3 the covariance is not positive definite
    value, gradient = target.log_density(bad)
    assert not value[1].isfinite()
    expected, slope = target.log_density(good)
    torch.testing.assert_close(value[[0, 2]], expected)
    torch.testing.assert_close(gradient[[0, 2]], slope)


# -- what a model is not asked to do ---------------------------------------------------------------------------------


@parametrize(MODELS)
def test_no_site_is_sampled(case: ModelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("sampled")

    monkeypatch.setattr(TorchDistributionMixin, "__call__", refuse)
    monkeypatch.setattr(EnergyDistribution, "sample", refuse)
    target = build(case)
    position = target.initial_points(init_to_uniform, 3)
    target.log_density(position)
    target.pointwise(target.constrain(position))


class Unsampled(dist.Normal):
    """A normal that only has a density."""

    def sample(self, sample_shape: Any = None) -> Tensor:
        raise AssertionError("sampled")

    rsample = sample


def unsampled_energy(*args: Any) -> Tensor:
    raise AssertionError("sampled")


@pytest.mark.parametrize(
    "prior",
    [Unsampled(0.0, 1.0), EnergyDistribution(DoubleWell(dim=1), sampler=unsampled_energy)],
    ids=["distribution", "energy"],
)
def test_a_distribution_that_cannot_sample_is_enough(prior: Any) -> None:
    def model() -> None:
        with pyro.plate("items", 3):
            pyro.sample("z", prior)

    target = ModelTarget(model, (), {})
    value, _ = target.log_density(target.initial_points(init_to_uniform, 4))
    assert value.isfinite().all()


def test_the_model_runs_a_few_times_and_then_once_for_all_chains() -> None:
    runs = 0

    def model(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        conjugate(x)

    target = ModelTarget(model, (data(1, 6),), {})
    assert runs <= 5
    runs = 0
    target.log_density(random_position(target, 50))
    assert runs == 1
    target.constrain(random_position(target, 50))
    assert runs == 1


@parametrize(MODELS)
def test_outer_handlers_see_nothing(case: ModelCase) -> None:
    with poutine.trace() as outer:
        target = build(case)
        position = target.initial_points(init_to_uniform, 2)
        target.log_density(position)
        target.pointwise(target.constrain(position))
    assert list(outer.trace.nodes) == []


def test_the_user_random_state_is_not_what_the_density_depends_on() -> None:
    position = torch.tensor([[0.3], [-1.0]])
    values = []
    for number in (1, 2):
        pyro.set_rng_seed(number)
        values.append(ModelTarget(conjugate, (torch.ones(3),), {}).log_density(position)[0])
    assert torch.equal(*values)


# -- structure -------------------------------------------------------------------------------------------------------


def structure(name: str) -> Any:
    (case,) = (case for case in MODELS if case.name == name)
    return build(case).structure


def test_dims_come_from_plates() -> None:
    nested = structure("nested plates")
    assert nested.plates == {"group": 3, "unit": 4}
    assert nested.latents["mu"].dims == ()
    assert nested.latents["group_effect"].dims == ("group", None)
    assert nested.latents["scale"].dims == ("group", "unit")
    assert nested.observed_dims == {"y": ("group", "unit")}
    assert structure("neural prior").latents["z"].dims == ("items",)
    assert structure("sequential plates").plates == {}


def test_observed_sites_are_data_alone() -> None:
    assert set(structure("factors").observed) == set()
    schools = structure("eight schools")
    assert set(schools.observed) == {"y"}
    assert schools.deterministics == {"theta": ("school",)}
    reparametrised = structure("reparametrised")
    assert set(reparametrised.observed) == {"y"}
    assert reparametrised.deterministics == {"theta": ("data",), "phi": ("data",)}


def test_unnormalised_data_are_marked() -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("energy", EnergyDistribution(DoubleWell(dim=1)), obs=torch.zeros(1))
        pyro.sample("normal", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    assert ModelTarget(model, (), {}).structure.unnormalized == ["energy"]


# -- what cannot be batched ------------------------------------------------------------------------------------------


def observe(loc: Any) -> None:
    pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))


def latent(name: str = "z") -> Tensor:
    return pyro.sample(name, dist.Normal(0.0, 1.0))


def endless() -> None:
    pyro.sample("count", dist.Poisson(2.0))
    latent()


def subsampled() -> None:
    z = latent()
    with pyro.plate("minibatch", 10, subsample_size=3) as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(10)[index])


def without_latents() -> None:
    observe(0.0)


def sites_that_come_and_go() -> None:
    if latent().abs() > 1e-6:
        latent("extra")


def shapes_that_change() -> None:
    size = 3 if latent().abs() > 1e-6 else 2
    pyro.sample("extra", dist.Normal(0.0, 1.0).expand([size]).to_event(1))


def branch() -> None:
    z = latent()
    if z > 0.3:  # here is the branch
        observe(1.0)
    else:
        observe(0.0)


def item() -> None:
    z = latent()
    loc = 2.0 * z.item()  # here is the item
    observe(loc)


def numpy_call() -> None:
    z = latent()
    loc = float(np.exp(z.detach().numpy()))  # here is the call
    observe(loc)


def boolean_index() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    loc = z[z > 0.0].sum()  # here is the index
    observe(loc)


def random_likelihood() -> None:
    observe(latent() + torch.randn(()))


def random_factor_of_a_site() -> None:
    observe(latent() * torch.randn(()))


def numpy_numbers() -> None:
    observe(latent() * np.random.randn())  # noqa: NPY002  (what users write)


def random_deterministic() -> None:
    z = latent()
    pyro.deterministic("noise", z + torch.randn(()))  # here is the noise
    observe(z)


dropout_layer = nn.Dropout(0.5)


def dropout() -> None:
    observe(dropout_layer(pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))).sum())


def energy_of_a_latent() -> None:
    temperature = pyro.sample("temperature", dist.HalfNormal(1.0))
    pyro.sample("z", EnergyDistribution(energy(lambda x: x**4 / temperature, event_shape=())))


def observed_energy_of_a_latent() -> None:
    temperature = pyro.sample("temperature", dist.HalfNormal(1.0))
    quartic = EnergyDistribution(energy(lambda x: x**4 / temperature, event_shape=()))
    pyro.sample("x", quartic, obs=torch.tensor(0.3))


def no_bijection() -> None:
    pyro.sample("z", dist.ImproperUniform(constraints.symmetric, (), (2, 2)))


REFUSED: list[tuple[Callable[[], None], type[Exception], list[str]]] = [
    (endless, BatchingError, ['site "count"', "discrete", "Poisson", "Sum it out"]),
    (subsampled, BatchingError, ['plate "minibatch"', "3 out of 10", "subsample_size"]),
    (without_latents, BatchingError, ["without latent sites", "at least one"]),
    (sites_that_come_and_go, BatchingError, ['site "extra"', "fixed set of sites"]),
    (shapes_that_change, BatchingError, ['site "extra"', "fixed set of sites"]),
    (random_likelihood, BatchingError, ['site "x"', "random numbers", "pass them as arguments"]),
    (random_factor_of_a_site, BatchingError, ['site "x"', "random numbers", "pass them as arguments"]),
    (numpy_numbers, BatchingError, ['site "x"', "random numbers", "pass them as arguments"]),
    (random_deterministic, BatchingError, ['after site "z"', "# here is the noise", "random"]),
    (dropout, BatchingError, ['site "x"', "random numbers", "eval mode"]),
    (energy_of_a_latent, UnnormalizedError, ['latent site "z"', "log Z", "log_normalizer"]),
    (observed_energy_of_a_latent, UnnormalizedObservationError, ['observed site "x"', "log Z", "log_normalizer"]),
    (no_bijection, ValueError, ['site "z"', "no bijection", "biject_to.register"]),
]


@pytest.mark.parametrize(("model", "error", "words"), REFUSED, ids=[model.__name__ for model, *_ in REFUSED])
def test_what_cannot_be_batched_is_named_with_a_way_out(
    model: Callable[[], None], error: type[Exception], words: list[str]
) -> None:
    for number in range(3):  # whatever the random point at which the model is looked at
        pyro.set_rng_seed(number)
        with pytest.raises(error) as caught:
            ModelTarget(model, (), {})
        for word in words:
            assert word in str(caught.value), str(caught.value)


CHAIN_BY_CHAIN: list[tuple[Callable[[], None], list[str]]] = [
    (branch, ['after site "z"', "if z > 0.3:  # here is the branch", "torch.where"]),
    (item, ['after site "z"', "loc = 2.0 * z.item()  # here is the item"]),
    (numpy_call, ['after site "z"', "# here is the call", "NumPy"]),
    (boolean_index, ['after site "z"', "# here is the index", "boolean-mask"]),
]


@pytest.mark.parametrize(("model", "words"), CHAIN_BY_CHAIN, ids=[model.__name__ for model, _ in CHAIN_BY_CHAIN])
def test_what_vmap_cannot_do_is_named_and_done_chain_by_chain(model: Callable[[], None], words: list[str]) -> None:
    target = ModelTarget(model, (), {})
    for word in [*words, "chain by chain"]:
        assert word in str(target.concern), target.concern
    position = randn(1, 3, target.raveler.dim).float()
    value, gradient = target.log_density(position)
    for chain in range(3):
        trace = poutine.trace(poutine.condition(model, target.constrain(position[chain]))).get_trace()
        torch.testing.assert_close(value[chain], trace.log_prob_sum())
    assert gradient.shape == position.shape
    assert torch.isfinite(gradient).all()


def filled_in() -> None:
    z, y = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)), torch.tensor([0.3, -1.0, 2.0])
    path, level = torch.zeros(4), torch.full_like(y, 2.0)
    for t in range(3):
        path[t + 1] = 0.5 * path[t] + z[t]
        level[t] += path[t].exp()
    pyro.deterministic("path", path)
    pyro.sample("y", dist.Normal(path[1:], level).to_event(1), obs=y)


def ordered() -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    cuts = pyro.sample("cuts", dist.Normal(torch.zeros(2), 1.0).to_event(1)).exp().cumsum(-1)
    x = torch.tensor([0.1, -1.0, 2.0])
    with pyro.plate("data", 3):
        pyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=torch.tensor([0, 2, 1]))


def counted() -> None:
    logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Multinomial(5, logits=logits), obs=torch.tensor([[1.0, 4.0, 0.0], [0.0, 5.0, 0.0]]))


def masked() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    rest = z.clone()
    rest[z[:, 0] > 0] = 1
    rest[z < -1] = -2.5
    pyro.factor("rest", -rest.square().sum())


@pytest.mark.parametrize("model", [filled_in, ordered, counted, masked])
def test_values_may_be_written_into_new_tensors(model: Callable[[], None]) -> None:
    target = ModelTarget(model, (), {})
    assert target.concern is None
    position = randn(1, 3, target.raveler.dim).float()
    value, gradient = target.log_density(position)
    by_chain, gradient_by_chain = target._density_by_chain(position)
    torch.testing.assert_close(value, by_chain)
    torch.testing.assert_close(gradient, gradient_by_chain)
    if model is filled_in:
        assert target.pointwise(target.constrain(position))[0]["path"].shape == (3, 4)
    program, reasons = build_program(lambda c, x, k: (c, target.log_density(x)), (), position, (), patient=False)
    assert program.rung == "C", reasons


def test_a_branching_model_is_sampled_chain_by_chain() -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(branch), num_samples=300, warmup_steps=100, num_chains=4, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="chain by chain") as seen:
        mcmc.run()
    assert seen[0].filename == __file__
    # The prior, weighted by one of two likelihoods on each side of the branch.
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z.square() - 0.5 * (1 - (z > 0.3).double()).square())
    mean = float((weight * z).sum() / weight.sum())
    check_moments(
        mcmc.get_samples(group_by_chain=True)["z"], mean, float((weight * (z - mean) ** 2).sum() / weight.sum()) ** 0.5
    )


def mixture_of_two(data: Tensor) -> None:
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        label = pyro.sample("label", dist.Bernoulli(weight))
        pyro.sample("x", dist.Normal(loc + 3 * label, 1.0), obs=data)


def chain_of_states(data: Tensor) -> None:
    stay = pyro.sample("stay", dist.Beta(3.0, 1.0))
    state = torch.tensor(0)
    for t in pyro.markov(range(len(data))):
        probs = torch.where(state == 0, 1 - stay, stay)
        state = pyro.sample(f"state{t}", dist.Bernoulli(probs)).long()
        pyro.sample(f"x{t}", dist.Normal(2.0 * state, 1.0), obs=data[t])


@pytest.mark.parametrize("model", [mixture_of_two, chain_of_states])
def test_discrete_sites_are_summed_out(model: Callable[[Tensor], None]) -> None:
    """Against a sum over all their values, one by one."""
    data = torch.tensor([0.3, 2.5, 3.4, -0.8])
    target = ModelTarget(model, (data,), {})
    names = [f"state{t}" for t in range(4)] if model is chain_of_states else ["label"]
    assert target.structure.enumerated == names
    position = 0.5 * randn(2, 5, target.raveler.dim).float()
    value, gradient = target.log_density(position)
    for chain in range(5):
        free = position[chain].clone().requires_grad_()
        sites = target.constrain(free)
        total = []
        for bits in itertools.product([0.0, 1.0], repeat=4):
            labels = {"label": torch.tensor(bits)}
            if model is chain_of_states:
                labels = {f"state{t}": torch.tensor(bit) for t, bit in enumerate(bits)}
            trace = poutine.trace(poutine.condition(model, {**sites, **labels})).get_trace(data)
            total.append(trace.log_prob_sum())
        jacobian = sum(
            (
                site.transform.log_abs_det_jacobian(u, sites[name]).sum()
                for (name, site), u in zip(
                    target.structure.latents.items(), target.raveler.unravel(free).values(), strict=True
                )
            ),
            torch.zeros(()),
        )
        expected = torch.stack(total).logsumexp(0) + jacobian
        torch.testing.assert_close(value[chain], expected.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[chain], torch.autograd.grad(expected, free)[0], rtol=1e-3, atol=1e-4)


def test_a_long_hidden_markov_model_is_one_program() -> None:
    """Against the forward algorithm; its program is among those that are built and called as long ones are."""
    observed = torch.randn(50, dtype=torch.float64)

    def model() -> None:
        stay = pyro.sample("stay", dist.Beta(torch.tensor(3.0, dtype=torch.float64), 1.0))
        means = pyro.sample("means", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        state = torch.tensor(0)
        for t in pyro.markov(range(50)):
            state = pyro.sample(f"state{t}", dist.Bernoulli(torch.where(state == 0, 1 - stay, stay))).long()
            pyro.sample(f"x{t}", dist.Normal(means[state], 1.0), obs=observed[t])

    def log_density(position: Tensor) -> Tensor:
        stay, means = position[..., 0].sigmoid(), position[..., 1:]
        rows = torch.stack([torch.stack([stay, 1 - stay], -1), torch.stack([1 - stay, stay], -1)], -2).log()
        emitted = dist.Normal(means.unsqueeze(-2), 1.0).log_prob(observed.unsqueeze(-1))
        hmm = LinearChainCRF.from_hmm(rows[..., 0, :], rows.unsqueeze(-3), emitted)
        prior = dist.Beta(3.0, 1.0).log_prob(stay) + dist.Normal(0.0, 1.0).log_prob(means).sum(-1)
        return hmm.log_partition() + prior + stay.log() + (1 - stay).log()

    target = ModelTarget(model, (), {})
    position = randn(3, 4, 3).requires_grad_()
    compiled = CompiledFunction(target.log_density, position.detach())
    assert isinstance(compiled._program, CProgram)
    assert compiled._program.is_long
    value, gradient = compiled(position.detach())
    expected = log_density(position)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), position)[0])


def test_log_likelihoods_with_discrete_sites_summed_out() -> None:
    data = torch.tensor([[0.3, 2.5, 3.4], [-0.8, 0.1, 5.0]])

    def model() -> None:
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        loc = pyro.deterministic("loc", pyro.sample("raw", dist.Normal(0.0, 1.0)) + 1)
        switch = pyro.sample("switch", dist.Bernoulli(0.3))
        pyro.sample("alone", dist.Normal(loc, 1.0), obs=torch.tensor(0.5))
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            label = pyro.sample("label", dist.Bernoulli(weight))
            pyro.deterministic("own", loc + 3 * label)
            pyro.deterministic("share", (0.0 * loc + label).mean())  # of the shape of one that is fixed
            pyro.sample("x", dist.Normal(loc + 3 * label, 1.0), obs=data)
            pyro.sample("across", dist.Normal(switch, 1.0), obs=data)
        colour = pyro.sample("colour", dist.Bernoulli(weight))
        pyro.sample("bare", dist.Normal(colour, 1.0), obs=data[0])  # dims outside of plates
        first = pyro.sample("first", dist.Bernoulli(weight))
        pyro.sample("y1", dist.Normal(first, 1.0), obs=torch.tensor(0.2))
        second = pyro.sample("second", dist.Bernoulli(0.2 + 0.5 * first))
        pyro.sample("y2", dist.Normal(second, 1.0), obs=torch.tensor(0.4))

    target = ModelTarget(model, (), {})
    values = {"weight": torch.tensor([0.2, 0.7]), "raw": torch.tensor([-0.3, 0.4])}
    deterministics, log_likelihood = target.pointwise(values)
    assert deterministics.keys() == {"loc"}
    assert log_likelihood.keys() == {"alone", "x"}  # others have none of their own
    weight, loc = values["weight"].view(2, 1, 1), (values["raw"] + 1).view(2, 1, 1)
    mixture = torch.logaddexp(
        (1 - weight).log() + dist.Normal(loc, 1.0).log_prob(data),
        weight.log() + dist.Normal(loc + 3, 1.0).log_prob(data),
    )
    torch.testing.assert_close(log_likelihood["x"], mixture)
    torch.testing.assert_close(log_likelihood["alone"], dist.Normal(loc.flatten(), 1.0).log_prob(torch.tensor(0.5)))


def test_nothing_of_pyro_stays_patched() -> None:
    before = pyro.ops.special._SafeLog
    ModelTarget(mixture_of_two, (torch.zeros(2),), {})
    assert pyro.ops.special._SafeLog is before


def test_the_line_of_the_model_is_given() -> None:
    source, first = inspect.getsourcelines(branch)
    (offset,) = (index for index, line in enumerate(source) if "here is the branch" in line)
    assert f"test_model_target.py, line {first + offset}: " in str(ModelTarget(branch, (), {}).concern)


def test_dropout_in_eval_mode_is_no_obstacle() -> None:
    layer = nn.Dropout(0.5).eval()

    def model() -> None:
        observe(layer(latent()))

    ModelTarget(model, (), {})


def test_errors_of_the_model_itself_pass_through() -> None:
    def model() -> None:
        latent()
        raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        ModelTarget(model, (), {})


def test_an_energy_that_keeps_a_dim_is_named_by_its_site() -> None:
    prior = EnergyDistribution(NeuralEnergy(nn.Linear(3, 1), (3,)).requires_grad_(False))
    with pytest.raises(EnergyShapeError, match=r'at site "zz": .*energy returned shape \(1, 1\), expected \(1,\)'):
        ModelTarget(lambda: pyro.sample("zz", prior), (), {})
