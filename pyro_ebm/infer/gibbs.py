"""Gibbs sampling of factor graphs, many chains in one program."""

from dataclasses import dataclass, field
from typing import Literal

from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.conditional_target import ConditionalTarget
from pyro_ebm.infer.discrete_kernel import DiscreteKernel
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.discrete_algorithms import gibbs_algorithm


@dataclass(eq=False)
class Gibbs(DiscreteKernel):
    """Block Gibbs sampling: every element takes a new state from its conditional distribution `p(x_i | x_rest)`.

    The graph's elements are coloured so that those of one colour do not interact, and those are resampled at once, in
    all chains: a lattice or a restricted Boltzmann machine takes two steps for a sweep. Conditionals are exact, for
    factors of any arity and any numbers of states. Nothing is rejected and nothing is tuned; the warm-up is there to
    forget the start.

    Args:
        model: a `FactorGraph` of discrete variables, or an energy over one that has few joint states.
        init_strategy: where chains start; see `DiscreteKernel`.
        scan: `"systematic"`: a transition is a sweep over all colours; `"random"`: it is one of them, chosen at random
            in each chain, which makes it reversible.

    Raises:
        ValueError: if `scan` is neither.

    References:
        Geman and Geman 1984, Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images.
        Gonzalez, Low, Gretton and Guestrin 2011, Parallel Gibbs sampling: from colored fields to thin junction trees.

    >>> import torch
    >>> from pyro_ebm import MCMC, FactorGraph, Gibbs, IsingEnergy, spin
    >>> graph = FactorGraph()
    >>> x = graph.variable("x", support=spin, shape=(4, 4))
    >>> graph.factor(IsingEnergy(torch.tensor(0.3)), x[:, :-1], x[:, 1:])
    >>> graph.factor(IsingEnergy(torch.tensor(0.3)), x[:-1], x[1:])
    >>> mcmc = MCMC(Gibbs(graph), num_samples=10, warmup_steps=5, num_chains=3, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["x"].shape
    torch.Size([3, 10, 4, 4])
    """

    scan: Literal["systematic", "random"] = field(default="systematic", kw_only=True)

    def __post_init__(self) -> None:
        self._require("scan", self.scan in ("systematic", "random"), '"systematic" or "random"')

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return gibbs_algorithm(random_scan=self.scan == "random")

    def target_of(self, graph: FactorGraph) -> Target:
        """The graph with its conditionals."""
        return ConditionalTarget(graph, "Gibbs")
