"""Exact sum-product on linear chains, `p(z) ∝ exp(Σ_t u_t(z_t) + Σ_t p_t(z_{t-1}, z_t))`, by pure functions.

All take log-potentials, the *scores* of conditional random fields, which are negative energies: `unary` `(*batch, T,
K)` for T steps of K states, and `pairwise`, broadcastable to `(*batch, T - 1, K, K)`, indexed by the previous and the
next state; one matrix `(K, K)` may serve all steps. A score of -inf makes states impossible. `lengths`, broadcastable
to `(*batch,)`, says how many steps each chain has; what comes after is padding.

References:
    Rabiner (1989), A tutorial on hidden Markov models.
    Lafferty, McCallum, Pereira (2001), Conditional random fields.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_ebm._core.log_space import below_max
from pyro_ebm.graphs.chains.log_space import filter_in_log_space, gradient_in_log_space, log_partition_by_pairs
from pyro_ebm.graphs.chains.partition import LogPartition, LogPartitionGradient
from pyro_ebm.graphs.chains.potentials import ChainPotentials, chain_potentials, path_score

# What is traced is unrolled, which makes programs that are too large for their compiler, or takes K times the work. So
# beyond these sizes tracing fails, as it should: scaled products, which branch on values, are faster eagerly.
_FEW_STEPS, _FEW_STATES = 12, 6


def log_partition(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Log Z, the log of the summed weights of all paths.

    Args:
        unary: `(*batch, T, K)`.
        pairwise: broadcastable to `(*batch, T - 1, K, K)`.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Returns:
        Log Z in nats, `(*batch,)`; -inf where there is no possible path. It can be differentiated more than once, and
        batched by `torch.func.vmap`; the gradient of what is impossible is zero.

    Raises:
        EnergyShapeError: if the shapes do not fit.

    >>> log_partition(torch.zeros(3, 2), torch.zeros(2, 2)).exp()
    tensor(8.)
    """
    return _log_partition(chain_potentials(unary, pairwise, lengths))[0]


def marginals(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The probabilities of each step's states, `∂ log Z / ∂ unary`.

    Args:
        unary: `(*batch, T, K)`.
        pairwise: broadcastable to `(*batch, T - 1, K, K)`.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Returns:
        `(*batch, T, K)`, zero in padding; differentiable.

    >>> marginals(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.eye(2))
    tensor([[0.3932, 0.6068],
            [0.2689, 0.7311]])
    """
    return _gradient(chain_potentials(unary, pairwise, lengths), full_pairwise=False)[1]


def pairwise_marginals(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The joint probabilities of the states of each two neighbours, `(*batch, T - 1, K, K)`; else as `marginals`."""
    return _gradient(chain_potentials(unary, pairwise, lengths), full_pairwise=True)[2]


def entropy(unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The entropy of the path in nats, `log Z - E[score]`, `(*batch,)`; differentiable.

    Args:
        unary: `(*batch, T, K)`.
        pairwise: broadcastable to `(*batch, T - 1, K, K)`.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    >>> entropy(torch.zeros(3, 2), torch.zeros(2, 2)) / torch.tensor(2.0).log()
    tensor(3.)
    """
    given = chain_potentials(unary, pairwise, lengths)
    # Constants change no probability: without them, less cancels.
    potentials = ChainPotentials(below_max(given.unary, (-1,)), below_max(given.pairwise, (-2, -1)), given.mask)
    log_z, of_unary, of_pairwise = _gradient(potentials, full_pairwise=True)
    unary, pairwise = (torch.where(p == -torch.inf, 0.0, p) for p in potentials[:2])
    return log_z - (of_unary * unary).sum((-2, -1)) - (of_pairwise * pairwise).sum((-3, -2, -1))


def score(value: Tensor, unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The log weight of paths: the sum of the log-potentials along them.

    Args:
        value: paths, `(*sample, *batch, T)`, of integers.
        unary: `(*batch, T, K)`.
        pairwise: broadcastable to `(*batch, T - 1, K, K)`.
        lengths: numbers of steps, broadcastable to `(*batch,)`.

    Returns:
        `(*sample, *batch)`.
    """
    return path_score(value, chain_potentials(unary, pairwise, lengths))


def log_prob(value: Tensor, unary: Tensor, pairwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The log probability of paths in nats, `score - log Z`; arguments and shapes as for `score`.

    >>> path = torch.tensor([0, 1, 1])
    >>> log_prob(path, torch.zeros(3, 2), torch.zeros(2, 2)).exp()
    tensor(0.1250)
    """
    potentials = chain_potentials(unary, pairwise, lengths)
    return path_score(value, potentials) - _log_partition(potentials)[0]


def filtered(potentials: ChainPotentials) -> tuple[Tensor, Tensor]:
    """Log Z, `(*batch,)`, and the log forward messages, each step up to a constant, `(T, *batch, K)`."""
    log_z, alpha, _ = _log_partition(potentials)
    return (log_z, alpha.log()) if len(alpha) else filter_in_log_space(potentials)


def _log_partition(potentials: ChainPotentials) -> tuple[Tensor, Tensor, Tensor]:
    if _traced():
        steps, states = potentials.unary.shape[-2:]
        none = potentials.unary.movedim(-2, 0)[:0]
        if steps <= _FEW_STEPS:
            return filter_in_log_space(potentials)[0], none, none
        if states <= _FEW_STATES:
            return log_partition_by_pairs(potentials), none, none
    found: tuple[Tensor, Tensor, Tensor] = LogPartition.apply(*potentials)  # type: ignore[no-untyped-call]
    return found


def _gradient(potentials: ChainPotentials, full_pairwise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log Z and its gradients."""
    log_z, alpha, ratio = _log_partition(potentials)
    weight = torch.ones_like(log_z)
    if _traced():
        return log_z, *gradient_in_log_space(weight, potentials, full_pairwise)
    return log_z, *LogPartitionGradient.apply(weight, *potentials, alpha, ratio, full_pairwise)  # type: ignore[no-untyped-call]


def _traced() -> bool:
    """Whether the operations are recorded, to be run on other values: then nothing may branch on these."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None
