"""The other samplers: exact ones leave their density invariant, the bias of the others is that of theory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import parametrize, randn
from kernel_cases import generator, log_density_of, stage, standard_errors, standard_normal
from torch import Tensor
from torch.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm import MCMC, DoubleWell, Funnel, QuadraticEnergy, UnderdampedLangevin, correlated_gaussian
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc import (
    adjusted_mclmc,
    barker,
    elliptical_slice,
    hmc,
    langevin,
    mclmc,
    random_walk,
    sgld,
    underdamped,
)
from pyro_ebm.mcmc.integrator import leapfrog
from pyro_ebm.mcmc.isokinetic import isokinetic_leapfrog, kick, unit
from pyro_ebm.mcmc.local_algorithms import underdamped_algorithm

NUM_CHAINS = 10_000
NUM_TRANSITIONS = 3


def float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


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


@dataclass(frozen=True)
class KernelCase:
    """A sampler with its settings, and a step size for each density at which it moves, and often rejects."""

    name: str
    module: ModuleType
    parameters: Callable[[Tensor], Any]
    steps: dict[str, float] = field(default_factory=dict)
    uses_gradient: bool = True

    @property
    def init(self) -> Callable[..., Any]:
        return self.module.init

    @property
    def step(self) -> Callable[..., Any]:
        return self.module.step

    @property
    def draw_randomness(self) -> Callable[..., Any]:
        return self.module.draw_randomness


def ticks(
    sampler: KernelCase, log_density: LogDensity, start: Tensor, step_size: float, random: torch.Generator
) -> Iterator[tuple[Any, Any]]:
    """`(state, info)` after each tick, without end."""
    parameters = sampler.parameters(torch.tensor(step_size, dtype=start.dtype))
    state = sampler.init(log_density, start, parameters, sampler.draw_randomness(start, random))
    while True:
        state, info = sampler.step(log_density, state, sampler.draw_randomness(start, random), parameters)
        yield state, info


def run_chains(
    sampler: KernelCase, log_density: LogDensity, start: Tensor, step_size: float, *, num_draws: int, seed: int
) -> dict[str, Tensor]:
    """The first draws of every chain with what the sampler says of them, each `(chains, draws, ...)`."""
    rows: list[dict[str, Tensor]] = []
    counts = torch.zeros(len(start), dtype=torch.long)
    for state, info in islice(ticks(sampler, log_density, start, step_size, generator(seed)), 500):
        rows.append({"position": state.position, **info._asdict()})
        counts = counts + info.done
        if int(counts.min()) >= num_draws:
            break
    assert int(counts.min()) >= num_draws, "some chains do not end their transitions"
    done = torch.stack([row["done"] for row in rows])
    when = torch.stack([(done & (done.cumsum(0) == n + 1)).long().argmax(0) for n in range(num_draws)], 1)
    chains = torch.arange(len(start))[:, None]
    return {name: torch.stack([row[name] for row in rows])[when, chains] for name in rows[0]}


def _underdamped(step_size: Tensor, friction: float, metropolis: bool) -> underdamped.Parameters:
    return underdamped.Parameters(step_size, torch.full_like(step_size, friction), torch.tensor(metropolis))


def _adjusted(
    step_size: Tensor, length: float, num_steps: int = 0, newtonian: bool = False
) -> adjusted_mclmc.Parameters:
    settings = (torch.tensor(num_steps), torch.tensor(newtonian))
    return adjusted_mclmc.Parameters(step_size, torch.full_like(step_size, length), *settings)


def _sgld(step_size: Tensor, decay: float, **settings: Any) -> sgld.Parameters:
    return sgld.Parameters(step_size, torch.ones_like(step_size), torch.full_like(step_size, decay), **settings)


EXACT = [
    KernelCase(
        "underdamped",
        underdamped,
        partial(_underdamped, friction=0.7, metropolis=True),
        {"gaussian": 1.0, "funnel": 0.9, "double_well": 0.4},
    ),
    KernelCase("barker", barker, barker.Parameters, {"gaussian": 0.9, "funnel": 1.0, "double_well": 0.5}),
    KernelCase(
        "random_walk",
        random_walk,
        random_walk.Parameters,
        {"gaussian": 0.8, "funnel": 0.8, "double_well": 0.4},
        uses_gradient=False,
    ),
    KernelCase(
        "elliptical_slice",
        elliptical_slice,
        lambda step_size: elliptical_slice.Parameters(),
        {"gaussian": 1.0, "funnel": 1.0, "double_well": 1.0},
        uses_gradient=False,
    ),
    KernelCase(
        "adjusted_mclmc",
        adjusted_mclmc,
        partial(_adjusted, length=2.0),
        {"gaussian": 1.6, "funnel": 1.2, "double_well": 0.7},
    ),
    KernelCase(
        "adjusted_mclmc_newtonian",
        adjusted_mclmc,
        partial(_adjusted, length=2.0, newtonian=True),
        {"gaussian": 1.6, "funnel": 1.2, "double_well": 0.7},
    ),
    KernelCase(
        "adjusted_mclmc_num_steps",
        adjusted_mclmc,
        partial(_adjusted, length=2.0, num_steps=3),
        {"gaussian": 1.5, "funnel": 1.0, "double_well": 0.7},
    ),
]
BAOAB = KernelCase("baoab", underdamped, partial(_underdamped, friction=0.7, metropolis=False))
MCLMC = KernelCase("mclmc", mclmc, lambda step_size: mclmc.Parameters(step_size, torch.full_like(step_size, 2.0)))
SGLD = KernelCase("sgld", sgld, partial(_sgld, decay=0.55))
PSGLD = KernelCase("preconditioned_sgld", sgld, partial(_sgld, decay=0.55, preconditioned=True))
ALL = [*EXACT, BAOAB, MCLMC, SGLD, PSGLD]

PRECISION = torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.6]], dtype=torch.float64)


@dataclass(frozen=True)
class DensityCase:
    """A density with exact draws and known moments."""

    name: str
    factory: Callable[[], Any]

    def make(self) -> Any:
        return self.factory().double()


DENSITIES = [
    DensityCase("gaussian", lambda: QuadraticEnergy(PRECISION, float64(0.0).new_tensor([0.5, -1.0, 0.3]))),
    DensityCase("funnel", lambda: Funnel(3, 1.0)),
    DensityCase("double_well", lambda: DoubleWell(3, 1.5)),
]


# Invariance


def transitions(case: DensityCase, sampler: KernelCase, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Exact draws, and the first transitions from them."""
    energy = case.make()
    start = energy.sample((NUM_CHAINS,), generator=generator(seed))
    step_size = sampler.steps[case.name]
    return start, run_chains(
        sampler, log_density_of(energy), start, step_size, num_draws=NUM_TRANSITIONS, seed=seed + 1
    )


