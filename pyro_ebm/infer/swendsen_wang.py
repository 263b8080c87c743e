"""Cluster sampling of Ising and Potts models, many chains at once."""

from dataclasses import dataclass, replace

from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.discrete_kernel import DiscreteKernel
from pyro_ebm.infer.ferromagnet_target import FerromagnetTarget
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.discrete_algorithms import swendsen_wang_algorithm
from pyro_ebm.mcmc.settings import RunSettings


@dataclass(eq=False)
class SwendsenWang(DiscreteKernel):
    """Swendsen and Wang's cluster sampler, for ferromagnetic Ising and Potts models without a field.

    A step flips whole clusters of equal neighbors, and so is at home where `Gibbs` takes ages: near a critical point,
    and between the states of an ordered phase.

    Args:
        model: a `FactorGraph` of `IsingEnergy` or `PottsEnergy`, or tables like theirs, with couplings of zero or more
            and no fields.
        init_strategy: where chains start; see `DiscreteKernel`.

    References:
        Swendsen and Wang 1987, Nonuniversal critical dynamics in Monte Carlo simulations.

    >>> import torch
    >>> from pyro_ebm import MCMC, FactorGraph, PottsEnergy, SwendsenWang
    >>> graph = FactorGraph()
    >>> x = graph.variable("x", num_states=3, shape=(4, 4))
    >>> graph.factor(PottsEnergy(torch.tensor(1.0)), x[:, :-1], x[:, 1:])
    >>> graph.factor(PottsEnergy(torch.tensor(1.0)), x[:-1], x[1:])
    >>> mcmc = MCMC(SwendsenWang(graph), num_samples=10, warmup_steps=5, num_chains=3, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["x"].shape
    torch.Size([3, 10, 4, 4])
    """

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return swendsen_wang_algorithm()

    def target_of(self, graph: FactorGraph) -> Target:
        """The graph as pairs with couplings.

        Raises:
            GraphError: if it is anything but pairs that like to be equal.
        """
        return FerromagnetTarget(graph)

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """No step size, states as they are, and no program: finding clusters is not a fixed number of operations."""
        return replace(super().configure(settings, target, num_chains), compile="no")
