"""ChEES-HMC for Pyro models: the sampler for many chains."""

from dataclasses import dataclass

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.hamiltonian_algorithms import chees_algorithm


@dataclass(eq=False)
class ChEES(AdaptiveKernel):
    """Hamiltonian Monte Carlo whose trajectory length is learned across chains: the fastest where chains are many.

    The warm-up finds the length at which chains spread out fastest together, beside the step size and the mass matrix.
    It needs chains to learn from, 16 or more. Fewer go, once warmed up, at least as far as those of `HMC` would, which
    is safe; but then `NUTS` is the better choice.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.

    References:
        Hoffman, Radul and Sountsov 2021, An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte
        Carlo.
    """

    def check(self) -> None:
        """There are no arguments of this kernel's own."""

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return chees_algorithm(target_accept_prob=self.target_accept_prob)
