"""What adapts and records a run: step sizes, metrics, covariances, windows, buffers."""

import io
import math
from itertools import pairwise
from statistics import mean
from typing import Any

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
    stage,
    standard_errors,
    standard_normal,
)
from torch import Tensor

from pyro_ebm import DoubleWell, QuadraticEnergy, correlated_gaussian
from pyro_ebm.mcmc import chees
from pyro_ebm.mcmc.chees import LengthAdaptation
from pyro_ebm.mcmc.covariance import ChosenCovariance, LowRankCovariance, PooledCovariance, PooledVariance
from pyro_ebm.mcmc.integrator import leapfrog
from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric, Metric, metric_of, whiten
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.step_size import DualAveraging, reasonable_step_size
from pyro_ebm.mcmc.windows import warmup_windows


def float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Dual averaging


class PlainDualAveraging:
    """Hoffman and Gelman 2014, algorithm 5, in floats, one acceptance probability at a time."""

    def __init__(self, step_size: float, mu: float, target: float) -> None:
        self.mu, self.target = mu, target
        self.h_bar, self.m = 0.0, 0
        self.step_size, self.average = step_size, step_size

    def update(self, alpha: float) -> None:
        gamma, t0, kappa = 0.05, 10, 0.75
        self.m += 1
        eta = 1 / (self.m + t0)
        self.h_bar = (1 - eta) * self.h_bar + eta * (self.target - alpha)
        log_step = self.mu - math.sqrt(self.m) / gamma * self.h_bar
        weight = self.m**-kappa
        self.average = math.exp(weight * log_step + (1 - weight) * math.log(self.average))
        self.step_size = math.exp(log_step)


def test_one_chain_follows_the_published_recursion() -> None:
    ours = DualAveraging.start(float64(0.3), 1)
    plain = PlainDualAveraging(0.3, float(ours.centre), 0.7)
    for acceptance in torch.rand(200, generator=generator(1), dtype=torch.float64):
        ours = ours.update(torch.tensor([math.nan, acceptance])[:1], torch.tensor([False]), 0.7)  # nothing ended
        ours = ours.update(acceptance[None], torch.tensor([True]), 0.7)
        plain.update(float(acceptance))
        assert float(ours.step_size) == pytest.approx(plain.step_size)
        assert float(ours.settled().step_size) == pytest.approx(plain.average)


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize(("chains", "stuck"), [(6, 0), (8, 0), (8, 1), (8, 3), (8, 6), (1, 1)])
@pytest.mark.parametrize(("target", "patience"), [(0.8, 3), (0.234, 10)])
def test_many_chains_make_one_update_when_three_quarters_of_them_have_reported(
    target: float, patience: int, chains: int, stuck: int, delayed: bool
) -> None:
    """With the mean over chains of the mean of each.

    Where trajectories are under way when ε changes, the one in which a chain then is does not count. Nor does one of a
    chain that has often in a row accepted nothing: it has shorter steps of its own, and the others do not wait for it.
    """
    ours = DualAveraging.start(float64(1.0), chains)
    plain = PlainDualAveraging(1.0, float(ours.centre), target)
    acceptance = 0.002 + 0.998 * torch.rand(300, chains, generator=generator(1), dtype=torch.float64)
    acceptance[:200, :stuck] = 0.0005  # what accepts less than a thousandth accepts nothing; then it finds its way
    done = torch.rand(300, chains, generator=generator(2)) < 0.3
    waiting: dict[int, list[float]] = {}
    began_with = [0] * chains  # for each chain the number of updates before its trajectory began
    failures, most_failures = [0] * chains, 0
    num_updates, num_stale = 0, 0
    for row, ended in zip(acceptance, done, strict=True):
        ours = ours.update(torch.where(ended, row, math.nan), ended, target, delayed=delayed)
        updates_so_far = num_updates
        for chain in ended.nonzero().flatten().tolist():
            accepted = float(row[chain])
            stale = delayed and began_with[chain] < num_updates
            if not stale and failures[chain] <= patience:
                waiting.setdefault(chain, []).append(accepted)
            num_stale += stale
            failures[chain] = min(60, failures[chain] + 1) if accepted < 1e-3 else max(0, failures[chain] - 1)
            began_with[chain] = updates_so_far  # the next one begins in this tick, before its update
        most_failures = max(most_failures, *failures)
        if waiting and len(waiting) >= 0.75 * sum(number <= patience for number in failures):
            means = [mean(each) for each in waiting.values()]
            moving = [each for each in means if each > 1e-3]
            plain.update(mean(moving if 2 * len(moving) >= len(means) else means))
            waiting, num_updates = {}, num_updates + 1
        assert float(ours.step_size) == pytest.approx(plain.step_size)
        assert float(ours.settled().step_size) == pytest.approx(plain.average)
        own = [plain.step_size * 0.5 ** max(0, number - patience) for number in failures]
        assert ours.step_sizes.tolist() == pytest.approx(own, rel=1e-9, abs=0)
    assert int(ours.num_updates) == num_updates > (20 if stuck < chains else 1)
    assert (num_stale > (20 if stuck < chains else 1)) == delayed
    assert (most_failures > 40) == (stuck > 0)
    assert bool((ours.settled().step_sizes == ours.settled().step_size).all())  # that is for the warm-up alone


