"""A run: its answers, its counts, that it can be repeated, saved and interrupted, and what a lost chain does to it."""

import copy
import io
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz as az
import pytest
import torch
from cases import parametrize, randn
from kernel_cases import (
    CHEES,
    HMC_NUM_STEPS,
    MALA,
    NUTS,
    SAMPLERS,
    ULA,
    SamplerCase,
    generator,
    log_density_of,
    shortfall,
    standard_errors,
    standard_normal,
)
from torch import Tensor
from torch.utils import _pytree as pytree

import pyro_ebm.mcmc.reach
import pyro_ebm.mcmc.run
from pyro_ebm import DoubleWell, QuadraticEnergy, correlated_gaussian
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.covariance import ChosenCovariance, LowRankCovariance, PooledCovariance
from pyro_ebm.mcmc.hamiltonian_algorithms import (
    adjusted_mclmc_algorithm,
    chees_algorithm,
    hmc_algorithm,
    nuts_algorithm,
)
from pyro_ebm.mcmc.local_algorithms import langevin_algorithm
from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric
from pyro_ebm.mcmc.rejections import Rejections
from pyro_ebm.mcmc.run import Run
from pyro_ebm.mcmc.settings import Compile, RunSettings

Make = Callable[[LogDensity], Run]


def finish(run: Run, max_blocks: int = 20_000) -> Run:
    for _ in range(max_blocks):
        if run.finished:
            return run
        run.advance()
    raise AssertionError("the run does not end")


def make_run(
    log_density: LogDensity,
    start: Tensor,
    settings: RunSettings,
    *,
    algorithm: Algorithm | None = None,
    seed: int = 1,
) -> Run:
    return Run(algorithm or nuts_algorithm(), log_density, start, generator(seed), settings)


def masses(kind: str, dim: int) -> dict[str, Any]:
    """Settings of a run with a kind of metric: the identity first, and what learns it."""
    like = torch.zeros(dim, dtype=torch.float64)
    if kind == "dense":
        return {"metric": DenseMetric(torch.eye(dim).to(like)), "estimator": PooledCovariance.start(like)}
    if kind == "chosen":  # diagonal at first, dense as soon as it has learned
        return {"estimator": ChosenCovariance(PooledCovariance.start(like))}
    if kind == "low_rank":
        none = LowRankMetric(torch.ones(dim).to(like), torch.zeros(dim, 2).to(like), torch.ones(2).to(like))
        return {"metric": none, "estimator": LowRankCovariance.start(like, 2)}
    assert kind == "diagonal"
    return {}


