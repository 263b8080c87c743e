"""The no-U-turn sampler as a finite-state machine: a tick is one leapfrog for every chain, and none waits for another.

A chain that ends its trajectory stores its draw and starts the next one in the same tick. Trajectories double, with
multinomial draws inside each new half, biased progressive draws between halves, and the generalised U-turn criterion,
checked inside each half by checkpoints at its even leaves.

References:
    Hoffman and Gelman 2014, The no-U-turn sampler.
    Betancourt 2017, A conceptual introduction to Hamiltonian Monte Carlo.
    Phan, Pradhan and Jankowiak 2019, Composable effects for flexible and accelerated probabilistic programming.
    Dance, Glaser, Orbanz and Adams 2025, Efficiently vectorized MCMC on modern accelerators.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, energy_error, hamiltonian, leapfrog


class Parameters(NamedTuple):
    """What adaptation sets.

    Attributes:
        step_size: the leapfrog step, `()`; a trajectory keeps the step with which it started.
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
        ends: position, momentum and gradient at the backward and the forward end, `(2, 3, chains, dim)`.
        log_weight: of the trajectory, relative to its start, `(chains,)`.
        momentum_sum: over the trajectory, `(chains, dim)`.
        depth: number of doublings done, `(chains,)`.
        direction: of the half that grows, +1 or -1, `(chains,)`.
        moving: position, momentum and gradient at the growing end, `(3, chains, dim)`.
        half_position: the draw so far from the growing half, with `half_log_density`, `half_gradient` and
            `half_energy`.
        half_log_weight: of the growing half, `(chains,)`.
        half_momentum_sum: over the growing half, `(chains, dim)`.
        leaf: the index of the next leaf in the growing half, `(chains,)`.
        momentum_checkpoints: momenta at even leaves, `(chains, max_tree_depth, dim)`.
        sum_checkpoints: momentum sums there, less half the momentum, `(chains, max_tree_depth, dim)`.
        acceptance_sum: of the acceptance probabilities of the leaves, `(chains,)`.
        n_steps: number of leapfrog steps of this trajectory, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    energy: Tensor
    initial_energy: Tensor
    step_size: Tensor
    ends: Tensor
    log_weight: Tensor
    momentum_sum: Tensor
    depth: Tensor
    direction: Tensor
    moving: Tensor
    half_position: Tensor
    half_log_density: Tensor
    half_gradient: Tensor
    half_energy: Tensor
    half_log_weight: Tensor
    half_momentum_sum: Tensor
    leaf: Tensor
    momentum_checkpoints: Tensor
    sum_checkpoints: Tensor
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
    """Draw the random numbers of one tick for chains at `position`, `(chains, dim)`."""
    return Randomness(normal(position.shape, position, generator), uniform((3, position.shape[0]), position, generator))


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`."""
    chains, dim = position.shape
    value, gradient = log_density(position)
    momentum = randomness.momentum
    energy = hamiltonian(value, momentum)
    start = torch.stack([position, momentum, gradient])
    zeros, count = torch.zeros_like(value), torch.zeros(chains, dtype=torch.long, device=position.device)
    checkpoints = position.new_zeros(chains, parameters.max_tree_depth, dim)
    state = State(
        position=position,
        log_density=value,
        gradient=gradient,
        energy=energy,
        initial_energy=energy,
        step_size=parameters.step_size.expand(chains),
        ends=torch.stack([start, start]),
        log_weight=zeros,
        momentum_sum=momentum,
        depth=count,
        direction=_direction(randomness.uniform[2]),
        moving=start,
        half_position=position,
        half_log_density=value,
        half_gradient=gradient,
        half_energy=energy,
        half_log_weight=zeros - torch.inf,
        half_momentum_sum=torch.zeros_like(momentum),
        leaf=count,
        momentum_checkpoints=checkpoints,
        sum_checkpoints=checkpoints,
        acceptance_sum=zeros,
        n_steps=count,
    )
    return State(*(field.clone() for field in state))  # a tracer takes a tensor that stands twice for one input


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain, and what follows from it for its tree."""
    log_uniform = randomness.uniform.log()
    depths = torch.arange(state.momentum_checkpoints.shape[1], device=state.leaf.device)

    # Grow: one leapfrog at the moving end.
    signed_step = (state.step_size * state.direction).unsqueeze(-1)
    position, momentum, value, gradient = leapfrog(
        log_density, state.moving[0], state.moving[1], state.moving[2], signed_step
    )
    energy = hamiltonian(value, momentum)
    error = energy_error(energy, state.initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    moving = torch.stack([position, momentum, gradient])
    n_steps = state.n_steps + 1
    acceptance_sum = state.acceptance_sum + (-error).clamp(max=0).exp()

    # Draw within the growing half, in proportion to the weights.
    half_log_weight = torch.logaddexp(state.half_log_weight, -error)
    take_leaf = log_uniform[0] < -error - half_log_weight
    half_position, half_gradient = _select(
        take_leaf.unsqueeze(-1), (position, gradient), (state.half_position, state.half_gradient)
    )
    half_log_density, half_energy = _select(take_leaf, (value, energy), (state.half_log_density, state.half_energy))
    half_momentum_sum = state.half_momentum_sum + momentum

    # Look for a U-turn in every subtree that this leaf completes: their first leaves are at checkpoints low to high.
    bits = (state.leaf.unsqueeze(-1) >> depths) & 1
    odd = bits[:, 0] == 1
    high = (bits.sum(-1) - bits[:, 0]).unsqueeze(-1)
    low = high - bits.cumprod(-1).sum(-1, keepdim=True) + 1
    completed = odd.unsqueeze(-1) & (depths >= low) & (depths <= high)
    centred = half_momentum_sum - 0.5 * momentum
    between = centred.unsqueeze(1) - state.sum_checkpoints
    forward = (between @ momentum.unsqueeze(-1)).squeeze(-1)
    backward = (between * state.momentum_checkpoints).sum(-1)
    half_turns = (completed & ((forward <= 0) | (backward <= 0))).any(-1)
    write = (~odd.unsqueeze(-1) & (depths == high)).unsqueeze(-1)
    momentum_checkpoints, sum_checkpoints = _select(
        write,
        (momentum.unsqueeze(1), centred.unsqueeze(1)),
        (state.momentum_checkpoints, state.sum_checkpoints),
    )

    # Join the half to the trajectory when it is complete and good.
    broken = diverging | half_turns
    joined = ~broken & (state.leaf + 1 == torch.ones_like(state.leaf) << state.depth)
    take_half = joined & (log_uniform[1] < half_log_weight - state.log_weight)
    draw, draw_gradient = _select(
        take_half.unsqueeze(-1), (half_position, half_gradient), (state.position, state.gradient)
    )
    draw_log_density, draw_energy = _select(
        take_half, (half_log_density, half_energy), (state.log_density, state.energy)
    )
    log_weight = torch.where(joined, torch.logaddexp(state.log_weight, half_log_weight), state.log_weight)
    momentum_sum = torch.where(joined.unsqueeze(-1), state.momentum_sum + half_momentum_sum, state.momentum_sum)
    side = torch.stack([joined & (state.direction < 0), joined & (state.direction > 0)])
    ends = torch.where(side[:, None, :, None], moving, state.ends)
    depth = state.depth + joined
    inner = momentum_sum - 0.5 * (ends[0, 1] + ends[1, 1])
    turns = ((inner * ends[:, 1]).sum(-1) <= 0).any(0)
    saturated = joined & ~turns & (depth == depths.shape[0])
    done = broken | (joined & (turns | saturated))

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
    direction = torch.where(fresh, _direction(randomness.uniform[2]), state.direction)
    next_energy = torch.where(done, hamiltonian(draw_log_density, randomness.momentum), draw_energy)
    start = torch.stack([draw, randomness.momentum, draw_gradient])
    ends = torch.where(done[:, None], start, ends)
    end = torch.where((direction > 0)[:, None], ends[1], ends[0])
    zeros = torch.zeros_like(value)
    return State(
        position=draw,
        log_density=draw_log_density,
        gradient=draw_gradient,
        energy=next_energy,
        initial_energy=torch.where(done, next_energy, state.initial_energy),
        step_size=torch.where(done, parameters.step_size, state.step_size),
        ends=ends,
        log_weight=torch.where(done, zeros, log_weight),
        momentum_sum=torch.where(done[:, None], randomness.momentum, momentum_sum),
        depth=depth.masked_fill(done, 0),
        direction=direction,
        moving=torch.where(fresh[:, None], end, moving),
        half_position=half_position,
        half_log_density=half_log_density,
        half_gradient=half_gradient,
        half_energy=half_energy,
        half_log_weight=half_log_weight.masked_fill(fresh, -torch.inf),
        half_momentum_sum=half_momentum_sum.masked_fill(fresh[:, None], 0),
        leaf=(state.leaf + 1).masked_fill(fresh, 0),
        momentum_checkpoints=momentum_checkpoints,
        sum_checkpoints=sum_checkpoints,
        acceptance_sum=acceptance_sum.masked_fill(done, 0),
        n_steps=n_steps.masked_fill(done, 0),
    ), info


def _direction(coin: Tensor) -> Tensor:
    return torch.where(coin < 0.5, -1.0, 1.0).to(coin)


def _select(mask: Tensor, chosen: tuple[Tensor, Tensor], otherwise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.where(mask, chosen[0], otherwise[0]), torch.where(mask, chosen[1], otherwise[1])
