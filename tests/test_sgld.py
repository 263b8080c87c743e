"""`SGLD`: the bias that theory says, minibatches that are right on average, runs that repeat, and what it refuses."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernel_cases import stage
from models import check_moments, conjugate, data, default_dtype, moments, z_limit
from torch import Tensor

import pyro_ebm.infer.mcmc
from pyro_ebm import (
    MCMC,
    NUTS,
    SGLD,
    BatchingError,
    EnergyDistribution,
    QuadraticEnergy,
    SamplingWarning,
    energy,
    factor,
)
from pyro_ebm.infer.minibatch_target import MinibatchTarget
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.mcmc import sgld
from pyro_ebm.mcmc.minibatch import Subsample
from pyro_ebm.mcmc.run import Run

PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
POTENTIAL = torch.tensor([1.0, -1.0])


def run(kernel: Any, *args: Any, num_samples: int = 20, warmup_steps: int = 10, **options: Any) -> MCMC:
    settings = {"num_chains": 3, "disable_progbar": True, **options}
    mcmc = MCMC(kernel, num_samples, warmup_steps, **settings)
    mcmc.run(*args)
    return mcmc


def draws(mcmc: MCMC, name: str = "x") -> Tensor:
    return mcmc.get_samples(group_by_chain=True)[name]


def same(first: MCMC, second: MCMC, tolerance: float = 0.0) -> None:
    for mine, other in [(first.get_samples(), second.get_samples()), (first.sample_stats(), second.sample_stats())]:
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seed() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)


# Models: `batch` is how much of the data a minibatch has, `None` for all


def by_index(y: Tensor, batch: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=batch) as idx:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[idx])


def by_subsample(y: Tensor, batch: int | None = None) -> None:
    mu, log_scale = (pyro.sample(name, dist.Normal(0.0, 2.0)) for name in ("mu", "log_scale"))
    with pyro.plate("data", len(y), subsample_size=batch):
        pyro.sample("y", dist.Normal(mu, log_scale.exp()), obs=pyro.subsample(y, event_dim=0))


def two_plates(y: Tensor, batch: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    for number, size in enumerate([len(y), len(y) - 1]):
        part = y[:size]
        with pyro.plate(f"data_{number}", size, subsample_size=batch) as idx:
            pyro.sample(f"y_{number}", dist.StudentT(4.0, mu[number], 1.0), obs=part[idx])


def nested(y: Tensor, batch: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    effect = pyro.sample("effect", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    table = y[:, None] * torch.tensor([1.0, -1.0, 0.5], dtype=y.dtype)
    plate, inner = pyro.plate("row", len(y), batch, dim=-2), pyro.plate("column", 3, batch and 2, dim=-1)
    with plate as rows, inner as columns:
        pyro.sample("y", dist.Normal(mu * effect[columns], 1.0), obs=table[rows][:, columns])


def whole_plate_of_latents(y: Tensor, batch: int | None = None) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("effects", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
    with pyro.plate("data", len(y), subsample_size=batch) as idx:
        pyro.sample("y", dist.Normal(z[idx], 1.0), obs=y[idx])


SPRING = energy(lambda w, y: (w - y).square() + 0.1 * w**4, event_shape=[(), ()])


def by_factor(y: Tensor, batch: int | None = None) -> None:
    w = pyro.sample("w", EnergyDistribution(energy(lambda x: x.square(), event_shape=())))
    with pyro.plate("data", len(y), subsample_size=batch) as idx:
        factor("spring", SPRING, w.expand(len(idx)), y[idx])


SUBSAMPLED = [by_index, by_subsample, two_plates, nested, whole_plate_of_latents, by_factor]

# Minibatches


@pytest.mark.parametrize("model", SUBSAMPLED)
def test_minibatches_are_right_on_average(model: Callable[..., None]) -> None:
    """The mean over all minibatches is the whole density, and so is that of the gradient."""
    with default_dtype(torch.float64):
        y = data(1, 5)
        estimate, whole = MinibatchTarget(model, (y, 2), {}), ModelTarget(model, (y,), {})
        assert all(each.subsample_size == 2 and each.size in (3, 4, 5) for each in estimate.subsamples)
        assert len(estimate.subsamples) == (2 if model in (two_plates, nested) else 1)
        position = data(2, 4, whole.raveler.dim)
        choices = [itertools.combinations(range(each.size), 2) for each in estimate.subsamples]
        minibatches = [map(torch.tensor, chosen) for chosen in itertools.product(*choices)]
        values, gradients = zip(*(estimate.log_density(position, *each) for each in minibatches), strict=True)
        assert torch.stack(values).std(0).min() > 0.01
        expected = whole.log_density(position)
        torch.testing.assert_close((torch.stack(values).mean(0), torch.stack(gradients).mean(0)), expected)
        assert estimate.raveler.shapes == whole.raveler.shapes


@pytest.mark.parametrize(("size", "count"), [(6, 2), (4, 3), (4, 1), (4, 2)])
def test_subsets_are_uniform(size: int, count: int) -> None:
    """Every sequence of different indices is as frequent as any other, in any two ticks independently."""
    random, num_draws = torch.Generator().manual_seed(2), 20_000
    subsets = Subsample(size, count).draw((num_draws // 4, 4), random).reshape(num_draws, count)
    assert bool((subsets.sort(-1).values.diff() > 0).all())
    code = (subsets * size ** torch.arange(count)).sum(-1)
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == math.perm(size, count)
    rate = 1 / len(counts)
    deviation = (counts - num_draws * rate).abs().max() / math.sqrt(num_draws * rate * (1 - rate))
    assert float(deviation) < z_limit(len(counts))


@pytest.mark.filterwarnings("ignore::pyro_ebm.SamplingWarning")  # nothing moves, by design
def test_a_tick_has_a_minibatch_of_its_own_common_to_all_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains at one place, with the same noise, stay there: only a minibatch can change what they say of it."""
    noise = sgld.draw_randomness

    def shared(position: Tensor, generator: torch.Generator) -> sgld.Randomness:
        return sgld.Randomness(noise(position[..., :1, :], generator).noise.expand(position.shape))

    monkeypatch.setattr(sgld, "draw_randomness", shared)
    start = {"mu": torch.tensor(0.3)}
    mcmc = run(SGLD(by_index, step_size=1e-16), data(1, 50), 5, initial_params=start)
    mu, lp = draws(mcmc, "mu"), mcmc.sample_stats()["lp"]
    torch.testing.assert_close(mu, torch.full((3, 20), 0.3))
    assert torch.equal(lp, lp[:1].expand_as(lp))
    assert (lp[0].sort().values.diff() > 1e-3).all()


# Right distributions


def test_whole_gradients_have_the_bias_of_theory() -> None:
    """`x ← (I - ε P) x + √(2 ε) ξ` has the stationary covariance `P⁻¹ (I - ε P / 2)⁻¹`."""
    step_size = 0.3
    kernel = SGLD(QuadraticEnergy(PRECISION, POTENTIAL), step_size=step_size, decay=0.0)
    mcmc = run(kernel, num_samples=2000, warmup_steps=100, num_chains=16)
    covariance = torch.linalg.inv(PRECISION @ (torch.eye(2) - 0.5 * step_size * PRECISION))
    mean = torch.linalg.solve(PRECISION, POTENTIAL)
    check_moments(draws(mcmc), mean, covariance.diagonal().sqrt())
    values, errors = moments((draws(mcmc) - mean).prod(-1))
    assert abs(values[0, 0] - covariance[0, 1].item()) < z_limit(1) * errors[0, 0]
    assert (mcmc.sample_stats()["acceptance_rate"] == 1).all()


def test_minibatches_inflate_the_variance_as_theory_says() -> None:
    """With N data of variance one, `x ← (1 - ε P) x + ε (N ȳ_b) + √(2 ε) ξ`, where ȳ_b is the mean of a minibatch.

    Its stationary variance is `(2 + ε V) / (P (2 - ε P))`, `V = N² s² / B (1 - B / N)`: 2 stands for each chain's own
    noise, V for what all chains share, since they see the same minibatches.
    """
    y, batch, num_chains, num_samples = data(1, 40), 4, 8, 20_000
    precision = len(y) + 0.01
    step_size = 0.5 / precision
    kernel = SGLD(by_index, step_size=step_size, decay=0.0)
    mcmc = run(kernel, y, batch, num_samples=num_samples, warmup_steps=50, num_chains=num_chains)
    mu = draws(mcmc, "mu").double()
    memory = 1 - step_size * precision
    scale = 1 / (precision * (2 - step_size * precision))
    shared = step_size * len(y) ** 2 * float(y.var()) / batch * (1 - batch / len(y))
    assert shared > 2
    within, between = 2 * scale, (2 / num_chains + shared) * scale  # chains about their mean, and that mean
    mean = mu.mean(0)
    slowness = (1 + memory**2) / (1 - memory**2)  # of the squares of an autoregression
    for found, expected, number in [
        ((mu - mean).square().sum(0).mean() / (num_chains - 1), within, num_samples * (num_chains - 1)),
        (mean.var(), between, num_samples),
    ]:
        error = expected * math.sqrt(2 * slowness / number)
        assert abs(float(found) - expected) < z_limit(3) * error
    error = math.sqrt(between / num_samples * (1 + memory) / (1 - memory))
    assert abs(float(mean.mean()) - float(y.sum()) / precision) < z_limit(3) * error


