"""The no-U-turn sampler as a finite-state machine: a tick is one leapfrog for every chain, and none waits for another.

A chain that ends its trajectory stores its draw and starts the next one in the same tick. Trajectories double, with
multinomial draws inside each new half, biased progressive draws between halves, and the generalised U-turn criterion,
also across the seam of every two subtrees. Inside the growing half it is checked by what is kept of its subtrees: of
each size, the one that grows.

References:
    Hoffman and Gelman 2014, The no-U-turn sampler.
    Betancourt 2017, A conceptual introduction to Hamiltonian Monte Carlo.
    Phan, Pradhan and Jankowiak 2019, Composable effects for flexible and accelerated probabilistic programming.
    Stan Development Team 2019, pull request 2800: the criterion across subtrees.
    Dance, Glaser, Orbanz and Adams 2025, Efficiently vectorized MCMC on modern accelerators.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import coarse_normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, energy_error, hamiltonian, leapfrog


class Parameters(NamedTuple):
    """What adaptation sets.

    Attributes:
        step_size: the leapfrog step, `()` or `(chains,)`; a trajectory keeps the step with which it started.
        max_tree_depth: a trajectory has at most `2 ** max_tree_depth - 1` leapfrog steps.
    """

    step_size: Tensor
    max_tree_depth: int = 10


class Randomness(NamedTuple):
    """The random numbers of one tick.

    Attributes:
        momentum: standard normal, `(chains, dim)`, of any precision: for the chains that start a trajectory.
        uniform: `(3, chains)`: for the leaf, the half and the direction.
    """

    momentum: Tensor
    uniform: Tensor


class State(NamedTuple):
    """Where every chain is in its trajectory.

    Attributes:
        position: the draw so far, `(chains, dim)`, with its `log_density` `(chains,)`, `gradient` `(chains, dim)` and
            `energy` H `(chains,)`.
        initial_energy: H at the start of the trajectory, `(chains,)`.
        step_size: of this trajectory, `(chains,)`.
        moving_position: the end at which the trajectory grows, `(chains, dim)`, with its momentum and gradient.
        resting_position: the other end, likewise.
        log_weight: of the trajectory without the growing half, relative to its start, `(chains,)`.
        momentum_sum: over the same, `(chains, dim)`.
        seam_momentum: at the end from which the half grows, `(chains, dim)`.
        depth: number of doublings done, `(chains,)`.
        direction: of the half that grows, +1 or -1, `(chains,)`.
        half_position: the draw so far from the growing half, with `half_log_density`, `half_gradient` and
            `half_energy`.
        half_log_weight: of the growing half, `(chains,)`.
        half_momentum_sum: over the growing half, `(chains, dim)`.
        leaf: the index of the next leaf in the growing half, `(chains,)`.
        half_first: the momentum at its first leaf, `(chains, dim)`.
        first_momentum: for each size 2, 4, 8, ... of subtrees of the growing half, the momentum at the first leaf of
            the subtree that grows, `(chains, sizes, dim)`.
        first_sum: the sum of the momenta of the half up to there, less half of the last, `(chains, sizes, dim)`.
        last_momentum: the momentum at the last leaf of the subtree before, `(chains, sizes, dim)`.
        acceptance_sum: of the acceptance probabilities of the leaves, `(chains,)`.
        n_steps: number of leapfrog steps of this trajectory, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    energy: Tensor
    initial_energy: Tensor
    step_size: Tensor
    moving_position: Tensor
    moving_momentum: Tensor
    moving_gradient: Tensor
    resting_position: Tensor
    resting_momentum: Tensor
    resting_gradient: Tensor
    log_weight: Tensor
    momentum_sum: Tensor
    seam_momentum: Tensor
    depth: Tensor
    direction: Tensor
    half_position: Tensor
    half_log_density: Tensor
    half_gradient: Tensor
    half_energy: Tensor
    half_log_weight: Tensor
    half_momentum_sum: Tensor
    leaf: Tensor
    half_first: Tensor
    first_momentum: Tensor
    first_sum: Tensor
    last_momentum: Tensor
    acceptance_sum: Tensor
    n_steps: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`, valid where `done`; named as in ArviZ.

    Attributes:
        done: whether the chain ended a transition in this tick.
        lp: log density of the draw.
        energy: the Hamiltonian at the draw.
        energy_error: its difference from the trajectory's start.
        acceptance_rate: mean acceptance probability over the trajectory.
        step_size: leapfrog step of the trajectory.
        tree_depth: number of doublings.
        n_steps: number of leapfrog steps.
        diverging: whether the trajectory diverged.
        non_finite: whether it did so because it met a density or gradient that is not finite.
        reached_max_treedepth: whether it was cut at the greatest depth.
    """

    done: Tensor
    lp: Tensor
    energy: Tensor
    energy_error: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    tree_depth: Tensor
    n_steps: Tensor
    diverging: Tensor
    non_finite: Tensor
    reached_max_treedepth: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a tick for chains at `position`, `(*ticks, chains, dim)`."""
    shape = position.shape
    momentum = coarse_normal(shape, position, generator)
    return Randomness(momentum, uniform((*shape[:-2], 3, shape[-2]), position, generator))


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`."""
    chains, dim = position.shape
    value, gradient = log_density(position)
    momentum = randomness.momentum.to(position.dtype)
    energy = hamiltonian(value, momentum)
    zeros, count = torch.zeros_like(value), torch.zeros(chains, dtype=torch.long, device=position.device)
    subtrees = position.new_zeros(chains, max(parameters.max_tree_depth - 1, 1), dim)
    return State(
        position=position,
        log_density=value,
        gradient=gradient,
        energy=energy,
        initial_energy=energy,
        step_size=parameters.step_size.expand(chains),
        moving_position=position,
        moving_momentum=momentum,
        moving_gradient=gradient,
        resting_position=position,
        resting_momentum=momentum,
        resting_gradient=gradient,
        log_weight=zeros,
        momentum_sum=momentum,
        seam_momentum=momentum,
        depth=count,
        direction=_direction(randomness.uniform[2]),
        half_position=position,
        half_log_density=value,
        half_gradient=gradient,
        half_energy=energy,
        half_log_weight=zeros - torch.inf,
        half_momentum_sum=torch.zeros_like(momentum),
        leaf=count,
        half_first=momentum,
        first_momentum=subtrees,
        first_sum=subtrees,
        last_momentum=subtrees,
        acceptance_sum=zeros,
        n_steps=count,
    )


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain, and what follows from it for its tree."""
    log_uniform = randomness.uniform.log()

    # Grow: one leapfrog at the moving end.
    position, momentum, value, gradient = leapfrog(
        log_density,
        state.moving_position,
        state.moving_momentum,
        state.moving_gradient,
        (state.step_size * state.direction).unsqueeze(-1),
    )
    energy = hamiltonian(value, momentum)
    error = energy_error(energy, state.initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    n_steps = state.n_steps + 1
    acceptance_sum = state.acceptance_sum + (-error).clamp(max=0).exp()

    # Draw within the growing half, in proportion to the weights.
    half_log_weight = torch.logaddexp(state.half_log_weight, -error)
    take_leaf = log_uniform[0] < -error - half_log_weight
    half_position = choose(take_leaf, position, state.half_position)
    half_gradient = choose(take_leaf, gradient, state.half_gradient)
    half_log_density = choose(take_leaf, value, state.half_log_density)
    half_energy = choose(take_leaf, energy, state.half_energy)
    half_momentum_sum = state.half_momentum_sum + momentum

    # Look for a U-turn in every subtree that this leaf completes, and keep what the next ones need.
    centred = half_momentum_sum - 0.5 * momentum
    half_first = choose(state.leaf == 0, momentum, state.half_first)
    first, first_sum, last = state.first_momentum, state.first_sum, state.last_momentum
    levels = torch.arange(1, first.shape[1] + 1, device=state.leaf.device)
    within = (torch.ones_like(levels) << levels) - 1  # the bits of a leaf's index that say where in its subtree it is
    begins = (state.leaf.unsqueeze(-1) & within == 0) & (levels <= state.depth.unsqueeze(-1))
    completes = (state.leaf + 1).unsqueeze(-1) & within == 0
    turns = _turns(centred.unsqueeze(1) - first_sum, first, momentum.unsqueeze(1))
    half_turns = completes[:, 0] & (completes & turns).any(-1)  # the first is implied, and tells where to look at all
    if levels.shape[0] > 1:
        # A subtree of four leaves or more has its seam before the first leaf of the one of half its size.
        left, right, left_last = first[:, 1:], first[:, :-1], last[:, :-1]
        left_sum = first_sum[:, :-1] - first_sum[:, 1:] - 0.5 * (right - left)
        right_sum = half_momentum_sum.unsqueeze(1) - first_sum[:, :-1] + 0.5 * right
        seam_turns = _turns(left_sum + right, left, right) | _turns(
            right_sum + left_last, left_last, momentum.unsqueeze(1)
        )
        half_turns = half_turns | (completes[:, 1] & (completes[:, 1:] & seam_turns).any(-1))
    begins, completes = begins.unsqueeze(-1), completes.unsqueeze(-1)

    # Join the half to the trajectory when it is complete and good.
    broken = diverging | half_turns
    joined = ~broken & (state.leaf + 1 == torch.ones_like(state.leaf) << state.depth)
    take_half = joined & (log_uniform[1] < half_log_weight - state.log_weight)
    draw = choose(take_half, half_position, state.position)
    draw_gradient = choose(take_half, half_gradient, state.gradient)
    draw_log_density = choose(take_half, half_log_density, state.log_density)
    draw_energy = choose(take_half, half_energy, state.energy)
    momentum_sum = state.momentum_sum + half_momentum_sum
    # The three criteria need the outer ends: of the old part (its seam is the other end), and of the half.
    old_end = state.resting_momentum
    whole_turns = _turns(momentum_sum - 0.5 * (old_end + momentum), old_end, momentum)
    seam_turns = _turns(state.momentum_sum + half_first, old_end, half_first) | _turns(
        half_momentum_sum + state.seam_momentum, state.seam_momentum, momentum
    )
    turned = whole_turns | ((state.depth > 0) & seam_turns)
    depth = state.depth + joined
    saturated = joined & ~turned & (depth == parameters.max_tree_depth)
    done = broken | (joined & (turned | saturated))

    info = Info(
        done=done,
        lp=draw_log_density,
        energy=draw_energy,
        energy_error=draw_energy - state.initial_energy,
        acceptance_rate=acceptance_sum / n_steps,
        step_size=state.step_size,
        tree_depth=depth,
        n_steps=n_steps,
        diverging=diverging,
        non_finite=torch.isinf(error),
        reached_max_treedepth=saturated,
    )

    # Start the next half, and where the trajectory is done the next trajectory.
    fresh = done | joined
    direction = choose(fresh, _direction(randomness.uniform[2]), state.direction)
    swap = joined & (direction != state.direction)
    new_momentum = randomness.momentum.to(position.dtype)
    next_energy = choose(done, hamiltonian(draw_log_density, new_momentum), draw_energy)
    moving_momentum = choose(done, new_momentum, choose(swap, state.resting_momentum, momentum))
    return State(
        position=draw,
        log_density=draw_log_density,
        gradient=draw_gradient,
        energy=next_energy,
        initial_energy=choose(done, next_energy, state.initial_energy),
        step_size=choose(done, parameters.step_size, state.step_size),
        moving_position=choose(done, draw, choose(swap, state.resting_position, position)),
        moving_momentum=moving_momentum,
        moving_gradient=choose(done, draw_gradient, choose(swap, state.resting_gradient, gradient)),
        resting_position=choose(done, draw, choose(swap, position, state.resting_position)),
        resting_momentum=choose(done, new_momentum, choose(swap, momentum, state.resting_momentum)),
        resting_gradient=choose(done, draw_gradient, choose(swap, gradient, state.resting_gradient)),
        log_weight=choose(joined, torch.logaddexp(state.log_weight, half_log_weight), state.log_weight).masked_fill(
            done, 0
        ),
        momentum_sum=choose(done, new_momentum, choose(joined, momentum_sum, state.momentum_sum)),
        seam_momentum=choose(fresh, moving_momentum, state.seam_momentum),
        depth=depth.masked_fill(done, 0),
        direction=direction,
        half_position=half_position,
        half_log_density=half_log_density,
        half_gradient=half_gradient,
        half_energy=half_energy,
        half_log_weight=half_log_weight.masked_fill(fresh, -torch.inf),
        half_momentum_sum=half_momentum_sum.masked_fill(fresh.unsqueeze(-1), 0),
        leaf=(state.leaf + 1).masked_fill(fresh, 0),
        half_first=half_first,
        first_momentum=torch.where(begins, momentum.unsqueeze(1), first),
        first_sum=torch.where(begins, centred.unsqueeze(1), first_sum),
        last_momentum=torch.where(completes, momentum.unsqueeze(1), last),
        acceptance_sum=acceptance_sum.masked_fill(done, 0),
        n_steps=n_steps.masked_fill(done, 0),
    ), info


def _turns(momentum_sum: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Whether a stretch of trajectory turns back on itself at either of its ends, given its momenta."""
    return ((momentum_sum * first).sum(-1) <= 0) | ((momentum_sum * last).sum(-1) <= 0)


def _direction(coin: Tensor) -> Tensor:
    return torch.where(coin < 0.5, -1.0, 1.0).to(coin)
