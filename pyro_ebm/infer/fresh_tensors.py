"""Models that write values into tensors that they make, such as one of zeros: safe under vmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.replacing import Replacing

_MAKERS: set[Callable[..., Any]] = {
    *(torch.zeros, torch.ones, torch.empty, torch.full),
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full),
}


def fresh_tensors(like: Tensor) -> Replacing:
    """Makes new tensors for each chain, so that what belongs to a chain can be written into them.

    `x = torch.zeros(3); x[0] = mu` fails under vmap otherwise: there is one x for all chains. Pyro's own
    `OrderedLogistic` is written so. `x[mask] = 0`, as torch's `Multinomial` has it, fails for the mask, whose number of
    places may differ between chains: it is filled instead.

    Args:
        like: a tensor that vmap has batched.
    """
    makers = {maker: partial(_made_for_each, like.detach(), maker) for maker in _MAKERS}
    return Replacing({**makers, Tensor.__setitem__: _written})


def _made_for_each(like: Tensor, maker: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    made = maker(*args, **kwargs)
    return like.new_zeros(made.shape, dtype=made.dtype, device=made.device) + made


def _written(x: Tensor, index: Any, value: Any) -> None:
    if isinstance(index, Tensor) and index.dtype == torch.bool and isinstance(value, float | int):
        x.masked_fill_(index[(..., *[None] * (x.dim() - index.dim()))], value)
    else:
        x[index] = value
