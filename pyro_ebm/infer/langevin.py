"""Langevin samplers for Pyro models: with the Metropolis correction, and without."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import langevin_algorithm


@dataclass(eq=False)
class MALA(AdaptiveKernel):
    """The Metropolis-adjusted Langevin algorithm: exact, with one gradient for each step.

    A step is `x' = x + ε M⁻¹ ∇log p(x) + √(2ε) M^{-1/2} ξ`, accepted or rejected; `step_size` is the leapfrog step
    `√(2ε)`. The default target 0.574 is optimal in high dimensions.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        num_steps: steps in each transition, of which the last makes a draw, in the warm-up as afterwards; by default
            10, or as many more as the warm-up finds that a chain needs to forget where it was, up to 320.

    References:
        Roberts and Rosenthal 1998, Optimal scaling of discrete approximations to Langevin diffusions.
    """

    num_steps: int | None = field(default=None, kw_only=True)
    target_accept_prob: float = field(default=0.574, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("num_steps", self.num_steps is None or self.num_steps >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return langevin_algorithm(
            metropolis=True,
            target_accept_prob=self.target_accept_prob,
            num_steps=self.num_steps or 10,
            learns="num_steps" if self.num_steps is None else None,
        )


@dataclass(eq=False)
class Langevin(AdaptiveKernel):
    """The unadjusted Langevin algorithm: every move is made, so that draws have a bias that shrinks with the step size.

    The warm-up is Metropolis-adjusted: it finds the bulk of the density, the metric, and the step size at which a
    correction would accept with probability `target_accept_prob`. While sampling, `acceptance_rate` in the diagnostics
    is that probability, still measured: the closer to one, the smaller the bias. Use `MALA` for exact draws.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes; `step_size` is the leapfrog step `√(2ε)`.

    References:
        Roberts and Tweedie 1996, Exponential convergence of Langevin distributions and their discrete approximations.
    """

    target_accept_prob: float = field(default=0.95, kw_only=True)

    def check(self) -> None:
        """There are no arguments of this kernel's own."""

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return langevin_algorithm(metropolis=False, target_accept_prob=self.target_accept_prob)
