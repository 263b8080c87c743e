"""What kernels over discrete variables have in common."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import nan
from typing import Any

from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.graph_target import graph_of
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.settings import RunSettings

# A sweep over more blocks than this takes a compiler longer than it saves.
MOST_BLOCKS = 64


@dataclass(eq=False)
class DiscreteKernel(Kernel):
    """A kernel over discrete variables, without step size and metric.

    Args:
        model: a `FactorGraph`, or an `Energy` or `EnergyDistribution` over a discrete support.
        init_strategy: where chains start: `init_to_uniform` draws every state with the same probability, and
            `init_to_value(values=...)` takes values by variable.
    """

    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """The graph as this kernel's density.

        Raises:
            GraphError: if the graph does not suit the kernel.
            TypeError: if the model is not discrete, or arguments are given.
        """
        if args or kwargs:
            raise TypeError(f"{type(self).__name__}: got arguments for a graph, expected none. Condition the graph.")
        return self.target_of(graph_of(self.model, type(self).__name__))

    @abstractmethod
    def target_of(self, graph: FactorGraph) -> Target:
        """The density of a graph, with what this kernel asks of it."""

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """No step size, and states as they are."""
        blocks = getattr(target.log_density, "blocks", ())
        settings = replace(settings, compile="no") if len(blocks) > MOST_BLOCKS else settings
        return replace(settings, step_size=nan, adapt_step_size=False, adapt_metric=False)
