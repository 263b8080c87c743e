"""Gibbs with gradients, for energies over discrete variables, many chains in one program."""

from dataclasses import dataclass

from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.changes_target import ChangesTarget
from pyro_ebm.infer.discrete_kernel import DiscreteKernel
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.discrete_algorithms import gibbs_with_gradients_algorithm


@dataclass(eq=False)
class GibbsWithGradients(DiscreteKernel):
    """Gibbs with gradients: each step changes one element, the one that promises most, or rejects.

    For energies that are not sums of small factors, neural ones say: one evaluation with its gradient tells nearly what
    each change of one element would gain. The Metropolis correction makes the draws exact all the same. Factors over
    elements are asked for what they gain exactly. As a step changes one element at most, thin the draws.

    Args:
        model: a `FactorGraph` of discrete variables, or an `Energy` or `EnergyDistribution` over boolean, spin or
            integer vectors, differentiable where it is evaluated at numbers.
        init_strategy: where chains start; see `DiscreteKernel`.

    References:
        Grathwohl, Swersky, Hashemi, Duvenaud and Maddison 2021, Oops I took a gradient: scalable sampling for discrete
        distributions.

    >>> import torch
    >>> from torch.distributions import constraints
    >>> from pyro_ebm import MCMC, GibbsWithGradients, energy
    >>> weight = torch.linspace(-1, 1, 12).reshape(4, 3)
    >>> def free_energy(v):
    ...     return -torch.nn.functional.softplus(v @ weight).sum(-1)
    >>> kernel = GibbsWithGradients(energy(free_energy, event_shape=(4,), support=constraints.boolean))
    >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=5, num_chains=3, thinning=4, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["x"].shape
    torch.Size([3, 10, 4])
    """

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return gibbs_with_gradients_algorithm()

    def target_of(self, graph: FactorGraph) -> Target:
        """The graph with what it gains by single changes."""
        return ChangesTarget(graph, "GibbsWithGradients")
