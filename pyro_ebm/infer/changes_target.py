"""A discrete graph as a target with what it gains by single changes: by tables exactly, by gradients nearly."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm.graphs import Factor, FactorGraph
from pyro_ebm.graphs.gibbs.blocks import conditional_blocks, unbatched
from pyro_ebm.graphs.graph import with_factors
from pyro_ebm.infer.conditional_target import ConditionalDensity
from pyro_ebm.infer.graph_target import GraphTarget, require_discrete
from pyro_ebm.mcmc.changes import distances


class ChangesDensity:
    """The log density of a discrete graph, with the gains of single changes: `Changes` for samplers.

    Factors over elements speak by their tables, exactly. Those over whole variables, where they are differentiable in
    them, speak by the gradient: `∇log p(x) · (x' - x)`, exact where the density is linear in each element.

    Args:
        target: the target.
        graph: its graph.
    """

    def __init__(self, target: GraphTarget, graph: FactorGraph) -> None:
        self._target = target
        self.low, self.spacing, self.num_states = target.low, target.spacing, target.num_states
        most = int(target.num_states.max())
        self.num_alternatives = 1 if most == 2 else most
        smooth = [factor for factor in graph.factors if _is_smooth(cast(Factor, factor), target)]
        local = [factor for factor in graph.factors if factor not in smooth]
        self._smooth = with_factors(graph, smooth) if smooth else None
        self._local = with_factors(graph, local) if local else None
        if self._local is not None:
            self._conditionals = ConditionalDensity(target, conditional_blocks(unbatched(self._local.log_tables())))

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density, and no gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        return GraphTarget.log_density(self._target, position)

    def changes(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The log density `(chains,)` at `(chains, dim)`, and gains `(chains, dim, alternatives)`."""
        value, gains = position.new_zeros(len(position)), None
        if self._smooth is not None:
            value, gradient = value_and_gradient(self._log_smooth, position)
            gains = distances(self, position) * gradient.unsqueeze(-1)
        if self._local is not None:
            energy = self._local(self._target.values(position))
            value = value - sum_rightmost(energy, energy.dim() - 1)
            exact = self._by_tables(position)
            gains = exact if gains is None else gains + exact
        return value, cast(Tensor, gains)

    def _log_smooth(self, position: Tensor) -> Tensor:
        energy = cast(FactorGraph, self._smooth)(self._target.raveler.unravel(position))
        return -sum_rightmost(energy, energy.dim() - 1)

    def _by_tables(self, position: Tensor) -> Tensor:
        states = self._conditionals.states(position)
        parts = []
        for block, own in zip(self._conditionals.blocks, states, strict=True):
            logits = block.logits(states, ())
            if self.num_alternatives == 1:
                parts.append((logits * (1 - 2 * own)).unsqueeze(0))
                continue
            if block.num_states == 2:
                logits = torch.stack([torch.zeros_like(logits), logits])
            present = logits.gather(0, own.long().unsqueeze(0))
            missing = self.num_alternatives - block.num_states
            parts.append(torch.nn.functional.pad(logits - present, (0, 0, 0, 0, 0, missing)))
        return self._conditionals.in_order(parts).permute(2, 1, 0)


def _is_smooth(factor: Factor, target: GraphTarget) -> bool:
    """Whether a factor is over whole variables, and differentiable in them."""
    if factor.grouped:
        return False
    point = target.low.clone().requires_grad_()
    shapes = {name: variable.shape for name, variable in target.graph.variables.items()}
    try:
        energy = factor(target.raveler.unravel(point), shapes)
    except (IndexError, RuntimeError, TypeError):  # it takes labels, not numbers between them
        return False
    return bool(energy.requires_grad)


class ChangesTarget(GraphTarget):
    """A discrete graph whose log density knows what it gains by single changes.

    Raises:
        GraphError: if a variable is continuous.
        TreewidthError: if a factor is neither differentiable nor small enough for a table.
    """

    def __init__(self, graph: FactorGraph, kernel: str) -> None:
        super().__init__(graph)
        require_discrete(self, kernel)
        self.log_density = ChangesDensity(self, graph)  # type: ignore[method-assign]