@parametrize([*SAMPLERS, ULA], "sampler")
def test_the_transitions_that_count_are_those_made_with_the_present_step_size(sampler: SamplerCase) -> None:
    """As every sampler itself reports the step size of its trajectories."""
    algorithm, log_density, start = sampler.make(), log_density_of(DoubleWell(2, 1.5).double()), randn(1, 8, 2)
    adaptation, random = algorithm.adaptation(float64(0.3), 8), generator(2)
    warming_up = stage(warming_up=True)
    parameters = algorithm.parameters(adaptation, warming_up)
    state = algorithm.init(log_density, start, parameters, algorithm.draw_randomness(start, random))
    waiting: dict[int, list[float]] = {}
    num_updates, num_counted, num_ended = 0, 0, 0
    for _ in range(600 if sampler.name == "chees" else 300):  # its trajectories are the longest
        parameters = algorithm.parameters(adaptation, warming_up)
        present = 0.5 * adaptation.step_size.square() if sampler.name in ("mala", "ula") else adaptation.step_size
        state, info = algorithm.step(log_density, state, algorithm.draw_randomness(start, random), parameters)
        counted = info.done & (info.step_size == present)
        num_counted, num_ended = num_counted + int(counted.sum()), num_ended + int(info.done.sum())
        for chain in counted.nonzero().flatten().tolist():
            waiting.setdefault(chain, []).append(float(info.acceptance_rate[chain]))
        adaptation = adaptation.adapt(info, info.done, 0.8)
        averaging: Any = adaptation.averaging if isinstance(adaptation, LengthAdaptation) else adaptation
        if len(waiting) >= 6:
            waiting, num_updates = {}, num_updates + 1
        assert averaging.transitions.tolist() == [len(waiting.get(chain, [])) for chain in range(8)]
        assert averaging.acceptance_sum.tolist() == pytest.approx([sum(waiting.get(chain, [])) for chain in range(8)])
        assert int(averaging.num_updates) == num_updates
    assert num_updates >= 20
    assert (num_counted < num_ended) == sampler.leapfrogs


def test_dual_averaging_settles_and_restarts() -> None:
    averaging = DualAveraging.start(float64(0.3), 3)
    for acceptance in torch.rand(41, 3, generator=generator(1), dtype=torch.float64):
        averaging = averaging.update(acceptance, torch.ones(3, dtype=torch.bool), 0.7, delayed=True)
    settled = averaging.settled()
    assert float(averaging.step_size) != pytest.approx(float(averaging.log_average.exp()))
    assert torch.equal(settled.step_size, averaging.log_average.exp())
    assert bool(averaging.stale.any())
    for same_scale in (False, True):
        restarted = settled.restarted(float64(0.5), same_scale=same_scale)
        for ours, fresh in zip(restarted, DualAveraging.start(float64(0.5), 3), strict=True):
            assert torch.equal(ours, fresh)


def test_chains_that_never_accept_are_left_out_while_they_are_few() -> None:
    averaging = DualAveraging.start(float64(1.0), 6)
    plain = PlainDualAveraging(1.0, float(averaging.centre), 0.8)
    few, many = torch.tensor([0.0, 0.0, 0.7, 0.8, 0.9, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.9, 1.0])
    for row, expected in ((few, 0.85), (many, 1.9 / 6), (torch.zeros(6), 0.0)):
        averaging = averaging.update(row.double(), torch.ones(6, dtype=torch.bool), 0.8)
        plain.update(expected)
        assert float(averaging.step_size) == pytest.approx(plain.step_size)


def acceptances(log_density: Any, position: Tensor, step_size: Tensor, seed: int) -> Tensor:
    """Acceptance probabilities of one leapfrog step from each position, `(chains,)`."""
    momentum = torch.randn(position.shape, generator=generator(seed), dtype=position.dtype)
    value, gradient = log_density(position)
    _, end_momentum, end_value, _ = leapfrog(log_density, position, momentum, gradient, step_size)
    change = end_value - value - 0.5 * (end_momentum.square() - momentum.square()).sum(-1)
    return change.clamp(max=0).exp()


@pytest.mark.parametrize("target", [0.574, 0.8, 0.95])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_dual_averaging_reaches_the_target_acceptance(target: float, scale: float) -> None:
    """On a Gaussian, from the first step size. The noise of the answer is that of its weighted mean."""
    chains, num_updates, dim = 64, 1000, 10

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        return standard_normal(position / scale)[0], -position / scale**2

    def draw(num_draws: int, seed: int) -> Tensor:
        return scale * torch.randn(num_draws, dim, generator=generator(seed), dtype=torch.float64)

    averaging = DualAveraging.start(
        reasonable_step_size(log_density, draw(chains, 1), randn(2, chains, dim), float64(1.0)), chains
    )
    ended = torch.ones(chains, dtype=torch.bool)
    for seed in range(num_updates):
        acceptance = acceptances(log_density, draw(chains, 10_000 + seed), averaging.step_size, seed)
        averaging = averaging.update(acceptance, ended, target)
    reached = acceptances(log_density, draw(200_000, 3), averaging.settled().step_size, 4)
    short, share = shortfall(averaging)
    noise = reached.std() * (1 / len(reached) + share / chains) ** 0.5
    assert abs(float(reached.mean() - target + short)) < standard_errors(1) * float(noise)


# The trajectory length


class PlainLength:
    """In floats: what `LengthAdaptation` says that it does, one trajectory at a time."""

    def __init__(self, step_size: float, chains: int) -> None:
        self.rate, self.thrift = 0.1 * min(1.0, chains / 16) ** 0.5, 0.1 * (1 + 6 / chains)
        self.log_length = self.log_average = math.log(step_size) + 1
        self.criterion, self.gradient, self.num_updates = 0.0, 0.0, 0

    def update(self, criterion: float, gradient: float, step_size: float) -> None:
        self.criterion = 0.9 * self.criterion + 0.1 * criterion
        self.gradient = 0.9 * self.gradient + 0.1 * gradient
        slope = max(-1.0, min(1.0, self.gradient / self.criterion)) - self.thrift
        least, most = math.log(step_size), math.log(step_size) + math.log(min(16 + 2 * self.num_updates, 1024))
        self.log_length = min(max(self.log_length + self.rate * slope, least), most)
        self.num_updates += 1
        share = self.num_updates**-0.5
        self.log_average = share * self.log_length + (1 - share) * self.log_average


