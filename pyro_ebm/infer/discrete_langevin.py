"""Discrete Langevin, for energies over discrete variables, many chains in one program."""

from dataclasses import dataclass, field, replace

from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.changes_target import ChangesTarget
from pyro_ebm.infer.discrete_kernel import DiscreteKernel
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.discrete_algorithms import discrete_langevin_algorithm
from pyro_ebm.mcmc.settings import RunSettings


@dataclass(eq=False)
class DiscreteLangevin(DiscreteKernel):
    """The discrete Metropolis-adjusted Langevin algorithm: a step may change every element, each by its own gradient.

    Cheap as a step of `GibbsWithGradients`, and many elements wide. The warm-up adapts how many: an element's odds of a
    change are proportional to the step size, in (0, 1]; it is `exp(-1 / (2 α))` in the paper's α.

    Args:
        model: a `FactorGraph` of discrete variables, or an `Energy` or `EnergyDistribution` over boolean, spin or
            integer vectors, differentiable where it is evaluated at numbers.
        init_strategy: where chains start; see `DiscreteKernel`.
        step_size: the first one.
        adapt_step_size: whether it adapts in warm-up.
        target_accept_prob: the acceptance probability that it adapts to.
        ordinal: whether a change to a near value is likelier than one to a far value, as it should be for counts.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Zhang, Liu and Liu 2022, A Langevin-like sampler for discrete distributions.

    >>> import torch
    >>> from torch.distributions import constraints
    >>> from pyro_ebm import MCMC, DiscreteLangevin, energy
    >>> digits = constraints.integer_interval(0, 9)
    >>> counts = energy(lambda x: (0.2 * (x - 3) ** 2).sum(-1), event_shape=(5,), support=digits)
    >>> mcmc = MCMC(DiscreteLangevin(counts, ordinal=True), 10, warmup_steps=20, num_chains=3, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["x"].shape
    torch.Size([3, 10, 5])
    """

    step_size: float = field(default=0.2, kw_only=True)
    adapt_step_size: bool = field(default=True, kw_only=True)
    target_accept_prob: float = field(default=0.574, kw_only=True)
    ordinal: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._require("step_size", 0 < self.step_size <= 1, "a number in (0, 1]")
        self._require("target_accept_prob", 0 < self.target_accept_prob < 1, "a number in (0, 1)")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return discrete_langevin_algorithm(ordinal=self.ordinal, target_accept_prob=self.target_accept_prob)

    def target_of(self, graph: FactorGraph) -> Target:
        """The graph with what it gains by single changes."""
        return ChangesTarget(graph, "DiscreteLangevin")

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """The step size, and states as they are."""
        return replace(settings, step_size=self.step_size, adapt_step_size=self.adapt_step_size, adapt_metric=False)