def test_an_energy_of_the_data_has_the_stationary_distribution_of_its_chain() -> None:
    """On a grid, where the transition is a mixture of normals, one for each minibatch, and has a fixed point.

    It differs from the posterior by what the steps and the minibatches do.
    """
    y, batch, step_size = torch.tensor([0.5, 1.0, -1.0, 2.0, 0.3, -0.2, 1.5, 2.8]), 2, 0.02
    kernel = SGLD(by_factor, step_size=step_size, decay=0.0)
    mcmc = run(kernel, y, batch, num_samples=40_000, warmup_steps=200, num_chains=1)
    w = torch.linspace(-2.0, 3.0, 501, dtype=torch.float64)
    slopes = 2 * (w[:, None] - y) + 0.4 * w[:, None] ** 3  # of each datum's energy, `(grid, data)`
    minibatches = torch.combinations(torch.arange(len(y)), batch)
    gradient = -2 * w[:, None] - len(y) / batch * slopes[:, minibatches].sum(-1)  # `(grid, minibatches)`
    mean = (w[:, None] + step_size * gradient).unsqueeze(-1)
    transition = (-(w - mean).square() / (4 * step_size)).exp().mean(1)
    transition = torch.linalg.matrix_power(transition / transition.sum(-1, keepdim=True), 2**10)
    potential = w.square() + SPRING(w[:, None], y.double()).sum(-1)
    moments_of = {}
    for name, weight in {"chain": transition[0], "posterior": torch.softmax(-potential, 0)}.items():
        first = float((weight * w).sum())
        moments_of[name] = first, float((weight * (w - first).square()).sum().sqrt())
    check_moments(draws(mcmc, "w"), *moments_of["chain"])
    assert moments_of["chain"][1] > 1.1 * moments_of["posterior"][1]


