"""Samplers: invariance of their density, an independent no-U-turn sampler, and what every step must do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from cases import parametrize, randn
from kernel_cases import (
    FAILURE,
    HMC_NUM_STEPS,
    MALA,
    SAMPLERS,
    ULA,
    SamplerCase,
    generator,
    log_density_of,
    parameters_of,
    run_chains,
    stage,
    standard_errors,
    standard_normal,
    ticks,
)
from scipy import stats
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm import DoubleWell, Energy, Funnel, GaussianMixture, QuadraticEnergy, Ring, correlated_gaussian
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc import chees, hmc, langevin, nuts
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, leapfrog
from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric, Metric, whiten
from pyro_ebm.mcmc.protocols import Stage

NUM_CHAINS = 10_000
NUM_TRANSITIONS = 3


def float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Invariance


class HalfNormal(Energy):
    """A normal density behind a hard wall at zero: nothing above."""

    def __init__(self) -> None:
        super().__init__((1,))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, torch.inf, 0.5 * x[..., 0].square())

    mean = torch.tensor([-math.sqrt(2 / math.pi)])
    variance = torch.tensor([1 - 2 / math.pi])

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        return -torch.randn(*sample_shape, 1, generator=generator, dtype=torch.float64).abs()


@dataclass(frozen=True)
class DensityCase:
    """A density with exact draws, and step sizes at which its samplers often reject or turn."""

    name: str
    factory: Callable[[], Any]
    step_size: float
    langevin_step: float

    def make(self) -> Any:
        return self.factory().double()

    def step_for(self, sampler: str) -> float:
        return self.langevin_step if sampler == "mala" else self.step_size


DENSITIES = [
    DensityCase("correlated_gaussian", lambda: correlated_gaussian(2, 0.9, dtype=torch.float64), 0.5, 0.5),
    DensityCase(
        "shifted_gaussian",
        lambda: QuadraticEnergy(torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([1.0, -2.0])),
        1.1,
        1.2,
    ),
    DensityCase("double_well", lambda: DoubleWell(2, barrier=1.5), 0.4, 0.4),
    DensityCase("ring", lambda: Ring(1.5, 0.4), 0.5, 0.6),
    DensityCase("funnel", lambda: Funnel(3, 1.0), 0.8, 0.9),
    DensityCase("gaussian_mixture", lambda: GaussianMixture(3, 1.5, 0.6, [0.5, 0.3, 0.2]), 0.9, 1.0),
    DensityCase("hard_wall", HalfNormal, 0.4, 0.9),
]

METRICS: dict[str, Metric] = {
    "diagonal": DiagonalMetric(torch.tensor([0.5, 1.6], dtype=torch.float64)),
    "dense": DenseMetric(torch.tensor([[1.2, 0.0], [0.8, 0.7]], dtype=torch.float64)),
    "low_rank": LowRankMetric(
        torch.tensor([0.8, 1.1], dtype=torch.float64),
        torch.tensor([[0.6], [0.8]], dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.float64),
    ),
}


def assert_zero_mean(names_and_values: dict[str, Tensor]) -> None:
    """All columns `(n,)` of independent values have mean zero, up to Monte Carlo error."""
    bound = standard_errors(len(names_and_values))
    scores = {
        name: float(values.mean() / (values.std() / math.sqrt(len(values))))
        for name, values in names_and_values.items()
        if bool((values != 0).any())
    }
    worst = {name: score for name, score in scores.items() if not abs(score) < bound}
    assert not worst, f"beyond {bound:.2f} standard errors: {worst}"


def assert_invariant(case: DensityCase, sampler: SamplerCase, metric: Metric | None, seed: int) -> None:
    """Start at exact draws; after some transitions the moments are still those of the density."""
    energy, log_density = case.make(), log_density_of(case.make())
    start = energy.sample((NUM_CHAINS,), generator=generator(seed))
    if metric is None:
        whitened, whitened_density = start, log_density
    else:
        whitened, whitened_density = metric.to_whitened(start), whiten(metric, log_density)
    record = run_chains(
        sampler.make(),
        whitened_density,
        whitened,
        case.step_for(sampler.name),
        num_draws=NUM_TRANSITIONS,
        seed=seed + 1,
    )
    draw = record["position"][:, -1] if metric is None else metric.to_position(record["position"][:, -1])
    lp, start_lp = log_density(draw)[0], log_density(start)[0]
    torch.testing.assert_close(lp, record["lp"][:, -1])
    # The test has power only where chains move and some proposals are rejected.
    assert 0.3 < record["acceptance_rate"].double().mean() < 0.98
    assert (draw != start).any(-1).double().mean() > 0.7
    columns = {}
    for i, (mean, variance) in enumerate(zip(energy.mean, energy.variance, strict=True)):
        deviation, start_deviation = draw[:, i] - mean, start[:, i] - mean
        columns[f"mean {i}"] = deviation
        columns[f"variance {i}"] = deviation.square() - variance
        # A difference from the same chain's start has the smaller error of the two.
        columns[f"change of mean {i}"] = deviation - start_deviation
        columns[f"change of variance {i}"] = deviation.square() - start_deviation.square()
    columns["change of lp"] = lp - start_lp
    columns["change of lp squared"] = lp.square() - start_lp.square()
    if start.shape[-1] > 1:
        columns["change of product"] = draw[:, :2].prod(-1) - start[:, :2].prod(-1)
    assert_zero_mean(columns)


@parametrize(SAMPLERS, "sampler")
@parametrize(DENSITIES)
def test_density_is_invariant(case: DensityCase, sampler: SamplerCase) -> None:
    assert_invariant(case, sampler, None, seed=100)


@pytest.mark.parametrize("name", METRICS)
@parametrize(SAMPLERS, "sampler")
@parametrize([case for case in DENSITIES if case.name in ("correlated_gaussian", "ring")])
def test_density_is_invariant_with_masses(case: DensityCase, sampler: SamplerCase, name: str) -> None:
    assert_invariant(case, sampler, METRICS[name], seed=200)


# The integrator


@parametrize(DENSITIES[:6])
def test_leapfrog_is_reversible(case: DensityCase) -> None:
    energy = case.make()
    log_density = log_density_of(energy)
    position, momentum = energy.sample((50,), generator=generator(1)), randn(2, 50, *energy.event_shape)
    there = (position, momentum, log_density(position)[1])
    for _ in range(5):
        q, p, _, g = leapfrog(log_density, *there, float64(0.2))
        there = (q, p, g)
    flipped = (there[0], -there[1], there[2])
    for _ in range(5):
        q, p, _, g = leapfrog(log_density, *flipped, float64(0.2))
        flipped = (q, p, g)
        q, p, value, g = leapfrog(log_density, *there, float64(-0.2))
        there = (q, p, g)
    torch.testing.assert_close((flipped[0], -flipped[1]), (position, momentum), rtol=0, atol=1e-10)
    torch.testing.assert_close((there[0], there[1]), (position, momentum), rtol=0, atol=1e-10)
    torch.testing.assert_close(value, log_density(position)[0], rtol=0, atol=1e-9)


def test_leapfrog_keeps_volume() -> None:
    def well(x: Tensor) -> tuple[Tensor, Tensor]:
        return -(x.square() - 1).square().sum(-1), -4 * x * (x.square() - 1)

    def flow(both: Tensor) -> Tensor:
        position, momentum = both[None, :2], both[None, 2:]
        q, p, _, _ = leapfrog(well, position, momentum, well(position)[1], float64(0.3))
        return torch.cat([q, p], dim=-1)[0]

    jacobian = torch.autograd.functional.jacobian(flow, randn(3, 4))
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.ones((), dtype=torch.float64))


# Langevin


def test_langevin_moves_as_its_equation_says() -> None:
    log_density = log_density_of(DoubleWell(2, 1.5).double())
    position, step_size = randn(1, 200, 2).clamp(-1.5, 1.5), float64(0.05)
    value, gradient = log_density(position)
    randomness = langevin.draw_randomness(position, generator(2))
    proposal = position + step_size * gradient + (2 * step_size).sqrt() * randomness.noise
    end_value, end_gradient = log_density(proposal)

    def log_transition(to: Tensor, origin: Tensor, gradient: Tensor) -> Tensor:
        move = torch.distributions.Normal(origin + step_size * gradient, (2 * step_size).sqrt())
        return move.log_prob(to).sum(-1)

    ratio = end_value + log_transition(position, proposal, end_gradient)
    ratio = ratio - value - log_transition(proposal, position, gradient)
    for metropolis in (True, False):
        parameters = langevin.Parameters(step_size, torch.tensor(metropolis))
        state = langevin.init(log_density, position, parameters, randomness)
        state, info = langevin.step(log_density, state, randomness, parameters)
        torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
        accepted = randomness.uniform < ratio.exp() if metropolis else torch.ones(200, dtype=torch.bool)
        assert not metropolis or 10 < accepted.sum() < 190
        torch.testing.assert_close(state.position, torch.where(accepted[:, None], proposal, position))
        torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))
        assert info.done.all()


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_unadjusted_langevin_has_the_bias_of_theory(step: float) -> None:
    """On a unit Gaussian `x' = (1 - h²/2) x + h ξ`, whose variance settles at `1 / (1 - h²/4)`."""
    variance = 1 / (1 - step**2 / 4)
    num_chains, num_draws = 20_000, 4
    start = math.sqrt(variance) * torch.randn(num_chains, 1, generator=generator(1), dtype=torch.float64)
    record = run_chains(ULA.make(), standard_normal, start, step, num_draws=num_draws, seed=2)
    draw = record["position"][:, -1, 0]
    assert_zero_mean({"mean": draw, "variance": draw.square() - variance})
    # The chain forgets: it gets there from elsewhere, too.
    settled = math.ceil(math.log(1e-3) / math.log(abs(1 - step**2 / 2)))
    record = run_chains(
        ULA.make(), standard_normal, torch.zeros(num_chains, 1).double(), step, num_draws=settled, seed=3
    )
    draw = record["position"][:, -1, 0]
    assert_zero_mean({"mean": draw, "variance": draw.square() - variance})


def test_metropolis_removes_the_bias() -> None:
    start = torch.randn(20_000, 1, generator=generator(1), dtype=torch.float64)
    record = run_chains(MALA.make(), standard_normal, start, 1.5, num_draws=4, seed=2)
    draw = record["position"][:, -1, 0]
    assert_zero_mean({"mean": draw, "variance": draw.square() - 1})


# Hamiltonian Monte Carlo


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_num_steps_is_exact(num_steps: int) -> None:
    algorithm = HMC_NUM_STEPS.make()
    parameters = hmc.Parameters(torch.tensor(0.1), torch.tensor(1.0), torch.tensor(num_steps))
    start, random = torch.randn(20, 3, generator=generator(1)), generator(2)
    state = algorithm.init(standard_normal, start, parameters, algorithm.draw_randomness(start, random))
    for tick in range(3 * num_steps):
        state, info = algorithm.step(standard_normal, state, algorithm.draw_randomness(start, random), parameters)
        assert bool((info.done == ((tick + 1) % num_steps == 0)).all())
        if bool(info.done.all()):
            assert bool((info.n_steps == num_steps).all())
            assert bool((state.n_steps == 0).all())


def test_jittered_lengths() -> None:
    """`⌈2 u t / ε⌉` steps, the u of a trajectory being that of the tick in which it starts."""
    step_size, length = 0.13, 1.0
    start, random = randn(1, 40, 2), generator(2)
    parameters = hmc.Parameters(float64(step_size), float64(length), torch.tensor(0))
    randomness = hmc.draw_randomness(start, random)
    state = hmc.init(standard_normal, start, parameters, randomness)
    expected = (2 * randomness.uniform[1] * length / step_size).ceil()
    seen = []
    for _ in range(100):
        randomness = hmc.draw_randomness(start, random)
        state, info = hmc.step(standard_normal, state, randomness, parameters)
        assert torch.equal(info.n_steps[info.done], expected[info.done].long())
        expected = torch.where(info.done, (2 * randomness.uniform[1] * length / step_size).ceil(), expected)
        seen.append(info.n_steps[info.done])
    lengths = torch.cat(seen)
    assert lengths.min() == 1
    assert lengths.max() == math.ceil(2 * length / step_size)


def test_a_collapsed_step_size_does_not_make_a_transition_endless() -> None:
    start = randn(1, 5, 2)
    parameters = hmc.Parameters(float64(1e-30), float64(1.0), torch.tensor(0))
    state = hmc.init(standard_normal, start, parameters, hmc.draw_randomness(start, generator(1)))
    assert state.remaining.max() <= hmc.MAX_NUM_STEPS


def test_hmc_accepts_by_the_hamiltonian() -> None:
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start, step_size = randn(1, 100, 3).clamp(-1.5, 1.5), float64(0.35)
    parameters = hmc.Parameters(step_size, float64(1.0), torch.tensor(2))
    first, middle, last = (hmc.draw_randomness(start, generator(seed)) for seed in (1, 2, 3))
    state = hmc.init(log_density, start, parameters, first)
    state, info = hmc.step(log_density, state, middle, parameters)
    assert not info.done.any()
    state, info = hmc.step(log_density, state, last, parameters)
    value, gradient = log_density(start)
    q, p, _, g = leapfrog(log_density, start, first.momentum, gradient, step_size)
    q, p, end_value, _ = leapfrog(log_density, q, p, g, step_size)
    ratio = end_value - value + 0.5 * (first.momentum.square() - p.square()).sum(-1)
    accepted = last.uniform[0] < ratio.exp()
    assert 10 < accepted.sum() < 95
    torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
    torch.testing.assert_close(state.position, torch.where(accepted[:, None], q, start))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))
    torch.testing.assert_close(info.lp, log_density(state.position)[0])


# ChEES-HMC


def chees_randomness(position: Tensor, random: torch.Generator) -> chees.Randomness:
    return chees.randomness_of(chees.draw_seed(position, random), position)


def chees_parameters(step_size: float, length: float) -> chees.Parameters:
    return chees.Parameters(float64(step_size), float64(length))


def van_der_corput(number: int) -> float:
    """The binary digits of the number, read backwards behind the point."""
    return int(f"{number:b}"[::-1], 2) / 2 ** number.bit_length()


@pytest.mark.parametrize(("step_size", "length"), [(0.13, 2.0), (0.3, 0.2)])
def test_chains_of_chees_move_in_step(step_size: float, length: float) -> None:
    """All with `⌈u T / ε⌉` steps, u from van der Corput's sequence: 1/2, 1/4, 3/4, 1/8, ..."""
    start, random = randn(1, 12, 2), generator(2)
    parameters = chees_parameters(step_size, length)
    state = chees.init(standard_normal, start, parameters, chees_randomness(start, random))
    for number in range(1, 40):
        expected = math.ceil(van_der_corput(number) * length / step_size)
        for tick in range(1, expected + 1):
            state, info = chees.step(standard_normal, state, chees_randomness(start, random), parameters)
            assert bool((info.done == (tick == expected)).all())
            assert bool((info.n_steps == tick).all())
        torch.testing.assert_close(info.trajectory_length, float64(van_der_corput(number) * length).expand(12))