def chees_info(chains: int, seed: int, done: bool, slope: float = 0.5) -> chees.Info:
    """What a tick of chains says, with a gradient of about `slope` times the criterion."""
    acceptance, noise = torch.rand(2, chains, generator=generator(seed), dtype=torch.float64)
    criterion = randn(seed, chains).square()
    zeros, nowhere = torch.zeros(chains, dtype=torch.float64), torch.zeros(chains, dtype=torch.bool)
    return chees.Info(
        done=torch.full((chains,), done),
        lp=zeros,
        energy=zeros,
        energy_error=zeros,
        acceptance_rate=acceptance,
        step_size=zeros,
        n_steps=zeros.long(),
        trajectory_length=zeros,
        diverging=nowhere,
        non_finite=nowhere,
        criterion=criterion,
        criterion_gradient=criterion * (slope + noise - 0.5),
    )


@pytest.mark.parametrize("slope", [0.4, 5.0, -5.0], ids=["moderate", "up", "down"])
def test_the_length_climbs_the_criterion_for_its_cost(slope: float) -> None:
    """By the mean over chains, weighted by what each accepts, of those that are sound, between one step and a bound.

    The bound grows with every trajectory.
    """
    chains, start = 6, 0.2
    ours, plain = LengthAdaptation.start(float64(start), chains), PlainLength(start, chains)
    plain_steps = DualAveraging.start(float64(start), chains)
    sound = torch.arange(chains) != 2
    seen = []
    for seed in range(150):
        done = seed % 3 != 0
        info = chees_info(chains, seed, done, slope)
        ours = ours.adapt(info, sound & done, 0.5)
        plain_steps = plain_steps.update(info.acceptance_rate, sound & done, 0.5, delayed=True)
        assert torch.equal(ours.step_size, plain_steps.step_size)
        if done:
            weight = torch.where(sound, info.acceptance_rate, 0)
            means = [float((weight * x).sum() / weight.sum()) for x in (info.criterion, info.criterion_gradient)]
            plain.update(*means, float(ours.step_size))
        assert float(ours.trajectory_length) == pytest.approx(math.exp(plain.log_length))
        assert float(ours.settled().trajectory_length) == pytest.approx(math.exp(plain.log_average))
        seen.append(float(ours.trajectory_length / ours.step_size))
    assert torch.equal(ours.settled().step_size, plain_steps.settled().step_size)
    assert 0.999 < min(seen) <= max(seen) < 16 + 2 * 99 + 0.001
    assert slope != 5.0 or max(seen) > 0.9 * (16 + 2 * 99)
    assert slope != 5.0 or float(ours.restarted(ours.step_size, same_scale=True).max_steps) == 4 * (16 + 2 * 100)
    assert slope != -5.0 or min(seen) < 1.001


def test_a_trajectory_that_says_nothing_leaves_the_length() -> None:
    """One in which a criterion is not finite."""
    ours = LengthAdaptation.start(float64(0.3), 4)
    sound = torch.ones(4, dtype=torch.bool)
    for seed in range(20):
        ours = ours.adapt(chees_info(4, seed, True), sound, 0.8)
    info = chees_info(4, 50, True)
    for bad in (math.nan, math.inf):
        row = torch.where(torch.arange(4) == 1, bad, info.criterion)
        after = ours.adapt(info._replace(criterion=row), sound, 0.8)
        for ours_field, after_field in zip(ours[1:], after[1:], strict=True):
            assert torch.equal(ours_field, after_field)
    assert not torch.equal(ours.adapt(info, sound, 0.8).log_length, ours.log_length)


def test_few_chains_go_as_far_as_hmc_whatever_they_learn() -> None:
    """And twice as far where draws remember one another; but no further than the bound on the number of steps."""
    for chains, few in ((15, True), (16, False)):
        ours = LengthAdaptation.start(float64(0.01), chains)
        assert float(ours.length(float64(2.0))) == pytest.approx(0.01 * (16 if few else math.e))
        ours = ours._replace(max_steps=float64(1000.0))
        for reach in (1.0, 2.0):
            expected = math.pi * reach if few else 0.01 * math.e
            assert float(ours.length(float64(reach))) == pytest.approx(expected)
        ours = ours._replace(log_length=float64(3.0))
        assert float(ours.length(float64(2.0))) == pytest.approx(math.exp(3.0))


def test_a_new_scale_makes_the_length_start_anew() -> None:
    ours = LengthAdaptation.start(float64(0.3), 4)
    for seed in range(40):
        ours = ours.adapt(chees_info(4, seed, True), torch.ones(4, dtype=torch.bool), 0.8)
    ours = ours.settled()
    fresh = LengthAdaptation.start(float64(0.5), 4)
    assert float(fresh.trajectory_length) == pytest.approx(0.5 * math.e)
    other, same = (ours.restarted(float64(0.5), same_scale=same) for same in (False, True))
    assert float(same.step_size) == float(other.step_size) == 0.5
    assert torch.equal(other.trajectory_length, fresh.trajectory_length)
    assert torch.equal(same.trajectory_length, ours.trajectory_length)
    assert float(same.trajectory_length) != pytest.approx(float(fresh.trajectory_length))
    for adaptation in (other, same):
        assert int(adaptation.num_updates) == int(adaptation.averaging.num_updates) == 0
        torch.testing.assert_close(adaptation.settled().trajectory_length, adaptation.trajectory_length)


# The first step size


def crossing(log_density: Any, position: Tensor, momentum: Tensor) -> Tensor:
    """For each chain the smallest step size with acceptance below 0.8, on a fine grid, `(chains,)`."""
    grid = torch.logspace(-5, 5, 3000, dtype=torch.float64)
    value, gradient = log_density(position)
    rejected = []
    for step_size in grid:
        _, end_momentum, end_value, _ = leapfrog(log_density, position, momentum, gradient, step_size)
        change = end_value - value - 0.5 * (end_momentum.square() - momentum.square()).sum(-1)
        rejected.append(change < math.log(0.8))
    return grid[torch.stack(rejected).double().argmax(0)]


