"""Sum-product on chains by scaled matrix products: a step is one product, and the gradient is the backward pass.

Potentials are taken out of log space, and the forward messages normalised at each step, which is several times faster
and more precise than sums in log space, as long as no message underflows. Where one may, there is no answer.

References:
    Rabiner (1989), A tutorial on hidden Markov models.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_ebm.graphs.chains.potentials import ChainPotentials

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


def filter_scaled(potentials: ChainPotentials) -> Filtered | None:
    """The forward pass; nothing if a message may underflow."""
    unary, pairwise, mask = potentials
    batch_shape, (steps, states) = potentials.batch_shape, unary.shape[-2:]
    groups, size = _grouped(potentials)
    shape = (steps, groups.numel(), size, states)
    limit = -math.log(torch.finfo(unary.dtype).tiny)

    highest = pairwise.amax((-2, -1), keepdim=True)
    below = pairwise - highest
    tops = unary.amax(-1, keepdim=True)
    lead = unary.new_empty(steps, *batch_shape, states)
    lead = torch.sub(unary.movedim(-2, 0), tops.movedim(-2, 0), out=lead).reshape(shape)
    tops = tops.movedim(-2, 0).reshape(*shape[:-1], 1)
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


def gradient_scaled(
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

    of_unary = beta.mul_(alpha).mul_(weight).reshape(steps, *batch_shape, states).movedim(0, -2)
    before, after = alpha[:-1], moved[1:].mul_(weight)
    if full_pairwise:
        of_pairwise = torch.einsum("tgbi,tgbj->tgbij", before, after).mul_(matrices.unsqueeze(2))
        return of_unary, of_pairwise.reshape(steps - 1, *batch_shape, states, states).movedim(0, -3)
    if len(matrices) == 1:  # sums over the steps too
        before, after = (each.movedim(1, 0).reshape(1, groups.numel(), -1, states) for each in (before, after))
    of_pairwise = torch.matmul(before.mT, after).mul_(matrices)
    ones = [1] * (len(batch_shape) - len(groups))
    of_pairwise = of_pairwise.movedim(0, 1).reshape(*groups, *ones, *pairwise.shape[-3:])
    return of_unary, of_pairwise.sum_to_size(pairwise.shape)