@pytest.mark.parametrize(("step_size", "length"), [(1e-30, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_no_transition_of_chees_is_endless(step_size: float, length: float) -> None:
    start = randn(1, 5, 2)
    parameters = chees_parameters(step_size, length)
    state = chees.init(standard_normal, start, parameters, chees_randomness(start, generator(1)))
    assert 1 <= int(state.remaining) <= chees.MAX_NUM_STEPS


def test_chees_accepts_by_the_hamiltonian() -> None:
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start, step_size = randn(1, 100, 3).clamp(-1.5, 1.5), float64(0.35)
    parameters = chees_parameters(0.35, 1.2)  # the first trajectory has half the length: two steps
    first, middle, last = (chees_randomness(start, generator(seed)) for seed in (1, 2, 3))
    state = chees.init(log_density, start, parameters, first)
    state, info = chees.step(log_density, state, middle, parameters)
    assert not info.done.any()
    state, info = chees.step(log_density, state, last, parameters)
    value, gradient = log_density(start)
    q, p, _, g = leapfrog(log_density, start, first.momentum, gradient, step_size)
    q, p, end_value, _ = leapfrog(log_density, q, p, g, step_size)
    ratio = end_value - value + 0.5 * (first.momentum.square() - p.square()).sum(-1)
    accepted = last.uniform < ratio.exp()
    assert bool(info.done.all())
    assert 10 < accepted.sum() < 95
    torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
    torch.testing.assert_close(state.position, torch.where(accepted[:, None], q, start))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))
    torch.testing.assert_close(info.lp, log_density(state.position)[0])


@pytest.mark.parametrize("dim", [1, 5])
def test_the_criterion_of_chees_grows_as_its_gradient_says(dim: int) -> None:
    """`d/d log T` of `¼ mean w² (|x'|² - |x|²)²`, for chains in pairs of opposites, whose means stay at zero.

    The weights `w = 1 / (1 + |x|² / 4d)` are less for chains that start far out.
    """
    log_density = log_density_of(QuadraticEnergy(torch.linspace(0.5, 2.0, dim, dtype=torch.float64).diag()))
    half, momentum, step_size = randn(1, 50, dim), randn(2, 50, dim), 0.01
    start = torch.cat([half, -half])
    randomness = chees.Randomness(torch.cat([momentum, -momentum]), torch.zeros(100, dtype=torch.float64))

    def criterion(position: Tensor) -> Tensor:
        distance = start.square().sum(-1)
        return 0.25 * ((position.square().sum(-1) - distance) / (1 + distance / (4 * dim))).square().mean()

    parameters = chees_parameters(step_size, 4.0)
    state, values = chees.init(log_density, start, parameters, randomness), []
    gradients = []
    for _ in range(2 * round(1 / step_size)):
        state, info = chees.step(log_density, state, randomness, parameters)
        values.append(criterion(state.moving_position))  # at the end of the trajectory, the draws
        gradients.append(info.criterion_gradient.mean())
        torch.testing.assert_close(info.criterion.mean(), values[-1])
    assert bool(info.done.all())
    assert bool((state.position != start).all())  # all are accepted
    growth = (torch.stack(values[2:]) - torch.stack(values[:-2])) / (2 * step_size)
    # A central difference errs by a sixth of the third derivative: of a quartic in functions of frequency up to √2.
    bound = step_size**2 / 6 * (4 * math.sqrt(2)) ** 3 * float(torch.stack(values).max())
    torch.testing.assert_close(torch.stack(gradients[1:-1]) / 2.0, growth, rtol=0, atol=bound)
    assert float(growth.abs().max()) > 100 * bound


# The no-U-turn sampler, against a plain recursive one for one chain


@dataclass(frozen=True)
class Leaf:
    position: Tensor
    momentum: Tensor
    gradient: Tensor
    log_density: Tensor

    @property
    def energy(self) -> float:
        return float(0.5 * self.momentum @ self.momentum - self.log_density)


@dataclass(frozen=True)
class Transition:
    """What one transition of the plain sampler did: `probabilities` are those of its points to be the draw."""

    visited: list[Leaf]
    points: list[Leaf]
    probabilities: list[float]
    draw: Leaf
    depth: int
    outcome: str  # "turned", "broken" (a turn within the last half), "diverged" or "cut"
    at_seam: bool  # whether it turned or broke only by the criterion across a seam
    energy_error: float
    acceptance: float


def turns(leaves: Sequence[Leaf]) -> bool:
    """The generalised criterion, the momenta at the ends counting half; leaves in the order of time or against it."""
    first, last = leaves[0].momentum, leaves[-1].momentum
    rho = total_momentum(leaves) - 0.5 * (first + last)
    return bool(rho @ first <= 0) or bool(rho @ last <= 0)


def total_momentum(leaves: Sequence[Leaf]) -> Tensor:
    return torch.stack([leaf.momentum for leaf in leaves]).sum(0)


def turns_at_the_seam(left: Sequence[Leaf], right: Sequence[Leaf]) -> bool:
    """Stan's extra criteria for two subtrees that follow one another, each with the next leaf of the other.

    As in `base_nuts.hpp`, from `rho_left + p_right_begin` and `rho_right + p_left_end`. Of two single leaves they would
    say what the criterion of the whole says, but for its halved ends.
    """
    if len(left) == 1:
        return False
    for rho, first, last in (
        (total_momentum(left) + right[0].momentum, left[0].momentum, right[0].momentum),
        (total_momentum(right) + left[-1].momentum, left[-1].momentum, right[-1].momentum),
    ):
        if bool(rho @ first <= 0) or bool(rho @ last <= 0):
            return True
    return False


def plain_nuts(
    log_density: LogDensity,
    position: Tensor,
    momentum: Tensor,
    step_size: float,
    max_depth: int,
    uniforms: Sequence[Sequence[float]],
) -> Transition:
    """One transition as in Betancourt 2017, appendix A, with Stan's criteria across seams, for `position`, `(dim,)`.

    `uniforms[0]` are those of the tick in which it starts, `uniforms[n]` those of its n-th leapfrog.
    """
    visited: list[Leaf] = []
    only_at_seams: list[bool] = []  # for each criterion that held

    def evaluate(q: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = log_density(q.unsqueeze(0))
        return value[0], gradient[0]

    def error(leaf: Leaf) -> float:
        value = leaf.energy - start.energy
        finite = math.isfinite(value) and bool(leaf.gradient.isfinite().all())
        return value if finite else math.inf

    def end(outcome: str) -> Transition:
        acceptance = sum(min(1.0, math.exp(-error(leaf))) for leaf in visited) / len(visited)
        change, at_seam = draw.energy - start.energy, only_at_seams[-1:] == [True]
        return Transition(visited, points, probabilities, draw, depth, outcome, at_seam, change, acceptance)

    def turn_back(left: list[Leaf], right: list[Leaf]) -> bool:
        whole, seam = turns(left + right), turns_at_the_seam(left, right)
        if whole or seam:
            only_at_seams.append(not whole)
        return whole or seam

    def build(origin: Leaf, depth: int, step: float) -> tuple[list[Leaf], bool]:
        """The leaves in the order they are made, and whether they are a good tree."""
        if depth == 0:
            half = origin.momentum + 0.5 * step * origin.gradient
            q = origin.position + step * half
            value, gradient = evaluate(q)
            leaf = Leaf(q, half + 0.5 * step * gradient, gradient, value)
            visited.append(leaf)
            return [leaf], error(leaf) <= MAX_ENERGY_ERROR
        first, good = build(origin, depth - 1, step)
        if not good:
            return first, False
        second, good = build(first[-1], depth - 1, step)
        return first + second, good and not turn_back(first, second)

    value, gradient = evaluate(position)
    start = Leaf(position, momentum, gradient, value)
    points, probabilities, draw = [start], [1.0], start  # in the order of time
    weight, depth = 1.0, 0
    while True:
        backward = uniforms[len(visited)][2] < 0.5
        done_before = len(visited)
        half, good = build(points[0] if backward else points[-1], depth, -step_size if backward else step_size)
        if not good:
            return end("diverged" if error(visited[-1]) > MAX_ENERGY_ERROR else "broken")
        weights = [math.exp(-error(leaf)) for leaf in half]
        half_weight = sum(weights)
        half_draw = half[0]
        for i, leaf in enumerate(half):  # one pass over the leaves: the last that is taken
            if uniforms[done_before + i + 1][0] < weights[i] / sum(weights[: i + 1]):
                half_draw = leaf
        take = min(1.0, half_weight / weight)
        if uniforms[len(visited)][1] < take:
            draw = half_draw
        probabilities = [(1 - take) * p for p in probabilities]
        new = [take * w / half_weight for w in weights]
        left, right = (half[::-1], points) if backward else (points, half)
        points = left + right
        probabilities = new[::-1] + probabilities if backward else probabilities + new
        weight, depth = weight + half_weight, depth + 1
        if turn_back(left, right):
            return end("turned")
        if depth == max_depth:
            return end("cut")


def box(position: Tensor) -> tuple[Tensor, Tensor]:
    """A slope in a box: outside there is nothing."""
    outside = (position.abs() > 1).any(-1)
    return torch.where(outside, -torch.inf, position.sum(-1)), torch.ones_like(position)


@dataclass(frozen=True)
class TreeCase:
    """A density and a step size, and how some of its transitions must end."""

    name: str
    log_density: Callable[[], LogDensity]
    dim: int
    step_size: float
    outcomes: set[str]
    max_depth: int = 10
    spread: float = 1.0


ALL = {"turned", "broken"}
SEAMS = {"turned at a seam", "broken at a seam"}
TREES = [
    TreeCase("gaussian", lambda: log_density_of(correlated_gaussian(3, 0.8, dtype=torch.float64)), 3, 0.2, ALL | SEAMS),
    TreeCase(
        "gaussian_long", lambda: log_density_of(correlated_gaussian(2, 0.99, dtype=torch.float64)), 2, 0.05, ALL | SEAMS
    ),
    TreeCase("gaussian_cut", lambda: standard_normal, 4, 0.1, {"cut"}, 3),
    TreeCase("gaussian_single", lambda: standard_normal, 4, 0.3, {"cut"}, 1),
    TreeCase("gaussian_unstable", lambda: standard_normal, 2, 2.4, {"turned", "broken"}),
    TreeCase("gaussian_divergent", lambda: standard_normal, 2, 30.0, {"diverged"}),
    TreeCase("funnel", lambda: log_density_of(Funnel(3, 1.0).double()), 3, 0.5, ALL | SEAMS),
    TreeCase("double_well", lambda: log_density_of(DoubleWell(2, 2.0).double()), 2, 0.2, ALL | {"turned at a seam"}),
    TreeCase("box", lambda: box, 2, 0.15, {"diverged"}, 10, 0.3),
]


class Recording:
    """A density that keeps where it was asked."""

    def __init__(self, log_density: LogDensity) -> None:
        self.log_density = log_density
        self.positions: list[Tensor] = []

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor]:
        self.positions.append(position)
        return self.log_density(position)


@parametrize(TREES)
def test_nuts_grows_the_trees_of_a_plain_recursive_sampler(case: TreeCase) -> None:
    """The same points, depths, flags and draws in every transition, given the same randomness."""
    num_chains, num_ticks = 16, 80
    log_density = Recording(case.log_density())
    start, random = case.spread * randn(1, num_chains, case.dim).clamp(-2, 2), generator(7)
    rows = [nuts.draw_randomness(start, random) for _ in range(num_ticks + 1)]
    parameters = nuts.Parameters(float64(case.step_size), case.max_depth)
    states, infos = [nuts.init(log_density, start, parameters, rows[0])], []
    for row in rows[1:]:
        state, info = nuts.step(log_density, states[-1], row, parameters)
        states.append(state)
        infos.append(info)
    uniforms = torch.stack([row.uniform for row in rows])  # (ticks, 3, chains)
    visited = torch.stack(log_density.positions[1:])  # (ticks, chains, dim)
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)
    outcomes = set()
    for chain in range(num_chains):
        begin = 0
        for end in (tick + 1 for tick, info in enumerate(infos) if info.done[chain]):
            tree = plain_nuts(
                log_density.log_density,
                states[begin].position[chain],
                rows[begin].momentum[chain].double(),
                case.step_size,
                case.max_depth,
                uniforms[begin : end + 1, :, chain].tolist(),
            )
            info = nuts.Info(*(field[chain] for field in infos[end - 1]))
            assert int(info.n_steps) == end - begin == len(tree.visited)
            assert int(info.tree_depth) == tree.depth
            assert bool(info.diverging) == (tree.outcome == "diverged")
            assert bool(info.reached_max_treedepth) == (tree.outcome == "cut")
            close(visited[begin:end, chain], torch.stack([leaf.position for leaf in tree.visited]))
            close(states[end].position[chain], tree.draw.position)
            close(states[end].gradient[chain], tree.draw.gradient)
            close(info.lp, tree.draw.log_density)
            close(float(info.energy), tree.draw.energy)
            close(float(info.energy_error), tree.energy_error)
            close(float(info.acceptance_rate), tree.acceptance)
            close(float(info.step_size), case.step_size)
            assert sum(tree.probabilities) == pytest.approx(1)
            outcomes.add(f"{tree.outcome} at a seam" if tree.at_seam else tree.outcome)
            begin = end
    assert outcomes >= case.outcomes