@parametrize(EXACT, "sampler")
@parametrize(DENSITIES)
def test_density_is_invariant(case: DensityCase, sampler: KernelCase) -> None:
    start, record = transitions(case, sampler, seed=100)
    energy, log_density = case.make(), log_density_of(case.make())
    # The test has power only where chains move and some proposals are rejected.
    assert 0.2 < record["acceptance_rate"].mean() < 0.98
    for i in range(NUM_TRANSITIONS):
        draw = record["position"][:, i]
        assert (draw != start).any(-1).double().mean() > (0.7 if i == NUM_TRANSITIONS - 1 else 0.3)
        lp, start_lp = log_density(draw)[0], log_density(start)[0]
        torch.testing.assert_close(lp, record["lp"][:, i])
        columns = {"change of lp": lp - start_lp, "change of lp squared": lp.square() - start_lp.square()}
        for j, (mean, variance) in enumerate(zip(energy.mean, energy.variance, strict=True)):
            deviation, start_deviation = draw[:, j] - mean, start[:, j] - mean
            columns[f"mean {j}"] = deviation
            columns[f"variance {j}"] = deviation.square() - variance
            # A difference from the same chain's start has the smaller error of the two.
            columns[f"change of mean {j}"] = deviation - start_deviation
            columns[f"change of variance {j}"] = deviation.square() - start_deviation.square()
            columns[f"change of product {j}"] = draw[:, j] * draw[:, j - 1] - start[:, j] * start[:, j - 1]
        assert_zero_mean(columns)


@parametrize(EXACT, "sampler")
@parametrize(DENSITIES)
def test_transitions_are_in_detailed_balance(case: DensityCase, sampler: KernelCase) -> None:
    """As often from A to B as from B to A: a chain of positions is as likely backwards.

    That of the underdamped sampler too: backwards in time its momentum is reversed, which the position does not show.
    """
    start, record = transitions(case, sampler, seed=200)
    previous, lp = start, log_density_of(case.make())(start)[0]
    for i in range(NUM_TRANSITIONS):
        draw, draw_lp = record["position"][:, i], record["lp"][:, i]
        columns = {"lp and its square": lp * draw_lp.square() - draw_lp * lp.square()}
        for j in range(3):
            a, b = previous[:, j], draw[:, j]
            c, d = previous[:, j - 1], draw[:, j - 1]
            columns[f"squares of {j} and {j - 1}"] = a.square() * d.square() - b.square() * c.square()
            columns[f"{j} and {j - 1}"] = a * d - b * c
            columns[f"{j} and the square of {j - 1}"] = a * d.square() - b * c.square()
            columns[f"{j} and its square"] = a * b.square() - b * a.square()
            columns[f"flux of {j}"] = ((a < 0.3) & (b > 0.3)).double() - ((a > 0.3) & (b < 0.3)).double()
            columns[f"flux of {j} and lp"] = ((a < 0.3) & (draw_lp > lp)).double() - (
                (b < 0.3) & (draw_lp < lp)
            ).double()
        assert_zero_mean(columns)
        previous, lp = draw, draw_lp


# Underdamped Langevin dynamics


def test_strong_friction_makes_it_metropolis_adjusted_langevin() -> None:
    """With a fresh momentum in every step it is MALA of step `ε²/2`, and weak friction keeps the momentum."""
    log_density, start = log_density_of(DoubleWell(2, 1.5).double()), randn(1, 200, 2).clamp(-1.5, 1.5)
    randomness = underdamped.draw_randomness(start, generator(2))
    parameters = underdamped.Parameters(float64(0.4), float64(math.inf), torch.tensor(True))
    state = underdamped.init(log_density, start, parameters, randomness)
    state = state._replace(momentum=randn(3, 200, 2))
    after, info = underdamped.step(log_density, state, randomness, parameters)
    theirs = langevin.Parameters(float64(0.08), torch.tensor(True))
    expected, expected_info = langevin.step(
        log_density, langevin.State(start, state.log_density, state.gradient), langevin.Randomness(*randomness), theirs
    )
    assert 10 < (after.position == start).all(-1).sum() < 190
    torch.testing.assert_close(after.position, expected.position)
    for name in ("lp", "energy", "energy_error", "acceptance_rate"):
        torch.testing.assert_close(getattr(info, name), getattr(expected_info, name))


def test_underdamped_chains_lose_the_energy_that_they_start_with() -> None:
    """Scales differ a thousandfold, and steps are short on the way to the bulk: the warm-up has a friction for each."""
    scales = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    kernel = UnderdampedLangevin(QuadraticEnergy((1 / scales.square()).diag()))
    mcmc = MCMC(kernel, 200, 60, {"x": torch.ones(2)}, num_chains=8, disable_progbar=True)
    mcmc.run()
    assert float(mcmc.sample_stats()["lp"].mean()) == pytest.approx(-1.0, abs=0.2)
    waiting = underdamped_algorithm(friction=1.0, metropolis=True, target_accept_prob=0.95)
    adaptation = waiting.adaptation(torch.tensor(0.01), 3)
    assert waiting.parameters(adaptation, stage(warming_up=True)).friction.tolist() == pytest.approx([30.0] * 3)
    assert waiting.parameters(adaptation, stage(warming_up=False)).friction.tolist() == [1.0] * 3


def test_underdamped_accepts_by_the_hamiltonian_and_turns_round() -> None:
    log_density, start = log_density_of(DoubleWell(3, 1.5).double()), randn(1, 100, 3).clamp(-1.5, 1.5)
    step_size, friction = 0.45, 0.6
    parameters = underdamped.Parameters(float64(step_size), float64(friction), torch.tensor(True))
    first, second = (underdamped.draw_randomness(start, generator(seed)) for seed in (2, 3))
    state = underdamped.init(log_density, start, parameters, first)
    assert torch.equal(state.momentum, first.noise)
    state, info = underdamped.step(log_density, state, second, parameters)
    decay = math.exp(-friction * step_size)
    momentum = decay * first.noise + math.sqrt(1 - decay**2) * second.noise
    value, gradient = log_density(start)
    q, p, end_value, _ = leapfrog(log_density, start, momentum, gradient, float64(step_size))
    ratio = end_value - value + 0.5 * (momentum.square() - p.square()).sum(-1)
    accepted = second.uniform < ratio.exp()
    assert 10 < accepted.sum() < 95
    torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
    torch.testing.assert_close(state.position, torch.where(accepted[:, None], q, start))
    torch.testing.assert_close(state.momentum, torch.where(accepted[:, None], p, -momentum))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))


def test_without_friction_the_momentum_is_kept() -> None:
    log_density, start = log_density_of(DoubleWell(2, 1.5).double()), randn(1, 50, 2).clamp(-1.5, 1.5)
    for metropolis in (True, False):
        parameters = underdamped.Parameters(float64(0.02), float64(0.0), torch.tensor(metropolis))
        first, second = (underdamped.draw_randomness(start, generator(seed)) for seed in (2, 3))
        second = second._replace(uniform=torch.zeros_like(second.uniform))  # accepts everything
        state = underdamped.init(log_density, start, parameters, first)
        q, p, g = start, state.momentum, state.gradient
        for _ in range(5):
            state, _ = underdamped.step(log_density, state, second, parameters)
            q, p, _, g = leapfrog(log_density, q, p, g, float64(0.02))
        torch.testing.assert_close((state.position, state.momentum), (q, p))


