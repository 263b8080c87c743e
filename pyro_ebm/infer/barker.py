"""The Barker sampler for Pyro models."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm, barker_algorithm


@dataclass(eq=False)
class Barker(AdaptiveKernel):
    """The Barker proposal: exact, one gradient for each draw, and forgiving of a bad step size.

    Each coordinate's move is turned towards the gradient with a probability, so that a large gradient cannot throw a
    chain far off, as it does under `MALA`.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.

    References:
        Livingstone and Zanella 2022, The Barker proposal: combining robustness and efficiency in gradient-based MCMC.
    """

    target_accept_prob: float = field(default=0.4, kw_only=True)

    def check(self) -> None:
        """There are no arguments of this kernel's own."""

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return barker_algorithm(target_accept_prob=self.target_accept_prob)
