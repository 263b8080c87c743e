"""The leapfrog step size: a first guess, and dual averaging to a target acceptance probability, pooled over chains."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.integrator import energy_error, hamiltonian, leapfrog

# Hoffman and Gelman 2014, section 3.2.1.
_SHRINKAGE, _STABILITY, _FORGETTING = 0.05, 10.0, 0.75
_MAX_DOUBLINGS = 60
# A chain below this acceptance does not move: it is where the density is broken, or the step far too long for it.
_NEVER_ACCEPTS = 1e-3


def reasonable_step_size(log_density: LogDensity, position: Tensor, momentum: Tensor, start: Tensor) -> Tensor:
    """The step size at which the acceptance of one leapfrog step crosses 0.8: the median over chains, `()`.

    Each chain doubles or halves its own step, starting at `start`, until its acceptance probability crosses 0.8. Chains
    where the density is not finite are left out.

    Args:
        log_density: the log density with its gradient.
        position: where the chains are, `(chains, dim)`.
        momentum: standard normal, `(chains, dim)`.
        start: the first guess, `()`.

    References:
        Hoffman and Gelman 2014, The no-U-turn sampler, algorithm 4.
    """
    value, gradient = log_density(position)
    initial_energy = hamiltonian(value, momentum)

    def accepts(step: Tensor) -> Tensor:
        _, end_momentum, end_value, end_gradient = leapfrog(log_density, position, momentum, gradient, step[:, None])
        return energy_error(hamiltonian(end_value, end_momentum), initial_energy, end_gradient) < -math.log(0.8)

    sound = torch.isfinite(initial_energy) & torch.isfinite(gradient).all(-1)
    step = start.expand(position.shape[0]).clone()
    growing, active = accepts(step), sound
    for _ in range(_MAX_DOUBLINGS):
        step = torch.where(active, torch.where(growing, 2 * step, 0.5 * step), step)
        active = active & (accepts(step) == growing)
        if not active.any():
            break
    found = torch.where(sound, step.log(), torch.nan).nanmedian().exp()
    return torch.where(sound.any(), found, start)


class DualAveraging(NamedTuple):
    """Nesterov's dual averaging of `log ε`, with one update when half of the chains have ended a transition.

    So its gain and lag are those of one chain, however many chains there are and however long their trajectories. An
    update takes the mean over chains of what each accepted since the last: a chain that rejects everything ends a
    transition in every tick, and must not outweigh the others. While such chains are a minority they are left out.

    Attributes:
        log_step_size: the present `log ε`.
        log_average: the average of `log ε`: what sampling uses.
        centre: the point towards which `log ε` shrinks.
        error: the running mean of target minus acceptance.
        num_updates: updates made.
        acceptance_sum: of the transitions of each chain since the last update, `(chains,)`.
        transitions: their number, `(chains,)`.
    """

    log_step_size: Tensor
    log_average: Tensor
    centre: Tensor
    error: Tensor
    num_updates: Tensor
    acceptance_sum: Tensor
    transitions: Tensor

    @classmethod
    def start(cls, step_size: Tensor, num_chains: int) -> "DualAveraging":
        """Begin at a step size, `()`.

        The search for it has left it near its place, so `log ε` shrinks towards it, and not towards ten times it as
        in Hoffman and Gelman 2014: that would send the first steps of every window far out and back.
        """
        zero, log_step = torch.zeros_like(step_size), step_size.log()
        nothing = zero.expand(num_chains)
        return cls(log_step, log_step, log_step, zero, zero, nothing, nothing)

    def update(self, acceptance: Tensor, done: Tensor, target: float) -> "DualAveraging":
        """Take in the acceptance probabilities `(chains,)` of the chains that are `done`, `(chains,)`."""
        acceptance_sum = self.acceptance_sum + torch.where(done, acceptance, 0)
        transitions = self.transitions + done
        reporting = transitions > 0
        full = 2 * reporting.sum() >= done.shape[0]
        means = acceptance_sum / transitions.clamp(min=1)
        moving = reporting & (means > _NEVER_ACCEPTS)
        counted = torch.where(2 * moving.sum() >= reporting.sum(), moving, reporting)
        mean = torch.where(counted, means, 0).sum() / counted.sum().clamp(min=1)
        count = self.num_updates + 1
        weight = 1 / (count + _STABILITY)
        error = (1 - weight) * self.error + weight * (target - mean)
        log_step = self.centre - count.sqrt() / _SHRINKAGE * error
        decay = count**-_FORGETTING
        updated = DualAveraging(
            log_step_size=log_step,
            log_average=decay * log_step + (1 - decay) * self.log_average,
            centre=self.centre,
            error=error,
            num_updates=count,
            acceptance_sum=torch.zeros_like(acceptance_sum),
            transitions=torch.zeros_like(transitions),
        )
        waiting = self._replace(acceptance_sum=acceptance_sum, transitions=transitions)
        return DualAveraging(*(torch.where(full, new, old) for new, old in zip(updated, waiting, strict=True)))

    @property
    def step_size(self) -> Tensor:
        """The step size to use while adapting, `()`."""
        return self.log_step_size.exp()

    @property
    def final_step_size(self) -> Tensor:
        """The step size to use afterwards, `()`."""
        return self.log_average.exp()
