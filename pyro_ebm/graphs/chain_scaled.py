"""Sum-product on chains by scaled matrix products: a step is one product, and the gradient is the backward pass.

Potentials are taken out of log space, and the forward messages normalised at each step (Rabiner 1989), which is several
times faster and more precise than sums in log space, as long as no message underflows. A chain whose log-potentials
span too many nats is computed in double precision, and if that is not enough, in log space.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_ebm.graphs.chain_log_space import filter_in_log_space, gradient_in_log_space
from pyro_ebm.graphs.chain_potentials import ChainPotentials

# Of the nats between one and the smallest normal number: how many the finite log-potentials of a step may span, and
# if some are -inf, those of a step, and the forward messages. Without -inf no message spans more than its step does.
_SPAN, _SPAN_WITH_ZEROS, _MESSAGE_SPAN = 0.7, 0.35, 0.55


class Filtered(NamedTuple):
    """What the forward pass finds.

    Attributes:
        log_z: log Z in nats, `(*batch,)`.
        alpha: forward messages, normalised, `(T, *batch, K)`, zero in padding; with T = 0 if they underflow.
        ratio: potentials over the normaliser of their step, likewise.
    """

    log_z: Tensor
    alpha: Tensor
    ratio: Tensor


class LogPartition(torch.autograd.Function):
    """`(unary, pairwise, mask)` to the parts of `Filtered`; the gradient of log Z is `LogPartitionGradient`."""

    @staticmethod
    def forward(unary: Tensor, pairwise: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The forward pass, in the cheapest arithmetic that is safe."""
        for dtype in dict.fromkeys((unary.dtype, torch.float64)):
            found = _filter(ChainPotentials(unary.to(dtype), pairwise.to(dtype), mask))
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
        of_unary, of_pairwise = _gradient(weight, potentials, alpha, ratio, full_pairwise)
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


# Inside, batches are (G, B): groups of B elements that share their matrices.


def _grouped(potentials: ChainPotentials) -> tuple[Size, int]:
    """The batch dims along which the matrices differ, and the number of elements along the others."""
    batch, own = potentials.batch_shape, potentials.pairwise.shape[:-3]
    differ = len(own)
    while differ and own[differ - 1] == 1:
        differ -= 1
    return Size(batch[:differ]), Size(batch[differ:]).numel()


def _by_group(matrices: Tensor, groups: Size) -> Tensor:
    """`(*b, 1 | T - 1, *shape)` to `(1 | T - 1, G, *shape)`, a view but where groups share them."""
    own = matrices.reshape(*matrices.shape[: len(groups)], *matrices.shape[-3:])
    return own.expand(*groups, *own.shape[-3:]).reshape(groups.numel(), *own.shape[-3:]).movedim(1, 0)


def _filter(potentials: ChainPotentials) -> Filtered | None:
    """The forward pass; nothing if a message may underflow."""
    unary, pairwise, mask = potentials
    batch_shape, (steps, states) = potentials.batch_shape, unary.shape[-2:]
    groups, size = _grouped(potentials)
    shape = (steps, groups.numel(), size, states)
    limit = -math.log(torch.finfo(unary.dtype).tiny)

    highest = pairwise.amax((-2, -1), keepdim=True)
    below = pairwise - highest
    lead = unary.movedim(-2, 0).reshape(shape)
    tops = lead.amax(-1, keepdim=True)
    lead = lead - tops
    spans = [_span(lead), _span(below)]
    zeros = any(has_zeros for _, has_zeros in spans)
    if not sum(span for span, _ in spans) <= (_SPAN_WITH_ZEROS if zeros else _SPAN) * limit:
        return None

    ratio, matrices = lead.exp_(), _by_group(below.exp_(), groups)
    alpha, scale = torch.empty_like(ratio), torch.empty_like(tops)
    alphas, ratios, scales = alpha.unbind(), ratio.unbind(), scale.unbind()
    each = matrices.expand(steps - 1, *matrices.shape[1:]).unbind()
    for step in range(steps):
        here = alphas[step]
        if step:
            torch.bmm(alphas[step - 1], each[step - 1], out=here).mul_(ratios[step])
        else:
            here.copy_(ratios[0])
        torch.sum(here, -1, keepdim=True, out=scales[step])
        here.div_(scales[step])

    inside = None if mask is None else mask.movedim(-1, 0).reshape(*shape[:-1], 1)
    if inside is not None:
        scale.masked_fill_(~inside, 1.0)
        alpha.masked_fill_(~inside, 0.0)
    if zeros and not (
        float(scale.amin()) > 0 and float(alpha.masked_fill(alpha == 0, 1.0).amin()) >= math.exp(-_MESSAGE_SPAN * limit)
    ):
        return None
    logs = (scale.log() + tops).squeeze(-1)
    logs[1:] += _by_group(highest, groups).flatten(2)
    if inside is not None:
        logs.masked_fill_(~inside.squeeze(-1), 0.0)
        ratio.masked_fill_(~inside, 0.0)
    if zeros:  # what is never reached has backward messages without bounds
        ratio.masked_fill_(alpha == 0, 0.0)
    ratio.div_(scale)
    log_z = logs.double().sum(0).reshape(batch_shape)
    return Filtered(log_z, alpha.reshape(steps, *batch_shape, states), ratio.reshape(steps, *batch_shape, states))