def assert_moments(draws: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Means and variances of `(chains, draws, dim)`, within their Monte Carlo errors by ArviZ."""
    bound = standard_errors(2 * draws.shape[-1])
    for i in range(draws.shape[-1]):
        deviation = (draws[..., i] - mean[i]).numpy()
        for name, values in (("mean", deviation), ("variance", deviation**2 - float(variance[i]))):
            score = values.mean() / float(az.mcse(values, method="mean"))
            assert abs(score) < bound, f"{name} {i} is off by {score:.2f} standard errors"


# Answers


SCALES = torch.logspace(-1, 1, 10, dtype=torch.float64)  # standard deviations: the condition number is 1e4
TARGETS = {
    "correlated": lambda: correlated_gaussian(20, 0.9, dtype=torch.float64),
    "ill_conditioned": lambda: QuadraticEnergy.from_moments(randn(3, 10), SCALES.square().diag()),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in TARGETS for kind in ("diagonal", "dense")] + [("correlated", "low_rank")],
)
def test_nuts_finds_the_moments(name: str, kind: str) -> None:
    energy = TARGETS[name]()
    dim, dense = energy.event_shape[0], kind == "dense"
    start = 2 * torch.rand(96, dim, generator=generator(5), dtype=torch.float64) - 1
    settings = RunSettings(num_samples=40, warmup_steps=100, **masses(kind, dim))
    run = finish(make_run(log_density_of(energy), start, settings))
    draws = run.draws.draws()
    assert_moments(draws["position"], energy.mean, energy.variance)
    torch.testing.assert_close(draws["lp"], -energy(draws["position"]))
    assert int(run.num_divergences.sum()) == 0
    assert 0.7 < draws["acceptance_rate"].double().mean() < 0.95
    # The metric has learned the scales.
    ratio = run.metric.variances / energy.variance
    assert bool(((ratio > 0.5) & (ratio < 2)).all())
    if dense:
        learned = run.metric.inverse_mass_matrix
        torch.testing.assert_close(learned, learned.mT)
        assert draws["n_steps"].double().mean() < 10  # a round Gaussian is left


def test_a_low_rank_metric_takes_a_strong_correlation_away() -> None:
    """One direction at the slant with 100 times the variance of the others."""
    dim = 20
    values = torch.linspace(1.0, 2.0, dim, dtype=torch.float64)  # a direction that no coordinate is
    direction = values / values.norm()
    covariance = torch.eye(dim).double() + 99 * torch.outer(direction, direction)
    energy = QuadraticEnergy.from_moments(torch.zeros(dim, dtype=torch.float64), covariance)
    settings = RunSettings(num_samples=20, warmup_steps=120, **masses("low_rank", dim))
    run = finish(make_run(log_density_of(energy), randn(1, 32, dim), settings))
    assert_moments(run.draws.draws()["position"], energy.mean, energy.variance)
    # Two columns at their best set the two eigenvalues of the standardised covariance farthest from one to one. Those
    # of 256 draws in 20 dims err by a factor of less than two: (1 + √(20 / 256))² = 1.64.
    scale = covariance.diagonal().sqrt()
    strength = torch.linalg.eigvalsh(covariance / torch.outer(scale, scale)).log()
    left = strength[strength.abs().argsort()[:-2]]
    best, none = (float((x.max().clamp(min=0) - x.min().clamp(max=0)).exp()) for x in (left, strength))
    condition = float(torch.linalg.cond(run.metric.to_whitened(run.metric.to_whitened(covariance).mT)))
    assert condition < 2 * best < 0.2 * none


@parametrize(SAMPLERS[1:], "sampler")
def test_the_other_samplers_find_the_moments(sampler: SamplerCase) -> None:
    energy = QuadraticEnergy.from_moments(randn(3, 4), SCALES[3:7].square().diag())
    start = 2 * torch.rand(64, 4, generator=generator(5), dtype=torch.float64) - 1
    algorithm = sampler.make()
    settings = RunSettings(num_samples=300, warmup_steps=300)
    run = finish(make_run(log_density_of(energy), start, settings, algorithm=algorithm))
    draws = run.draws.draws()
    assert_moments(draws["position"], energy.mean, energy.variance)


@pytest.mark.parametrize("target", [0.574, 0.8])
def test_the_step_size_reaches_the_target_acceptance(target: float) -> None:
    """In one long window, up to what dual averaging falls short (see its own test) and to noise."""
    chains, num_updates, num_samples = 32, 1000, 400
    algorithm = langevin_algorithm(metropolis=True, target_accept_prob=target)
    settings = RunSettings(num_samples, warmup_steps=num_updates, adapt_metric=False)
    run = finish(make_run(standard_normal, randn(1, chains, 10), settings, algorithm=algorithm))
    reached = run.draws.draws()["acceptance_rate"].mean(1)
    short, share = shortfall(run._adaptation)
    # Chains are independent; their spread, with all autocorrelation, is that of `num_samples` transitions.
    noise = reached.std() * ((1 + num_samples * share) / chains) ** 0.5
    assert abs(float(reached.mean()) - target + short) < standard_errors(1) * float(noise)


def test_unadjusted_langevin_runs_from_a_corrected_warmup() -> None:
    """With unit variances its draws have the variance of theory for the step size that it found."""
    start = randn(1, 200, 5)
    run = finish(make_run(standard_normal, start, RunSettings(300, 300, adapt_metric=False), algorithm=ULA.make()))
    draws = run.draws.draws()["position"]
    variance = 1 / (1 - run.step_size.square() / 4)
    assert float(variance) > 1.05
    assert_moments(draws, torch.zeros(5), variance.expand(5))


# Counts


@pytest.mark.parametrize("chains", [1, 3, 1000])
@pytest.mark.parametrize("warmup_steps", [0, 1, 19, 20, 45])
def test_every_chain_has_its_draws_and_its_warmup(chains: int, warmup_steps: int) -> None:
    """NUTS trees differ in length between chains, so that they go at their own pace."""
    energy = DoubleWell(2, 1.0).double()
    start = energy.sample((chains,), generator=generator(1))
    settings = RunSettings(num_samples=7, warmup_steps=warmup_steps, step_size=0.3, save_warmup=True)
    run = make_run(log_density_of(energy), start, settings)
    seen = [run.transitions]
    while not run.finished:
        assert run.warming_up or int(run.warmup.draws.counts.min()) >= warmup_steps
        assert run.draws.draws() == {} or not run.warming_up
        run.advance()
        seen.append(run.transitions)
    assert seen == sorted(seen)
    assert run.transitions == 7 + warmup_steps
    for name, value in run.draws.draws().items():
        assert value.shape[:2] == (chains, 7), name
        assert bool(value.double().isfinite().all())
    assert int(run.warmup.draws.counts.min()) >= warmup_steps
    warmup = run.warmup.draws.draws()
    assert bool(warmup) == (warmup_steps > 0)
    for name, value in warmup.items():
        assert value.shape[:2] == (chains, warmup_steps), name
    if warmup_steps:
        torch.testing.assert_close(warmup["lp"], -energy(warmup["position"]))
    position = run.draws.draws()["position"]
    assert chains == 1 or len(position[:, -1].unique(dim=0)) > 0.9 * chains


def test_warmup_draws_are_kept_only_if_asked() -> None:
    settings = RunSettings(num_samples=5, warmup_steps=30)
    plain = finish(make_run(standard_normal, randn(1, 4, 2), settings))
    saving = finish(make_run(standard_normal, randn(1, 4, 2), replace(settings, save_warmup=True)))
    assert plain.warmup.draws.draws() == {}
    assert saving.warmup.draws.draws()["position"].shape == (4, 30, 2)
    assert_same_draws(plain, saving)  # and keeping them changes nothing


def test_many_chains_cover_the_density() -> None:
    """A thousand chains of few draws: the moments across chains at the last draw."""
    energy = correlated_gaussian(5, 0.5, dtype=torch.float64)
    start = 4 * torch.rand(1000, 5, generator=generator(5), dtype=torch.float64) - 2
    run = finish(make_run(log_density_of(energy), start, RunSettings(num_samples=10, warmup_steps=60)))
    last = run.draws.draws()["position"][:, -1]
    scores = torch.cat([last, last.square() - 1], dim=-1)
    scores = scores.mean(0) / (scores.std(0) / math.sqrt(1000))
    assert float(scores.abs().max()) < standard_errors(10)


def test_one_chain_finds_the_moments() -> None:
    energy = correlated_gaussian(3, 0.7, dtype=torch.float64)
    run = finish(make_run(log_density_of(energy), randn(1, 1, 3), RunSettings(num_samples=250, warmup_steps=60)))
    assert_moments(run.draws.draws()["position"], energy.mean, energy.variance)


# What adapts


def test_without_warmup_nothing_adapts() -> None:
    settings = RunSettings(num_samples=10, warmup_steps=0, step_size=0.37)
    run = make_run(standard_normal, randn(1, 4, 3), settings)
    assert not run.warming_up
    finish(run)
    assert float(run.step_size) == pytest.approx(0.37)
    assert isinstance(run.metric, DiagonalMetric)
    assert torch.equal(run.metric.scale, torch.ones(3))
    assert bool((run.draws.draws()["step_size"] == run.step_size).all())


@pytest.mark.parametrize("adapt_metric", [True, False])
@pytest.mark.parametrize("adapt_step_size", [True, False])
@pytest.mark.parametrize("kind", ["diagonal", "dense", "low_rank"])
def test_what_does_not_adapt_stays(adapt_metric: bool, adapt_step_size: bool, kind: str) -> None:
    log_density = log_density_of(QuadraticEnergy(torch.diag(torch.tensor([0.2, 1.0, 9.0], dtype=torch.float64))))
    settings = RunSettings(
        num_samples=10,
        warmup_steps=60,
        step_size=0.2,
        adapt_step_size=adapt_step_size,
        adapt_metric=adapt_metric,
        save_warmup=True,
        **masses(kind, 3),
    )
    algorithm = langevin_algorithm(metropolis=True, target_accept_prob=0.8)
    run = finish(make_run(log_density, randn(1, 8, 3), settings, algorithm=algorithm))
    assert torch.equal(run.metric.variances, torch.ones(3, dtype=torch.float64)) == (not adapt_metric)
    assert type(run.metric) is {"diagonal": DiagonalMetric, "dense": DenseMetric, "low_rank": LowRankMetric}[kind]
    # What a sampler reports is its own step size: for Langevin, half the square of the leapfrog's.
    warmup, steps = run.warmup.draws.draws()["step_size"], run.draws.draws()["step_size"]
    assert bool((steps == 0.5 * run.step_size.square()).all())
    if adapt_step_size:
        assert len(warmup.unique()) > 10
        assert not 0.19 < float(run.step_size) < 0.21
    else:
        assert bool((warmup == steps[0, 0]).all())
        assert float(run.step_size) == pytest.approx(0.2)


def test_a_run_starts_with_the_metric_that_is_given() -> None:
    """And, while it does not adapt, is the run of the density in other units."""
    scale = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
    plain = make_run(standard_normal, randn(1, 4, 3), RunSettings(10, 10, adapt_metric=False))

    def scaled(position: Tensor) -> tuple[Tensor, Tensor]:
        return standard_normal(position / scale)[0], -position / scale.square()

    for metric in (DiagonalMetric(scale), DenseMetric(scale.diag())):
        settings = RunSettings(10, 10, adapt_metric=False, metric=metric)
        run = finish(make_run(scaled, scale * randn(1, 4, 3), settings))
        assert run.metric is metric
        torch.testing.assert_close(
            run.draws.draws()["position"] / scale, finish(plain).draws.draws()["position"], rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("dim", [10, 100])
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_chees_learns_the_length_of_half_a_turn(scale: float, dim: int) -> None:
    """On a round Gaussian: how good a length is, is known.

    A trajectory of length t turns `(x, p)` by an angle t, so that `|x'|² - |x|²` has a variance in proportion to
    `sin² t`: greatest at a quarter of a period, `π/2`. Lengths are jittered evenly between zero and T, and what is
    maximised is the mean over the jitter, `½ - sin 2T / 4T`, divided by `T^¼`. The trajectories that are made must be
    worth 90 % of the best of these, and their mean be nearer to `π/2` than to staying, or to going there and back.
    """

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        return standard_normal(position / scale)[0], -position / scale**2

    settings = RunSettings(num_samples=50, warmup_steps=300)
    run = finish(make_run(log_density, scale * randn(1, 64, dim), settings, algorithm=chees_algorithm()))
    draws = run.draws.draws()
    made = (draws["n_steps"] * draws["step_size"]).double()
    assert bool((made == made[:1]).all())  # all chains the same
    assert len(made[0].unique()) > 1
    turn = 2 * (0.5 * run.step_size).asin()  # of one leapfrog step
    worth = (draws["n_steps"] * turn).sin().square().mean() / made.mean() ** 0.25
    best = max(
        (0.5 - math.sin(2 * length) / (4 * length)) / (length / 2) ** 0.25 for length in torch.arange(1, 5, 0.01)
    )
    assert float(worth) > 0.9 * best
    assert 0.25 * math.pi < float(made.mean()) < 0.75 * math.pi
    assert 0.7 < float(draws["acceptance_rate"].mean()) < 0.95
    assert_moments(draws["position"][..., :3], torch.zeros(3), torch.full((3,), scale**2))


# Thinning


@pytest.mark.parametrize("thinning", [2, 5])
@parametrize(SAMPLERS, "sampler")
def test_a_thinned_run_keeps_every_so_manieth_draw(sampler: SamplerCase, thinning: int) -> None:
    """Of the same run: what is kept is the last of every `thinning` draws, with its diagnostics; the warm-up is not.

    But `diverging` and `non_finite` are what any of them says.
    """
    settings = RunSettings(num_samples=20, warmup_steps=12, save_warmup=True)
    plain = finish(well_run(sampler, settings))
    run = well_run(sampler, replace(settings, num_samples=20 // thinning, thinning=thinning))
    seen = []
    while not run.finished:
        run.advance()
        seen.append(run.transitions)
    assert seen == sorted(seen)
    assert run.transitions == plain.transitions == 32
    kept = run.draws.draws()
    for name, value in plain.draws.draws().items():
        groups = value.unflatten(1, (-1, thinning))
        assert torch.equal(kept[name], groups.any(2) if name in ("diverging", "non_finite") else groups[:, :, -1]), name
    for name, value in plain.warmup.draws.draws().items():
        assert torch.equal(run.warmup.draws.draws()[name], value), name


@pytest.mark.parametrize("compile", ["no", "fast"])
def test_no_divergence_between_draws_is_lost(compile: Compile) -> None:
    """Saved and resumed in the midst of a draw, too."""
    fixed = RunSettings(num_samples=200, warmup_steps=5, step_size=0.9, adapt_step_size=False, adapt_metric=False)
    settings = replace(fixed, compile=compile)
    plain = finish(well_run(MALA, settings))
    each = plain.draws.draws()["diverging"].unflatten(1, (-1, 4)).any(2)
    assert 0 < int(each.sum()) < each.numel()  # some draws, not all
    assert int(each.sum()) > 2 * int(plain.draws.draws()["diverging"][:, 3::4].sum())  # and few at the last steps
    run = well_run(MALA, replace(settings, num_samples=50, thinning=4))
    while not run.finished:
        run.advance()
        run = reloaded(run, well_run(MALA, replace(settings, num_samples=50, thinning=4)))
    assert torch.equal(run.draws.draws()["diverging"], each)
    assert torch.equal(run.num_divergences, each.sum(-1))


@pytest.mark.parametrize("warmup_steps", [0, 30])
def test_a_draw_of_several_steps_is_a_thinned_draw_of_one(warmup_steps: int) -> None:
    """In the warm-up too, whose windows are so many times as long; transitions are counted as the user does."""
    settings = RunSettings(num_samples=20, warmup_steps=warmup_steps, save_warmup=True, adapt_metric=False)
    each = finish(well_run(MALA, replace(settings, warmup_steps=4 * warmup_steps, thinning=4)))
    algorithm = langevin_algorithm(metropolis=True, target_accept_prob=0.574, num_steps=4)
    run = well_run(replace(MALA, make=lambda: algorithm), settings)
    assert finish(run).transitions == 20 + warmup_steps
    for name, value in each.draws.draws().items():
        assert torch.equal(run.draws.draws()[name], value), name
    for name, value in each.warmup.draws.draws().items():
        assert torch.equal(run.warmup.draws.draws()[name], value[:, 3::4]), name


def test_one_tick_samplers_do_not_overshoot_the_warmup() -> None:
    run = well_run(MALA, RunSettings(num_samples=1, warmup_steps=200, adapt_metric=False, save_warmup=True))
    while run.warming_up:
        run.advance()
    assert 200 <= int(run.warmup.draws.transitions.min()) <= 201


# Repeating


def assert_same_draws(first: Run, second: Run) -> None:
    """Bitwise, with every diagnostic."""
    one, other = first.draws.draws(), second.draws.draws()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(first.step_size, second.step_size)
    assert type(first.metric) is type(second.metric)
    assert all(map(torch.equal, pytree.tree_leaves(first.metric), pytree.tree_leaves(second.metric)))
    assert torch.equal(first.num_divergences, second.num_divergences)


REPEATED = RunSettings(num_samples=15, warmup_steps=30, save_warmup=True)
METRIC_CASES = [
    *((sampler, "diagonal") for sampler in [*SAMPLERS, ULA]),
    *((sampler, "dense") for sampler in (HMC_NUM_STEPS, MALA)),
    *((sampler, "low_rank") for sampler in (HMC_NUM_STEPS, CHEES)),
    (NUTS, "chosen"),
]
# These learn how far a draw goes, from a window of sixty draws.
LEARNING = [
    SamplerCase(
        "mala_learning",
        lambda: langevin_algorithm(metropolis=True, target_accept_prob=0.574, num_steps=2, learns="num_steps"),
        leapfrogs=False,
    ),
    SamplerCase("hmc_learning", lambda: hmc_algorithm(trajectory_length=0.3, learns="trajectory_length")),
]
# In its first window it follows other dynamics.
ADJUSTED_MCLMC = SamplerCase(
    "adjusted_mclmc",
    lambda: adjusted_mclmc_algorithm(trajectory_length=0.3, target_accept_prob=0.9, learns="trajectory_length"),
)
LONGER = RunSettings(num_samples=8, warmup_steps=80, save_warmup=True)
parametrize_metrics = pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        *((sampler, replace(REPEATED, **masses(kind, 3))) for sampler, kind in METRIC_CASES),
        *((sampler, LONGER) for sampler in [*LEARNING, CHEES, ADJUSTED_MCLMC]),
    ],
    ids=[
        *(f"{sampler.name}-{kind}" for sampler, kind in METRIC_CASES),
        *(sampler.name for sampler in [*LEARNING, CHEES, ADJUSTED_MCLMC]),
    ],
)


def well_run(sampler: SamplerCase, settings: RunSettings, *, seed: int = 1, wrap: Any = None) -> Run:
    """A run of a few chains in a double well; `wrap` may put something around its density."""
    log_density = log_density_of(DoubleWell(3, 1.0).double())
    start = randn(2, 5, 3).clamp(-1.5, 1.5)
    return make_run(wrap(log_density) if wrap else log_density, start, settings, algorithm=sampler.make(), seed=seed)


def test_where_transitions_are_long_blocks_are_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four transitions; and the parts of them that slow ticks ask for make the same draws."""
    sampler = SamplerCase("hmc", lambda: hmc_algorithm(trajectory_length=1.0, num_steps=100))
    settings, part_length = RunSettings(num_samples=24, warmup_steps=10, compile="yes"), Run._part_length
    lengths: dict[float, list[int]] = {1e3: [], 0.0: []}
    runs = []
    for patience, parts in lengths.items():

        def observed(run: Run, ahead: int, parts: list[int] = parts) -> int:
            parts.append(part_length(run, ahead))
            return parts[-1]

        monkeypatch.setattr(pyro_ebm.mcmc.run, "_PATIENCE", patience)
        monkeypatch.setattr(Run, "_part_length", observed)
        runs.append(finish(well_run(sampler, settings)))
        assert runs[-1].rung == "C"
    assert_same_draws(*runs)
    patient, impatient = lengths.values()
    assert 400 <= max(patient) < 450  # a transition seems longer, where some have not ended
    assert impatient.count(8) > 200


@parametrize(LEARNING, "sampler")
def test_draws_go_further_where_chains_remember(sampler: SamplerCase) -> None:
    """As many steps, or as long a trajectory, are taken as the run says that it has learned."""
    run = finish(well_run(sampler, LONGER))
    assert float(run.warmup.reach.value) > 1.5
    twin = sampler.make()
    ((name, value),) = run.learned.items()
    assert value == pytest.approx(
        getattr(twin, name, 0.3) * float(run.warmup.reach.value), abs=0.5 if name == "num_steps" else 1e-9
    )
    assert run.draws.draws()["position"].shape == (5, 8, 3)
    assert run.warmup.draws.draws()["position"].shape == (5, 80, 3)
    assert run.transitions == 88
    if name == "num_steps":
        assert int(run.draws.transitions.min()) == 8 * value
    else:
        steps = 0.5 * 0.3 * float(run.warmup.reach.value) / float(run.step_size)
        assert float(run.draws.draws()["n_steps"].double().mean()) > steps


@parametrize([*SAMPLERS, ULA], "sampler")
def test_the_same_seed_makes_the_same_draws(sampler: SamplerCase) -> None:
    first, second, other = (finish(well_run(sampler, REPEATED, seed=seed)) for seed in (1, 1, 2))
    assert_same_draws(first, second)
    differs = first.draws.draws()["position"] != other.draws.draws()["position"]
    assert bool(differs[:, -1].any(-1).all())


def reloaded(run: Run, fresh: Run) -> Run:
    """`fresh`, with all that `run` has written to a file."""
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers that learn how far draws go do so within a window of sixty draws already."""
    monkeypatch.setattr(pyro_ebm.mcmc.reach, "_FIRST_STRETCH", 24)


@parametrize_metrics
@pytest.mark.usefixtures("short_stretches")
def test_a_saved_run_goes_on_as_if_never_stopped(sampler: SamplerCase, settings: RunSettings) -> None:
    """Saved after random parts of blocks, after the first and the last, within a block, at every end of a window."""
    whole, parts, ends, within = well_run(sampler, settings), 0, {0}, set()
    while not whole.finished:
        window = whole.warmup._window
        whole.advance()
        parts += 1
        if whole.warmup._window != window:
            ends.add(parts)
        if whole.state_dict()["pending"]:
            within.add(parts)
    assert len(ends) == 4
    assert within
    drawn = torch.randint(parts, (2,), generator=generator(3)).tolist()
    cuts = sorted(ends | {parts, min(within)} | set(drawn))
    first, done = well_run(sampler, settings), 0
    for cut in cuts:
        while done < cut:
            first.advance()
            done += 1
        second = reloaded(first, well_run(sampler, settings, seed=1000 + cut))
        assert second.warming_up == first.warming_up
        assert second.transitions == first.transitions
        assert torch.equal(second.position, first.position)
        assert torch.equal(second.step_size, first.step_size)
        assert second.mean_acceptance == first.mean_acceptance
        finish(second)
        assert_same_draws(second, whole)
        for name, value in whole.warmup.draws.draws().items():
            assert torch.equal(second.warmup.draws.draws()[name], value)
    assert_same_draws(finish(first), whole)  # to save it did it no harm


def test_a_run_saved_again_and_again() -> None:
    whole = finish(well_run(NUTS, REPEATED))
    run = well_run(NUTS, REPEATED)
    while not run.finished:
        run.advance()
        run = reloaded(run, well_run(NUTS, REPEATED, seed=99))
    assert_same_draws(run, whole)


# Interruption


class Interrupting:
    """A density that raises an error in some of its calls."""

    def __init__(self, log_density: LogDensity, error: BaseException) -> None:
        self._log_density, self._error = log_density, error
        self.calls, self.fails_at = 0, -1

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise self._error
        return self._log_density(position)


def snapshot(run: Run) -> dict[str, Any]:
    """What a run has to say of itself, copied."""
    saved = run.state_dict()
    warmup = saved["warmup"]
    recorders = ((saved, run.draws), (warmup, run.warmup.draws), (warmup["reach"], run.warmup.reach._draws))
    for part, recorder in recorders:
        draws = {key: value for key, value in recorder.draws().items() if value.numel()}
        part["draws"] = {"transitions": part["draws"]["transitions"], **draws}  # buffers may hold what is not counted
    return copy.deepcopy(saved)


def assert_same_snapshot(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Bitwise, and nan is nan."""
    (ours, structure), (theirs, other_structure) = pytree.tree_flatten(first), pytree.tree_flatten(second)
    assert structure == other_structure
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Tensor):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert bool(((one == other) | ((one != one) & (other != other))).all())
        else:
            assert one == other


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")], ids=["ctrl_c", "error"])
@parametrize_metrics
@pytest.mark.usefixtures("short_stretches")
def test_an_exception_leaves_the_run_as_before_the_block(
    sampler: SamplerCase, settings: RunSettings, error: BaseException
) -> None:
    """Wherever in the block the density fails: in one of its ticks, or between two windows."""
    whole = finish(well_run(sampler, settings))
    densities: list[Interrupting] = []

    def wrap(log_density: LogDensity) -> Interrupting:
        densities.append(Interrupting(log_density, error))
        return densities[-1]

    run, twin = (well_run(sampler, settings, wrap=wrap) for _ in range(2))  # what the twin does goes well
    density, other = densities
    random, failures = generator(4), {"anywhere": 0, "window": 0}
    while not run.finished:
        calls, window, before = other.calls, twin.warmup._window, snapshot(run)
        twin.advance()
        calls = other.calls - calls
        fails = [("anywhere", int(torch.randint(1, calls + 1, (), generator=random)))]
        if twin.warmup._window != window:  # the last call then starts the window, and those before it find a step size
            fails += [("window", calls - 3), ("window", calls)] if twin.warming_up else [("window", calls)]
        for where, call in fails:
            density.fails_at = density.calls + call
            with pytest.raises(type(error)):
                run.advance()
            failures[where] += 1
            assert_same_snapshot(snapshot(run), before)
        run.advance()
        assert run.transitions == twin.transitions
    assert failures["anywhere"] >= 7
    assert failures["window"] == 2 * 2 + 1  # two windows have a first step size to find, the last only starts
    assert_same_draws(run, whole)