@pytest.mark.parametrize(("thinning", "compile"), [(1, True), (3, False)])
def test_the_schedule_goes_on_through_the_warmup(thinning: int, compile: bool) -> None:
    kernel = SGLD(QuadraticEnergy(PRECISION, POTENTIAL), step_size=0.1, offset=5.0, decay=0.6)
    mcmc = run(kernel, num_samples=30, warmup_steps=47, thinning=thinning, compile=compile, save_warmup=True)
    step = torch.arange(47 + 30 * thinning)
    schedule = 0.1 * (5.0 + step) ** -0.6
    expected = schedule[47:][thinning - 1 :: thinning].expand(3, -1)
    torch.testing.assert_close(mcmc.sample_stats()["step_size"], expected)
    torch.testing.assert_close(mcmc.warmup_draws()[1]["step_size"], schedule[:47].expand(3, -1))


def test_its_arguments_reach_the_sampler() -> None:
    kernel = SGLD(conjugate, step_size=0.25, offset=3.0, decay=0.5, preconditioned=True, smoothing=0.9, damping=0.1)
    algorithm = kernel.algorithm()
    adaptation = algorithm.adaptation(torch.tensor(0.25), 2)
    found = algorithm.parameters(adaptation, stage(warming_up=False))
    assert [float(each) for each in found] == [0.25, 3.0, 0.5, 1.0, 0.9, pytest.approx(0.1)]
    mcmc = run(kernel, data(1, 5))
    assert mcmc.attrs["kernel"] == "Preconditioned SGLD"
    assert mcmc.attrs["step_size"] == 0.25


def test_an_energy_a_distribution_and_a_model_are_the_same_density() -> None:
    prior = EnergyDistribution(QuadraticEnergy(PRECISION, POTENTIAL))
    targets = [
        SGLD(model, step_size=0.1).target((), {}) for model in (prior, prior.energy, lambda: pyro.sample("x", prior))
    ]
    assert not any(target.subsamples for target in targets)
    first, *others = [target.log_density(data(2, 4, 2)) for target in targets]
    for other in others:
        torch.testing.assert_close(other, first)


# The run


@pytest.mark.parametrize("model", [by_subsample, nested])
def test_compiled_equals_eager_and_seeds_repeat(model: Callable[..., None]) -> None:
    with default_dtype(torch.float64):
        y, runs = data(1, 12), []
        for number, compile in [(5, True), (5, False), (5, False), (6, False)]:
            pyro.set_rng_seed(number)
            kernel = SGLD(model, step_size=0.01, preconditioned=model is nested)
            runs.append(run(kernel, y, 4, compile=compile))
    compiled, eager, again, other = runs
    assert (compiled.attrs["program"], eager.attrs["program"]) == ("C", "eager")
    same(compiled, eager, 1e-8)
    same(eager, again)
    assert not torch.equal(draws(eager, "mu"), draws(other, "mu"))