def _span(below: Tensor) -> tuple[float, bool]:
    """How far the finite entries reach below zero, in nats, and whether some are -inf."""
    if below.numel() == 0:
        return 0.0, False
    lowest = float(below.amin())
    if lowest != -math.inf:
        return -lowest, False
    return -float(below.masked_fill(below == -math.inf, 0.0).amin()), True


def _gradient(
    weight: Tensor, potentials: ChainPotentials, alpha: Tensor, ratio: Tensor, full_pairwise: bool
) -> tuple[Tensor, Tensor]:
    """The backward pass, and all gradients in one product each."""
    mask, batch_shape = potentials.mask, potentials.batch_shape
    steps, states = potentials.unary.shape[-2:]
    groups, size = _grouped(potentials)
    shape = (steps, groups.numel(), size, states)
    pairwise = potentials.pairwise.to(alpha.dtype)
    matrices = _by_group((pairwise - pairwise.amax((-2, -1), keepdim=True)).exp_(), groups)
    alpha, ratio = alpha.reshape(shape), ratio.reshape(shape)
    weight = weight.to(alpha.dtype).reshape(shape[1:-1]).unsqueeze(-1)

    beta, moved = torch.empty_like(alpha), torch.empty_like(alpha)
    betas, moveds, ratios = beta.unbind(), moved.unbind(), ratio.unbind()
    each = matrices.mT.expand(steps - 1, *matrices.mT.shape[1:]).unbind()
    inside = None if mask is None else mask.movedim(-1, 0).reshape(*shape[:-1], 1)
    shortest = steps if inside is None else int(inside.all(dim=2).all(dim=1).sum())
    betas[-1].fill_(1.0)
    for step in range(steps - 1, 0, -1):
        torch.mul(ratios[step], betas[step], out=moveds[step])
        torch.bmm(moveds[step], each[step - 1], out=betas[step - 1])
        if inside is not None and step >= shortest:
            betas[step - 1].masked_fill_(~inside[step], 1.0)

    of_unary = (alpha * beta).mul_(weight).reshape(steps, *batch_shape, states).movedim(0, -2)
    before, after = alpha[:-1], moved[1:].mul_(weight)
    if full_pairwise:
        of_pairwise = torch.einsum("tgbi,tgbj->tgbij", before, after).mul_(matrices.unsqueeze(2))
        return of_unary, of_pairwise.reshape(steps - 1, *batch_shape, states, states).movedim(0, -3)
    kept = "" if len(matrices) == 1 else "t"
    of_pairwise = torch.einsum(f"tgbi,tgbj->{kept}gij", before, after).reshape(matrices.shape).mul_(matrices)
    ones = [1] * (len(batch_shape) - len(groups))
    of_pairwise = of_pairwise.movedim(0, 1).reshape(*groups, *ones, *pairwise.shape[-3:])
    return of_unary, of_pairwise.sum_to_size(pairwise.shape)
