"""Log Z of chains as a function of its log-potentials, which autograd and vmap know of.

It is computed by scaled products where that is safe. A chain whose log-potentials span too many nats is computed in
double precision, and if that is not enough, in log space; so are second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_ebm.graphs.chains.log_space import filter_in_log_space, gradient_in_log_space
from pyro_ebm.graphs.chains.potentials import ChainPotentials
from pyro_ebm.graphs.chains.scaled import filter_scaled, gradient_scaled


class LogPartition(torch.autograd.Function):
    """`(unary, pairwise, mask)` to the parts of `Filtered`; the gradient of log Z is `LogPartitionGradient`."""

    @staticmethod
    def forward(unary: Tensor, pairwise: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The forward pass, in the cheapest arithmetic that is safe."""
        for dtype in dict.fromkeys((unary.dtype, torch.float64)):
            found = filter_scaled(ChainPotentials(unary.to(dtype), pairwise.to(dtype), mask))
            if found is not None:
                return found.log_z.to(unary.dtype), found.alpha, found.ratio
        log_z, _ = filter_in_log_space(ChainPotentials(unary, pairwise, mask))
        none = unary.movedim(-2, 0)[:0]
        return log_z, none.clone(), none.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: tuple[Tensor, ...]) -> None:
        """Keep the messages."""
        _, alpha, ratio = output
        ctx.mark_non_differentiable(alpha, ratio)
        ctx.save_for_backward(*inputs, alpha, ratio)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The backward pass."""
        unary, pairwise, mask, alpha, ratio = ctx.saved_tensors
        of_unary, of_pairwise = LogPartitionGradient.apply(gradients[0], unary, pairwise, mask, alpha, ratio, False)  # type: ignore[no-untyped-call]
        return of_unary, of_pairwise, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], unary: Tensor, pairwise: Tensor, mask: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        """What vmap batches is one more batch dim."""
        size = info.batch_size
        outputs: tuple[Tensor, Tensor, Tensor] = LogPartition.apply(  # type: ignore[no-untyped-call]
            _batch(unary, in_dims[0], size), _batch(pairwise, in_dims[1], 1), _batch(mask, in_dims[2], size)
        )
        return outputs, (0, 1, 1)


class LogPartitionGradient(torch.autograd.Function):
    """The gradient of `Σ weight log Z`, as `gradient_in_log_space`, from what the forward pass found."""

    @staticmethod
    def forward(
        weight: Tensor,
        unary: Tensor,
        pairwise: Tensor,
        mask: Tensor | None,
        alpha: Tensor,
        ratio: Tensor,
        full_pairwise: bool,
    ) -> tuple[Tensor, Tensor]:
        """The backward pass."""
        potentials = ChainPotentials(unary, pairwise, mask)
        if len(alpha) == 0:
            return gradient_in_log_space(weight, potentials, full_pairwise)
        of_unary, of_pairwise = gradient_scaled(weight, potentials, alpha, ratio, full_pairwise)
        return of_unary.to(unary.dtype), of_pairwise.to(unary.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the log-potentials."""
        ctx.save_for_backward(*inputs[:4])
        ctx.full_pairwise = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Second derivatives, in log space."""
        weight, unary, pairwise, mask = ctx.saved_tensors

        def first(weight: Tensor, unary: Tensor, pairwise: Tensor) -> tuple[Tensor, Tensor]:
            return gradient_in_log_space(weight, ChainPotentials(unary, pairwise, mask), ctx.full_pairwise)

        pull_back: Any = torch.func.vjp(first, weight, unary, pairwise)[1]
        return *pull_back(gradients), None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        weight: Tensor,
        unary: Tensor,
        pairwise: Tensor,
        mask: Tensor | None,
        alpha: Tensor,
        ratio: Tensor,
        full_pairwise: bool,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """What vmap batches is one more batch dim, and each of its elements gets a gradient."""
        size = info.batch_size
        return LogPartitionGradient.apply(  # type: ignore[no-untyped-call]
            _batch(weight, in_dims[0], size),
            _batch(unary, in_dims[1], size),
            _batch(pairwise, in_dims[2], 1 if full_pairwise else size),
            _batch(mask, in_dims[3], size),
            _batch(alpha, in_dims[4], size, to=1),
            _batch(ratio, in_dims[5], size, to=1),
            full_pairwise,
        ), (0, 0)


def _batch(tensor: Any, dim: int | None, size: int, to: int = 0) -> Any:
    """Move a dim that vmap batches to where batch dims are, or make one."""
    if tensor is None:
        return None
    if dim is not None:
        return tensor.movedim(dim, to)
    tensor = tensor.unsqueeze(to)
    return tensor.expand(*(size if i == to else -1 for i in range(tensor.dim())))
