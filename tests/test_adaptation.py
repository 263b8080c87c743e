"""What adapts and records a run: step sizes, metrics, covariances, windows, buffers."""

import io
import math
from itertools import pairwise
from statistics import mean
from typing import Any

import pytest
import torch
from cases import randn
from kernel_cases import generator, log_density_of, shortfall, standard_errors, standard_normal
from torch import Tensor

from pyro_ebm import DoubleWell, QuadraticEnergy
from pyro_ebm.mcmc.covariance import PooledCovariance
from pyro_ebm.mcmc.integrator import leapfrog
from pyro_ebm.mcmc.metric import Metric, unit_metric
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
        assert float(ours.final_step_size) == pytest.approx(plain.average)


def test_many_chains_make_one_update_when_half_of_them_have_reported() -> None:
    """With the mean over chains of the mean of each."""
    chains, ours = 6, DualAveraging.start(float64(1.0), 6)
    plain = PlainDualAveraging(1.0, float(ours.centre), 0.8)
    acceptance = torch.rand(100, chains, generator=generator(1), dtype=torch.float64)
    done = torch.rand(100, chains, generator=generator(2)) < 0.3
    waiting: dict[int, list[float]] = {}
    num_updates = 0
    for row, ended in zip(acceptance, done, strict=True):
        ours = ours.update(torch.where(ended, row, math.nan), ended, 0.8)
        for chain in ended.nonzero().flatten().tolist():
            waiting.setdefault(chain, []).append(float(row[chain]))
        if 2 * len(waiting) >= chains:
            plain.update(mean(mean(accepted) for accepted in waiting.values()))
            waiting, num_updates = {}, num_updates + 1
        assert float(ours.step_size) == pytest.approx(plain.step_size)
        assert float(ours.final_step_size) == pytest.approx(plain.average)
    assert int(ours.num_updates) == num_updates > 20


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
    reached = acceptances(log_density, draw(200_000, 3), averaging.final_step_size, 4)
    short, share = shortfall(averaging)
    noise = reached.std() * (1 / len(reached) + share / chains) ** 0.5
    assert abs(float(reached.mean() - target + short)) < standard_errors(1) * float(noise)


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


@pytest.mark.parametrize("dense", [False, True])
def test_pooled_covariance_is_that_of_all_draws(dense: bool) -> None:
    dim, like = 3, torch.zeros((), dtype=torch.float64)
    covariance = PooledCovariance.start(dim, dense=dense, like=like)
    taken: list[Tensor] = []
    shares = [0.0, 0.5, 1.0, 0.0, 0.1, 0.9, 0.5]
    for seed, share in enumerate(shares):
        position = 100 + torch.arange(1, dim + 1) * randn(seed, 8, dim).cumsum(-1)
        done = torch.rand(8, generator=generator(seed)) < share
        covariance = covariance.update(torch.where(done[:, None], position, math.nan), done)
        taken += list(position[done])
        assert int(covariance.num_draws) == len(taken)
        if len(taken) < 2:
            continue
        draws = torch.stack(taken)
        exact = torch.cov(draws.mT)
        scatter = (len(taken) - 1) * (exact if dense else exact.diagonal())
        torch.testing.assert_close(covariance.mean, draws.mean(0))
        torch.testing.assert_close(covariance.scatter, scatter)
        # Stan's: n / (n + 5) of the estimate, and 5 / (n + 5) of a thousandth.
        n = len(taken)
        shrunk = n / (n + 5) * exact + 5 / (n + 5) * 1e-3 * torch.eye(dim)
        inverse_mass_matrix = covariance.metric().inverse_mass_matrix
        if not dense or n > dim:
            torch.testing.assert_close(inverse_mass_matrix, shrunk if dense else shrunk.diagonal())
    assert len(taken) > 20


@pytest.mark.parametrize("dense", [False, True])
def test_metric_of_no_draws(dense: bool) -> None:
    """Nothing done: the prior alone, and finite."""
    covariance = PooledCovariance.start(2, dense=dense, like=torch.zeros((), dtype=torch.float64))
    covariance = covariance.update(randn(1, 4, 2), torch.zeros(4, dtype=torch.bool))
    expected = 1e-3 * torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(covariance.metric().inverse_mass_matrix, expected.diag() if dense else expected)


def test_dense_metric_of_too_few_draws_is_positive_definite() -> None:
    covariance = PooledCovariance.start(20, dense=True, like=torch.zeros((), dtype=torch.float64))
    covariance = covariance.update(1e6 * randn(1, 3, 20), torch.ones(3, dtype=torch.bool))
    metric = covariance.metric()
    assert bool(metric.scale.isfinite().all())
    assert bool((metric.scale.diagonal() > 0).all())
    exact = 3 / 8 * covariance.scatter.diagonal() / 2 + 5 / 8 * 1e-3
    torch.testing.assert_close(metric.inverse_mass_matrix.diagonal(), exact)


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


def test_windows_are_those_of_stan_for_four_chains() -> None:
    windows = warmup_windows(1000, 4, adapt_metric=True)
    assert [window.length for window in windows] == [75, 25, 50, 100, 200, 500, 50]
    assert [window.length for window in warmup_windows(150, 4, adapt_metric=True)] == [75, 25, 50]
    assert [window.length for window in warmup_windows(149, 4, adapt_metric=True)] == [22, 113, 14]


# Metrics