@parametrize([case for case in TREES if case.name in ("gaussian", "double_well", "funnel", "gaussian_cut")])
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_nuts_draws_from_its_tree_with_the_right_probabilities(case: TreeCase, seed: int) -> None:
    """Multinomial within a half, biased progressive between halves: one tree, drawn from many times."""
    num_chains = 20_000
    log_density = case.log_density()
    one = randn(seed, case.dim).clamp(-2, 2)
    start, random = one.expand(num_chains, -1), generator(seed)
    momentum = torch.randn(case.dim, generator=random, dtype=torch.float64).expand(num_chains, -1)
    parameters = nuts.Parameters(float64(case.step_size), case.max_depth)
    state, rows = None, []
    while True:
        row = nuts.draw_randomness(start, random)
        uniform = torch.cat([row.uniform[:2], row.uniform[2:, :1].expand(1, num_chains)])  # the same directions for all
        row = nuts.Randomness(momentum, uniform)
        rows.append(uniform[:, 0].tolist())
        if state is None:
            state = nuts.init(log_density, start, parameters, row)
            continue
        state, info = nuts.step(log_density, state, row, parameters)
        if bool(info.done.any()):
            break
    assert bool(info.done.all())
    tree = plain_nuts(log_density, one, momentum[0], case.step_size, case.max_depth, rows)
    points = torch.stack([leaf.position for leaf in tree.points])
    distance = torch.cdist(state.position, points)
    assert distance.amin(-1).max() < 1e-6
    observed = distance.argmin(-1).bincount(minlength=len(points)).double()
    expected = num_chains * torch.tensor(tree.probabilities, dtype=torch.float64)
    assert bool((observed[expected == 0] == 0).all())
    frequent = expected > 5
    assert int(frequent.sum()) >= 2
    pooled = [torch.cat([x[frequent], x[~frequent].sum(0, keepdim=True)]) for x in (observed, expected)]
    statistic = ((pooled[0] - pooled[1]).square() / pooled[1].clamp(min=1)).sum()
    assert stats.chi2.sf(float(statistic), int(frequent.sum())) > FAILURE


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_max_tree_depth_is_kept(depth: int) -> None:
    start, random = randn(1, 50, 3), generator(2)
    for step_size, all_cut in ((1e-3, True), (0.2, False)):
        parameters = nuts.Parameters(float64(step_size), depth)
        state = nuts.init(standard_normal, start, parameters, nuts.draw_randomness(start, random))
        for _ in range(100):
            state, info = nuts.step(standard_normal, state, nuts.draw_randomness(start, random), parameters)
            assert info.n_steps.max() <= 2**depth - 1
            assert info.tree_depth.max() <= depth
            cut = info.reached_max_treedepth
            assert bool((info.n_steps[cut] == 2**depth - 1).all())
            assert bool((info.tree_depth[cut] == depth).all())
            assert bool((cut <= info.done).all())
            if all_cut:
                assert torch.equal(info.done, cut)