@pytest.mark.parametrize("start", [1e-4, 0.03, 1.0, 200.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_first_step_size_of_one_chain(scale: float, start: float) -> None:
    """From rest at one on a Gaussian the acceptance crosses 0.8 once."""

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        return standard_normal(position / scale)[0], -position / scale**2

    position, momentum = torch.full((1, 1), scale, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    exact = crossing(log_density, position, momentum)
    found = reasonable_step_size(log_density, position, momentum, float64(start))
    assert 0.49 < float(found / exact) < 2.02


@pytest.mark.parametrize("chains", [2, 101])
@pytest.mark.parametrize("start", [1e-3, 0.05])
def test_first_step_size_is_the_median_over_chains(start: float, chains: int) -> None:
    """Doubling from below, each chain stops between its crossing and twice that; and so does the median."""
    energy = QuadraticEnergy(torch.diag(torch.linspace(0.5, 4.0, 40, dtype=torch.float64)))
    log_density = log_density_of(energy)
    position, momentum = energy.sample((chains,), generator=generator(1)), randn(2, chains, 40)
    found = reasonable_step_size(log_density, position, momentum, float64(start))
    exact = crossing(log_density, position, momentum).median()
    assert 0.99 < float(found / exact) < 2.02
    alone = [
        reasonable_step_size(log_density, position[i : i + 1], momentum[i : i + 1], float64(start))
        for i in range(chains)
    ]
    torch.testing.assert_close(found, torch.stack(alone).median())


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_first_step_size_leaves_lost_chains_out(value: float) -> None:
    """Chains where the density is not finite have no say; if none has one, the guess stands."""

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, gradient = standard_normal(position)
        return torch.where(position[:, 0] > 40, value, good_value), gradient

    position, momentum = randn(1, 5, 3), randn(2, 5, 3)
    expected = reasonable_step_size(log_density, position[:2], momentum[:2], float64(0.3))
    position[2:, 0] = 1e6
    assert torch.equal(reasonable_step_size(log_density, position, momentum, float64(0.3)), expected)
    position[:, 0] = 1e6
    assert float(reasonable_step_size(log_density, position, momentum, float64(0.3))) == pytest.approx(0.3)


# Covariances


Estimator = type[PooledVariance] | type[PooledCovariance]


def shrunk(covariance: Tensor, num_draws: int) -> Tensor:
    """The variances as they are; the correlations shrunk towards none with the weight of five draws, or fewer."""
    variance = covariance.diagonal()
    prior = 5 * min(1.0, 10 * len(variance) / num_draws) ** 2
    return num_draws / (num_draws + prior) * covariance + prior / (num_draws + prior) * variance.diag()


@pytest.mark.parametrize("kind", [PooledVariance, PooledCovariance])
def test_pooled_covariance_is_that_of_all_draws(kind: Estimator) -> None:
    dim, dense = 3, kind is PooledCovariance
    covariance = kind.start(torch.zeros(dim, dtype=torch.float64))
    taken: list[Tensor] = []
    shares = [0.0, 0.5, 1.0, 0.0, 0.1, 0.9, 0.5]
    for seed, share in enumerate(shares):
        position = 100 + torch.arange(1, dim + 1) * randn(seed, 8, dim).cumsum(-1)
        done = torch.rand(8, generator=generator(seed)) < share
        covariance = covariance.update(position[done])
        taken += list(position[done])
        assert int(covariance.num_draws) == len(taken)
        if len(taken) < 2:
            continue
        draws = torch.stack(taken)
        exact = torch.cov(draws.mT)
        scatter = (len(taken) - 1) * (exact if dense else exact.diagonal())
        torch.testing.assert_close(covariance.mean, draws.mean(0))
        torch.testing.assert_close(covariance.scatter, scatter)
        inverse_mass_matrix = covariance.metric().inverse_mass_matrix
        expected = shrunk(exact, len(taken))
        torch.testing.assert_close(inverse_mass_matrix, expected if dense else expected.diagonal())
    assert len(taken) > 20


@pytest.mark.parametrize("kind", [PooledVariance, PooledCovariance])
@pytest.mark.parametrize("num_draws", [0, 1])
def test_metric_of_too_few_draws_for_a_variance(kind: Estimator, num_draws: int) -> None:
    """Nothing is known: the identity."""
    covariance = kind.start(torch.zeros(2, dtype=torch.float64)).update(randn(1, num_draws, 2))
    expected = torch.ones(2, dtype=torch.float64)
    inverse_mass_matrix = covariance.metric().inverse_mass_matrix
    torch.testing.assert_close(inverse_mass_matrix, expected.diag() if kind is PooledCovariance else expected)


def test_dense_metric_of_fewer_draws_than_dims_is_positive_definite() -> None:
    covariance = PooledCovariance.start(torch.zeros(20, dtype=torch.float64)).update(1e6 * randn(1, 3, 20))
    metric = covariance.metric()
    assert bool(metric.factor.isfinite().all())
    assert bool((metric.factor.diagonal() > 0).all())
    torch.testing.assert_close(metric.variances, covariance.scatter.diagonal() / 2)


@pytest.mark.parametrize("kind", [PooledVariance, PooledCovariance])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_variances_are_learned_on_any_scale(kind: Estimator, scale: float) -> None:
    """A parameter in other units has a metric in other units, however few its draws."""
    draws, like = randn(1, 6, 2), torch.zeros(2, dtype=torch.float64)
    ours, scaled = kind.start(like).update(draws).metric(), kind.start(like).update(scale * draws).metric()
    torch.testing.assert_close(scaled.inverse_mass_matrix / scale**2, ours.inverse_mass_matrix)


BLOCKS = [[0, 2, 4], [1], [3, 5]]


def block_mask(blocks: list[list[int]]) -> Tensor:
    dim = sum(map(len, blocks))
    owner = torch.tensor([next(i for i, block in enumerate(blocks) if k in block) for k in range(dim)])
    return owner.unsqueeze(0) == owner.unsqueeze(1)


def test_masked_covariance_is_that_of_each_block_alone() -> None:
    draws = 3 + randn(1, 40, 6) @ randn(2, 6, 6)
    like = torch.zeros(6, dtype=torch.float64)
    whole = PooledCovariance.start(like, block_mask(BLOCKS))
    for part in draws.split([7, 0, 1, 32]):
        whole = whole.update(part)
    matrix = whole.metric().inverse_mass_matrix
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for block in BLOCKS:
        alone = PooledCovariance.start(like[block]).update(draws[:, block])
        expected[torch.tensor(block)[:, None], torch.tensor(block)] = alone.metric().inverse_mass_matrix
    torch.testing.assert_close(matrix, expected)
    assert bool((matrix[~block_mask(BLOCKS)] == 0).all())
    for mask in (None, torch.ones(6, 6, dtype=torch.bool)):
        full = PooledCovariance.start(like, mask).update(draws).metric().inverse_mass_matrix
        torch.testing.assert_close(full, shrunk(torch.cov(draws.mT), 40))
        assert bool((full != 0).all())
    diagonal = PooledCovariance.start(like, torch.eye(6, dtype=torch.bool)).update(draws)
    torch.testing.assert_close(diagonal.metric().inverse_mass_matrix, draws.var(0).diag())


def test_a_narrow_direction_of_many_draws_stays_narrow() -> None:
    """Where its variance is a 50,000th of another's too, its relative error is that of 2,000 draws."""
    covariance = torch.tensor([[1.0, 0.99996], [0.99996, 1.0]], dtype=torch.float64)
    draws = randn(1, 2000, 2) @ torch.linalg.cholesky(covariance).mT
    metric = PooledCovariance.start(torch.zeros(2, dtype=torch.float64)).update(draws).metric()
    spread = torch.linalg.eigvalsh(whitened_covariance(metric, covariance))
    assert bool(((spread - 1).abs() < standard_errors(2) * (2 / 2000) ** 0.5).all())


@pytest.mark.parametrize("correlation", [0.0, 0.95])
@pytest.mark.parametrize("dim", [3, 40])
def test_a_chosen_metric_is_dense_where_correlations_are_strong_or_dims_few(dim: int, correlation: float) -> None:
    energy = correlated_gaussian(dim, correlation, dtype=torch.float64)
    draws, like = energy.sample((400,), generator=generator(1)), torch.zeros(dim, dtype=torch.float64)
    chosen = ChosenCovariance(PooledCovariance.start(like)).update(draws[:100]).update(draws[100:])
    assert int(chosen.num_draws) == 400
    metric = chosen.metric()
    kind = DenseMetric if dim == 3 or correlation else DiagonalMetric
    assert type(metric) is kind
    expected = (PooledVariance if kind is DiagonalMetric else PooledCovariance).start(like).update(draws).metric()
    torch.testing.assert_close(metric.inverse_mass_matrix, expected.inverse_mass_matrix)


# Low-rank covariances


def whitened_covariance(metric: Metric, covariance: Tensor) -> Tensor:
    """`L⁻¹ Σ L⁻ᵀ`."""
    return metric.to_whitened(metric.to_whitened(covariance).mT)


def test_low_rank_covariance_keeps_the_last_draws() -> None:
    """Variances are of all draws, correlations of the last 256."""
    draws = randn(1, 700, 3)
    estimator = LowRankCovariance.start(torch.zeros(3, dtype=torch.float64), 2)
    for part in draws.split([0, 1, 200, 0, 99, 400]):
        estimator = estimator.update(part)
    assert int(estimator.num_draws) == 700
    assert torch.equal(estimator.recent, draws[-256:])
    torch.testing.assert_close(estimator.variance.variance, draws.var(0))


@pytest.mark.parametrize("num_draws", [0, 1])
def test_low_rank_metric_of_too_few_draws(num_draws: int) -> None:
    metric = LowRankCovariance.start(torch.zeros(4, dtype=torch.float64), 2).update(randn(1, num_draws, 4)).metric()
    position = randn(2, 5, 4)
    torch.testing.assert_close(metric.to_whitened(position), position)
    torch.testing.assert_close(metric.to_position(position), position)


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_low_rank_metric_stretches_along_the_strongest_correlations(rank: int) -> None:
    """Its correlations are those of the draws, with the others at one, shrunk with the weight of five draws."""
    num_draws, dim = 200, 5
    draws = 10 + randn(1, num_draws, dim) @ randn(3, dim, dim)
    metric = LowRankCovariance.start(torch.zeros(dim, dtype=torch.float64), rank).update(draws).metric()
    scale = draws.std(0)
    values, vectors = torch.linalg.eigh(torch.corrcoef(draws.mT))
    stretch = ((num_draws * values + 5) / (num_draws + 5)).sqrt()
    strength = stretch.log().abs()
    kept = (strength > math.log(1.2)) & (strength >= strength.sort().values[-min(rank, dim)])
    assert int(kept.sum()) == min(rank, int((strength > math.log(1.2)).sum())) > 0
    factor = (vectors * torch.where(kept, stretch.square(), 1)) @ vectors.mT
    torch.testing.assert_close(metric.inverse_mass_matrix, torch.outer(scale, scale) * factor)
    assert metric.directions.shape == (dim, min(rank, dim))


def test_low_rank_metric_finds_a_strongly_correlated_direction() -> None:
    """In 50 dims of unequal scales, whose standardised covariance has one eigenvalue of 47.55, and 49 of 0.05."""
    dim, correlation, num_draws = 50, 0.95, 256
    energy, scale = correlated_gaussian(dim, correlation, dtype=torch.float64), torch.logspace(-2, 2, dim).double()
    draws = scale * energy.sample((num_draws,), generator=generator(1))
    covariance = torch.outer(scale, scale) * torch.full((dim, dim), correlation).fill_diagonal_(1).double()
    metric = LowRankCovariance.start(torch.zeros(dim, dtype=torch.float64), 1).update(draws).metric()
    direction = torch.full((dim,), dim**-0.5, dtype=torch.float64)
    large, small = 1 + (dim - 1) * correlation, 1 - correlation
    # To first order the found direction errs in each of the others by a normal of variance λμ / (n (λ - μ)²); the
    # standard deviations of the dims, all near one common value, add as much again for each at the most.
    angle = (metric.directions[:, 0] @ direction).square()
    variance = large * small / (num_draws * (large - small) ** 2)
    assert float(1 - angle) < 2 * variance * (dim - 1 + standard_errors(1) * math.sqrt(2 * (dim - 1)))
    # Along it, the draws have a variance of λ, known up to a relative standard error of √(2 / n); its own share in the
    # standard deviations by which it is divided, which are all too large when it is, only makes that smaller.
    error = standard_errors(2) * math.sqrt(2 / num_draws)
    assert abs(float(metric.stretch[0].square()) / large - 1) < error + 5 / (num_draws + 5)
    before = torch.linalg.eigvalsh(whitened_covariance(DiagonalMetric(metric.scale), covariance))
    after = torch.linalg.eigvalsh(whitened_covariance(metric, covariance))
    assert float(before[-1]) > 30
    assert 0.5 < float(after[-1]) < 2


def test_low_rank_metric_is_no_worse_than_none_for_independent_dims() -> None:
    """More dims than draws: directions in which the draws happen to spread are no directions of the density.

    A factor of 1.2² in the variance is what the estimator itself calls negligible.
    """
    draws = randn(1, 50, 1000)
    metric = LowRankCovariance.start(torch.zeros(1000, dtype=torch.float64), 10).update(draws).metric()
    whitened = whitened_covariance(LowRankMetric(torch.ones_like(metric.scale), *metric[1:]), torch.eye(1000).double())
    values = torch.linalg.eigvalsh(whitened)
    assert float(values[-1] / values[0]) < 2


@pytest.mark.parametrize("dim", [100_000])
def test_low_rank_metric_costs_memory_and_time_in_proportion_to_the_dim(dim: int) -> None:
    """A matrix of `(dim, dim)` would be 80 GB."""
    direction = torch.sign(randn(1, dim)) / math.sqrt(dim)
    draws = randn(2, 20, dim) + 10 * math.sqrt(dim) * randn(3, 20, 1) * direction
    estimator = LowRankCovariance.start(torch.zeros(dim, dtype=torch.float64), 4)
    for part in draws.split(5):
        estimator = estimator.update(part)
    metric = estimator.metric()
    assert metric.directions.shape == (dim, 4)
    assert float((metric.directions[:, metric.stretch.argmax()] @ direction).abs()) > 0.99
    assert metric.variances.shape == (dim,)
    whitened = metric.to_whitened(draws)
    torch.testing.assert_close(metric.to_position(whitened), draws)
    gradient = randn(4, 20, dim)
    product = (gradient * metric.to_position(whitened)).sum(-1)
    torch.testing.assert_close((metric.whiten_gradient(gradient) * whitened).sum(-1), product)


# Windows


@pytest.mark.parametrize("chains", [1, 2, 4, 5, 16, 64, 1000])
@pytest.mark.parametrize("adapt_metric", [True, False])
def test_windows_add_up(chains: int, adapt_metric: bool) -> None:
    for steps in [*range(260), 300, 500, 999, 1000, 1001, 2000, 10_000]:
        windows = warmup_windows(steps, chains, adapt_metric=adapt_metric)
        assert sum(window.length for window in windows) == steps
        assert all(window.length > 0 for window in windows)
        renewing = [window.renews_metric for window in windows]
        assert any(renewing) == (adapt_metric and steps >= 20)
        if not any(renewing):
            assert len(windows) == min(steps, 1)
            continue
        # A start and an end for the step size alone, and windows for the metric between, that at least double.
        assert renewing == [False, *[True] * (len(windows) - 2), False]
        lengths = [window.length for window in windows[1:-1]]
        assert all(later >= 2 * earlier for earlier, later in pairwise(lengths))


def test_windows_are_those_of_stan_for_four_chains_but_for_a_longer_end() -> None:
    windows = warmup_windows(1000, 4, adapt_metric=True)
    assert [window.length for window in windows] == [75, 25, 50, 100, 200, 450, 100]
    assert [window.length for window in warmup_windows(500, 4, adapt_metric=True)] == [75, 25, 50, 100, 200, 50]
    assert [window.length for window in warmup_windows(80, 4, adapt_metric=True)] == [12, 60, 8]


# Metrics

METRICS: dict[str, Metric] = {
    "diagonal": DiagonalMetric(torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64)),
    "dense": DenseMetric(torch.tensor([[0.3, 0.0, 0.0], [-0.4, 2.0, 0.0], [0.2, 0.6, 1.1]], dtype=torch.float64)),
    "low_rank": LowRankMetric(
        torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64),
        torch.linalg.qr(randn(11, 3, 2))[0],
        torch.tensor([3.0, 0.4], dtype=torch.float64),
    ),
    "low_rank_unused": LowRankMetric(
        torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
    ),
}


def factor_of(metric: Metric) -> Tensor:
    """L, `(3, 3)`: its columns are where the unit vectors go."""
    return metric.to_position(torch.eye(3, dtype=torch.float64)).mT


def full_inverse_mass_matrix(metric: Metric) -> Tensor:
    matrix = metric.inverse_mass_matrix
    return matrix if matrix.dim() == 2 else matrix.diag()


@pytest.mark.parametrize("lead", [(), (1,), (5,), (4, 5)], ids=str)
@pytest.mark.parametrize("name", METRICS)
def test_metric_round_trip(name: str, lead: tuple[int, ...]) -> None:
    metric, position = METRICS[name], randn(1, *lead, 3)
    whitened = metric.to_whitened(position)
    assert whitened.shape == position.shape
    torch.testing.assert_close(metric.to_position(whitened), position)
    torch.testing.assert_close(metric.to_whitened(metric.to_position(position)), position)


@pytest.mark.parametrize("name", METRICS)
def test_inverse_mass_matrix_is_the_covariance_that_becomes_unit(name: str) -> None:
    metric = METRICS[name]
    matrix = full_inverse_mass_matrix(metric)
    columns = metric.to_whitened(metric.to_whitened(matrix).mT)
    torch.testing.assert_close(columns, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(matrix, factor_of(metric) @ factor_of(metric).mT)
    torch.testing.assert_close(metric.variances, matrix.diagonal())


def test_low_rank_metric_is_a_diagonal_times_a_stretch() -> None:
    metric = METRICS["low_rank"]
    assert isinstance(metric, LowRankMetric)
    scale, directions, stretch = metric
    exact = scale.diag() @ (torch.eye(3).double() + directions @ (stretch - 1).diag() @ directions.mT)
    torch.testing.assert_close(factor_of(metric), exact)


@pytest.mark.parametrize("lead", [(), (5,), (4, 5)], ids=str)
@pytest.mark.parametrize("name", METRICS)
def test_gradients_go_by_the_transpose(name: str, lead: tuple[int, ...]) -> None:
    metric, gradient = METRICS[name], randn(1, *lead, 3)
    whitened = randn(2, *lead, 3).requires_grad_()
    (exact,) = torch.autograd.grad(metric.to_position(whitened), whitened, gradient)
    torch.testing.assert_close(metric.whiten_gradient(gradient), exact)


@pytest.mark.parametrize("dense", [False, True])
def test_metric_of_the_identity(dense: bool) -> None:
    ones = torch.ones(3, dtype=torch.float64)
    metric = metric_of(ones.diag() if dense else ones)
    position = randn(1, 5, 3)
    assert isinstance(metric, DenseMetric if dense else DiagonalMetric)
    assert metric[0].dtype == torch.float64
    assert torch.equal(metric.to_whitened(position), position)
    assert torch.equal(metric.to_position(position), position)


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_metric_of_an_inverse_mass_matrix(name: str) -> None:
    metric = metric_of(METRICS[name].inverse_mass_matrix)
    assert type(metric) is type(METRICS[name])
    torch.testing.assert_close(metric.inverse_mass_matrix, METRICS[name].inverse_mass_matrix)
    torch.testing.assert_close(factor_of(metric), factor_of(METRICS[name]))


@pytest.mark.parametrize(
    "matrix",
    [
        [1.0, 0.0],
        [1.0, -2.0],
        [1.0, math.nan],
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [math.nan, 1.0]],
    ],
    ids=str,
)
def test_metric_of_what_is_no_inverse_mass_matrix(matrix: Any) -> None:
    with pytest.raises(ValueError, match=r"inverse_mass_matrix: got .* not positive.*, expected"):
        metric_of(torch.tensor(matrix, dtype=torch.float64))


@pytest.mark.parametrize("name", METRICS)
def test_whitened_density_has_its_own_gradient(name: str) -> None:
    metric, energy = METRICS[name], DoubleWell(3, 1.5).double()
    whitened = randn(1, 6, 3).requires_grad_()
    value, gradient = whiten(metric, log_density_of(energy))(whitened.detach())
    exact = -energy(metric.to_position(whitened))
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(exact.sum(), whitened)[0])


