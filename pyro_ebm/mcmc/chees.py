"""ChEES-HMC: all chains have the same trajectory length, learned from how well they spread out together.

The change in the estimator of the expected square (ChEES), `C(T) = ¼ E[(|x' - E x'|² - |x - E x|²)²]`, says how far
apart a trajectory of length T carries a chain. What is maximised is `C(T) / T^a` with a small power a, by gradients
averaged over chains: C itself goes on growing with T where tails are heavy. Few chains say little of it, and go at
least as far as those of Hamiltonian Monte Carlo would. Chains move in step, so that no gradient is wasted, and lengths
are jittered by a quasi-random sequence.

References:
    Hoffman, Radul and Sountsov 2021, An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo.
    Sountsov and Hoffman 2022, Focusing on difficult directions for learning HMC trajectory lengths.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.counter import draw_seeds, normal_at, uniform_at
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, column, energy_error, hamiltonian, leapfrog
from pyro_ebm.mcmc.step_size import DualAveraging

# The most leapfrog steps of a trajectory.
MAX_NUM_STEPS = 1024
# At first there are far fewer: chains are on their way to the bulk, and what they say of lengths holds only there. The
# bound grows with each trajectory, and with each window.
_FIRST_MAX_STEPS, _MORE_STEPS, _WIDER = 16.0, 2.0, 4.0
# The logarithm of the length moves this far for each unit of the rate's logarithmic gradient. The criterion's part in
# it is taken from running means, and held between -1 and 1: beyond lengths of any use it is noise without a mean, and
# what is left leads back. Fewer chains than so many are noisier, and learn more slowly; they go at least so far, on
# average half of it, which suits a standard normal.
_LEARNING_RATE, _FORGETTING, MANY_CHAINS, _USUAL_LENGTH = 0.1, 0.9, 16, math.pi
# The power of the length by which the criterion is divided is `_THRIFT (1 + _CAUTION / chains)`: it leads back from
# lengths that are too long, against the noise of few chains.
_THRIFT, _CAUTION = 0.1, 6.0
# The average of the logarithms weighs the n-th by n to the power of minus this.
_AVERAGING = 0.5
# The mean squared distance of a coordinate, in units of the metric, at which a chain counts for half.
_NEAR = 4.0
_BITS = 20


class Parameters(NamedTuple):
    """What adaptation sets.

    Attributes:
        step_size: the leapfrog step ε, `()` or `(chains,)`.
        trajectory_length: the greatest integration time T, `()`; a trajectory has `⌈u T / ε⌉` steps, with u
            quasi-random on (0, 1).
    """

    step_size: Tensor
    trajectory_length: Tensor


class Randomness(NamedTuple):
    """The random numbers of one tick: `momentum` `(chains, dim)`, and `uniform` `(chains,)` for acceptance."""

    momentum: Tensor
    uniform: Tensor


class Seed(NamedTuple):
    """What the random numbers of one tick are made of where a trajectory ends: `seed` `()`, int64."""

    seed: Tensor


class State(NamedTuple):
    """Where the chains are in their common trajectory.

    Attributes:
        position: the present draw, `(chains, dim)`, with its `log_density` `(chains,)` and `gradient` `(chains, dim)`.
        initial_energy: H at the start of the trajectory, `(chains,)`.
        moving_position: the end of the trajectory, `(chains, dim)`, with its momentum and gradient.
        broken: which chains have diverged in this trajectory, `(chains,)`.
        non_finite: which of them because they met a density or gradient that is not finite, `(chains,)`.
        step_size: of this trajectory, `(chains,)`.
        length: of this trajectory, `()`.
        remaining: leapfrog steps still to do, `()`.
        n_steps: leapfrog steps done, `()`.
        trajectory: the number of this trajectory, `()`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    initial_energy: Tensor
    moving_position: Tensor
    moving_momentum: Tensor
    moving_gradient: Tensor
    broken: Tensor
    non_finite: Tensor
    step_size: Tensor
    length: Tensor
    remaining: Tensor
    n_steps: Tensor
    trajectory: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`, valid where `done`; named as in ArviZ (see `nuts.Info`).

    `criterion` is each chain's part in C(T), `criterion_gradient` in its derivative by `log T`.
    """

    done: Tensor
    lp: Tensor
    energy: Tensor
    energy_error: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    n_steps: Tensor
    trajectory_length: Tensor
    diverging: Tensor
    non_finite: Tensor
    criterion: Tensor
    criterion_gradient: Tensor


def draw_seed(position: Tensor, generator: Generator) -> Seed:
    """Draw the seed of a tick for chains at `position`, `(*ticks, chains, dim)`."""
    return Seed(draw_seeds(position.shape[:-2], position, generator))


def randomness_of(seed: Seed, position: Tensor) -> Randomness:
    """The random numbers of a tick for chains at `position`, `(chains, dim)`."""
    return Randomness(
        normal_at(seed.seed, position.shape, position), uniform_at(seed.seed, position.shape[:-1], position)
    )


def _length(trajectory: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The jittered length of a trajectory, and its number of steps: u is van der Corput's sequence."""
    bits = torch.arange(_BITS, device=trajectory.device)
    jitter = (((trajectory >> bits) & 1) * 0.5 ** (bits + 1).to(parameters.step_size)).sum()
    length = jitter * parameters.trajectory_length
    steps = (length / parameters.step_size.max()).ceil()
    return length, torch.where(torch.isfinite(steps), steps, 1).clamp(1, MAX_NUM_STEPS).long()


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`."""
    value, gradient = log_density(position)
    none = torch.zeros_like(value, dtype=torch.bool)
    trajectory = torch.ones((), dtype=torch.long, device=position.device)
    length, remaining = _length(trajectory, parameters)
    return State(
        position=position,
        log_density=value,
        gradient=gradient,
        initial_energy=hamiltonian(value, randomness.momentum),
        moving_position=position,
        moving_momentum=randomness.momentum,
        moving_gradient=gradient,
        broken=none,
        non_finite=none,
        step_size=parameters.step_size.expand(value.shape),
        length=length,
        remaining=remaining,
        n_steps=torch.zeros_like(remaining),
        trajectory=trajectory,
    )


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain; at the end of the trajectory each accepts or rejects, and all start the next.

    All but the leapfrog and its energy is of use at the end alone: `ended` is one boolean, and a program can skip it.
    """
    position, momentum, value, gradient = leapfrog(
        log_density, state.moving_position, state.moving_momentum, state.moving_gradient, column(state.step_size)
    )
    energy = hamiltonian(value, momentum)
    error = energy_error(energy, state.initial_energy, gradient)
    non_finite = state.non_finite | (torch.isinf(error) & ~state.broken)
    broken = state.broken | (error > MAX_ENERGY_ERROR)
    remaining, n_steps = state.remaining - 1, state.n_steps + 1
    ended = remaining == 0
    done = ended.expand(error.shape)
    accepted = ~broken & (randomness.uniform.log() < -error)
    draw = choose(done, choose(accepted, position, state.position), state.position)
    draw_gradient = choose(done, choose(accepted, gradient, state.gradient), state.gradient)
    lp = choose(done, choose(accepted, value, state.log_density), state.log_density)
    draw_energy = choose(accepted, energy, state.initial_energy)
    gain, growth = _spreading(state.position, position, momentum, broken)
    info = Info(
        done=done,
        lp=lp,
        energy=draw_energy,
        energy_error=draw_energy - state.initial_energy,
        acceptance_rate=torch.where(broken, 0, (-error).clamp(max=0).exp()),
        step_size=state.step_size,
        n_steps=n_steps.expand(error.shape),
        trajectory_length=state.length.expand(error.shape),
        diverging=broken,
        non_finite=non_finite,
        criterion=0.25 * gain.square(),
        criterion_gradient=state.length * gain * growth,
    )
    trajectory = state.trajectory + ended
    length, steps = _length(trajectory, parameters)
    return State(
        position=draw,
        log_density=lp,
        gradient=draw_gradient,
        initial_energy=choose(done, hamiltonian(lp, randomness.momentum), state.initial_energy),
        moving_position=choose(done, draw, position),
        moving_momentum=choose(done, randomness.momentum, momentum),
        moving_gradient=choose(done, draw_gradient, gradient),
        broken=broken & ~ended,
        non_finite=non_finite & ~ended,
        step_size=torch.where(ended, parameters.step_size, state.step_size),
        length=torch.where(ended, length, state.length),
        remaining=torch.where(ended, steps, remaining),
        n_steps=n_steps.masked_fill(ended, 0),
        trajectory=trajectory,
    ), info


def _spreading(start: Tensor, end: Tensor, momentum: Tensor, broken: Tensor) -> tuple[Tensor, Tensor]:
    """`|x' - m'|² - |x - m|²` of each chain, and half of its growth `(x' - m')ᵀ p'`; m and m' are means over chains.

    Both count less for chains that start far from the others: one that is lost would outweigh them all.
    """
    lost = broken.unsqueeze(-1)
    count = (~broken).sum().clamp(min=1)
    start, end, momentum = (torch.where(lost, 0, x) for x in (start, end, momentum))
    start = start - start.sum(0) / count
    end = end - end.sum(0) / count
    distance = start.square().sum(-1)
    weight = 1 / (1 + distance / (_NEAR * start.shape[-1]))
    gain = end.square().sum(-1) - distance
    return torch.where(broken, 0, weight * gain), weight * (end * momentum).sum(-1)


class LengthAdaptation(NamedTuple):
    """Stochastic approximation of the best trajectory length, with dual averaging of the step size.

    Attributes:
        averaging: of the step size.
        log_length: `log T`.
        log_length_average: its average, for after the warm-up.
        criterion: the running mean of C(T), and `criterion_gradient` of its derivative by `log T`.
        num_updates: number of trajectories.
        max_steps: the present bound on the number of steps.
    """

    averaging: DualAveraging
    log_length: Tensor
    log_length_average: Tensor
    criterion: Tensor
    criterion_gradient: Tensor
    num_updates: Tensor
    max_steps: Tensor

    @classmethod
    def start(cls, step_size: Tensor, num_chains: int) -> "LengthAdaptation":
        """Begin with trajectories of a few steps."""
        zero, log_length = torch.zeros_like(step_size), step_size.log() + 1
        averaging, bound = DualAveraging.start(step_size, num_chains), zero + _FIRST_MAX_STEPS
        return cls(averaging, log_length, log_length, zero, zero, zero, bound)

    @property
    def step_size(self) -> Tensor:
        """The present step size, `()`."""
        return self.averaging.step_size

    @property
    def step_sizes(self) -> Tensor:
        """See `Adaptation`."""
        return self.averaging.step_sizes

    @property
    def trajectory_length(self) -> Tensor:
        """The length that is learned, `()`."""
        return self.log_length.exp()

    def length(self, reach: Tensor) -> Tensor:
        """The length of trajectories, `()`: learned, but for few chains at least the usual one times `reach`, `()`.

        Where they go further than what is learned, that hears from no trajectory of its own, and counts for little.
        """
        if len(self.averaging.transitions) >= MANY_CHAINS:
            return self.trajectory_length
        least = torch.minimum(_USUAL_LENGTH * reach, self.step_size * self.max_steps)
        return torch.maximum(self.trajectory_length, least)

    def adapt(self, info: Info, sound: Tensor, target: Tensor | float) -> "LengthAdaptation":
        """See `Adaptation`."""
        weight = torch.where(sound, info.acceptance_rate, 0)
        total = weight.sum().clamp(min=1e-6)
        means = [(weight * each).sum() / total for each in (info.criterion, info.criterion_gradient)]
        usable = info.done[0] & torch.isfinite(means[0]) & torch.isfinite(means[1])
        criterion, gradient = (
            _FORGETTING * old + (1 - _FORGETTING) * torch.where(usable, new, 0)
            for old, new in zip((self.criterion, self.criterion_gradient), means, strict=True)
        )
        chains = len(sound)
        slope = (gradient / criterion.clamp(min=1e-30)).clamp(-1, 1) - _THRIFT * (1 + _CAUTION / chains)
        rate = _LEARNING_RATE * min(1.0, chains / MANY_CHAINS) ** 0.5
        averaging = self.averaging.adapt(info, sound, target)
        least, most = averaging.log_step_size, averaging.log_step_size + self.max_steps.log()
        log_length = torch.minimum(torch.maximum(self.log_length + rate * slope, least), most)
        count = self.num_updates + 1
        share = count**-_AVERAGING
        updated = LengthAdaptation(
            averaging=averaging,
            log_length=log_length,
            log_length_average=share * log_length + (1 - share) * self.log_length_average,
            criterion=criterion,
            criterion_gradient=gradient,
            num_updates=count,
            max_steps=(self.max_steps + _MORE_STEPS).clamp(max=MAX_NUM_STEPS),
        )
        waiting = self._replace(averaging=averaging)
        kept: LengthAdaptation = pytree.tree_map(lambda new, old: torch.where(usable, new, old), updated, waiting)
        return kept

    def settled(self) -> "LengthAdaptation":
        """See `Adaptation`."""
        return self._replace(averaging=self.averaging.settled(), log_length=self.log_length_average)

    def restarted(self, step_size: Tensor, *, same_scale: bool) -> "LengthAdaptation":
        """See `Adaptation`: a length learned in other units is far too long or too short, and there is no way back
        from far too long, where the criterion is flat.
        """
        fresh = LengthAdaptation.start(step_size, len(self.averaging.transitions))
        wider = (_WIDER * self.max_steps).clamp(max=MAX_NUM_STEPS)
        fresh = fresh._replace(max_steps=torch.where(self.num_updates > 0, wider, fresh.max_steps))
        if not same_scale:
            return fresh
        return fresh._replace(log_length=self.log_length_average, log_length_average=self.log_length_average)
