"""Gibbs sweeps over a discrete graph, at any temperature, and the path of densities along which these anneal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.heat_bath import sweep
from pyro_ebm._core.randomness import random_bits
from pyro_ebm.graphs.gibbs.blocks import conditional_blocks, unbatched
from pyro_ebm.graphs.tables import LogTables

# Sweeps at each temperature: a few, so that chains are near equilibrium along the way.
_SWEEPS = 2


class GibbsSweeps:
    """Chromatic Gibbs sweeps: elements that share no factor are resampled at once, blocks one after another.

    Args:
        tables: of a graph over one variable.

    Raises:
        GraphError: if it has several.

    References:
        Geman and Geman 1984, Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images.
        Gonzalez, Low, Gretton and Guestrin 2011, Parallel Gibbs sampling: from colored fields to thin junction trees.
    """

    def __init__(self, tables: LogTables) -> None:
        if len(tables.variables) != 1:
            raise GraphError(
                f"Gibbs sweeps: got a graph over {[each.name for each in tables.variables]}, expected one variable. "
                "Sample several by MCMC(Gibbs(graph))."
            )
        (self._variable,) = tables.variables
        self._blocks = conditional_blocks(unbatched(tables))
        self._like = tables.like
        self._order = torch.cat([block.elements for block in self._blocks])

    def __call__(
        self,
        value: Tensor,
        generator: Generator | None = None,
        *,
        num_sweeps: int = 1,
        inverse_temperature: Tensor | None = None,
    ) -> Tensor:
        """The next values of chains at `(*chains, *batch, *event)`, of the same shape.

        Args:
            value: where the chains are.
            generator: of the random numbers; torch's global one by default.
            num_sweeps: how many sweeps.
            inverse_temperature: what the log density is multiplied by, `()`, positive; by default 1.
        """
        size = len(self._order)
        flat = self._variable.states(value).reshape(-1, size).mT.to(self._like.dtype)
        states: Sequence[Tensor] = [flat[block.elements] for block in self._blocks]
        for _ in range(num_sweeps):
            bits = random_bits((size, flat.shape[1]), value.device, generator)
            states, _ = sweep(self._blocks, states, (), bits, inverse_temperature)
        new = torch.empty_like(flat)
        new[self._order] = torch.cat(list(states))
        labels = new.mT.reshape(value.shape)
        return self._variable.values(labels.long(), value.dtype if value.is_floating_point() else None)


class TemperingPath:
    """The densities `log f_β(x) = -(1-β) log |states| - β E(x)`, from the uniform one to a graph's, with Gibbs sweeps.

    Args:
        energy: E, `(*chains, *batch, *event)` to `(*chains, *batch)`.
        tables: of the graph.
        generator: of the random numbers of the sweeps.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], tables: LogTables, generator: Generator | None) -> None:
        self._energy, self._sweeps, self._generator = energy, GibbsSweeps(tables), generator
        self._log_states = sum(math.log(states) for states in tables.num_states)

    def __call__(self, values: Tensor, /) -> Callable[[Tensor], Tensor]:
        """Values to a function of β, which gives the log density there."""
        energy = self._energy(values)
        return lambda beta: -(1 - beta) * self._log_states - torch.where(beta == 0, 0, beta * energy)

    def move(self, values: Tensor, log_density: Callable[[Tensor], Tensor], beta: Tensor, /) -> Tensor:
        """The next values of chains, by sweeps at β."""
        return self._sweeps(values, self._generator, num_sweeps=_SWEEPS, inverse_temperature=beta)