@pytest.mark.parametrize(
    ("compile", "num_samples", "blocks"), [(True, 300, 1), (True, 300, 3), (False, 20, 1), (False, 20, 4)]
)
def test_a_saved_run_goes_on_to_the_same_draws(
    compile: bool, num_samples: int, blocks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Saved in the warm-up, and among the draws."""
    y, left = data(1, 30), math.inf

    def stop(bar: Any, run: Run) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(pyro_ebm.infer.mcmc, "show_progress", stop)
    monkeypatch.setattr(pyro_ebm.infer.mcmc, "_PROGRESS_SECONDS", -1.0)
    kernel = SGLD(by_index, step_size=0.01)
    whole = run(kernel, y, 5, num_samples=num_samples, compile=compile)
    pyro.set_rng_seed(1)
    left = blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        first = run(kernel, y, 5, num_samples=num_samples, compile=compile)
    torch.save(first.state_dict(), tmp_path / "run.pt")
    left = math.inf
    second = MCMC(kernel, num_samples, 10, num_chains=3, disable_progbar=True, compile=compile)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert (saved["run"]["warmup"]["window"] == 1) == (blocks > 1)
    assert int(saved["run"]["draws"]["transitions"].min()) < num_samples
    second.load_state_dict(saved)
    second.resume(y, 5)
    same(second, whole)


def test_a_model_that_runs_chain_by_chain() -> None:
    def branching(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 1.0 if mu > 0 else 2.0
        with pyro.plate("data", len(y), subsample_size=3) as idx:
            pyro.sample("y", dist.Normal(mu, scale), obs=y[idx])

    with pytest.warns(SamplingWarning, match="chain by chain"):
        mcmc = run(SGLD(branching, step_size=0.01), data(1, 9))
    assert draws(mcmc, "mu").shape == (3, 20)


def test_arviz_has_what_is_not_of_a_minibatch() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * mu)
        pyro.sample("pilot", dist.Normal(mu, 1.0), obs=torch.tensor(0.2))
        with pyro.plate("data", len(y), subsample_size=3) as idx:
            pyro.deterministic("residual", y[idx] - mu)
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[idx])

    found = run(SGLD(model, step_size=0.01), data(1, 9)).to_arviz()
    assert set(found.posterior.data_vars) == {"mu", "twice"}
    assert set(found.observed_data.data_vars) == set(found.log_likelihood.data_vars) == {"pilot"}


@pytest.mark.filterwarnings("ignore::pyro_ebm.SamplingWarning")
def test_a_divergence_says_to_shorten_steps() -> None:
    steep = energy(lambda x: x**4, event_shape=())
    with pytest.warns(SamplingWarning, match="divergent.*shorten step_size"):
        run(SGLD(steep, step_size=10.0, decay=0.0), initial_params={"x": torch.tensor(3.0)})


# What it refuses


def local_latents(y: Tensor) -> None:
    with pyro.plate("data", len(y), subsample_size=2) as idx:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[idx])


def local_latents_one_by_one(y: Tensor) -> None:
    for i in pyro.plate("data", len(y), subsample_size=2):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])


def local_classes(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=2) as idx:
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y[idx])


def global_class(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y), subsample_size=2) as idx:
        pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y[idx])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (local_latents, r'site "z": got a latent site in the subsampled plate "data".*z\[idx\]'),
        (local_latents_one_by_one, r'site "z_0": got a latent site in the subsampled plate "data"'),
        (local_classes, r'site "k": got a latent site in the subsampled plate "data".*MixtureSameFamily'),
        (global_class, r'site "k": got a discrete site.*plate "data".*Drop subsample_size'),
    ],
)
def test_models_that_minibatches_do_not_fit(model: Callable[[Tensor], None], message: str) -> None:
    with pytest.raises(BatchingError, match=message):
        run(SGLD(model, step_size=0.1), data(1, 5))


def test_plates_that_depend_on_the_minibatch() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("rows", len(y), subsample_size=2):
            with pyro.plate(f"row_{i}", y.shape[1], subsample_size=2) as idx:
                pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i, idx])

    with pytest.raises(BatchingError, match=r'plate "row_\d": got a subsample of 2 out of 3, expected one of .*row_0'):
        run(SGLD(model, step_size=0.1), data(1, 9, 3))


def test_other_kernels_refuse_subsampled_plates() -> None:
    with pytest.raises(BatchingError, match=r'plate "data": got a random subsample of 2 out of 5.*SGLD'):
        run(NUTS(by_index), data(1, 5), 2)


@pytest.mark.parametrize(
    ("name", "value"), [("step_size", 0.0), ("offset", 0.0), ("decay", 1.5), ("smoothing", 1.0), ("damping", 0.0)]
)
def test_arguments_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"SGLD: got {name} {value}, expected"):
        SGLD(conjugate, **{"step_size": 0.1, name: value})


@pytest.mark.parametrize("name", ["target_accept_prob", "adapt_step_size", "full_mass"])
def test_what_it_has_no_use_for_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        SGLD(conjugate, step_size=0.1, **{name: 0.5})


def test_it_needs_a_step_size() -> None:
    with pytest.raises(TypeError, match="step_size"):
        SGLD(conjugate)  # type: ignore[call-arg]
