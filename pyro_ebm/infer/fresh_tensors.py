"""Models that write values into tensors that they make, such as one of zeros: safe under vmap."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MAKERS = {
    *(torch.zeros, torch.ones, torch.empty, torch.full),
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full),
}


class FreshTensors(TorchFunctionMode):
    """Makes new tensors for each chain, so that what belongs to a chain can be written into them.

    `x = torch.zeros(3); x[0] = mu` fails under vmap otherwise: there is one x for all chains. Pyro's own
    `OrderedLogistic` is written so. `x[mask] = 0`, as torch's `Multinomial` has it, fails for the mask, whose number of
    places may differ between chains: it is filled instead.

    Args:
        like: a tensor that vmap has batched.
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self._like = like.detach()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Batch what is new, fill what a mask selects, and leave the rest alone."""
        if func is Tensor.__setitem__ and _is_mask(args[1]) and isinstance(args[2], float | int):
            x, mask, value = args
            return x.masked_fill_(mask[(..., *[None] * (x.dim() - mask.dim()))], value)
        made = func(*args, **(kwargs or {}))
        if func not in _MAKERS:
            return made
        return self._like.new_zeros(made.shape, dtype=made.dtype, device=made.device) + made


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool
