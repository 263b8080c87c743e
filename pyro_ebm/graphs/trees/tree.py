"""Exact sum-product on trees, `p(z) ∝ exp(Σ_n u_n(z_n) + Σ_n p_n(z_parent(n), z_n))`, by pure functions.

All take log-potentials, the *scores* of conditional random fields, which are negative energies: `unary` `(*batch, N,
K)` for N nodes of K states, and `pairwise`, broadcastable to `(*batch, N, K, K)`, indexed by the parent's and the
child's state, of the edge that leads into each node; what it has at roots is ignored. A score of -inf makes states
impossible. The nodes of one depth are one batch, so a pass has as many steps as the tree is deep.

References:
    Pearl (1988), Probabilistic reasoning in intelligent systems.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.log_space import below_max, logsumexp
from pyro_ebm._core.shapes import broadcast
from pyro_ebm.graphs.lookup import lookup
from pyro_ebm.graphs.trees.forest import Forest, Level


class TreePotentials(NamedTuple):
    """Log-potentials with aligned batch dims.

    Attributes:
        unary: `(*batch, N, K)`.
        pairwise: `(*b, N, K, K)`, or with a dim of one for matrices that all edges share; each dim of `b` is one or
            that of the batch.
        forest: the edges.
    """

    unary: Tensor
    pairwise: Tensor
    forest: Forest

    @property
    def batch_shape(self) -> Size:
        """The batch shape."""
        return Size(self.unary.shape[:-2])

    def pairwise_at(self, nodes: Tensor) -> Tensor:
        """The matrices of the edges into nodes `(n,)`, `(*b, n | 1, K, K)`."""
        return self.pairwise if self.pairwise.shape[-3] == 1 else self.pairwise.index_select(-3, nodes)

    def upward(self) -> Iterator[tuple[Level, Tensor]]:
        """The levels with their unary log-potentials, `(*batch, n, K)`, leaves first."""
        for level in reversed(self.forest.levels):
            yield level, self.unary.index_select(-2, level.nodes)


def tree_potentials(unary: Tensor, pairwise: Tensor, forest: Forest) -> TreePotentials:
    """Align the arguments of the functions on trees.

    Raises:
        EnergyShapeError: if the shapes do not fit.
    """
    nodes = len(forest.parents)
    if unary.dim() < 2 or unary.shape[-2] != nodes or unary.shape[-1] == 0:
        raise EnergyShapeError(
            f"tree: got unary log-potentials of shape {tuple(unary.shape)}, expected (*batch, {nodes}, K), for there "
            f"are {nodes} parents."
        )
    states = unary.shape[-1]
    square = pairwise.dim() >= 2 and pairwise.shape[-2:] == (states, states)
    if not square or (pairwise.dim() > 2 and pairwise.shape[-3] not in (1, nodes)):
        raise EnergyShapeError(
            f"tree: got pairwise log-potentials of shape {tuple(pairwise.shape)}, expected one that broadcasts to "
            f"(*batch, {nodes}, {states}, {states}). For matrices that differ in the batch but not among the edges, "
            "insert a dim of one: pairwise.unsqueeze(-3)."
        )
    pairwise = pairwise if pairwise.dim() > 2 else pairwise.unsqueeze(0)
    batch_shape = broadcast([Size(unary.shape[:-2]), Size(pairwise.shape[:-3])], "tree")
    dtype = torch.promote_types(unary.dtype, pairwise.dtype)
    return TreePotentials(unary.to(dtype).expand(*batch_shape, nodes, states), pairwise.to(dtype), forest)


def upward_messages(potentials: TreePotentials) -> tuple[Tensor, list[Tensor]]:
    """The upward pass, from leaves to roots.

    Returns:
        Log Z in nats, `(*batch,)`; and for each level, roots first, the log weight of each node's state with all that
        is below it, `(*batch, n, K)`.
    """
    found: list[Tensor] = []
    below: tuple[Level, Tensor] | None = None
    for level, weights in potentials.upward():
        if below is not None:
            lower, of_children = below
            into = potentials.pairwise_at(lower.nodes) + of_children.unsqueeze(-2)
            weights = weights.index_add(-2, lower.parents, logsumexp(into, -1))
        found.append(weights)
        below = level, weights
    log_z = logsumexp(found[-1], -1).sum(-1)  # over the trees of a forest
    return torch.where(log_z == -torch.inf, -torch.inf, log_z), found[::-1]


def log_partition(unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """Log Z, the log of the summed weights of all states of the tree.

    Args:
        unary: `(*batch, N, K)`.
        pairwise: broadcastable to `(*batch, N, K, K)`.
        forest: the edges.

    Returns:
        Log Z in nats, `(*batch,)`; -inf where no state is possible. It can be differentiated any number of times, and
        batched by `torch.func.vmap`; the gradient of what is impossible is zero.

    Raises:
        EnergyShapeError: if the shapes do not fit.

    >>> log_partition(torch.zeros(3, 2), torch.zeros(2, 2), Forest.from_parents([-1, 0, 0])).exp()
    tensor(8.)
    """
    return upward_messages(tree_potentials(unary, pairwise, forest))[0]


def marginals(unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """The probabilities of each node's states, `∂ log Z / ∂ unary`: the upward pass and its reverse.

    Args:
        unary: `(*batch, N, K)`.
        pairwise: broadcastable to `(*batch, N, K, K)`.
        forest: the edges.

    Returns:
        `(*batch, N, K)`; differentiable.

    >>> marginals(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.eye(2), Forest.from_parents([-1, 0]))
    tensor([[0.3932, 0.6068],
            [0.2689, 0.7311]])
    """
    return _gradient(tree_potentials(unary, pairwise, forest))[1]


def pairwise_marginals(unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """The joint probabilities of each node's parent's state and its own, `(*batch, N, K, K)`; zero at roots."""
    potentials = tree_potentials(unary, pairwise, forest)
    nodes, states = potentials.unary.shape[-2:]
    full = potentials.pairwise.expand(*potentials.batch_shape, nodes, states, states)
    return _gradient(potentials._replace(pairwise=full))[2]


def entropy(unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """The entropy of the states in nats, `log Z - E[score]`, `(*batch,)`; differentiable.

    >>> entropy(torch.zeros(3, 2), torch.zeros(2, 2), Forest.from_parents([-1, 0, 0])) / torch.tensor(2.0).log()
    tensor(3.)
    """
    given = tree_potentials(unary, pairwise, forest)
    nodes, states = given.unary.shape[-2:]
    at_edges = torch.where((forest.parents >= 0)[:, None, None], given.pairwise, 0.0)
    full = at_edges.expand(*given.batch_shape, nodes, states, states)
    potentials = TreePotentials(below_max(given.unary, (-1,)), below_max(full, (-2, -1)), forest)
    log_z, of_unary, of_pairwise = _gradient(potentials)
    unary, pairwise = (torch.where(p == -torch.inf, 0.0, p) for p in potentials[:2])
    return log_z - (of_unary * unary).sum((-2, -1)) - (of_pairwise * pairwise).sum((-3, -2, -1))


def score(value: Tensor, unary: Tensor, pairwise: Tensor, forest: Forest) -> Tensor:
    """The log weight of states `(*sample, *batch, N)`: the sum of their log-potentials, `(*sample, *batch)`.

    Raises:
        EnergyShapeError: if the shapes do not fit.
    """
    potentials = tree_potentials(unary, pairwise, forest)
    if value.dim() < 1 or value.shape[-1] != len(forest.parents):
        raise EnergyShapeError(
            f"tree: got states of shape {tuple(value.shape)}, expected (*sample, *batch, {len(forest.parents)})."
        )
    lead = broadcast([Size(value.shape[:-1]), potentials.batch_shape], "tree")
    value = value.long().expand(*lead, -1)
    total = lookup(potentials.unary, value).sum(-1)
    if len(forest.children) == 0:
        return total
    pairs = (value.index_select(-1, nodes) for nodes in (forest.parents[forest.children], forest.children))
    return total + lookup(potentials.pairwise_at(forest.children), *pairs).sum(-1)


def _gradient(potentials: TreePotentials) -> tuple[Tensor, Tensor, Tensor]:
    """Log Z and its gradients."""

    def log_z(unary: Tensor, pairwise: Tensor) -> Tensor:
        return upward_messages(TreePotentials(unary, pairwise, potentials.forest))[0]

    outputs: Any = torch.func.vjp(log_z, potentials.unary, potentials.pairwise)
    found, pull_back = outputs
    return found, *pull_back(torch.ones_like(found))
