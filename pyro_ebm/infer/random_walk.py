"""Random-walk Metropolis for Pyro models: the baseline."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import random_walk_algorithm


@dataclass(eq=False)
class RandomWalk(AdaptiveKernel):
    """Random-walk Metropolis: exact, without use of the gradient; a baseline, and for few dimensions.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        num_steps: steps in each transition, of which the last makes a draw, in the warm-up as afterwards; by default
            30, or as many more as the warm-up finds that a chain needs to forget where it was, up to 960.

    References:
        Roberts, Gelman and Gilks 1997, Weak convergence and optimal scaling of random walk Metropolis algorithms.
    """

    num_steps: int | None = field(default=None, kw_only=True)
    target_accept_prob: float = field(default=0.234, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("num_steps", self.num_steps is None or self.num_steps >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return random_walk_algorithm(
            target_accept_prob=self.target_accept_prob,
            num_steps=self.num_steps or 30,
            learns="num_steps" if self.num_steps is None else None,
        )
