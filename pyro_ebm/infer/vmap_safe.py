"""Pyro's sums in log space, in a form that vmap can batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.ops.special
import torch
from torch import Tensor


class SafeLog(torch.autograd.Function):
    """Pyro's logarithm, whose gradient at zero is finite, in the form that vmap can batch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """The logarithm."""
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the argument."""
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient, held finite."""
        (x,) = ctx.saved_tensors
        gradient: Tensor = gradients[0] / x.clamp(min=torch.finfo(x.dtype).eps)
        return gradient


@contextmanager
def vmap_safe() -> Iterator[None]:
    """Inside, Pyro's sums in log space can be batched by vmap."""
    original = pyro.ops.special._SafeLog
    pyro.ops.special._SafeLog = SafeLog
    try:
        yield
    finally:
        pyro.ops.special._SafeLog = original
