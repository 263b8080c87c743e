"""The step size: given, or a first guess and dual averaging to a target acceptance probability, pooled over chains."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.integrator import energy_error, hamiltonian, leapfrog
from pyro_ebm.mcmc.protocols import Info

# Hoffman and Gelman 2014, section 3.2.1.
_SHRINKAGE, _STABILITY, _FORGETTING = 0.05, 10.0, 0.75
_MAX_DOUBLINGS = 60
# A chain below this acceptance does not move: it is where the density is broken, or the step far too long for it.
_NEVER_ACCEPTS = 1e-3
# Transitions in a row in which a chain may accept nothing before its own step is shortened: three, or as many as the
# target leaves this chance of if nothing is wrong.
_PATIENCE, _CHANCE = 3, 0.08
# The share of chains that must have tried a step size before it is judged.
_QUORUM = 0.75


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
    """Nesterov's dual averaging of `log ε`, with one update when most of the chains have tried the present ε.

    So its gain is that of one chain, however many chains there are and however long their trajectories. An update takes
    the mean over chains of what each accepted. Trajectories that began with an earlier ε say nothing of the present one
    and do not count; nor would it do to go by the chains that end first, which are those that accept least. A chain
    that rejects everything ends a transition in every tick, and must not outweigh the others: while such chains are a
    minority they are left out, and each is given shorter and shorter steps of its own until it moves.

    Attributes:
        log_step_size: the present `log ε`.
        step_sizes: that of each chain, `(chains,)`: ε halved for each failure beyond a few.
        log_average: the average of `log ε`: what sampling uses.
        centre: the point towards which `log ε` shrinks.
        error: the running mean of target minus acceptance.
        num_updates: updates made.
        acceptance_sum: of the transitions of each chain since the last update, `(chains,)`.
        transitions: their number, `(chains,)`.
        stale: which chains are in a trajectory that began before the last update, `(chains,)`.
        failures: how many transitions each chain has made in a row without accepting anything, less those in a row
            since, `(chains,)`.
    """

    log_step_size: Tensor
    step_sizes: Tensor
    log_average: Tensor
    centre: Tensor
    error: Tensor
    num_updates: Tensor
    acceptance_sum: Tensor
    transitions: Tensor
    stale: Tensor
    failures: Tensor

    @classmethod
    def start(cls, step_size: Tensor, num_chains: int) -> "DualAveraging":
        """Begin at a step size, `()`.

        The search for it has left it near its place, so `log ε` shrinks towards it, and not towards ten times it as
        in Hoffman and Gelman 2014: that would send the first steps of every window far out and back.
        """
        zero, log_step = torch.zeros_like(step_size), step_size.log()
        nothing = zero.expand(num_chains)
        steps = _step_sizes(log_step, nothing)
        return cls(log_step, steps, log_step, log_step, zero, zero, nothing, nothing, nothing > 0, nothing)

    def update(
        self, acceptance: Tensor, done: Tensor, target: Tensor | float, *, delayed: bool = False
    ) -> "DualAveraging":
        """Take in the acceptance probabilities `(chains,)` of the chains that are `done`, `(chains,)`.

        Args:
            acceptance: of the transitions that ended.
            done: which have.
            target: what to adapt to.
            delayed: whether what follows a transition that ends has begun before this update, with the present ε.
        """
        patience = (math.log(_CHANCE) / torch.log1p(-torch.as_tensor(target))).ceil().clamp(min=_PATIENCE)
        counted = done & ~self.stale & (self.failures <= patience)
        failures = torch.where(acceptance > _NEVER_ACCEPTS, self.failures - 1, self.failures + 1)
        failures = torch.where(done, failures.clamp(0, _MAX_DOUBLINGS), self.failures)
        acceptance_sum = self.acceptance_sum + torch.where(counted, acceptance, 0)
        transitions = self.transitions + counted
        reporting = transitions > 0
        eligible = (failures <= patience).sum()
        full = (reporting.sum() >= _QUORUM * eligible) & reporting.any()
        means = acceptance_sum / transitions.clamp(min=1)
        moving = reporting & (means > _NEVER_ACCEPTS)
        heard = torch.where(2 * moving.sum() >= reporting.sum(), moving, reporting)
        mean = torch.where(heard, means, 0).sum() / heard.sum().clamp(min=1)
        count = self.num_updates + 1
        weight = 1 / (count + _STABILITY)
        error = (1 - weight) * self.error + weight * (target - mean)
        log_step = self.centre - count.sqrt() / _SHRINKAGE * error
        decay = count**-_FORGETTING
        updated = DualAveraging(
            log_step_size=log_step,
            step_sizes=_step_sizes(log_step, failures - patience),
            log_average=decay * log_step + (1 - decay) * self.log_average,
            centre=self.centre,
            error=error,
            num_updates=count,
            acceptance_sum=torch.zeros_like(acceptance_sum),
            transitions=torch.zeros_like(transitions),
            stale=torch.ones_like(done) if delayed else torch.zeros_like(done),
            failures=failures,
        )
        waiting = self._replace(
            step_sizes=_step_sizes(self.log_step_size, failures - patience),
            acceptance_sum=acceptance_sum,
            transitions=transitions,
            stale=self.stale & ~done,
            failures=failures,
        )
        return DualAveraging(*(torch.where(full, new, old) for new, old in zip(updated, waiting, strict=True)))

    def adapt(self, info: Info, sound: Tensor, target: Tensor | float) -> "DualAveraging":
        """See `Adaptation`."""
        acceptance = torch.where(sound, info.acceptance_rate, 0)
        return self.update(acceptance, info.done, target, delayed="n_steps" in info._asdict())

    def settled(self) -> "DualAveraging":
        """See `Adaptation`."""
        failures = torch.zeros_like(self.failures)
        steps = _step_sizes(self.log_average, failures)
        return self._replace(log_step_size=self.log_average, step_sizes=steps, failures=failures)

    def restarted(self, step_size: Tensor, *, same_scale: bool) -> "DualAveraging":
        """See `Adaptation`."""
        return DualAveraging.start(step_size, len(self.transitions))

    @property
    def step_size(self) -> Tensor:
        """The present step size, `()`."""
        return self.log_step_size.exp()


def _step_sizes(log_step_size: Tensor, halvings: Tensor) -> Tensor:
    return log_step_size.exp() * 0.5 ** halvings.clamp(min=0)


class FixedStepSize(NamedTuple):
    """A step size that is given once and for all.

    Attributes:
        step_size: `()`; NaN for a sampler that has none.
        step_sizes: the same for each chain, `(chains,)`.
    """

    step_size: Tensor
    step_sizes: Tensor

    @classmethod
    def start(cls, step_size: Tensor, num_chains: int) -> "FixedStepSize":
        """Begin with a step size, `()`."""
        return cls(step_size, step_size.expand(num_chains))

    def adapt(self, info: Info, sound: Tensor, target: Tensor | float) -> "FixedStepSize":
        """See `Adaptation`: nothing is learned."""
        return self

    def settled(self) -> "FixedStepSize":
        """See `Adaptation`."""
        return self

    def restarted(self, step_size: Tensor, *, same_scale: bool) -> "FixedStepSize":
        """See `Adaptation`."""
        return FixedStepSize.start(step_size, len(self.step_sizes))