# Compiled runs


NO_COMPILER = not any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))
needs_a_compiler = pytest.mark.skipif(NO_COMPILER, reason="there is no C compiler: no cc, gcc or clang, and no $CC")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is built."""
    monkeypatch.setenv("PYRO_EBM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same_up_to_rounding(ours: Run, theirs: Run) -> None:
    """Draws and diagnostics; whatever is counted or decided is exactly the same.

    Rounding errs by 1e-16 at first, and a double well amplifies it by a few orders over tens of transitions.
    """
    for mine, other in ((ours.draws, theirs.draws), (ours.warmup.draws, theirs.warmup.draws)):
        assert mine.draws().keys() == other.draws().keys()
        for name, value in mine.draws().items():
            torch.testing.assert_close(value, other.draws()[name], rtol=1e-7, atol=1e-7, msg=lambda m: f"{name}: {m}")
    torch.testing.assert_close(ours.step_size, theirs.step_size, rtol=1e-7, atol=0)
    torch.testing.assert_close(ours.metric.variances, theirs.metric.variances, rtol=1e-7, atol=0)
    assert torch.equal(ours.num_divergences, theirs.num_divergences)


@needs_a_compiler
@parametrize([*SAMPLERS, ULA], "sampler")
def test_a_compiled_run_makes_the_same_draws(sampler: SamplerCase, cache: Path) -> None:
    settings = RunSettings(num_samples=10, warmup_steps=10, save_warmup=True)
    eager = finish(well_run(sampler, settings))
    assert not cache.exists()
    compiled = finish(well_run(sampler, replace(settings, compile="fast")))
    assert (eager.rung, compiled.rung) == ("eager", "C")
    assert compiled.concerns == []
    assert list(cache.glob("*.so"))
    assert_same_up_to_rounding(compiled, eager)


@needs_a_compiler
@pytest.mark.parametrize("kind", ["diagonal", "dense", "low_rank", "chosen"])
def test_a_compiled_run_makes_the_same_draws_with_each_kind_of_metric(kind: str, cache: Path) -> None:
    settings = RunSettings(num_samples=10, warmup_steps=20, save_warmup=True, **masses(kind, 3))
    eager, compiled = (finish(well_run(NUTS, replace(settings, compile=how))) for how in ("no", "fast"))
    assert compiled.rung == "C"
    assert type(compiled.metric) is type(eager.metric)
    assert not torch.equal(compiled.metric.variances, torch.ones(3, dtype=torch.float64))
    assert_same_up_to_rounding(compiled, eager)


@needs_a_compiler
@parametrize([NUTS, CHEES], "sampler")
def test_a_compiled_run_repeats_and_goes_on_bit_by_bit(sampler: SamplerCase, cache: Path) -> None:
    settings = replace(REPEATED, num_samples=1000, compile="fast", **masses("chosen", 3))
    whole = finish(well_run(sampler, settings))
    assert whole.rung == "C"
    run, parts = well_run(sampler, settings), 0
    while not run.finished:
        run.advance()
        parts += 1
        if parts in (1, 5):
            run = reloaded(run, well_run(sampler, settings, seed=99))
    assert parts > 6
    assert_same_draws(run, whole)


@needs_a_compiler
def test_a_run_goes_on_on_another_rung(cache: Path) -> None:
    """Saved within a block by ticks in Python, and finished by C."""
    settings = RunSettings(num_samples=10, warmup_steps=10, save_warmup=True)
    eager = finish(well_run(NUTS, settings))
    run = well_run(NUTS, settings)
    run.advance()
    assert run.state_dict()["pending"]
    compiled = finish(reloaded(run, well_run(NUTS, replace(settings, compile="fast"), seed=99)))
    assert compiled.rung == "C"
    assert_same_up_to_rounding(compiled, eager)


# Lost chains


SPREAD = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)


def with_a_hole(value: float) -> tuple[QuadraticEnergy, LogDensity]:
    """A Gaussian, and its log density, which is lost far out."""
    energy = QuadraticEnergy.from_moments(torch.zeros(3).double(), SPREAD.diag())
    good = log_density_of(energy)

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, good_gradient = good(position)
        lost = position[:, 0] > 50
        return torch.where(lost, value, good_value), torch.where(lost[:, None], math.nan, good_gradient)

    return energy, log_density


LOST, OTHERS = 2, torch.arange(16) != 2


def one_lost(start: Tensor) -> Tensor:
    start[LOST] = torch.tensor([100.0, 0.0, 0.0])
    return start


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@parametrize(SAMPLERS, "sampler")
def test_a_lost_chain_stays_and_spoils_no_other(sampler: SamplerCase, value: float) -> None:
    energy, log_density = with_a_hole(value)
    start = one_lost(randn(1, 16, 3) * SPREAD.sqrt())  # the others at exact draws
    settings = RunSettings(num_samples=200, warmup_steps=0, step_size=0.7, metric=DiagonalMetric(SPREAD.sqrt()))
    run = finish(make_run(log_density, start, settings, algorithm=sampler.make()))
    draws = run.draws.draws()
    torch.testing.assert_close(draws["position"][LOST], start[LOST].expand(200, 3))
    assert bool(draws["diverging"][LOST].all())
    assert run.num_divergences.tolist() == [200 if i == LOST else 0 for i in range(16)]
    assert_moments(draws["position"][OTHERS], energy.mean, energy.variance)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("kind", ["diagonal", "dense", "low_rank"])
@parametrize(SAMPLERS, "sampler")
def test_the_warmup_brings_a_lost_chain_along(sampler: SamplerCase, kind: str, value: float) -> None:
    energy, log_density = with_a_hole(value)
    settings = RunSettings(num_samples=100, warmup_steps=100, **masses(kind, 3))
    run = finish(make_run(log_density, one_lost(randn(1, 16, 3)), settings, algorithm=sampler.make()))
    draws = run.draws.draws()
    assert run.warmup.moved.tolist() == [int(i == LOST) for i in range(16)]
    assert run.num_divergences.tolist() == [0] * 16
    assert_moments(draws["position"], energy.mean, energy.variance)
    assert 0.5 < draws["acceptance_rate"].double().mean() < 0.99  # the step size has not shrunk to please it


@parametrize(SAMPLERS, "sampler")
def test_a_run_of_lost_chains_ends(sampler: SamplerCase) -> None:
    def nowhere(position: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(position[:, 0], math.nan), torch.full_like(position, math.nan)

    # Chains in step go on to the end of their trajectories, here of up to 1024 steps: a few of them will do.
    settings = RunSettings(3, 6) if sampler.in_step else RunSettings(10, 30)
    run = finish(make_run(nowhere, randn(1, 3, 2), settings, algorithm=sampler.make()))
    num_draws = settings.num_samples
    torch.testing.assert_close(run.draws.draws()["position"], randn(1, 3, 2)[:, None].expand(3, num_draws, 2))
    assert run.num_divergences.tolist() == [num_draws] * 3


@pytest.mark.parametrize("distance", [30.0, 300.0])
@parametrize(SAMPLERS, "sampler")
def test_a_chain_far_out_comes_in_by_shorter_steps_of_its_own(
    sampler: SamplerCase, distance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tail is so steep that the step size of the others carries it nowhere. They are not slowed down."""
    # Divergences may raise the target of one run and not of the other, and so change the step size.
    monkeypatch.setattr(Rejections, "raised", lambda self, target, chains: target)

    def quartic(position: Tensor) -> tuple[Tensor, Tensor]:
        square = position.square().sum(-1)
        return -0.25 * square.square(), -position * square.unsqueeze(-1)

    settings = RunSettings(num_samples=30, warmup_steps=100, save_warmup=True)
    start = randn(1, 16, 3)
    near = finish(make_run(quartic, start, settings, algorithm=sampler.make()))
    start[0] = distance
    run = finish(make_run(quartic, start, settings, algorithm=sampler.make()))
    warmup, draws = run.warmup.draws.draws(), run.draws.draws()
    own, others = warmup["step_size"][0], warmup["step_size"][1:]
    assert float(own.min()) < 0.1 * float(others.median())
    # P(|x| > 3) is below 1e-7: the density of r = |x| is in proportion to r² exp(-r⁴ / 4).
    assert float(draws["position"].norm(dim=-1).max()) < 3
    assert bool((draws["step_size"] == draws["step_size"][0, 0]).all())
    assert 0.5 < float(run.step_size / near.step_size) < 2


def test_divergences_are_counted_as_recorded() -> None:
    """Those of the draws that are kept, and of no others."""

    def box(position: Tensor) -> tuple[Tensor, Tensor]:
        outside = (position.abs() > 1).any(-1)
        return torch.where(outside, -torch.inf, 0.0), torch.zeros_like(position)

    start = 0.5 * randn(1, 10, 2).clamp(-1, 1)
    settings = RunSettings(num_samples=50, warmup_steps=0, step_size=0.3)
    for algorithm in (nuts_algorithm(), hmc_algorithm(trajectory_length=1.0), chees_algorithm()):
        run = finish(make_run(box, start, settings, algorithm=algorithm))
        diverging = run.draws.draws()["diverging"]
        assert torch.equal(diverging.sum(1), run.num_divergences)
        assert int(diverging.sum()) > 10
        assert bool((run.draws.draws()["position"].abs() <= 1).all())
