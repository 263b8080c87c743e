"""Entries of tables at given states."""

import torch
from torch import Size, Tensor


def lookup(table: Tensor, *states: Tensor) -> Tensor:
    """The entries of a batch of tables at given states.

    Its gradient is a sum into one table, without a copy for each sample.

    Args:
        table: `(*b, K_1, ..., K_r)`.
        states: r tensors of integers, which broadcast with `b` and with one another.

    Returns:
        Of the broadcast shape.

    >>> lookup(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]))
    tensor([1., 2., 3.])
    """
    lead = Size(table.shape[: table.dim() - len(states)])
    place = torch.arange(lead.numel(), device=table.device).reshape(lead)
    for state, size in zip(states, table.shape[len(lead) :], strict=True):
        place = place * size + state
    return table.reshape(-1).gather(0, place.reshape(-1)).reshape(place.shape)
