"""A run: its answers, its counts, that it can be repeated, saved and interrupted, and what a lost chain does to it."""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import arviz as az
import pytest
import torch
from cases import parametrize, randn
from kernel_cases import (
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

from pyro_ebm import DoubleWell, QuadraticEnergy, correlated_gaussian
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.algorithm import Algorithm, hmc_algorithm, langevin_algorithm, nuts_algorithm
from pyro_ebm.mcmc.run import TICKS_PER_BLOCK, Run, RunSettings

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


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("name", TARGETS)
def test_nuts_finds_the_moments(name: str, dense: bool) -> None:
    energy = TARGETS[name]()
    start = 2 * torch.rand(96, energy.event_shape[0], generator=generator(5), dtype=torch.float64) - 1
    settings = RunSettings(num_samples=40, warmup_steps=100, dense_metric=dense)
    run = finish(make_run(log_density_of(energy), start, settings))
    draws = run.draws.draws()
    assert_moments(draws["position"], energy.mean, energy.variance)
    torch.testing.assert_close(draws["lp"], -energy(draws["position"]))
    assert int(run.num_divergences.sum()) == 0
    assert 0.7 < draws["acceptance_rate"].double().mean() < 0.95
    # The metric has learned the scales.
    learned = run.metric.inverse_mass_matrix
    ratio = (learned.diagonal() if dense else learned) / energy.variance
    assert bool(((ratio > 0.5) & (ratio < 2)).all())
    if dense:
        torch.testing.assert_close(learned, learned.mT)
        assert draws["n_steps"].double().mean() < 10  # a round Gaussian is left


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
    short, share = shortfall(run._averaging)
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
        assert run.warming_up or int(run.warmup_draws.counts.min()) >= warmup_steps
        assert run.draws.draws() == {} or not run.warming_up
        run.advance()
        seen.append(run.transitions)
    assert seen == sorted(seen)
    assert run.transitions == 7 + warmup_steps
    for name, value in run.draws.draws().items():
        assert value.shape[:2] == (chains, 7), name
        assert bool(value.double().isfinite().all())
    assert int(run.warmup_draws.counts.min()) >= warmup_steps
    warmup = run.warmup_draws.draws()
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
    assert plain.warmup_draws.draws() == {}
    assert saving.warmup_draws.draws()["position"].shape == (4, 30, 2)
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
    assert torch.equal(run.metric.scale, torch.ones(3))
    assert bool((run.draws.draws()["step_size"] == run.step_size).all())


@pytest.mark.parametrize("adapt_metric", [True, False])
@pytest.mark.parametrize("adapt_step_size", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_what_does_not_adapt_stays(adapt_metric: bool, adapt_step_size: bool, dense: bool) -> None:
    log_density = log_density_of(QuadraticEnergy(torch.diag(torch.tensor([0.2, 1.0, 9.0], dtype=torch.float64))))
    settings = RunSettings(
        num_samples=10,
        warmup_steps=60,
        step_size=0.2,
        adapt_step_size=adapt_step_size,
        adapt_metric=adapt_metric,
        dense_metric=dense,
        save_warmup=True,
    )
    algorithm = langevin_algorithm(metropolis=True, target_accept_prob=0.8)
    run = finish(make_run(log_density, randn(1, 8, 3), settings, algorithm=algorithm))
    unit = torch.eye(3, dtype=torch.float64) if dense else torch.ones(3, dtype=torch.float64)
    assert torch.equal(run.metric.scale, unit) == (not adapt_metric)
    # What a sampler reports is its own step size: for Langevin, half the square of the leapfrog's.
    warmup, steps = run.warmup_draws.draws()["step_size"], run.draws.draws()["step_size"]
    assert bool((steps == 0.5 * run.step_size.square()).all())
    assert float(run.current_step_size) == float(run.step_size)
    if adapt_step_size:
        assert len(warmup.unique()) > 10
        assert not 0.19 < float(run.step_size) < 0.21
    else:
        assert bool((warmup == steps[0, 0]).all())
        assert float(run.step_size) == pytest.approx(0.2)


# Repeating


def assert_same_draws(first: Run, second: Run) -> None:
    """Bitwise, with every diagnostic."""
    one, other = first.draws.draws(), second.draws.draws()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(first.step_size, second.step_size)
    assert torch.equal(first.metric.scale, second.metric.scale)
    assert torch.equal(first.num_divergences, second.num_divergences)


REPEATED = RunSettings(num_samples=15, warmup_steps=30, save_warmup=True)
DENSE = replace(REPEATED, dense_metric=True)
METRIC_CASES = [(sampler, REPEATED) for sampler in [*SAMPLERS, ULA]] + [(SAMPLERS[2], DENSE), (SAMPLERS[3], DENSE)]
parametrize_metrics = pytest.mark.parametrize(
    ("sampler", "settings"),
    METRIC_CASES,
    ids=[f"{sampler.name}-{'dense' if settings.dense_metric else 'diagonal'}" for sampler, settings in METRIC_CASES],
)


def well_run(sampler: SamplerCase, settings: RunSettings, *, seed: int = 1, wrap: Any = None) -> Run:
    """A run of a few chains in a double well; `wrap` may put something around its density."""
    log_density = log_density_of(DoubleWell(3, 1.0).double())
    start = randn(2, 5, 3).clamp(-1.5, 1.5)
    return make_run(wrap(log_density) if wrap else log_density, start, settings, algorithm=sampler.make(), seed=seed)


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


@parametrize_metrics
def test_a_saved_run_goes_on_as_if_never_stopped(sampler: SamplerCase, settings: RunSettings) -> None:
    """Saved after random blocks, after the first and the last, and at every end of a window."""
    whole, blocks, ends = well_run(sampler, settings), 0, {0}
    while not whole.finished:
        window = whole._window
        whole.advance()
        blocks += 1
        if whole._window != window:
            ends.add(blocks)
    assert len(ends) == 4
    cuts = sorted(ends | {blocks} | set(torch.randint(blocks, (2,), generator=generator(3)).tolist()))
    first, done = well_run(sampler, settings), 0
    for cut in cuts:
        while done < cut:
            first.advance()
            done += 1
        second = reloaded(first, well_run(sampler, settings, seed=1000 + cut))
        assert second.warming_up == first.warming_up
        assert second.transitions == first.transitions
        assert torch.equal(second.position, first.position)
        assert torch.equal(second.current_step_size, first.current_step_size)
        assert second.mean_acceptance == first.mean_acceptance
        finish(second)
        assert_same_draws(second, whole)
        for name, value in whole.warmup_draws.draws().items():
            assert torch.equal(second.warmup_draws.draws()[name], value)
    assert_same_draws(finish(first), whole)  # to save it did it no harm


def test_a_run_saved_again_and_again() -> None:
    whole = finish(well_run(SAMPLERS[0], REPEATED))
    run = well_run(SAMPLERS[0], REPEATED)
    while not run.finished:
        run.advance()
        run = reloaded(run, well_run(SAMPLERS[0], REPEATED, seed=99))
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
    for name in ("draws", "warmup_draws"):  # the buffers may hold what is not counted
        draws = {key: value for key, value in getattr(run, name).draws().items() if value.numel()}
        saved[name] = {"counts": saved[name]["counts"], **draws}
    return copy.deepcopy(saved)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")], ids=["ctrl_c", "error"])
@parametrize_metrics
def test_an_exception_leaves_the_run_as_before_the_block(
    sampler: SamplerCase, settings: RunSettings, error: BaseException
) -> None:
    """Wherever in the block the density fails: in one of its ticks, or between two windows."""
    whole = finish(well_run(sampler, settings))
    densities: list[Interrupting] = []

    def wrap(log_density: LogDensity) -> Interrupting:
        densities.append(Interrupting(log_density, error))
        return densities[0]

    run = well_run(sampler, settings, wrap=wrap)
    density, random, failures = densities[0], generator(4), {"tick": 0, "window": 0}
    while not run.finished:
        before = snapshot(run)
        tick = int(torch.randint(1, TICKS_PER_BLOCK + 1, (), generator=random))
        for call in (tick, TICKS_PER_BLOCK + 1, TICKS_PER_BLOCK + 4):  # those past the ticks are made between windows
            density.fails_at = density.calls + call
            try:
                run.advance()
                break
            except type(error):
                failures["tick" if call == tick else "window"] += 1
                torch.testing.assert_close(snapshot(run), before, rtol=0, atol=0, equal_nan=True)
        else:
            run.advance()
    assert failures["tick"] >= 7
    assert failures["window"] == 2 * 2 + 1  # two windows have a first step size to find, the last only starts
    assert_same_draws(run, whole)


# Lost chains


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@parametrize(SAMPLERS, "sampler")
def test_a_lost_chain_stays_and_spoils_no_other(sampler: SamplerCase, dense: bool, value: float) -> None:
    energy = QuadraticEnergy.from_moments(torch.zeros(3).double(), torch.tensor([0.1, 1.0, 10.0]).double().diag())
    good = log_density_of(energy)

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, good_gradient = good(position)
        lost = position[:, 0] > 50
        return torch.where(lost, value, good_value), torch.where(lost[:, None], math.nan, good_gradient)

    start = randn(1, 16, 3)
    start[2] = torch.tensor([100.0, 0.0, 0.0])
    settings = RunSettings(num_samples=100, warmup_steps=100, dense_metric=dense)
    run = finish(make_run(log_density, start, settings, algorithm=sampler.make()))
    draws = run.draws.draws()
    torch.testing.assert_close(draws["position"][2], start[2].expand(100, 3))
    assert bool(draws["diverging"][2].all())
    others = torch.arange(16) != 2
    assert run.num_divergences.tolist() == [100 if i == 2 else 0 for i in range(16)]
    assert_moments(draws["position"][others], energy.mean, energy.variance)
    assert draws["acceptance_rate"][others].double().mean() < 0.99  # the step size has not shrunk to please it


def test_a_run_of_lost_chains_ends() -> None:
    def nowhere(position: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(position[:, 0], math.nan), torch.full_like(position, math.nan)

    for sampler in SAMPLERS:
        run = finish(make_run(nowhere, randn(1, 3, 2), RunSettings(10, 30), algorithm=sampler.make()))
        torch.testing.assert_close(run.draws.draws()["position"], randn(1, 3, 2)[:, None].expand(3, 10, 2))
        assert run.num_divergences.tolist() == [10, 10, 10]


def test_divergences_are_counted_as_recorded() -> None:
    """Those of the draws that are kept, and of no others."""

    def box(position: Tensor) -> tuple[Tensor, Tensor]:
        outside = (position.abs() > 1).any(-1)
        return torch.where(outside, -torch.inf, 0.0), torch.zeros_like(position)

    start = 0.5 * randn(1, 10, 2).clamp(-1, 1)
    settings = RunSettings(num_samples=50, warmup_steps=0, step_size=0.3)
    for algorithm in (nuts_algorithm(), hmc_algorithm(trajectory_length=1.0)):
        run = finish(make_run(box, start, settings, algorithm=algorithm))
        diverging = run.draws.draws()["diverging"]
        assert torch.equal(diverging.sum(1), run.num_divergences)
        assert int(diverging.sum()) > 10
        assert bool((run.draws.draws()["position"].abs() <= 1).all())
