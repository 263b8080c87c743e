"""Which precision a module computes in."""

from itertools import chain

import torch
from torch import Tensor, nn


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of its first floating parameter or buffer; torch's default if it has none."""
    tensors = (t.dtype for t in chain(module.parameters(), module.buffers()) if t.is_floating_point())
    return next(tensors, torch.get_default_dtype())


def as_floating(value: float | Tensor) -> Tensor:
    """A number or tensor as floats: of its own dtype if it has one, else of torch's default."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.get_default_dtype())
