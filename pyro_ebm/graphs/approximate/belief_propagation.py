"""Loopy belief propagation: marginals and log Z by messages, exact on trees."""

from __future__ import annotations

from pyro_ebm.graphs.approximate.approximation import Approximation, conclude
from pyro_ebm.graphs.approximate.message_passing import MessagePassing
from pyro_ebm.graphs.approximate.stacking import stack
from pyro_ebm.graphs.graph import FactorGraph


def belief_propagation(
    graph: FactorGraph,
    *,
    max_product: bool = False,
    damping: float = 0.5,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Approximation:
    """Approximate marginals and log Z by loopy belief propagation, all messages at once in each iteration.

    Where the graph has no cycles it is exact. Elsewhere log Z is Bethe's estimate, neither an upper nor a lower bound:
    `<θ, b> + Σ_f H(b_f) + Σ_i (1 - d_i) H(b_i)` for beliefs b and the numbers of factors d_i of elements.

    Args:
        graph: a discrete graph.
        max_product: whether to look for a most probable state: beliefs are then max-marginals scaled to add up to one,
            `mode` is a most probable state if they are exact and have no ties, and `log_partition` is the estimate of
            the largest log-density `max -E(x)`, the limit of log Z at low temperature.
        damping: the part of an old message that stays, from 0 to less than 1. More of it is slower, and converges more
            often.
        max_iterations: after how many to give up, with a warning.
        tolerance: the largest change of a message, of largest entry 1, at which to stop.
        progress: whether to show a bar.

    Raises:
        GraphError: if a variable is continuous.
        TreewidthError: if a factor over a whole variable has too many states for a table.
        ValueError: if a number does not fit.

    Warns:
        ConvergenceWarning: if messages still change at the end.

    References:
        Pearl 1988, Probabilistic Reasoning in Intelligent Systems.
        Kschischang, Frey and Loeliger 2001, Factor graphs and the sum-product algorithm.
        Yedidia, Freeman and Weiss 2005, Constructing free-energy approximations and generalized belief propagation.

    >>> import torch
    >>> from pyro_ebm import TableEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3,))
    >>> g.factor(TableEnergy(torch.tensor([[0.0, 1.0], [1.0, 0.5]])), x[:-1], x[1:])
    >>> answer = belief_propagation(g)
    >>> answer.log_partition, g.log_partition()
    (tensor(1.0369), tensor(1.0369))
    """
    stacked = stack(graph.log_tables())
    like = stacked.tables.like
    passing = MessagePassing(stacked, [like.new_ones(len(b.scopes)) for b in stacked.blocks], maximize=max_product)
    residuals = passing.run(
        damping=damping,
        max_iterations=max_iterations,
        tolerance=tolerance,
        progress=progress,
        description="belief_propagation",
    )
    return conclude(
        stacked,
        passing.value(),
        *passing.probabilities(),
        residuals,
        tolerance,
        "belief_propagation",
        "Raise damping or max_iterations; tree_reweighted converges more often, and bounds log Z.",
    )