@pytest.mark.parametrize("name", METRICS)
def test_whitening_is_sampling_with_masses(name: str) -> None:
    """A leapfrog step of `q`, mapped to `x`, is one of `x` with the mass matrix (Neal 2011, section 5.4.1)."""
    metric, log_density = METRICS[name], log_density_of(DoubleWell(3, 1.5).double())
    inverse_mass, factor = full_inverse_mass_matrix(metric), factor_of(metric)
    position, noise, step = randn(1, 6, 3), randn(2, 6, 3), 0.2
    momentum = noise @ torch.linalg.inv(factor)  # p = L⁻ᵀ ξ, whose covariance is the mass matrix
    half = momentum + 0.5 * step * log_density(position)[1]
    end = position + step * half @ inverse_mass
    end_momentum = half + 0.5 * step * log_density(end)[1]
    whitened_density, whitened = whiten(metric, log_density), metric.to_whitened(position)
    q, p, _, _ = leapfrog(whitened_density, whitened, noise, whitened_density(whitened)[1], float64(step))
    torch.testing.assert_close(metric.to_position(q), end)
    torch.testing.assert_close(p @ torch.linalg.inv(factor), end_momentum)
    kinetic = 0.5 * (end_momentum * (end_momentum @ inverse_mass)).sum(-1)
    torch.testing.assert_close(0.5 * p.square().sum(-1), kinetic)