# What every step must do


def numbers_of(randomness: Any, position: Tensor) -> Any:
    """The random numbers of a tick, where they are made of a seed."""
    return chees.randomness_of(randomness, position) if isinstance(randomness, chees.Seed) else randomness


def rows_of(randomness: Any, chains: slice) -> Any:
    """The random numbers of some chains."""
    return type(randomness)(randomness[0][chains], randomness[1][..., chains])


@parametrize([*SAMPLERS, ULA], "sampler")
def test_a_chain_does_not_depend_on_the_others(sampler: SamplerCase) -> None:
    algorithm, log_density = sampler.make(), log_density_of(Funnel(3, 1.0).double())
    start, random = Funnel(3, 1.0).double().sample((7,), generator=generator(1)), generator(2)
    rows = [numbers_of(algorithm.draw_randomness(start, random), start) for _ in range(40)]

    def run(chains: slice) -> tuple[Tensor, Tensor]:
        mine = [rows_of(row, chains) for row in rows]
        parameters = parameters_of(algorithm, 0.4, start[chains])
        state, draws, done = algorithm.init(log_density, start[chains], parameters, mine[0]), [], []
        for row in mine[1:]:
            state, info = algorithm.step(log_density, state, row, parameters)
            draws.append(state.position)
            done.append(info.done)
        return torch.stack(draws), torch.stack(done)

    draws, done = run(slice(None))
    for chain in range(7):
        alone, done_alone = run(slice(chain, chain + 1))
        assert torch.equal(done_alone[:, 0], done[:, chain])
        torch.testing.assert_close(alone[:, 0], draws[:, chain], rtol=1e-9, atol=1e-9)


