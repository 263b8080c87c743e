"""Underdamped Langevin samplers for Pyro models: with the Metropolis correction, and without."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import underdamped_algorithm


@dataclass(eq=False)
class UnderdampedLangevin(AdaptiveKernel):
    """Langevin dynamics with momentum, which a friction makes forget: one gradient for each step.

    The momentum carries chains along where overdamped Langevin dynamics (`MALA`, `Langevin`) diffuse. Without the
    correction every move is made (BAOAB), and draws have a bias that shrinks with the step size; the warm-up is
    corrected all the same, as for `Langevin`.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        friction: γ, in units of the metric: the momentum is forgotten in a time `1/γ`.
        metropolis: whether moves are accepted or rejected (generalised HMC: exact), or always made.
        num_steps: steps in each transition, of which the last makes a draw, in the warm-up as afterwards; by default
            30, or as many more as the warm-up finds that a chain needs to forget where it was, up to 960.

    References:
        Leimkuhler and Matthews 2013, Rational construction of stochastic numerical methods for molecular sampling.
        Horowitz 1991, A generalized guided Monte Carlo algorithm.
    """

    friction: float = field(default=1.0, kw_only=True)
    metropolis: bool = field(default=True, kw_only=True)
    num_steps: int | None = field(default=None, kw_only=True)
    target_accept_prob: float = field(default=0.95, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("friction", self.friction > 0, "a positive number")
        self._require("num_steps", self.num_steps is None or self.num_steps >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return underdamped_algorithm(
            friction=self.friction,
            metropolis=self.metropolis,
            target_accept_prob=self.target_accept_prob,
            num_steps=self.num_steps or 30,
            learns="num_steps" if self.num_steps is None else None,
        )
