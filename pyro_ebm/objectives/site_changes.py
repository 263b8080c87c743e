"""What single changes of discrete data do to the log density."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyro_ebm._core.errors import TreewidthError
from pyro_ebm._core.protocols import Density
from pyro_ebm._core.supports import num_states, state_range
from pyro_ebm.graphs.blocks import conditional_blocks, unbatched
from pyro_ebm.graphs.conditionals import ElementBlock
from pyro_ebm.objectives.data import lead_of, log_density
from pyro_ebm.objectives.decoding import graph_of


def site_changes(density: Density, data: Tensor) -> tuple[Tensor, Tensor]:
    """The log density of all states of each element, the others being as in the data, up to a constant for each.

    Of a `FactorGraph` by what its factors say of each element, exactly; of any other by evaluating it at every single
    change, all in one batch.

    Args:
        density: over a finite support.
        data: `(*sample, *batch, *event)`.

    Returns:
        The log weights `(*sample, *batch, n, K)` of the n elements of an event, and the number of each one's state in
        the data, `(*sample, *batch, n)`.
    """
    low, step, states = cast(tuple[int, int, int], state_range(density.support))
    lead, size = lead_of(density, data), density.event_shape.numel()
    numbers = ((data - low) / step).round().long().reshape(*lead, size)
    blocks = _blocks(density)
    if blocks is None:
        return _by_evaluation(density, data, low + step * torch.arange(states), numbers), numbers
    log_density(density, data, "data")  # whether it is finite
    flat = numbers.reshape(-1, density.batch_shape.numel() * size).mT.to(blocks[0].bias.dtype)
    own = [flat[block.elements] for block in blocks]
    parts = []
    for block in blocks:
        logits = block.logits(own, ())
        parts.append(torch.stack([torch.zeros_like(logits), logits]) if states == 2 else logits)
    order = torch.cat([block.elements for block in blocks]).argsort()
    weights = torch.cat(parts, 1)[:, order]  # (K, batch * n, samples)
    return weights.permute(2, 1, 0).reshape(*lead, size, states), numbers


def _by_evaluation(density: Density, data: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    event, size, states = density.event_shape, density.event_shape.numel(), len(values)
    flat = data.reshape(*numbers.shape)
    present = log_density(density, data, "data")
    shift = torch.arange(1, states, device=data.device).reshape(-1, *[1] * numbers.dim())
    others = (numbers + shift) % states  # (K - 1, *lead, n): the numbers of the other states
    changed_to = values.to(data.device)[others].to(data.dtype).movedim(-1, 1)  # (K - 1, n, *lead)
    here = torch.eye(size, dtype=torch.bool, device=data.device)
    here = here.reshape(size, *[1] * (numbers.dim() - 1), size)
    changed = torch.where(here, changed_to.unsqueeze(-1), flat)  # (K - 1, n, *lead, n)
    at_changed = log_density(
        density, changed.reshape(*changed.shape[:-1], *event), "noise", may_be_forbidden=True
    ).movedim(1, -1)
    weights = torch.cat([present.unsqueeze(-1).expand(1, *numbers.shape), at_changed])  # by shift
    index = (torch.arange(states, device=data.device) - numbers.unsqueeze(-1)) % states
    return weights.movedim(0, -1).gather(-1, index)


def log_ratios(density: Density, data: Tensor) -> Tensor:
    """`log p̃(x') - log p̃(x)` of all single changes x' of each element, `(*sample, *batch, n, K - 1)`."""
    weights, numbers = site_changes(density, data)
    states = weights.shape[-1]
    shift = torch.arange(1, states, device=data.device)
    others = weights.gather(-1, (numbers.unsqueeze(-1) + shift) % states)
    return others - weights.gather(-1, numbers.unsqueeze(-1))


def _blocks(density: Density) -> list[ElementBlock] | None:
    """The conditional distributions of a graph's elements, if the density is one, and its factors are local."""
    graph = graph_of(density)
    if graph is None or graph.batch_shape != density.batch_shape or num_states(density.support) == 1:
        return None
    try:
        return conditional_blocks(unbatched(graph.log_tables()))
    except TreewidthError:
        return None