@parametrize([*SAMPLERS, ULA], "sampler")
def test_randomness_of_many_ticks_is_that_of_one_many_times(sampler: SamplerCase) -> None:
    """A row of it is what one tick takes; all are independent, standard normal and uniform."""
    algorithm, start = sampler.make(), randn(1, 7, 3)
    num_ticks = 5000
    stacked = algorithm.draw_randomness(start.expand(num_ticks, 7, 3), generator(2))
    if isinstance(stacked, chees.Seed):
        rows = [chees.randomness_of(chees.Seed(seed), start) for seed in stacked.seed]
        stacked = chees.Randomness(*map(torch.stack, zip(*rows, strict=True)))
    one = numbers_of(algorithm.draw_randomness(start, generator(2)), start)
    assert type(stacked) is type(one)
    for field, single in zip(stacked, one, strict=True):
        assert field.shape == (num_ticks, *single.shape)
        assert field.dtype == single.dtype
        assert field.dtype in (start.dtype, torch.float32)  # momenta of NUTS are cast where they are taken
    numbers, uniform = stacked[0].reshape(num_ticks, -1), stacked[1].reshape(num_ticks, -1)
    assert stacked[0].shape == (num_ticks, 7, 3)
    assert stacked[1].shape[-1] == 7
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1
    normal = stats.kstest(numbers.flatten().numpy(), "norm").pvalue
    assert min(normal, stats.kstest(uniform.flatten().numpy(), "uniform").pvalue) > FAILURE / 2
    # No correlation between columns, or from tick to tick, beyond that of independent numbers.
    columns = torch.cat([numbers, 12**0.5 * (uniform - 0.5)], dim=-1)
    pairs = columns.mT @ columns / math.sqrt(num_ticks)
    lagged = columns[1:].mT @ columns[:-1] / math.sqrt(num_ticks - 1)
    away = pairs[~torch.eye(len(pairs), dtype=torch.bool)]
    assert float(torch.cat([away, lagged.flatten()]).abs().max()) < standard_errors(away.numel() + lagged.numel())


