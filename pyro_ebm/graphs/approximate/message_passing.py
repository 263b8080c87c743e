"""Belief propagation with weights on the factors, of which the plain and the tree-reweighted kind are two cases.

Factor f of weight ρ_f sends messages m_fi to its elements, and

    b_i = θ_i + Σ_f ρ_f m_fi          is the log-belief of an element,
    q_fi = b_i - m_fi                 is what comes in at a factor,
    m_fi(x_i) = log Σ exp(θ_f(x_f) / ρ_f + Σ_{j≠i} q_fj(x_j)),  the sum over x_f without x_i.

At the fixed point `Σ_i (1 - Σ_{f∋i} ρ_f) log Σ exp b_i + Σ_f ρ_f log Σ exp(θ_f / ρ_f + Σ_i q_fi)` is the value of
log Z. It is stationary in the messages, so it is differentiated with these held.

Where the ranges of the tables allow it, messages are sums of products, for pairs of elements batched matrix products;
else they are logarithms of sums. A state of belief `-inf` is impossible, and stays so.

References:
    Yedidia, Freeman and Weiss 2005, Constructing free-energy approximations and generalized belief propagation.
    Wainwright, Jaakkola and Willsky 2005, A new class of upper bounds on the log partition function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pyro_ebm._core.log_space import logsumexp
from pyro_ebm.graphs.approximate.approximation import iterate
from pyro_ebm.graphs.approximate.stacking import Stack, along, column_first, contract

# Ranges of log-potentials in which sums of products do not underflow: -log(tiny), with room to spare.
_SAFE_RANGE = {torch.float32: 80.0, torch.float64: 600.0}


class MessagePassing:
    """Messages of a graph, zero at first, and what follows from them.

    Args:
        stack: the graph.
        weights: for each block those of its factors, `(F,)`.
        maximize: whether to maximise where sums are.

    Attributes:
        edges: log-messages to elements by kind, `(M, B, K)`, of largest entry 0.
    """

    def __init__(self, stack: Stack, weights: Sequence[Tensor], *, maximize: bool = False) -> None:
        self.stack = stack
        self.weights = weights
        self.maximize = maximize
        self.tables = [
            block.log_potentials
            if self._plain
            else block.log_potentials / weight.reshape(-1, *[1] * (block.log_potentials.dim() - 1))
            for block, weight in zip(stack.blocks, weights, strict=True)
        ]
        like = stack.tables.like
        self.edges = [like.new_zeros(len(k.targets), stack.batch, k.unary.shape[-1]) for k in stack.kinds]
        self.edge_weights = [like.new_ones(len(k.targets), 1, 1) for k in stack.kinds]
        for block, weight in zip(stack.blocks, weights, strict=True):
            for port in block.ports:
                port.of(self.edge_weights)[:, 0, 0] = weight

    def run(self, *, damping: float, max_iterations: int, tolerance: float, progress: bool, description: str) -> Tensor:
        """Pass messages along all edges at once until they stay.

        Args:
            damping: the part of an old message that stays.
            max_iterations: how often at most.
            tolerance: how much a message, of largest entry 1, may still change.
            progress: whether to show a bar.
            description: who asks, for what the user is told.

        Returns:
            The largest changes, `(iterations, B)`.

        Raises:
            ValueError: if the damping is not from 0 to less than 1, or another number does not fit.
        """
        if not 0 <= damping < 1:
            raise ValueError(f"{description}: got damping={damping}, expected it from 0 to less than 1.")

        def step() -> Tensor:
            changes = [self.stack.tables.like.new_zeros(self.stack.batch)]
            for edges, (new, scaled) in zip(self.edges, self._send(), strict=True):
                if len(edges):
                    changes.append((scaled - edges.exp()).abs_().amax((0, 2)))
                    if damping:
                        edges.mul_(damping).add_(new, alpha=1 - damping)
                    else:  # 0 times -inf is no number
                        edges.copy_(new)
            return torch.stack(changes).amax(0)

        with torch.no_grad():
            return iterate(
                step, max_iterations=max_iterations, tolerance=tolerance, progress=progress, description=description
            )

    def value(self) -> Tensor:
        """The value of log Z, `(*batch,)`, or of the maximum of the log-density; differentiable by the tables."""
        total = self.stack.constant.expand(self.stack.batch)
        beliefs = self._beliefs()
        for kind, belief, weight in zip(self.stack.kinds, beliefs, self.edge_weights, strict=True):
            counting = weight.new_ones(len(belief), 1).index_add(0, kind.targets, -weight[:, 0])
            normalizer = self._reduced(belief, (-1,))
            impossible = normalizer == -torch.inf
            total = total + (counting * normalizer.masked_fill(impossible, 0)).sum(0)
            total = total.masked_fill(impossible.any(0), -torch.inf)
        for joint, weight in zip(self._joints(beliefs), self.weights, strict=True):
            normalizer = self._reduced(joint, tuple(range(2, joint.dim())))
            total = total + (weight.unsqueeze(-1) * normalizer).sum(0)
        return total.reshape(self.stack.tables.batch_shape)

    def probabilities(self) -> tuple[list[Tensor], list[Tensor]]:
        """The beliefs of elements, by kind `(N, B, K)`, and of factors, by block `(F, B, K_1, ..., K_r)`."""
        with torch.no_grad():
            beliefs = self._beliefs()
            return [_normalized(each, 2) for each in beliefs], [_normalized(each, 2) for each in self._joints(beliefs)]

    def _beliefs(self) -> list[Tensor]:
        """The log-beliefs b of elements, by kind `(N, B, K)`."""
        return [
            kind.unary.expand(-1, self.stack.batch, -1).index_add(
                0, kind.targets, edges if self._plain else edges * weight
            )
            for kind, edges, weight in zip(self.stack.kinds, self.edges, self.edge_weights, strict=True)
        ]

    def _incoming(self, beliefs: Sequence[Tensor]) -> list[Tensor]:
        """What comes in at factors, by kind `(M, B, K)`."""
        found = []
        for kind, belief, edges in zip(self.stack.kinds, beliefs, self.edges, strict=True):
            at = belief.index_select(0, kind.targets)
            found.append(at.sub_(edges) if self._linear else torch.where(at == -torch.inf, at, at - edges))
        return found

    def _joints(self, beliefs: Sequence[Tensor]) -> list[Tensor]:
        """The log-beliefs of factors, by block `(F, B, K_1, ..., K_r)`."""
        incoming = self._incoming(beliefs)
        joints = []
        for block, table in zip(self.stack.blocks, self.tables, strict=True):
            joint = table
            for column, port in enumerate(block.ports):
                joint = joint + along(port.of(incoming), column, len(block.ports))
            joints.append(joint)
        return joints

    def _send(self) -> list[tuple[Tensor, Tensor]]:
        """New messages of largest entry 1, by kind `(M, B, K)`, as logarithms and as they are."""
        incoming = [each.sub_(_top(each)) for each in self._incoming(self._beliefs())]
        if self._linear:
            incoming = [each.exp_() for each in incoming]
        outgoing = [torch.empty_like(edges) for edges in self.edges]
        for number, block in enumerate(self.stack.blocks):
            received = [port.of(incoming) for port in block.ports]
            for column, port in enumerate(block.ports):
                port.of(outgoing).copy_(self._message(number, column, received))
        return [self._scaled(each) for each in outgoing]

    def _message(self, number: int, column: int, received: Sequence[Tensor]) -> Tensor:
        """What the factors of a block send to one column of their scopes, `(F, B, K)`."""
        others = [other for other in range(len(received)) if other != column]
        if self._linear:
            return contract(self._weights_of_states[number][column], [received[other] for other in others])
        joint = self.tables[number]
        for other in others:
            joint = joint + along(received[other], other, len(received))
        return self._reduced(joint, tuple(other + 2 for other in others))

    def _scaled(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        if self._linear:
            messages.div_(messages.amax(-1, keepdim=True) if len(messages) else messages)
            return messages.log(), messages
        messages.sub_(_top(messages))
        messages = torch.where(messages == -torch.inf, messages, messages.clamp(min=-self._largest))
        return messages, messages.exp()

    def _reduced(self, table: Tensor, dims: tuple[int, ...]) -> Tensor:
        return table.amax(dims) if self.maximize else logsumexp(table, dims)

    @cached_property
    def _plain(self) -> bool:
        """Whether all weights are one."""
        return all(bool((weight == 1).all()) for weight in self.weights)

    @cached_property
    def _linear(self) -> bool:
        """Whether sums of products can be taken as they are: no zeros, and no underflow."""
        limit = _SAFE_RANGE.get(self.stack.tables.like.dtype, 0.0)
        ranges = [t.flatten(2).amax(-1) - t.flatten(2).amin(-1) for t in self.tables]
        finite = all(bool(kind.unary.isfinite().all()) for kind in self.stack.kinds)
        return not self.maximize and finite and all(bool((each < limit).all()) for each in ranges)

    @cached_property
    def _largest(self) -> float:
        """Beyond which differences of log-messages are cut: cycles can make them grow for ever, to be noise in sums."""
        finite = [table[table != -torch.inf] for table in self.tables]
        ranges = [float(each.max() - each.min()) for each in finite if len(each)]
        return max(math.sqrt(1 / torch.finfo(self.stack.tables.like.dtype).eps), 4 * max(ranges, default=0.0))

    @cached_property
    def _weights_of_states(self) -> list[list[Tensor]]:
        """The exponentials of tables, at most 1, with each column of the scopes first."""
        found = []
        for table in self.tables:
            weights = (table - table.amax(tuple(range(2, table.dim())), keepdim=True)).exp()
            found.append([column_first(weights, column) for column in range(table.dim() - 2)])
        return found


def _top(logits: Tensor) -> Tensor:
    """The largest of the last dim, `(..., 1)`; zero where all is `-inf`."""
    return logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min) if len(logits) else logits


def _normalized(logits: Tensor, lead: int) -> Tensor:
    """Probabilities over all dims but the first `lead`; zero where nothing is possible."""
    return logits.flatten(lead).softmax(-1).nan_to_num(0.0).reshape(logits.shape)