def test_unadjusted_steps_are_kick_drift_friction_drift_kick() -> None:
    log_density, start = log_density_of(DoubleWell(3, 1.5).double()), randn(1, 100, 3).clamp(-1.5, 1.5)
    step_size, friction = 0.3, 0.6
    parameters = underdamped.Parameters(float64(step_size), float64(friction), torch.tensor(False))
    first, second = (underdamped.draw_randomness(start, generator(seed)) for seed in (2, 3))
    state = underdamped.init(log_density, start, parameters, first)
    state, info = underdamped.step(log_density, state, second, parameters)
    q, p, work = start, first.noise, torch.zeros(100, dtype=torch.float64)

    def energy() -> Tensor:
        return 0.5 * p.square().sum(-1) - log_density(q)[0]

    def kick_and_drift(kick_first: bool) -> None:
        nonlocal q, p, work
        before = energy()
        if kick_first:
            p = p + 0.5 * step_size * log_density(q)[1]
        q = q + 0.5 * step_size * p
        if not kick_first:
            p = p + 0.5 * step_size * log_density(q)[1]
        work = work + energy() - before

    kick_and_drift(True)
    decay = math.exp(-friction * step_size)
    p = decay * p + math.sqrt(1 - decay**2) * second.noise
    kick_and_drift(False)
    torch.testing.assert_close((state.position, state.momentum), (q, p))
    torch.testing.assert_close(info.energy_error, work)
    torch.testing.assert_close(info.acceptance_rate, (-work).exp().clamp(max=1))
    torch.testing.assert_close((info.energy, info.lp), (energy(), log_density(q)[0]))


@pytest.mark.parametrize("friction", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("step_size", [0.4, 0.9])
def test_unadjusted_underdamped_has_the_bias_of_theory(step_size: float, friction: float) -> None:
    """On `N(0, 1/ω²)` the position has no bias, and the momentum is independent with variance `1 - (εω)²/4`.

    For then half a kick and half a drift, `p₁ = p - ½εω²q` and `q₁ = q + ½εp₁`, make `Var[p₁] = 1` and
    `Cov[q₁, p₁] = ½ε - ½ε = 0`: what O leaves alone; and the rest of the step is the same backwards.
    """
    precision = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    log_density = log_density_of(QuadraticEnergy(precision.diag()))
    momentum_variance = 1 - step_size**2 * precision / 4
    assert momentum_variance.min() > 0.1
    sampler = KernelCase("", underdamped, partial(_underdamped, friction=friction, metropolis=False))

    def assert_settled(state: underdamped.State) -> None:
        columns = {}
        for i in range(3):
            q, p = state.position[:, i], state.momentum[:, i]
            columns |= {f"position {i}": q, f"momentum {i}": p, f"covariance {i}": q * p}
            columns[f"position variance {i}"] = q.square() - 1 / precision[i]
            columns[f"momentum variance {i}"] = p.square() - momentum_variance[i]
        assert_zero_mean(columns)

    start, random = randn(1, NUM_CHAINS, 3) / precision.sqrt(), generator(2)
    parameters = sampler.parameters(float64(step_size))
    state = sampler.init(log_density, start, parameters, sampler.draw_randomness(start, random))
    state = state._replace(momentum=randn(3, NUM_CHAINS, 3) * momentum_variance.sqrt())
    for _ in range(4):
        state, info = sampler.step(log_density, state, sampler.draw_randomness(start, random), parameters)
        assert not info.diverging.any()
    assert_settled(state)
    if friction == 1.0:  # and it gets there from elsewhere
        run = ticks(sampler, log_density, torch.full_like(start, 2.0), step_size, generator(4))
        assert_settled(next(islice(run, 100, None))[0])


def logistic(position: Tensor) -> tuple[Tensor, Tensor]:
    """`sech² x` in each coordinate: smooth, not Gaussian, variance `π²/12`, and `E[(log π)'²] = 4/3`."""
    size = position.abs()
    return -2 * (size + torch.log1p((-2 * size).exp())).sum(-1), -2 * position.tanh()


def logistic_draws(num_chains: int, seed: int) -> Tensor:
    return 0.5 * torch.rand(num_chains, 3, generator=generator(seed), dtype=torch.float64).logit()


def settled_bias(
    sampler: KernelCase, step_size: float, deviation: Callable[[Any], Tensor], num_chains: int
) -> tuple[float, float]:
    """Of a mean over coordinates, with its standard error."""
    run = ticks(sampler, logistic, logistic_draws(num_chains, 1), step_size, generator(2))
    deviations = [deviation(state).mean(-1) for state, _ in islice(run, 40)]
    mean = torch.stack(deviations[15:]).mean(0)
    return float(mean.mean()), float(mean.std() / math.sqrt(num_chains))


def test_bias_of_unadjusted_underdamped_shrinks_as_the_square_of_the_step() -> None:
    """To leading order `E[p²] - 1 = -ε²/4 E[(log π)'²]`: the momentum lags half a kick behind."""
    coarse, _ = settled_bias(BAOAB, 0.8, lambda state: state.momentum.square() - 1, 40_000)
    fine, error = settled_bias(BAOAB, 0.4, lambda state: state.momentum.square() - 1, 40_000)
    assert error < 0.03 * abs(fine)
    assert 1.8 < math.log2(coarse / fine) < 2.2
    assert fine == pytest.approx(-(0.4**2) / 3, rel=0.12)
    position, error = settled_bias(BAOAB, 0.8, lambda state: state.position.square() - math.pi**2 / 12, 40_000)
    assert error < 0.02 * abs(coarse)
    assert abs(position) < 0.1 * abs(coarse)


def test_bias_of_mclmc_shrinks_as_the_square_of_the_step() -> None:
    coarse, coarse_error = settled_bias(MCLMC, 1.6, lambda state: state.position.square() - math.pi**2 / 12, 20_000)
    fine, fine_error = settled_bias(MCLMC, 0.8, lambda state: state.position.square() - math.pi**2 / 12, 20_000)
    assert min(coarse / coarse_error, fine / fine_error) > 10
    assert 1.7 < math.log2(coarse / fine) < 2.3


@parametrize([BAOAB, MCLMC], "sampler")
def test_work_measures_the_bias(sampler: KernelCase) -> None:
    """`E[exp(-W) f(x')] = E_π[f]` for the total work W of some steps from exact draws: what a correction would need."""
    energy = QuadraticEnergy(PRECISION)
    log_density = log_density_of(energy)
    start = energy.sample((NUM_CHAINS,), generator=generator(1))
    work, bias = torch.zeros(NUM_CHAINS, dtype=torch.float64), 0.0
    for state, info in islice(
        ticks(sampler, log_density, start, {"baoab": 0.8, "mclmc": 1.4}[sampler.name], generator(2)), 4
    ):
        assert not info.diverging.any()
        work = work + info.energy_error
        torch.testing.assert_close(info.acceptance_rate, (-info.energy_error).exp().clamp(max=1))
        weight, deviation = (-work).exp(), state.position - energy.mean
        columns = {"weight": weight - 1}
        for i in range(3):
            columns[f"mean {i}"] = weight * deviation[:, i]
            columns[f"variance {i}"] = weight * (deviation[:, i].square() - energy.variance[i])
            columns[f"product {i}"] = weight * (
                deviation[:, i] * deviation[:, i - 1] - torch.linalg.inv(PRECISION)[i, i - 1]
            )
        assert_zero_mean(columns)
        bias = max(bias, float((work.mean() / (work.std() / math.sqrt(NUM_CHAINS))).abs()))
    assert bias > 10  # without the weights it is seen


# Barker's proposal


def test_barker_accepts_by_metropolis_and_hastings() -> None:
    log_density, step_size = log_density_of(DoubleWell(2, 1.5).double()), float64(0.5)
    start = randn(1, 200, 2).clamp(-1.5, 1.5)
    randomness = barker.draw_randomness(start, generator(2))
    parameters = barker.Parameters(step_size)
    state = barker.init(log_density, start, parameters, randomness)
    after, info = barker.step(log_density, state, randomness, parameters)
    value, gradient = log_density(start)
    size = step_size * randomness.noise
    upright = randomness.sign < 1 / (1 + (-size * gradient).exp())
    proposal = start + torch.where(upright, 1, -1) * size
    end_value, end_gradient = log_density(proposal)

    def log_transition(to: Tensor, origin: Tensor, gradient: Tensor) -> Tensor:
        favour = 1 / (1 + (-(to - origin) * gradient).exp())
        return (Normal(origin, step_size).log_prob(to) + (2 * favour).log()).sum(-1)

    ratio = end_value + log_transition(start, proposal, end_gradient)
    ratio = ratio - value - log_transition(proposal, start, gradient)
    accepted = randomness.uniform < ratio.exp()
    assert 10 < accepted.sum() < 190
    assert 50 < upright.sum() < 350
    torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
    torch.testing.assert_close(after.position, torch.where(accepted[:, None], proposal, start))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))
    torch.testing.assert_close(info.energy, -log_density(after.position)[0])


def test_barker_moves_have_their_density() -> None:
    """From one point, `2 φ(w) σ(w g)` in each coordinate: compared on bins."""
    num_chains, gradient, step_size = 100_000, torch.tensor([1.5, -0.4], dtype=torch.float64), 0.8
    start = torch.zeros(num_chains, 2, dtype=torch.float64)

    def flat(position: Tensor) -> tuple[Tensor, Tensor]:  # a gradient that is not the density's: it accepts by hand
        return torch.zeros(num_chains, dtype=torch.float64), gradient.expand(num_chains, 2)

    parameters = barker.Parameters(float64(step_size))
    randomness = barker.draw_randomness(start, generator(1))
    randomness = randomness._replace(uniform=torch.zeros_like(randomness.uniform))
    state, _ = barker.step(flat, barker.init(flat, start, parameters, randomness), randomness, parameters)
    edges = torch.linspace(-2, 2, 9, dtype=torch.float64)
    columns = {}
    for i in range(2):
        grid = edges[:-1, None] + (edges[1] - edges[0]) * (torch.arange(2000) + 0.5) / 2000
        density = 2 * Normal(0, step_size).log_prob(grid).exp() / (1 + (-grid * gradient[i]).exp())
        for j, mass in enumerate(density.mean(-1) * (edges[1] - edges[0])):
            inside = (state.position[:, i] > edges[j]) & (state.position[:, i] < edges[j + 1])
            columns[f"{i}, bin {j}"] = inside.double() - mass
    assert_zero_mean(columns)


# The random walk


def test_random_walk_is_metropolis_and_asks_for_no_gradient() -> None:
    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:  # zero outside of a box
        inside = (position.abs() < 1.5).all(-1)
        value = torch.where(inside, -position.abs().sum(-1), -torch.inf)
        return value, torch.full_like(position, torch.nan)

    start = randn(1, 300, 2).clamp(-1.4, 1.4)
    randomness, parameters = random_walk.draw_randomness(start, generator(2)), random_walk.Parameters(float64(0.9))
    state = random_walk.init(log_density, start, parameters, randomness)
    after, info = random_walk.step(log_density, state, randomness, parameters)
    proposal = start + 0.9 * randomness.noise
    inside = (proposal.abs() < 1.5).all(-1)
    ratio = torch.where(inside, (start.abs() - proposal.abs()).sum(-1).exp(), 0)
    accepted = randomness.uniform < ratio
    assert min(int((~inside).sum()), int((inside & ~accepted).sum()), int(accepted.sum())) > 20
    torch.testing.assert_close(info.acceptance_rate, ratio.clamp(max=1))
    torch.testing.assert_close(after.position, torch.where(accepted[:, None], proposal, start))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio.log(), 0))
    assert not info.diverging.any()


# Elliptical slice sampling


def plain_elliptical_slice(
    log_likelihood: Callable[[Tensor], Tensor], x: Tensor, rows: list[elliptical_slice.Randomness]
) -> tuple[list[Tensor], list[int]]:
    """Figure 2 of Murray, Adams and MacKay 2010 for one chain: a row is consumed by every point but the first.

    Returns the draws, and after how many rows each was made.
    """
    source, draws, used = iter(rows), [], []
    row, count = next(source), 0
    try:
        while True:
            nu, level = row.direction[0], log_likelihood(x) + row.uniform[0, 0].log()
            theta = 2 * math.pi * row.uniform[1, 0]
            low, high = theta - 2 * math.pi, theta
            while True:
                row, count = next(source), count + 1
                proposal = x * torch.cos(theta) + nu * torch.sin(theta)
                if log_likelihood(proposal) > level:
                    break
                low, high = (theta, high) if theta < 0 else (low, theta)
                theta = low + row.uniform[1, 0] * (high - low)
            x = proposal
            draws.append(x)
            used.append(count)
    except StopIteration:
        return draws, used


def test_elliptical_slice_does_what_a_plain_one_does() -> None:
    log_density = log_density_of(QuadraticEnergy(PRECISION + 4 * torch.eye(3)))
    start, random = randn(1, 6, 3), generator(2)
    rows = [elliptical_slice.draw_randomness(start, random) for _ in range(60)]
    parameters = elliptical_slice.Parameters()
    state, seen = elliptical_slice.init(log_density, start, parameters, rows[0]), []
    for row in rows[1:]:
        state, info = elliptical_slice.step(log_density, state, row, parameters)
        seen.append((state, info))

    def log_likelihood(x: Tensor) -> Tensor:
        return log_density(x[None])[0][0] - torch.distributions.Normal(float64(0.0), 1.0).log_prob(x).sum()

    for chain in range(6):
        mine = [elliptical_slice.Randomness(row[0][chain, None], row[1][:, chain, None]) for row in rows]
        draws, used = plain_elliptical_slice(log_likelihood, start[chain], mine)
        assert used == [i + 1 for i, (_, info) in enumerate(seen) if info.done[chain]]
        assert 10 < len(used) < 50
        before, previous = 0, log_density(start)[0][chain]
        for draw, end in zip(draws, used, strict=True):
            state, info = seen[end - 1]
            torch.testing.assert_close(state.position[chain], draw)
            assert int(info.n_steps[chain]) == end - before
            assert float(info.acceptance_rate[chain]) == pytest.approx(1 / (end - before), rel=1e-14)
            torch.testing.assert_close(info.energy_error[chain], previous - info.lp[chain])
            assert 0 < info.step_size[chain] < 2 * math.pi
            before, previous = end, info.lp[chain]


def test_elliptical_slice_without_a_likelihood_draws_from_its_base() -> None:
    start = torch.full((NUM_CHAINS, 2), 3.0, dtype=torch.float64)
    record = run_chains(EXACT[3], standard_normal, start, 1.0, num_draws=1, seed=1)
    assert bool((record["n_steps"] == 1).all())
    angle = record["step_size"][:, 0]
    cosine = 1.5 * 3 * torch.sin(angle)  # nothing to do with the draw but the angle
    assert_zero_mean({"angle": angle - math.pi, "square": angle.square() - 4 * math.pi**2 / 3, "sine": cosine})


def test_a_bracket_that_shrinks_to_nothing_is_given_up() -> None:
    """Where rounding puts the draw itself off its slice, the chain stays, is marked, and goes on."""
    values = iter([0.0])

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:  # at first, and never again
        return torch.full_like(position[:, 0], next(values, -1e9)), position

    start = randn(1, 4, 2)
    for i, (state, info) in enumerate(islice(ticks(EXACT[3], log_density, start, 1.0, generator(1)), 300)):
        end = (i + 1) % elliptical_slice.MAX_NUM_STEPS == 0
        assert torch.equal(state.position, start)
        assert bool((info.done == end).all() & (info.diverging == end).all())
        assert not any(bool(field_.any()) for field_ in (info.acceptance_rate, info.non_finite, info.step_size))


# Microcanonical samplers


def test_kick_solves_its_equation() -> None:
    """`du/dt = (I - uuᵀ) g / (d - 1)`, by small Runge-Kutta steps, and `(d - 1) log(cosh δ + e·u sinh δ)`."""
    gradient, velocity, time = 3 * randn(1, 20, 4), unit(randn(2, 20, 4)), float64(0.7)

    def slope(u: Tensor) -> Tensor:
        return (gradient - (gradient * u).sum(-1, keepdim=True) * u) / 3

    u, steps = velocity, 400
    for _ in range(steps):
        h = time / steps
        k1 = slope(u)
        k2 = slope(u + 0.5 * h * k1)
        k3 = slope(u + 0.5 * h * k2)
        u = u + h * (k1 + 2 * k2 + 2 * k3 + slope(u + h * k3)) / 6
    turned, kinetic = kick(velocity, gradient, time)
    torch.testing.assert_close(turned, u, rtol=0, atol=1e-9)
    delta = time * gradient.norm(dim=-1) / 3
    cosine = (velocity * gradient).sum(-1) / gradient.norm(dim=-1)
    torch.testing.assert_close(kinetic, 3 * (delta.cosh() + cosine * delta.sinh()).log())
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kick_is_sound_at_its_limits(dtype: torch.dtype) -> None:
    velocity = unit(randn(1, 5, 3)).to(dtype)
    for gradient in (torch.zeros(5, 3), torch.full((5, 3), 1e-30)):
        turned, kinetic = kick(velocity, gradient.to(dtype), torch.tensor(0.5, dtype=dtype))
        torch.testing.assert_close((turned, kinetic), (velocity, torch.zeros(5, dtype=dtype)))
    steep = torch.tensor([1e6, 0.0, 0.0], dtype=dtype).expand(5, 3)
    turned, kinetic = kick(velocity, steep, torch.tensor(0.5, dtype=dtype))
    torch.testing.assert_close(turned, (steep / 1e6).contiguous())
    torch.testing.assert_close(kinetic, 2 * (2.5e5 + (0.5 * (1 + velocity[:, 0])).log()))
    turned, kinetic = kick(-steep / 1e6, steep, torch.tensor(0.5, dtype=dtype))  # nobody knows which way it turns
    torch.testing.assert_close(turned, -steep / 1e6)
    assert bool(((kinetic > 1e5) & kinetic.isfinite()).all())


def phase_space_determinant(step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, u: Tensor) -> Tensor:
    """Of a map of positions and unit vectors: extended to vectors `r u` of any length it has the same determinant."""
    dim = x.shape[0]

    def extended(both: Tensor) -> Tensor:
        length = both[dim:].norm()
        new_x, new_u = step(both[None, :dim], both[None, dim:] / length)
        return torch.cat([new_x[0], length * new_u[0]])

    return torch.linalg.det(torch.autograd.functional.jacobian(extended, torch.cat([x, u]))).abs()