BAD = {
    "nan": (math.nan, math.nan),
    "infinite_energy": (-math.inf, 0.0),
    "infinite_energy_nan_gradient": (-math.inf, math.nan),
    "nan_gradient": (0.0, math.nan),
    "infinite_gradient": (0.0, math.inf),
    "infinite_density": (math.inf, 0.0),
}


def walled(value: float, gradient: float) -> LogDensity:
    """A standard normal, and something bad where the first coordinate is above one."""

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, good_gradient = standard_normal(position)
        bad = position[:, 0] > 1
        return torch.where(bad, value, good_value), torch.where(bad[:, None], gradient, good_gradient)

    return log_density


@pytest.mark.parametrize("bad", BAD)
@parametrize([*SAMPLERS, ULA], "sampler")
def test_no_chain_moves_to_a_bad_point(sampler: SamplerCase, bad: str) -> None:
    algorithm, log_density = sampler.make(), walled(*BAD[bad])
    start = randn(1, 40, 2).clamp(max=0.9)
    num_diverging = 0
    for state, info in islice(ticks(algorithm, log_density, start, 0.6, generator(2)), 60):
        assert bool((state.position[:, 0] <= 1).all())
        for value in (state.position, state.log_density, state.gradient, info.lp, info.energy, info.acceptance_rate):
            assert bool(value.isfinite().all())
        assert bool((info.acceptance_rate[info.diverging & info.done] < 1).all())
        assert sampler.in_step or bool((info.diverging <= info.done).all())
        num_diverging += int((info.diverging & info.done).sum())
    assert num_diverging > 40
    assert bool((state.position != start).any(-1).all())


