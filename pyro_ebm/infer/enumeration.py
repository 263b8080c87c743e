"""Discrete latent sites, summed out in parallel, safely under vmap."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.ops.special
import torch
from pyro import poutine
from pyro.infer.enum import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm._core.supports import unconstraining


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


class Place(Messenger):  # type: ignore[misc]
    """Puts unconstrained values to the continuous latent sites.

    Args:
        unconstrained: a value for each.

    Attributes:
        log_jacobian: of the values, `()`.
        last_site: the site reached last: where to look when the model fails.
    """

    def __init__(self, unconstrained: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.unconstrained = unconstrained
        self.log_jacobian: Tensor | float = 0.0
        self.last_site: str | None = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        self.last_site = name
        if msg["done"] or msg["is_observed"] or name not in self.unconstrained:
            return
        transform = unconstraining(msg["fn"].support, name)
        free = self.unconstrained[name]
        msg["value"] = value = transform(free)
        self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(free, value).sum()
        msg["done"] = True


def enumerated_log_joint(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], handler: Place, max_plate_nesting: int
) -> Tensor:
    """The log density of the continuous sites that `handler` places, Jacobians included; discrete ones summed out."""
    enumerated = poutine.enum(config_enumerate(model), first_available_dim=-1 - max_plate_nesting)
    with handler:
        trace = poutine.trace(enumerated).get_trace(*args, **kwargs)
    evaluator = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=max_plate_nesting)
    total: Tensor = evaluator.log_prob(trace) + handler.log_jacobian
    return total
