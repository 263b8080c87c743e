"""The no-U-turn sampler for Pyro models, many chains in one program."""

from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.hamiltonian_algorithms import nuts_algorithm


@dataclass(eq=False)
class NUTS(AdaptiveKernel):
    """The no-U-turn sampler: Hamiltonian Monte Carlo that finds its own trajectory lengths.

    All chains run as one program in which every tick is one leapfrog step of each chain, and no chain waits for
    another. Where trajectories diverge, raise `target_accept_prob` (0.9, 0.99), or reparametrise the model.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        max_tree_depth: a trajectory has at most `2 ** max_tree_depth - 1` leapfrog steps.

    References:
        Hoffman and Gelman 2014, The no-U-turn sampler.
        Betancourt 2017, A conceptual introduction to Hamiltonian Monte Carlo.
    """

    max_tree_depth: int = field(default=10, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("max_tree_depth", self.max_tree_depth >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return nuts_algorithm(max_tree_depth=self.max_tree_depth, target_accept_prob=self.target_accept_prob)