@pytest.mark.parametrize("bad", BAD)
@parametrize([*SAMPLERS, ULA], "sampler")
def test_a_chain_in_a_bad_region_stays_and_harms_no_other(sampler: SamplerCase, bad: str) -> None:
    algorithm = sampler.make()
    start = randn(1, 8, 2).clamp(max=0.9)
    lost = start.clone()
    lost[3] = torch.tensor([50.0, 0.0])
    # Here only the lost chain is in the bad region: the others cannot tell.
    value, gradient = BAD[bad]

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, good_gradient = standard_normal(position)
        far = position[:, 0] > 30
        return torch.where(far, value, good_value), torch.where(far[:, None], gradient, good_gradient)

    others = torch.arange(8) != 3
    runs = zip(
        ticks(algorithm, log_density, lost, 0.5, generator(2)),
        ticks(algorithm, log_density, start, 0.5, generator(2)),
        strict=True,
    )
    for (state, info), (state_without, info_without) in islice(runs, 40):
        assert torch.equal(state.position[3], lost[3])
        assert bool(info.diverging[3])
        assert bool(info.done[3]) or (sampler.in_step and not info.done.any())
        assert float(info.acceptance_rate[3]) == 0
        assert torch.equal(state.position[others], state_without.position[others])
        for name, value in info._asdict().items():
            assert bool(value[info.done].isfinite().all()) or name in ("lp", "energy", "energy_error")
            if name not in sampler.compares_chains:
                assert torch.equal(value[others], getattr(info_without, name)[others])