METRICS = {
    "diagonal": Metric(torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64)),
    "dense": Metric(torch.tensor([[0.3, 0.0, 0.0], [-0.4, 2.0, 0.0], [0.2, 0.6, 1.1]], dtype=torch.float64)),
}


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
    matrix = metric.inverse_mass_matrix if metric.scale.dim() == 2 else metric.inverse_mass_matrix.diag()
    columns = metric.to_whitened(metric.to_whitened(matrix).mT)
    torch.testing.assert_close(columns, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("dense", [False, True])
def test_unit_metric(dense: bool) -> None:
    metric = unit_metric(3, dense=dense, like=torch.zeros(1, dtype=torch.float64))
    position = randn(1, 5, 3)
    assert metric.scale.dtype == torch.float64
    assert metric.scale.dim() == 1 + dense
    assert torch.equal(metric.to_whitened(position), position)
    assert torch.equal(metric.to_position(position), position)


@pytest.mark.parametrize("name", METRICS)
def test_whitened_density_has_its_own_gradient(name: str) -> None:
    metric, energy = METRICS[name], DoubleWell(3, 1.5).double()
    whitened = randn(1, 6, 3).requires_grad_()
    value, gradient = metric.whiten(log_density_of(energy))(whitened.detach())
    exact = -energy(metric.to_position(whitened))
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(exact.sum(), whitened)[0])


@pytest.mark.parametrize("name", METRICS)
def test_whitening_is_sampling_with_masses(name: str) -> None:
    """A leapfrog step of `q`, mapped to `x`, is one of `x` with the mass matrix (Neal 2011, section 5.4.1)."""
    metric, log_density = METRICS[name], log_density_of(DoubleWell(3, 1.5).double())
    inverse_mass = metric.inverse_mass_matrix if metric.scale.dim() == 2 else metric.inverse_mass_matrix.diag()
    factor = metric.scale if metric.scale.dim() == 2 else metric.scale.diag()
    position, noise, step = randn(1, 6, 3), randn(2, 6, 3), 0.2
    momentum = noise @ torch.linalg.inv(factor)  # p = L⁻ᵀ ξ, whose covariance is the mass matrix
    half = momentum + 0.5 * step * log_density(position)[1]
    end = position + step * half @ inverse_mass
    end_momentum = half + 0.5 * step * log_density(end)[1]
    whitened_density, whitened = metric.whiten(log_density), metric.to_whitened(position)
    q, p, _, _ = leapfrog(whitened_density, whitened, noise, whitened_density(whitened)[1], float64(step))
    torch.testing.assert_close(metric.to_position(q), end)
    torch.testing.assert_close(p @ torch.linalg.inv(factor), end_momentum)
    kinetic = 0.5 * (end_momentum * (end_momentum @ inverse_mass)).sum(-1)
    torch.testing.assert_close(0.5 * p.square().sum(-1), kinetic)


# The recorder


def record_at_random(recorder: Recorder, ticks: range) -> None:
    for tick in ticks:
        done = torch.rand(len(recorder.counts), generator=generator(tick)) < torch.tensor([0.9, 0.2, 0.5, 0.6])
        chains = torch.arange(4)
        values = {
            "point": torch.stack([chains, torch.full((4,), tick)], dim=-1).double(),
            "flag": chains % 2 == tick % 2,
        }
        recorder.record(done, values)


def recorded_at_random(ticks: range) -> list[list[int]]:
    """For each chain the ticks in which it was done."""
    probabilities = torch.tensor([0.9, 0.2, 0.5, 0.6])
    done = [torch.rand(4, generator=generator(tick)) < probabilities for tick in ticks]
    return [[tick for tick, row in zip(ticks, done, strict=True) if row[chain]] for chain in range(4)]


@pytest.mark.parametrize("num_draws", [1, 5, 1000])
def test_recorder_keeps_the_first_draws_of_each_chain(num_draws: int) -> None:
    recorder, ticks = Recorder(4, num_draws, torch.device("cpu")), range(50)
    record_at_random(recorder, ticks)
    expected = recorded_at_random(ticks)
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


def test_recorder_without_draws() -> None:
    recorder = Recorder(4, 0, torch.device("cpu"))
    assert recorder.draws() == {}
    record_at_random(recorder, range(3))
    assert recorder.draws()["point"].shape == (4, 0, 2)
    full = Recorder(4, 5, torch.device("cpu"))
    full.record(torch.zeros(4, dtype=torch.bool), {"x": torch.ones(4)})
    assert full.draws()["x"].shape == (4, 0)


@pytest.mark.parametrize("cut", [0, 1, 7, 30])
def test_recorder_saves_and_goes_on(cut: int) -> None:
    whole, first, second = (Recorder(4, 12, torch.device("cpu")) for _ in range(3))
    record_at_random(whole, range(40))
    record_at_random(first, range(cut))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    record_at_random(first, range(100, 110))  # what the old one does afterwards is no matter of the new one's
    record_at_random(second, range(cut, 40))
    assert torch.equal(second.counts, whole.counts)
    for name, value in whole.draws().items():
        assert torch.equal(second.draws()[name], value)


def test_loading_in_memory_shares_no_buffer() -> None:
    first, second = (Recorder(4, 12, torch.device("cpu")) for _ in range(2))
    record_at_random(first, range(20))
    second.load_state_dict(first.state_dict())
    before = {name: value.clone() for name, value in first.draws().items()}
    second.counts = torch.zeros_like(second.counts)
    record_at_random(second, range(200, 220))
    for name, value in first.draws().items():
        assert torch.equal(value, before[name])