# The recorder


def record_at_random(recorder: Recorder, ticks: range, block: int = 1) -> None:
    """So many ticks at a time."""
    for first in ticks[::block]:
        numbers = range(first, min(first + block, ticks.stop))
        chains, tick = torch.arange(4).expand(len(numbers), 4), torch.tensor(numbers)[:, None].expand(-1, 4)
        done = torch.stack([torch.rand(4, generator=generator(number)) for number in numbers])
        done = done < torch.tensor([0.9, 0.2, 0.5, 0.6])
        # What is said where nothing is done is not worth listening to.
        values = {
            "point": torch.where(done[..., None], torch.stack([chains, tick], dim=-1).double(), math.nan),
            "flag": chains % 2 == tick % 2,
        }
        counts = recorder.counts
        kept = recorder.record(done, values)
        assert bool((kept <= done).all())
        stored = recorder.counts.clamp(max=recorder.num_draws) - counts.clamp(max=recorder.num_draws)
        assert torch.equal(kept.sum(0), stored)


def recorded_at_random(ticks: range) -> list[list[int]]:
    """For each chain the ticks in which it was done."""
    probabilities = torch.tensor([0.9, 0.2, 0.5, 0.6])
    done = [torch.rand(4, generator=generator(tick)) < probabilities for tick in ticks]
    return [[tick for tick, row in zip(ticks, done, strict=True) if row[chain]] for chain in range(4)]


