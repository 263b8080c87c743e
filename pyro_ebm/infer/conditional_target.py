"""A discrete graph as a target with its conditional distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError, TreewidthError
from pyro_ebm._core.heat_bath import Layout
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.graphs.gibbs.blocks import conditional_blocks, unbatched
from pyro_ebm.graphs.gibbs.conditionals import ElementBlock
from pyro_ebm.infer.graph_target import GraphTarget, require_discrete


class ConditionalDensity:
    """The log density of a target, with the conditionals of its discrete elements: `Conditionals` for samplers.

    Args:
        target: the target.
        blocks: its discrete elements.
    """

    def __init__(self, target: GraphTarget, blocks: Sequence[ElementBlock]) -> None:
        self._target, self.blocks = target, blocks
        order = torch.cat([block.elements for block in blocks]).argsort()
        self.layout = Layout(order, target.low, target.spacing)

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density and gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        return GraphTarget.log_density(self._target, position)

    def states(self, position: Tensor) -> tuple[Tensor, ...]:
        """The states of all blocks at a position `(chains, dim)`, each `(elements, chains)`."""
        discrete = position[:, : self._target.num_discrete]
        numbers = ((discrete - self._target.low) / self._target.spacing).mT
        return tuple(numbers[block.elements] for block in self.blocks)

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """What is said of blocks, each `(lead, elements, chains)`, in the order of the position's elements."""
        return torch.cat(list(parts), 1)[:, self.layout.order]

    def context(self, position: Tensor) -> tuple[Tensor, ...]:
        """Nothing: all is discrete."""
        return ()


class ConditionalTarget(GraphTarget):
    """A discrete graph whose log density knows its conditionals.

    Raises:
        GraphError: if a variable is continuous, or a factor is not local.
    """

    def __init__(self, graph: FactorGraph, kernel: str) -> None:
        super().__init__(graph)
        require_discrete(self, kernel)
        try:
            tables = unbatched(graph.log_tables())
        except TreewidthError as error:
            raise GraphError(
                f"{kernel}: {error} Conditional distributions need factors that are local; GibbsWithGradients and "
                "DiscreteLangevin take any that is differentiable."
            ) from None
        self.log_density = ConditionalDensity(self, conditional_blocks(tables))  # type: ignore[method-assign]