def test_kinetic_energy_is_the_change_of_volume() -> None:
    """So that `exp(-W)` is the ratio of Metropolis and Hastings."""

    def well(x: Tensor) -> tuple[Tensor, Tensor]:
        return -(x.square() - 1).square().sum(-1), -4 * x * (x.square() - 1)

    for seed in range(5):
        x, u, gradient = randn(seed, 3), unit(randn(seed + 10, 3)), randn(seed + 20, 1, 3)
        turned = phase_space_determinant(lambda _, u: (_, kick(u, gradient, float64(0.7))[0]), x, u)
        torch.testing.assert_close(-turned.log(), kick(u[None], gradient, float64(0.7))[1][0])

        def leap(x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            return isokinetic_leapfrog(well, x, u, well(x)[1], float64(0.4))

        volume = phase_space_determinant(lambda x, u: leap(x, u)[:2], x, u)
        torch.testing.assert_close(-volume.log(), leap(x[None], u[None])[4][0])


def test_isokinetic_leapfrog_is_reversible_and_of_second_order() -> None:
    log_density = log_density_of(Funnel(3, 1.0).double())
    x, u = Funnel(3, 1.0).double().sample((50,), generator=generator(1)), unit(randn(2, 50, 3))

    def go(x: Tensor, u: Tensor, step_size: float, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        start_value, gradient = log_density(x)
        total = torch.zeros_like(start_value)
        for _ in range(num_steps):
            x, u, value, gradient, kinetic = isokinetic_leapfrog(log_density, x, u, gradient, float64(step_size))
            total = total + kinetic
        return x, u, total - value + start_value

    there = go(x, u, 0.3, 5)
    back = go(there[0], -there[1], 0.3, 5)
    torch.testing.assert_close((back[0], -back[1], -back[2]), (x, u, there[2]), rtol=0, atol=1e-10)
    errors = [go(x, u, 0.4 / n, n)[2].abs().median() for n in (8, 16)]
    assert 3.7 < errors[0] / errors[1] < 4.3


def test_adjusted_mclmc_accepts_by_the_total_energy() -> None:
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start, step_size = randn(1, 100, 3).clamp(-1.5, 1.5), float64(0.6)
    parameters = _adjusted(step_size, 1.0, num_steps=2)
    first, middle, last = (adjusted_mclmc.draw_randomness(start, generator(seed)) for seed in (1, 2, 3))
    state = adjusted_mclmc.init(log_density, start, parameters, first)
    state, info = adjusted_mclmc.step(log_density, state, middle, parameters)
    assert not info.done.any()
    state, info = adjusted_mclmc.step(log_density, state, last, parameters)
    value, gradient = log_density(start)
    velocity = first.noise / first.noise.norm(dim=-1, keepdim=True)
    x, u, _, g, kinetic = isokinetic_leapfrog(log_density, start, velocity, gradient, step_size)
    x, u, end_value, _, more = isokinetic_leapfrog(log_density, x, u, g, step_size)
    ratio = end_value - value - kinetic - more
    accepted = last.uniform[0] < ratio.exp()
    assert info.done.all()
    assert 10 < accepted.sum() < 95
    torch.testing.assert_close(info.acceptance_rate, ratio.exp().clamp(max=1))
    torch.testing.assert_close(state.position, torch.where(accepted[:, None], x, start))
    torch.testing.assert_close(info.energy_error, torch.where(accepted, -ratio, 0.0))
    torch.testing.assert_close(info.energy, -value + info.energy_error)
    torch.testing.assert_close(state.moving_velocity, last.noise / last.noise.norm(dim=-1, keepdim=True))
    assert torch.equal(state.moving_position, state.position)
    assert not state.kinetic_energy.any()
    assert not state.n_steps.any()


def test_adjusted_mclmc_jitters_its_lengths() -> None:
    step_size, length = 0.13, 1.0
    start, random = randn(1, 40, 2), generator(2)
    parameters = _adjusted(float64(step_size), length)
    randomness = adjusted_mclmc.draw_randomness(start, random)
    state = adjusted_mclmc.init(standard_normal, start, parameters, randomness)
    expected = (2 * randomness.uniform[1] * length / step_size).ceil()
    for _ in range(60):
        randomness = adjusted_mclmc.draw_randomness(start, random)
        state, info = adjusted_mclmc.step(standard_normal, state, randomness, parameters)
        assert torch.equal(info.n_steps[info.done], expected[info.done].long())
        expected = torch.where(info.done, (2 * randomness.uniform[1] * length / step_size).ceil(), expected)


def test_newtonian_adjusted_mclmc_is_hmc() -> None:
    """Whose time is `√dim` times as short."""
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start, random, root = randn(1, 40, 3).clamp(-1.5, 1.5), generator(2), 3**0.5
    length, parameters = 2.0, _adjusted(float64(0.6), 2.0, newtonian=True)
    theirs = hmc.Parameters(float64(0.6 / root), float64(length / root), torch.tensor(0))
    randomness = adjusted_mclmc.draw_randomness(start, random)
    state = adjusted_mclmc.init(log_density, start, parameters, randomness)
    twin = hmc.init(log_density, start, theirs, hmc.Randomness(*randomness))
    for _ in range(40):
        randomness = adjusted_mclmc.draw_randomness(start, random)
        state, info = adjusted_mclmc.step(log_density, state, randomness, parameters)
        twin, expected = hmc.step(log_density, twin, hmc.Randomness(*randomness), theirs)
        assert torch.equal(info.done, expected.done)
        torch.testing.assert_close(state.position, twin.position)
        torch.testing.assert_close(info.energy_error[info.done], expected.energy_error[info.done])
    assert not torch.equal(state.position, start)


def test_mclmc_refreshes_its_velocity_over_the_decoherence_length() -> None:
    """On a flat density, `u' ∝ c u + √((1 - c²)/d) ξ` with `c = exp(-ε/L)`, and the chain moves by ε."""

    def flat(position: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(position.shape[0], dtype=position.dtype), torch.zeros_like(position)

    start, first = randn(1, 30, 4), mclmc.draw_randomness(randn(1, 30, 4), generator(2))
    for length, decay in ((2.0, math.exp(-0.25)), (math.inf, 1.0), (0.0, 0.0)):
        parameters = mclmc.Parameters(float64(0.5), float64(length))
        second = mclmc.draw_randomness(start, generator(3))
        state = mclmc.init(flat, start, parameters, first)
        velocity = first.noise / first.noise.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(state.velocity, velocity)
        state, info = mclmc.step(flat, state, second, parameters)
        expected = decay * velocity + math.sqrt((1 - decay**2) / 4) * second.noise
        expected = expected / expected.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(state.velocity, expected)
        torch.testing.assert_close(state.position, start + 0.5 * expected)
        assert not info.energy_error.any()


def test_mclmc_step_is_an_isokinetic_leapfrog() -> None:
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start = randn(1, 100, 3).clamp(-1.5, 1.5)
    parameters = mclmc.Parameters(float64(0.4), float64(math.inf))
    randomness = mclmc.draw_randomness(start, generator(2))
    state = mclmc.init(log_density, start, parameters, randomness)
    after, info = mclmc.step(log_density, state, randomness, parameters)
    x, u, value, _, kinetic = isokinetic_leapfrog(log_density, start, state.velocity, state.gradient, float64(0.4))
    torch.testing.assert_close((after.position, after.velocity), (x, u))
    error = state.log_density - value + kinetic
    torch.testing.assert_close(info.energy_error, error)
    torch.testing.assert_close(info.acceptance_rate, (-error).exp().clamp(max=1))
    torch.testing.assert_close(info.energy, error - state.log_density)


@parametrize([MCLMC, EXACT[4]], "sampler")
def test_microcanonical_samplers_refuse_one_dimension(sampler: KernelCase) -> None:
    start = randn(1, 5, 1)
    with pytest.raises(ValueError, match="expected two or more"):
        next(ticks(sampler, standard_normal, start, 0.5, generator(1)))


# Stochastic gradients


@pytest.mark.parametrize("decay", [0.0, 0.55])
def test_sgld_has_the_bias_of_theory(decay: float) -> None:
    """On `N(0, 1/ω²)` with gradient noise of variance τ²: `Var ← (1 - ε_t ω²)² Var + 2 ε_t + ε_t² τ²`."""
    precision, noise, num_steps = torch.tensor([0.5, 2.0], dtype=torch.float64), 1.5, 12
    data = generator(3)

    def minibatch(position: Tensor) -> tuple[Tensor, Tensor]:
        error = noise * torch.randn(position.shape, generator=data, dtype=position.dtype)
        return -0.5 * (precision * position.square()).sum(-1) + (error * position).sum(
            -1
        ), -precision * position + error

    parameters = sgld.Parameters(float64(0.4), float64(2.0), float64(decay))
    start, random = randn(1, NUM_CHAINS, 2) / precision.sqrt(), generator(2)
    state = sgld.init(minibatch, start, parameters, sgld.draw_randomness(start, random))
    variance = 1 / precision
    for t in range(num_steps):
        state, info = sgld.step(minibatch, state, sgld.draw_randomness(start, random), parameters)
        step_size = 0.4 * (2 + t) ** -decay
        assert bool(info.step_size.allclose(float64(step_size)))
        assert bool((info.acceptance_rate == 1).all())
        assert bool((state.num_steps == t + 1).all())
        variance = (1 - step_size * precision) ** 2 * variance + 2 * step_size + step_size**2 * noise**2
        columns = {f"mean {i}": state.position[:, i] for i in range(2)}
        columns |= {f"variance {i}": state.position[:, i].square() - variance[i] for i in range(2)}
        assert_zero_mean(columns)
    if decay == 0:
        settled = (2 + 0.4 * noise**2) / (2 * precision - 0.4 * precision**2)
        torch.testing.assert_close(variance, settled, rtol=0.02, atol=0)
        assert (variance * precision).min() > 1.1


def test_preconditioned_sgld_follows_its_equation() -> None:
    log_density = log_density_of(DoubleWell(3, 1.5).double())
    start, random = randn(1, 20, 3).clamp(-1.5, 1.5), generator(2)
    parameters = sgld.Parameters(float64(0.02), float64(1.0), float64(0.5), True, smoothing=0.9, damping=0.1)
    state = sgld.init(log_density, start, parameters, sgld.draw_randomness(start, random))
    x, second_moment = start, log_density(start)[1] ** 2
    for t in range(10):
        randomness = sgld.draw_randomness(start, random)
        state, info = sgld.step(log_density, state, randomness, parameters)
        step_size, gradient = 0.02 * (1 + t) ** -0.5, log_density(x)[1]
        if t:
            second_moment = 0.9 * second_moment + 0.1 * gradient**2
        scale = 1 / (0.1 + second_moment.sqrt())
        x = x + step_size * scale * gradient + torch.sqrt(2 * step_size * scale) * randomness.noise
        torch.testing.assert_close(state.position, x)
        torch.testing.assert_close(info.lp, log_density(x)[0])


# What every step must do


def rows_of(randomness: Any, chains: slice, num_chains: int) -> Any:
    """The random numbers of some chains: `(chains, dim)` and `(..., chains)`."""
    return type(randomness)(*(r[chains] if r.shape[0] == num_chains else r[..., chains] for r in randomness))


@parametrize(ALL, "sampler")
def test_a_chain_does_not_depend_on_the_others(sampler: KernelCase) -> None:
    log_density = log_density_of(Funnel(3, 1.0).double())
    start, random = Funnel(3, 1.0).double().sample((7,), generator=generator(1)), generator(2)
    rows = [sampler.draw_randomness(start, random) for _ in range(40)]
    parameters = sampler.parameters(float64(0.4))

    def run(chains: slice) -> tuple[Tensor, Tensor]:
        mine = [rows_of(row, chains, 7) for row in rows]
        state, draws, done = sampler.init(log_density, start[chains], parameters, mine[0]), [], []
        for row in mine[1:]:
            state, info = sampler.step(log_density, state, row, parameters)
            draws.append(state.position)
            done.append(info.done)
        return torch.stack(draws), torch.stack(done)

    draws, done = run(slice(None))
    for chain in range(7):
        alone, done_alone = run(slice(chain, chain + 1))
        assert torch.equal(done_alone[:, 0], done[:, chain])
        torch.testing.assert_close(alone[:, 0], draws[:, chain], rtol=1e-9, atol=1e-9)


BAD = {  # value and gradient
    "nan": (math.nan, math.nan),
    "infinite_energy": (-math.inf, 0.0),
    "infinite_energy_nan_gradient": (-math.inf, math.nan),
    "nan_gradient": (0.0, math.nan),
    "infinite_gradient": (0.0, math.inf),
    "infinite_density": (math.inf, 0.0),
}


def walled(value: float, gradient: float, wall: float) -> LogDensity:
    """A standard normal, and something bad where the first coordinate is above the wall."""

    def log_density(position: Tensor) -> tuple[Tensor, Tensor]:
        good_value, good_gradient = standard_normal(position)
        bad = position[:, 0] > wall
        return torch.where(bad, value, good_value), torch.where(bad[:, None], gradient, good_gradient)

    return log_density


def bad_cases() -> list[Any]:
    return [
        pytest.param(sampler, bad, id=f"{sampler.name}-{bad}")
        for sampler in ALL
        for bad, (value, _) in BAD.items()
        if sampler.uses_gradient or not math.isfinite(value)
    ]


@pytest.mark.parametrize(("sampler", "bad"), bad_cases())
def test_no_chain_moves_to_a_bad_point(sampler: KernelCase, bad: str) -> None:
    start = randn(1, 40, 2).clamp(max=0.9)
    num_diverging = 0
    for state, info in islice(ticks(sampler, walled(*BAD[bad], wall=1.0), start, 0.6, generator(2)), 60):
        assert bool((state.position[:, 0] <= 1).all())
        for value in (state.position, state.log_density, info.lp, info.energy, info.acceptance_rate):
            assert bool(value.isfinite().all())
        assert bool(getattr(state, "gradient", start).isfinite().all())
        assert bool((info.diverging <= info.done).all())
        if sampler.module is elliptical_slice:  # each ellipse anew
            assert not info.diverging[info.n_steps == 1].any()
            assert not info.non_finite[info.done & ~info.diverging].any()
        num_diverging += int(info.diverging.sum())
    # Without dynamics a density of zero is nothing special.
    assert (num_diverging == 0) == (not sampler.uses_gradient and BAD[bad][0] == -math.inf)
    assert bool((state.position != start).any(-1).all())


@pytest.mark.parametrize(("sampler", "bad"), bad_cases())
def test_a_chain_in_a_bad_region_stays_and_harms_no_other(sampler: KernelCase, bad: str) -> None:
    start = randn(1, 8, 2).clamp(max=0.9)
    lost = start.clone()
    lost[3] = torch.tensor([50.0, 0.0])
    log_density = walled(*BAD[bad], wall=30.0)  # the others cannot tell
    others = torch.arange(8) != 3
    runs = zip(
        ticks(sampler, log_density, lost, 0.5, generator(2)),
        ticks(sampler, log_density, start, 0.5, generator(2)),
        strict=True,
    )
    for (state, info), (state_without, info_without) in islice(runs, 40):
        assert torch.equal(state.position[3], lost[3])
        assert all(bool(marks[3]) for marks in (info.done, info.diverging, info.non_finite))
        assert float(info.acceptance_rate[3]) == 0
        assert torch.equal(state.position[others], state_without.position[others])
        for field_, field_without in zip(info, info_without, strict=True):
            assert torch.equal(field_[others], field_without[others])


def test_a_chain_turns_round_where_it_diverges() -> None:
    log_density, start = walled(math.nan, math.nan, wall=1.0), torch.tensor([[0.9, 0.0]], dtype=torch.float64)
    onwards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    value, gradient = standard_normal(start)
    for metropolis in (True, False):
        parameters = underdamped.Parameters(float64(0.5), float64(0.0), torch.tensor(metropolis))
        state = underdamped.State(start, onwards, value, gradient)
        row = underdamped.draw_randomness(start, generator(1))
        state, info = underdamped.step(log_density, state, row, parameters)
        assert bool(info.diverging)
        assert torch.equal(state.momentum, -onwards)
    parameters = mclmc.Parameters(float64(0.5), float64(math.inf))
    row = mclmc.draw_randomness(start, generator(1))
    after, info = mclmc.step(log_density, mclmc.State(start, onwards, value, gradient), row, parameters)
    assert bool(info.diverging)
    assert torch.equal(after.velocity, -onwards)


@parametrize([case for case in ALL if case.uses_gradient and case.module is not sgld], "sampler")
def test_a_step_that_leaves_the_level_set_is_not_made(sampler: KernelCase) -> None:
    """Finite, and far too long."""

    def narrow(position: Tensor) -> tuple[Tensor, Tensor]:
        return -1e6 * position.square().sum(-1), -2e6 * position

    start = 1e-3 * randn(1, 40, 2)
    num_diverging = 0
    for state, info in islice(ticks(sampler, narrow, start, 1.0, generator(2)), 20):
        assert bool((state.position[info.diverging].abs() < 0.1).all())
        assert bool((info.acceptance_rate[info.diverging] == 0).all())
        assert bool((info.energy_error.abs() < 1000.1).all())
        assert not info.non_finite.any()
        num_diverging += int(info.diverging.sum())
    assert num_diverging > 100


@parametrize(ALL, "sampler")
def test_single_precision(sampler: KernelCase) -> None:
    log_density = log_density_of(correlated_gaussian(2, 0.7))
    start = correlated_gaussian(2, 0.7).sample((NUM_CHAINS,), generator=generator(1))
    for state, info in islice(ticks(sampler, log_density, start, 0.6, generator(2)), 3):
        for value in (*state, *info):
            assert value.dtype in (torch.float32, torch.long, torch.bool)
    if sampler not in EXACT:
        return
    record = run_chains(sampler, log_density, start, 0.6, num_draws=2, seed=3)
    draw = record["position"][:, -1]
    columns = {f"mean {i}": draw[:, i] for i in range(2)}
    columns |= {f"variance {i}": draw[:, i].square() - 1 for i in range(2)}
    assert_zero_mean(columns | {"covariance": draw.prod(-1) - 0.7})


@parametrize(ALL, "sampler")
def test_a_step_is_one_static_program(sampler: KernelCase) -> None:
    """Traced once, it does the same as the step itself on every later state, and changes none of its inputs."""
    log_density = log_density_of(Funnel(3, 1.0).double())
    start, random = Funnel(3, 1.0).double().sample((30,), generator=generator(1)), generator(2)

    def step(state: Any, randomness: Any, step_size: Tensor) -> tuple[Any, Any]:
        return sampler.step(log_density, state, randomness, sampler.parameters(step_size))

    size = float64(0.4)
    state = sampler.init(log_density, start, sampler.parameters(size), sampler.draw_randomness(start, random))
    # Clones, since the first state has one tensor in several fields, which a trace would take for one input.
    example = type(state)(*(field_.clone() for field_ in state))
    traced = make_fx(step)(example, sampler.draw_randomness(start, random), size)
    num_done = 0
    for tick in range(60):
        randomness = sampler.draw_randomness(start, random)
        size = size * (1.05 if tick % 3 else 0.9)
        inputs = [*state, *randomness, size]
        before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
        ours, theirs = step(state, randomness, size), traced(state, randomness, size)
        assert all(map(torch.equal, inputs, before))
        assert [x._version for x in inputs] == versions
        for first, second in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
        state = ours[0]
        num_done += int(ours[1].done.sum())
    assert num_done > 30


@parametrize(ALL, "sampler")
def test_a_state_has_what_belongs_to_its_position(sampler: KernelCase) -> None:
    log_density = log_density_of(Funnel(3, 1.0).double())
    start = Funnel(3, 1.0).double().sample((200,), generator=generator(1))
    num_stays, previous = 0, start
    for state, info in islice(ticks(sampler, log_density, start, 0.9, generator(2)), 10):
        value, gradient = log_density(state.position)
        torch.testing.assert_close((state.log_density, info.lp), (value, value))
        torch.testing.assert_close(getattr(state, "gradient", gradient), gradient)
        assert bool((info.done | (state.position == previous).all(-1)).all())
        num_stays += int((state.position == previous).all(-1).sum())
        previous = state.position
    assert num_stays > 10 or sampler not in EXACT


@parametrize(EXACT[4:5], "sampler")
def test_a_trajectory_keeps_the_step_size_with_which_it_started(sampler: KernelCase) -> None:
    log_density, start = log_density_of(Funnel(3, 1.0).double()), randn(1, 1, 3)
    rows = [sampler.draw_randomness(start, generator(seed)) for seed in range(60)]

    def run(sizes: list[float]) -> tuple[Tensor, list[bool]]:
        state = sampler.init(log_density, start, sampler.parameters(float64(sizes[0])), rows[0])
        draws, done = [], []
        for row, size in zip(rows[1:], sizes[1:], strict=True):
            state, info = sampler.step(log_density, state, row, sampler.parameters(float64(size)))
            draws.append(state.position)
            done.append(bool(info.done))
        return torch.stack(draws), done

    sizes = (0.2 + 0.3 * torch.rand(60, generator=generator(1))).tolist()
    draws, done = run(sizes)
    assert 5 < sum(done) < 55
    others = [sizes[0], *(size if ended else 1e3 for size, ended in zip(sizes[1:], done, strict=True))]
    assert torch.equal(run(others)[0], draws)


@parametrize(ALL, "sampler")
def test_info_and_randomness_have_their_shapes(sampler: KernelCase) -> None:
    common = {"done", "lp", "energy", "energy_error", "acceptance_rate", "step_size", "diverging", "non_finite"}
    several_ticks = sampler.module in (elliptical_slice, adjusted_mclmc)
    assert set(sampler.module.Info._fields) == common | ({"n_steps"} if several_ticks else set())
    start = randn(1, 5, 2)
    once = sampler.draw_randomness(start, generator(1))
    for row, rows in zip(once, sampler.draw_randomness(start.expand(3, 4, 5, 2), generator(1)), strict=True):
        assert rows.shape == (3, 4, *row.shape)  # of many ticks at once
    for _, info in islice(ticks(sampler, standard_normal, start, 0.3, generator(1)), 4):
        assert all(value.shape == (5,) for value in info)
        assert several_ticks or bool(info.done.all())