@pytest.mark.parametrize("thinning", [1, 2, 7])
@pytest.mark.parametrize("block", [1, 6, 50])
@pytest.mark.parametrize("num_draws", [1, 5, 1000])
def test_recorder_keeps_the_first_draws_of_each_chain(num_draws: int, block: int, thinning: int) -> None:
    """Of every `thinning` transitions, the last."""
    recorder, ticks = Recorder(4, num_draws, torch.device("cpu"), thinning), range(50)
    record_at_random(recorder, ticks, block)
    transitions = recorded_at_random(ticks)
    expected = [row[thinning - 1 :: thinning] for row in transitions]
    assert recorder.transitions.tolist() == [len(row) for row in transitions]
    assert recorder.counts.tolist() == [len(row) for row in expected]
    draws = recorder.draws()
    least = min(num_draws, *(len(row) for row in expected))
    assert draws["point"].shape == (4, least, 2)
    assert draws["flag"].shape == (4, least)
    assert draws["flag"].dtype == torch.bool
    for chain, row in enumerate(expected):
        assert draws["point"][chain, :, 1].tolist() == row[:least]
        assert bool((draws["point"][chain, :, 0] == chain).all())
        assert draws["flag"][chain].tolist() == [chain % 2 == tick % 2 for tick in row[:least]]


