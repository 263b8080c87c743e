"""Tree-reweighted belief propagation: an upper bound on log Z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pyro_ebm.graphs.approximate.approximation import Approximation, conclude
from pyro_ebm.graphs.approximate.message_passing import MessagePassing
from pyro_ebm.graphs.approximate.spanning_forests import appearance, maximal_forest
from pyro_ebm.graphs.approximate.stacking import stack
from pyro_ebm.graphs.graph import FactorGraph


def tree_reweighted(
    graph: FactorGraph,
    *,
    num_forests: int = 20,
    optimize: int = 0,
    damping: float = 0.5,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
    progress: bool = False,
) -> Approximation:
    """Bound log Z from above, and approximate marginals, by tree-reweighted belief propagation.

    With ρ_f the probability that factor f appears in a random set of factors without a cycle (for pairs of elements, a
    spanning tree), `log Z ≤ max_b <θ, b> + Σ_i H(b_i) - Σ_f ρ_f I(b_f)` over consistent beliefs, where I is the mutual
    information of a factor's elements. The maximum is what messages converge to; it is exact where there are no cycles.

    Args:
        graph: a discrete graph.
        num_forests: of how many random forests the probabilities ρ are the frequencies.
        optimize: how often to move ρ towards the forest of greatest mutual information, which tightens the bound; each
            time messages are passed anew. The best bound for the batch as a whole is kept.
        damping: the part of an old message that stays, from 0 to less than 1.
        max_iterations: after how many to give up, with a warning. The bound holds at convergence.
        tolerance: the largest change of a message, of largest entry 1, at which to stop.
        generator: for the forests.
        progress: whether to show a bar.

    Raises:
        GraphError: if a variable is continuous.
        TreewidthError: if a factor over a whole variable has too many states for a table.
        ValueError: if a number does not fit.

    Warns:
        ConvergenceWarning: if messages still change at the end.

    References:
        Wainwright, Jaakkola and Willsky 2005, A new class of upper bounds on the log partition function.

    >>> from pyro_ebm import PottsEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3,))
    >>> g.factor(PottsEnergy(torch.tensor(1.0)), x[torch.tensor([[0, 1], [1, 2], [2, 0]])])
    >>> bool(tree_reweighted(g).log_partition >= g.log_partition())
    True
    """
    if optimize < 0:
        raise ValueError(f"tree_reweighted: got optimize={optimize}, expected 0 or more.")
    stacked = stack(graph.log_tables())
    scopes = [scope for block in stacked.blocks for scope in block.scopes.tolist()]

    def solve(weights: Tensor) -> tuple[MessagePassing, Tensor]:
        parts = weights.to(stacked.tables.like).split([len(block.scopes) for block in stacked.blocks])
        passing = MessagePassing(stacked, parts)
        residuals = passing.run(
            damping=damping,
            max_iterations=max_iterations,
            tolerance=tolerance,
            progress=progress,
            description="tree_reweighted",
        )
        return passing, residuals

    weights = appearance(scopes, len(stacked.tables.num_states), num_forests, generator)
    passing, residuals = solve(weights)
    step = 0.5
    for _ in range(optimize):
        moved = torch.lerp(weights, _most_informative(passing, scopes), step)
        other, changes = solve(moved)
        if float(other.value().detach().sum()) < float(passing.value().detach().sum()):
            weights, passing, residuals = moved, other, changes
        else:
            step /= 2
    return conclude(
        stacked,
        passing.value(),
        *passing.probabilities(),
        residuals,
        tolerance,
        "tree_reweighted",
        "Raise damping or max_iterations; until then log_partition need not be a bound.",
    )


def _most_informative(passing: MessagePassing, scopes: Sequence[Sequence[int]]) -> Tensor:
    """Which factors are in the forest of greatest mutual information, summed over the batch, `(F,)`.

    The gradient of the bound by ρ_f is minus the mutual information of f, so this is where it falls fastest (for
    factors of more than two elements the forest is a greedy one).
    """
    informations = []
    for joint in passing.probabilities()[1]:
        arity = joint.dim() - 2
        information = torch.special.entr(joint).flatten(2).sum(-1).neg()
        for column in range(arity):
            others = tuple(other + 2 for other in range(arity) if other != column)
            information = information + torch.special.entr(joint.sum(others)).sum(-1)
        informations.append(information.sum(-1))
    order = torch.cat(informations).argsort(descending=True).tolist() if informations else []
    chosen = torch.zeros(len(scopes), dtype=torch.float64)
    chosen[maximal_forest(scopes, len(passing.stack.tables.num_states), order)] = 1
    return chosen
