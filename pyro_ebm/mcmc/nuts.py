"""The no-U-turn sampler as a finite-state machine: a tick is one leapfrog for every chain, and none waits for another.

A chain that ends its trajectory stores its draw and starts the next one in the same tick. Trajectories double, with
multinomial draws inside each new half, biased progressive draws between halves, and the generalised U-turn criterion,
checked inside each half by checkpoints at its even leaves, and also across the seam of every two subtrees.

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
from pyro_ebm._core.randomness import normal, uniform
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
        momentum: standard normal, `(chains, dim)`: for the chains that start a trajectory.
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
        backward_position: the backward end, `(chains, dim)`, with its momentum and gradient; the growing half included.
        forward_position: the forward end, likewise.
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
        checkpoint_momentum: momenta at even leaves of the half, `(chains, slots, dim)`.
        checkpoint_previous: momenta one leaf before, `(chains, slots, dim)`.
        checkpoint_sum: momentum sums up to there, less half the momentum, `(chains, slots, dim)`.
        acceptance_sum: of the acceptance probabilities of the leaves, `(chains,)`.
        n_steps: number of leapfrog steps of this trajectory, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    energy: Tensor
    initial_energy: Tensor
    step_size: Tensor
    backward_position: Tensor
    backward_momentum: Tensor
    backward_gradient: Tensor
    forward_position: Tensor
    forward_momentum: Tensor
    forward_gradient: Tensor
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
    checkpoint_momentum: Tensor
    checkpoint_previous: Tensor
    checkpoint_sum: Tensor
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
    return Randomness(normal(shape, position, generator), uniform((*shape[:-2], 3, shape[-2]), position, generator))


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`."""
    chains, dim = position.shape
    value, gradient = log_density(position)
    momentum = randomness.momentum
    energy = hamiltonian(value, momentum)
    zeros, count = torch.zeros_like(value), torch.zeros(chains, dtype=torch.long, device=position.device)
    checkpoints = position.new_zeros(chains, max(parameters.max_tree_depth - 1, 1), dim)
    return State(
        position=position,
        log_density=value,
        gradient=gradient,
        energy=energy,
        initial_energy=energy,
        step_size=parameters.step_size.expand(chains),
        backward_position=position,
        backward_momentum=momentum,
        backward_gradient=gradient,
        forward_position=position,
        forward_momentum=momentum,
        forward_gradient=gradient,
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
        checkpoint_momentum=checkpoints,
        checkpoint_previous=checkpoints,
        checkpoint_sum=checkpoints,
        acceptance_sum=zeros,
        n_steps=count,
    )


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain, and what follows from it for its tree."""
    log_uniform = randomness.uniform.log()
    forward = state.direction > 0

    # Grow: one leapfrog at the moving end.
    previous_momentum = choose(forward, state.forward_momentum, state.backward_momentum)
    position, momentum, value, gradient = leapfrog(
        log_density,
        choose(forward, state.forward_position, state.backward_position),
        previous_momentum,
        choose(forward, state.forward_gradient, state.backward_gradient),
        (state.step_size * state.direction).unsqueeze(-1),
    )
    energy = hamiltonian(value, momentum)
    error = energy_error(energy, state.initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    n_steps = state.n_steps + 1
    acceptance_sum = state.acceptance_sum + (-error).clamp(max=0).exp()
    backward_position = choose(forward, state.backward_position, position)
    backward_momentum = choose(forward, state.backward_momentum, momentum)
    backward_gradient = choose(forward, state.backward_gradient, gradient)
    forward_position = choose(forward, position, state.forward_position)
    forward_momentum = choose(forward, momentum, state.forward_momentum)
    forward_gradient = choose(forward, gradient, state.forward_gradient)

    # Draw within the growing half, in proportion to the weights.
    half_log_weight = torch.logaddexp(state.half_log_weight, -error)
    take_leaf = log_uniform[0] < -error - half_log_weight
    half_position = choose(take_leaf, position, state.half_position)
    half_gradient = choose(take_leaf, gradient, state.half_gradient)
    half_log_density = choose(take_leaf, value, state.half_log_density)
    half_energy = choose(take_leaf, energy, state.half_energy)
    half_momentum_sum = state.half_momentum_sum + momentum

    # Look for a U-turn in every subtree that this leaf completes: their first leaves are at checkpoints low to high.
    slots = torch.arange(state.checkpoint_momentum.shape[1], device=state.leaf.device)
    leaf = state.leaf.unsqueeze(-1)
    odd = (leaf & 1) == 1
    high = ((leaf >> (slots + 1)) & 1).sum(-1, keepdim=True)
    low = high + 1 - (((leaf ^ (leaf + 1)) >> (slots + 1)) & 1).sum(-1, keepdim=True)
    completed = odd & (slots >= low) & (slots <= high)
    centred = half_momentum_sum - 0.5 * momentum
    first, first_sum = state.checkpoint_momentum, state.checkpoint_sum
    turns = _turns(centred.unsqueeze(1) - first_sum, first, momentum.unsqueeze(1))
    half_turns = (completed & turns).any(-1)
    if slots.shape[0] > 1:
        # A subtree of two leaves or more on each side has its seam before the first leaf of the next checkpoint.
        seam = completed[:, :-1] & completed[:, 1:]
        left, right = state.checkpoint_previous[:, 1:], first[:, 1:]
        left_sum = first_sum[:, 1:] - first_sum[:, :-1] - 0.5 * (right - first[:, :-1])
        right_sum = half_momentum_sum.unsqueeze(1) - first_sum[:, 1:] + 0.5 * right
        seam_turns = _turns(left_sum + right, first[:, :-1], right) | _turns(
            right_sum + left, left, momentum.unsqueeze(1)
        )
        half_turns = half_turns | (seam & seam_turns).any(-1)
    write = (~odd & (slots == high)).unsqueeze(-1)
    checkpoint_momentum = torch.where(write, momentum.unsqueeze(1), first)
    checkpoint_previous = torch.where(write, previous_momentum.unsqueeze(1), state.checkpoint_previous)
    checkpoint_sum = torch.where(write, centred.unsqueeze(1), first_sum)

    # Join the half to the trajectory when it is complete and good.
    broken = diverging | half_turns
    joined = ~broken & (state.leaf + 1 == torch.ones_like(state.leaf) << state.depth)
    take_half = joined & (log_uniform[1] < half_log_weight - state.log_weight)
    draw = choose(take_half, half_position, state.position)
    draw_gradient = choose(take_half, half_gradient, state.gradient)
    draw_log_density = choose(take_half, half_log_density, state.log_density)
    draw_energy = choose(take_half, half_energy, state.energy)
    momentum_sum = state.momentum_sum + half_momentum_sum
    half_first = checkpoint_momentum[:, 0]
    # The three criteria need the outer ends: of the old part (its seam is the other end), and of the half.
    old_end = choose(forward, backward_momentum, forward_momentum)
    whole_turns = _turns(momentum_sum - 0.5 * (old_end + momentum), old_end, momentum)
    seam_turns = _turns(state.momentum_sum + half_first, old_end, half_first) | _turns(
        half_momentum_sum + state.seam_momentum, state.seam_momentum, momentum
    )
    turned = whole_turns | (seam_turns & (state.depth > 0))
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
    next_energy = choose(done, hamiltonian(draw_log_density, randomness.momentum), draw_energy)
    backward_momentum = choose(done, randomness.momentum, backward_momentum)
    forward_momentum = choose(done, randomness.momentum, forward_momentum)
    growing_end = choose(direction > 0, forward_momentum, backward_momentum)
    return State(
        position=draw,
        log_density=draw_log_density,
        gradient=draw_gradient,
        energy=next_energy,
        initial_energy=choose(done, next_energy, state.initial_energy),
        step_size=choose(done, parameters.step_size, state.step_size),
        backward_position=choose(done, draw, backward_position),
        backward_momentum=backward_momentum,
        backward_gradient=choose(done, draw_gradient, backward_gradient),
        forward_position=choose(done, draw, forward_position),
        forward_momentum=forward_momentum,
        forward_gradient=choose(done, draw_gradient, forward_gradient),
        log_weight=choose(joined, torch.logaddexp(state.log_weight, half_log_weight), state.log_weight).masked_fill(
            done, 0
        ),
        momentum_sum=choose(done, randomness.momentum, choose(joined, momentum_sum, state.momentum_sum)),
        seam_momentum=choose(fresh, growing_end, state.seam_momentum),
        depth=depth.masked_fill(done, 0),
        direction=direction,
        half_position=half_position,
        half_log_density=half_log_density,
        half_gradient=half_gradient,
        half_energy=half_energy,
        half_log_weight=half_log_weight.masked_fill(fresh, -torch.inf),
        half_momentum_sum=half_momentum_sum.masked_fill(fresh.unsqueeze(-1), 0),
        leaf=(state.leaf + 1).masked_fill(fresh, 0),
        checkpoint_momentum=checkpoint_momentum,
        checkpoint_previous=checkpoint_previous,
        checkpoint_sum=checkpoint_sum,
        acceptance_sum=acceptance_sum.masked_fill(done, 0),
        n_steps=n_steps.masked_fill(done, 0),
    ), info


def _turns(momentum_sum: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Whether a stretch of trajectory turns back on itself at either of its ends, given its momenta."""
    return ((momentum_sum * first).sum(-1) <= 0) | ((momentum_sum * last).sum(-1) <= 0)


def _direction(coin: Tensor) -> Tensor:
    return torch.where(coin < 0.5, -1.0, 1.0).to(coin)
