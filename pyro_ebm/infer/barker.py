"""The Barker sampler for Pyro models."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import barker_algorithm


@dataclass(eq=False)
class Barker(AdaptiveKernel):
    """The Barker proposal: exact, one gradient for each step, and forgiving of a bad step size.

    Each coordinate's move is turned towards the gradient with a probability, so that a large gradient cannot throw a
    chain far off, as it does under `MALA`.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        num_steps: steps in each transition, of which the last makes a draw, in the warm-up as afterwards; by default
            10, or as many more as the warm-up finds that a chain needs to forget where it was, up to 320.

    References:
        Livingstone and Zanella 2022, The Barker proposal: combining robustness and efficiency in gradient-based MCMC.
    """

    num_steps: int | None = field(default=None, kw_only=True)
    target_accept_prob: float = field(default=0.4, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("num_steps", self.num_steps is None or self.num_steps >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return barker_algorithm(
            target_accept_prob=self.target_accept_prob,
            num_steps=self.num_steps or 10,
            learns="num_steps" if self.num_steps is None else None,
        )
