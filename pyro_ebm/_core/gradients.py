"""Value and gradient of a function that takes leading batch dims natively (no vmap: three to eight times faster)."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ebm._core.linalg import each_alone
from pyro_ebm._core.protocols import LogDensity


def with_gradient(function: Callable[[Tensor], Tensor]) -> LogDensity:
    """Give a batched log density its gradient, which is what samplers take: `(chains, dim)` to `(chains,)`."""
    return lambda position: value_and_gradient(function, position)


def value_alone(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a function as `value_and_gradient` does, for samplers that look at no gradient: it is zero."""
    with torch.no_grad():
        return each_alone(function, x), torch.zeros_like(x)


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a batched scalar function and its gradient in one pass.

    Args:
        function: `(*lead, *event)` to `(*lead,)`, each output depending on its own input alone.
        x: where, `(*lead, *event)`.

    Returns:
        The detached value `(*lead,)` and gradient `(*lead, *event)`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return each_alone(_value_and_gradient, function, x)


def _value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone() if x.is_inference() else x.detach()
    x.requires_grad_()
    value = function(x)
    if not value.requires_grad:  # constant: a flat energy
        return value.detach(), torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient
