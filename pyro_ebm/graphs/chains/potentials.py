"""The log-potentials of linear chains: their shapes, and the scores of paths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast
from pyro_ebm.graphs.lookup import lookup


class ChainPotentials(NamedTuple):
    """Log-potentials with aligned batch dims.

    Attributes:
        unary: `(*batch, T, K)`.
        pairwise: `(*b, T - 1, K, K)`, or with a dim of one for matrices that all steps share; each dim of `b` is one or
            that of the batch.
        mask: which steps are not padding, `(*batch, T)`; nothing if all are.
    """

    unary: Tensor
    pairwise: Tensor
    mask: Tensor | None

    @property
    def batch_shape(self) -> Size:
        """The batch shape."""
        return Size(self.unary.shape[:-2])

    def pairwise_at(self, step: int) -> Tensor:
        """The matrix that leads into a step, `(*b, K, K)`."""
        return self.pairwise[..., min(step, self.pairwise.shape[-3]) - 1, :, :]

    def full_pairwise(self) -> Tensor:
        """Pairwise log-potentials with all their dims, `(*batch, T - 1, K, K)`; a view."""
        steps, states = self.unary.shape[-2:]
        return self.pairwise.expand(*self.batch_shape, steps - 1, states, states)


def chain_potentials(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> ChainPotentials:
    """Align the arguments of the functions on chains; padding becomes zero, whatever is in it.

    Args:
        unary: `(*batch, T, K)`.
        pairwise: broadcastable to `(*batch, T - 1, K, K)`, indexed by the previous and the next state.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Raises:
        EnergyShapeError: if the shapes do not fit.
    """
    if unary.dim() < 2 or 0 in unary.shape[-2:]:
        raise EnergyShapeError(
            f"chain: got unary log-potentials of shape {tuple(unary.shape)}, expected (*batch, T, K) with T, K > 0."
        )
    steps, states = unary.shape[-2:]
    square = pairwise.dim() >= 2 and pairwise.shape[-2:] == (states, states)
    if not square or (pairwise.dim() > 2 and pairwise.shape[-3] not in (1, steps - 1)):
        raise EnergyShapeError(
            f"chain: got pairwise log-potentials of shape {tuple(pairwise.shape)}, expected one that broadcasts to "
            f"(*batch, {steps - 1}, {states}, {states}). For matrices that differ in the batch but not along the "
            "chain, insert a dim of one: pairwise.unsqueeze(-3)."
        )
    pairwise = pairwise if pairwise.dim() > 2 else pairwise.unsqueeze(0)
    shapes = [Size(unary.shape[:-2]), Size(pairwise.shape[:-3])]
    batch_shape = broadcast(shapes if lengths is None else [*shapes, Size(lengths.shape)], "chain")
    missing = len(batch_shape) + 3 - pairwise.dim()
    pairwise = pairwise.reshape(*[1] * missing, *pairwise.shape)
    dtype = torch.promote_types(unary.dtype, pairwise.dtype)
    unary, pairwise = unary.to(dtype).expand(*batch_shape, steps, states), pairwise.to(dtype)
    if lengths is None:
        return ChainPotentials(unary, pairwise, None)
    mask = torch.arange(steps, device=unary.device) < lengths.unsqueeze(-1)
    mask = mask.expand(*batch_shape, steps)
    unary = torch.where(mask.unsqueeze(-1), unary, 0.0)
    if pairwise.shape[:-3].numel() > 1 and pairwise.shape[-3] > 1:  # it may have padding of its own
        pairwise = torch.where(mask[..., 1:, None, None], pairwise, 0.0)
    return ChainPotentials(unary, pairwise, mask)


def path_score(value: Tensor, potentials: ChainPotentials) -> Tensor:
    """The sum of the log-potentials along paths `(*sample, *batch, T)`, `(*sample, *batch)`; padding counts nothing.

    Raises:
        EnergyShapeError: if the shapes do not fit.
    """
    unary, pairwise, mask = potentials
    steps = unary.shape[-2]
    if value.dim() < 1 or value.shape[-1] != steps:
        raise EnergyShapeError(
            f"chain: got paths of shape {tuple(value.shape)}, expected (*sample, *batch, {steps}). Pad them, and give "
            "lengths."
        )
    lead = broadcast([Size(value.shape[:-1]), potentials.batch_shape], "chain")
    value = value.long().expand(*lead, steps)
    if mask is not None:
        value = torch.where(mask, value, 0)
    scores = lookup(unary, value)
    if mask is not None:
        scores = torch.where(mask, scores, 0.0)
    total = scores.sum(-1)
    if steps == 1:
        return total
    scores = lookup(pairwise, value[..., :-1], value[..., 1:])
    if mask is not None:
        scores = torch.where(mask[..., 1:], scores, 0.0)
    return total + scores.sum(-1)