@parametrize([*SAMPLERS, ULA], "sampler")
def test_single_precision(sampler: SamplerCase) -> None:
    algorithm, log_density = sampler.make(), log_density_of(correlated_gaussian(2, 0.7))
    start = correlated_gaussian(2, 0.7).sample((10_000,), generator=generator(1))
    for state, info in islice(ticks(algorithm, log_density, start, 0.6, generator(2)), 3):
        for value in (*state, *info):
            assert value.dtype in (torch.float32, torch.long, torch.bool)
    if sampler is ULA:
        return
    record = run_chains(algorithm, log_density, start, 0.6, num_draws=2, seed=3)
    draw = record["position"][:, -1]
    assert draw.dtype == torch.float32
    columns = {f"mean {i}": draw[:, i] for i in range(2)}
    columns |= {f"variance {i}": draw[:, i].square() - 1 for i in range(2)}
    assert_zero_mean(columns | {"covariance": draw.prod(-1) - 0.7})


@parametrize([*SAMPLERS, ULA], "sampler")
def test_a_step_changes_none_of_its_inputs(sampler: SamplerCase) -> None:
    algorithm, log_density = sampler.make(), log_density_of(DoubleWell(2, 1.5).double())
    start, random = randn(1, 30, 2), generator(2)
    parameters = parameters_of(algorithm, 0.3, start)
    state = algorithm.init(log_density, start, parameters, algorithm.draw_randomness(start, random))
    for _ in range(20):
        randomness = algorithm.draw_randomness(start, random)
        inputs: list[Tensor] = [x for x in (*state, *randomness, *parameters) if isinstance(x, Tensor)]
        before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
        after, info = algorithm.step(log_density, state, randomness, parameters)
        assert all(map(torch.equal, inputs, before))
        assert [x._version for x in inputs] == versions
        again, info_again = algorithm.step(log_density, state, randomness, parameters)
        for first, second in zip((*after, *info), (*again, *info_again), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        state = after


@parametrize([*SAMPLERS, ULA], "sampler")
def test_a_step_is_one_static_program(sampler: SamplerCase) -> None:
    """Traced once, it does the same as the step itself on every later state: nothing in it depends on data."""
    algorithm, log_density = sampler.make(), log_density_of(Funnel(3, 1.0).double())
    start, random = randn(1, 30, 3), generator(2)

    def step(state: Any, randomness: Any, step_size: Tensor, at: Stage) -> tuple[Any, Any]:
        parameters = algorithm.parameters(algorithm.adaptation(step_size, len(start)), at)
        return algorithm.step(log_density, state, randomness, parameters)

    size = float64(0.4)
    parameters = parameters_of(algorithm, float(size), start)
    state = algorithm.init(log_density, start, parameters, algorithm.draw_randomness(start, random))
    # Clones, since the first state has one tensor in several fields, which a trace would take for one input.
    example = type(state)(*(field.clone() for field in state))
    traced = make_fx(step)(example, algorithm.draw_randomness(start, random), size, stage(warming_up=False))
    num_done = 0
    for tick in range(60):
        randomness = algorithm.draw_randomness(start, random)
        size, at = size * (1.05 if tick % 3 else 0.9), stage(warming_up=tick < 30)
        ours = step(state, randomness, size, at)
        theirs = traced(state, randomness, size, at)
        for first, second in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
        state = ours[0]
        num_done += int(ours[1].done.sum())
    assert num_done > 30


@parametrize([sampler for sampler in SAMPLERS if sampler.leapfrogs], "sampler")
def test_a_trajectory_keeps_the_step_size_with_which_it_started(sampler: SamplerCase) -> None:
    algorithm, log_density, start = sampler.make(), log_density_of(Funnel(3, 1.0).double()), randn(1, 1, 3)
    rows = [algorithm.draw_randomness(start, generator(seed)) for seed in range(60)]

    def run(step_sizes: Sequence[float]) -> tuple[Tensor, list[bool]]:
        state = algorithm.init(log_density, start, parameters_of(algorithm, step_sizes[0], start), rows[0])
        draws, done = [], []
        for row, step_size in zip(rows[1:], step_sizes[1:], strict=True):
            state, info = algorithm.step(log_density, state, row, parameters_of(algorithm, step_size, start))
            draws.append(state.position)
            done.append(bool(info.done))
        return torch.stack(draws), done

    sizes = (0.2 + 0.3 * torch.rand(60, generator=generator(1))).tolist()
    draws, done = run(sizes)
    assert 5 < sum(done) < 55
    others = [sizes[0], *(size if ended else 1e3 for size, ended in zip(sizes[1:], done, strict=True))]
    assert torch.equal(run(others)[0], draws)
