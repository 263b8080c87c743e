"""Which precision and device a module computes on."""

from itertools import chain

import torch
from torch import Tensor, nn


def like_of(module: nn.Module) -> Tensor:
    """A tensor with its dtype and device: its first floating parameter or buffer; if it has none, torch's default."""
    tensors = (tensor for tensor in chain(module.parameters(), module.buffers()) if tensor.is_floating_point())
    return next(tensors, torch.empty(()))


def as_floating(value: float | Tensor) -> Tensor:
    """A number or tensor as floats: of its own dtype if it has one, else of torch's default."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.get_default_dtype())