@pytest.mark.parametrize("block", [1, 6])
def test_a_recorder_thins_from_now_on(block: int) -> None:
    """What was counted towards a next draw is dropped; chains go at their own pace."""
    recorder = Recorder(4, 1000, torch.device("cpu"), 2)
    expected: list[list[int]] = [[] for _ in range(4)]
    for thinning, ticks in ((2, range(20)), (5, range(20, 50)), (1, range(50, 60))):
        if recorder.thinning != thinning:
            recorder.thin(thinning)
        record_at_random(recorder, ticks, block)
        for kept, row in zip(expected, recorded_at_random(ticks), strict=True):
            kept += row[thinning - 1 :: thinning]
    assert recorder.counts.tolist() == [len(row) for row in expected]
    point = recorder.draws()["point"]
    for chain, row in enumerate(expected):
        assert point[chain, :, 1].tolist() == row[: point.shape[1]]
    again = Recorder(4, 1000, torch.device("cpu"), 2)
    again.load_state_dict(recorder.state_dict())
    for each in (recorder, again):
        record_at_random(each, range(60, 70), block)
    assert again.thinning == 1
    assert torch.equal(again.counts, recorder.counts)
    assert torch.equal(again.draws()["point"], recorder.draws()["point"])


def test_recorder_finishes_what_it_stores() -> None:
    """The rows that are kept, and no others."""
    seen: list[Tensor] = []

    def finish(rows: Tensor) -> Tensor:
        seen.append(rows)
        return torch.stack([rows.sum(-1), -rows[:, 0], rows[:, 1]], dim=-1)

    recorder, plain = (Recorder(4, 5, torch.device("cpu"), 2) for _ in range(2))
    for seed in range(8):
        values = {"x": randn(seed, 6, 4, 2), "y": randn(50 + seed, 6, 4)}
        done = torch.rand(6, 4, generator=generator(seed)) < 0.5
        kept = recorder.record(done, values, {"x": finish})
        assert torch.equal(seen[-1], values["x"][kept])
        plain.record(done, values)
    x = plain.draws()["x"]
    assert x.shape == (4, 5, 2)
    torch.testing.assert_close(recorder.draws()["x"], torch.stack([x.sum(-1), -x[..., 0], x[..., 1]], dim=-1))
    assert torch.equal(recorder.draws()["y"], plain.draws()["y"])


def test_recorder_without_draws() -> None:
    recorder = Recorder(4, 0, torch.device("cpu"))
    assert recorder.draws() == {}
    record_at_random(recorder, range(3))
    assert recorder.draws()["point"].shape == (4, 0, 2)
    full = Recorder(4, 5, torch.device("cpu"))
    full.record(torch.zeros(3, 4, dtype=torch.bool), {"x": torch.ones(3, 4)})
    assert full.draws()["x"].shape == (4, 0)


@pytest.mark.parametrize("thinning", [1, 3])
@pytest.mark.parametrize("cut", [0, 1, 7, 30])
def test_recorder_saves_and_goes_on(cut: int, thinning: int) -> None:
    whole, first, second = (Recorder(4, 12, torch.device("cpu"), thinning) for _ in range(3))
    record_at_random(whole, range(40))
    record_at_random(first, range(cut), 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    record_at_random(first, range(100, 110))  # what the old one does afterwards is no matter of the new one's
    record_at_random(second, range(cut, 40), 3)
    assert torch.equal(second.counts, whole.counts)
    assert torch.equal(second.transitions, whole.transitions)
    assert whole.draws()["point"].shape[1] > 0
    for name, value in whole.draws().items():
        assert torch.equal(second.draws()[name], value)


def test_loading_in_memory_shares_no_buffer() -> None:
    first, second = (Recorder(4, 12, torch.device("cpu")) for _ in range(2))
    record_at_random(first, range(20))
    second.load_state_dict(first.state_dict())
    before = {name: value.clone() for name, value in first.draws().items()}
    second.transitions = torch.zeros_like(second.transitions)
    record_at_random(second, range(200, 220))
    for name, value in first.draws().items():
        assert torch.equal(value, before[name])
