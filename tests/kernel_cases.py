"""What the tests of kernels and runs share: the table of samplers, densities with gradients, and error bounds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import Energy
from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.hamiltonian_algorithms import chees_algorithm, hmc_algorithm, nuts_algorithm
from pyro_ebm.mcmc.local_algorithms import langevin_algorithm
from pyro_ebm.mcmc.protocols import Stage
from pyro_ebm.mcmc.recorder import Recorder
from pyro_ebm.mcmc.step_size import DualAveraging

FAILURE = 1e-4  # chance that a right program fails a statistical test


def standard_errors(num_comparisons: int, failure: float = FAILURE) -> float:
    """How many standard errors any of several normal statistics passes with this chance (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.5 * failure / num_comparisons)


def shortfall(averaging: DualAveraging) -> tuple[float, float]:
    """How far below its target the acceptance at the final step size of dual averaging is expected.

    `log ε_m = μ - √m H̄_m / γ` stands still where the acceptance of an update is short by `γ (μ - log ε) / (2 √m)`, and
    the average counts these updates with weights w.

    Returns:
        The expectation, and `Σ w²`.
    """
    count = torch.arange(1, int(averaging.num_updates) + 1, dtype=torch.float64)
    gain = count**-0.75
    weights = gain * torch.cat([(1 - gain[1:]).flip(0).cumprod(0).flip(0), torch.ones(1)])
    short = 0.05 * (averaging.centre - averaging.log_average) * (weights / (2 * count.sqrt())).sum()
    return float(short), float(weights.square().sum())


def log_density_of(energy: Energy) -> LogDensity:
    """`-E` and its gradient."""
    return lambda position: value_and_gradient(lambda x: -energy(x), position)


def standard_normal(position: Tensor) -> tuple[Tensor, Tensor]:
    return -0.5 * position.square().sum(-1), -position


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class SamplerCase:
    """A sampler that leaves its density invariant.

    Attributes:
        name: its name.
        make: makes it with its settings.
        in_step: whether all chains end their trajectories together, by design: then a chain that diverges is not done
            with its transition before the others are.
        compares_chains: the fields of its info that compare a chain with the others, by design: they say how well the
            chains spread out together. No draw depends on them but through the parameters.
        leapfrogs: whether a transition is a trajectory of many ticks.
    """

    name: str
    make: Callable[[], Algorithm]
    in_step: bool = False
    compares_chains: frozenset[str] = frozenset()
    leapfrogs: bool = True


NUTS = SamplerCase("nuts", lambda: nuts_algorithm(max_tree_depth=6))
HMC = SamplerCase("hmc_jittered", lambda: hmc_algorithm(trajectory_length=1.0))
HMC_NUM_STEPS = SamplerCase("hmc_num_steps", lambda: hmc_algorithm(trajectory_length=1.0, num_steps=3))
MALA = SamplerCase("mala", lambda: langevin_algorithm(metropolis=True, target_accept_prob=0.574), leapfrogs=False)
CHEES = SamplerCase(
    "chees", lambda: chees_algorithm(), in_step=True, compares_chains=frozenset({"criterion", "criterion_gradient"})
)
SAMPLERS = [NUTS, HMC, HMC_NUM_STEPS, MALA, CHEES]
ULA = SamplerCase("ula", lambda: langevin_algorithm(metropolis=False, target_accept_prob=0.574), leapfrogs=False)


def stage(*, warming_up: bool) -> Stage:
    """Of a run whose draws go as far as usual."""
    return Stage(torch.tensor(warming_up), torch.tensor(False), torch.tensor(1.0).double())


def parameters_of(algorithm: Algorithm, step_size: float, like: Tensor) -> Any:
    """For sampling chains like `like`, `(chains, dim)`."""
    adaptation = algorithm.adaptation(torch.tensor(step_size, dtype=like.dtype), len(like))
    return algorithm.parameters(adaptation, stage(warming_up=False))


def ticks(
    algorithm: Algorithm, log_density: LogDensity, start: Tensor, step_size: float, random: torch.Generator
) -> Iterator[tuple[Any, Any]]:
    """`(state, info)` after each tick, without end."""
    parameters = parameters_of(algorithm, step_size, start)
    state = algorithm.init(log_density, start, parameters, algorithm.draw_randomness(start, random))
    while True:
        state, info = algorithm.step(log_density, state, algorithm.draw_randomness(start, random), parameters)
        yield state, info


def run_chains(
    algorithm: Algorithm,
    log_density: LogDensity,
    start: Tensor,
    step_size: float,
    *,
    num_draws: int,
    seed: int,
    max_ticks: int = 10_000,
) -> dict[str, Tensor]:
    """The first draws of every chain with what the sampler says of them, each `(chains, draws, ...)`."""
    recorder = Recorder(len(start), num_draws, start.device)
    for tick, (state, info) in enumerate(ticks(algorithm, log_density, start, step_size, generator(seed))):
        values = {"position": state.position, **info._asdict()}
        recorder.record(info.done[None], {name: value[None] for name, value in values.items()})
        if int(recorder.counts.min()) >= num_draws:
            return recorder.draws()
        assert tick < max_ticks, "some chains do not end their transitions"
    raise AssertionError
