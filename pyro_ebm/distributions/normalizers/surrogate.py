"""The function of the parameters that stands for log Z: right in value, gradient and curvature at its anchor.

    log Z̃(θ) = sg[l] + log Σ_j w_j exp(u_θ(y_j) - sg[u_ψ(y_j)])

with walkers y and weights w (summing to one) at parameters ψ, the anchor, where log Z is l, and `u = log base - E`. Off
its anchor it is importance sampling (Geyer 1991, Markov chain Monte Carlo maximum likelihood): right as long as enough
walkers count.
"""

import torch
from torch import Tensor

from pyro_ebm._core.errors import AnchorError, LogNormalizerUncertainError, StaleWalkersError
from pyro_ebm.diagnostics.pareto import pareto_k
from pyro_ebm.distributions.normalizers.population import relative_ess

_MIN_SHARE = 0.1
_MAX_PARETO_K = 0.7
# With fewer walkers there is no tail to speak of; nor is there one where so large a share counts, and ties of discrete
# energies would spoil its fit.
_MIN_FOR_PARETO, _ENOUGH_SHARE = 100, 0.5
# In nats: a log Z whose standard error is larger is not reported.
_MAX_ERROR = 0.5


def surrogate(value: Tensor, log_weights: Tensor, log_density: Tensor, anchor: Tensor) -> Tensor:
    """Log Z as a function of what `log_density` depends on.

    Args:
        value: l, `(*batch,)`.
        log_weights: of walkers, summing to one, `(walkers, *batch)`.
        log_density: u at the walkers, with its graph, `(walkers, *batch)`.
        anchor: u at the walkers, as it was at the anchor, `(walkers, *batch)`.

    Returns:
        `(*batch,)`, of the dtype of `log_density`.
    """
    ratio = log_density - anchor.detach()
    return value.to(ratio) + torch.logsumexp(log_weights.to(ratio) + ratio, 0)


def check_anchor(log_weights: Tensor, log_density: Tensor, anchor: Tensor) -> None:
    """Raise where too few frozen walkers count for importance sampling from the anchor.

    Raises:
        AnchorError: if less than a tenth of them count, or the tail of their weights is too heavy.
    """
    found = _too_far(log_weights, log_density, anchor)
    if found is not None:
        raise AnchorError(
            f"frozen walkers: {found} at these parameters, which are too far from those where the walkers were frozen. "
            "Freeze them nearer: set the parameters to their posterior mean, walkers.unfreeze(), "
            "walkers.refresh(distribution, num_steps=...), walkers.freeze()."
        )


def check_fresh(log_weights: Tensor, log_density: Tensor, anchor: Tensor) -> None:
    """Raise where a report is asked for, and the parameters are far from where the walkers were refreshed last.

    Raises:
        StaleWalkersError: by the measures of `check_anchor`.
    """
    found = _too_far(log_weights, log_density, anchor)
    if found is not None:
        raise StaleWalkersError(
            f"walkers: {found} at these parameters, which were changed since the walkers were refreshed last; under "
            "torch.no_grad they are not moved. Call walkers.refresh(distribution, num_steps=...) first, or "
            "walkers.restart(distribution)."
        )


def check_certain(standard_error: Tensor) -> None:
    """Raise where a report is asked for, and log Z is not known well enough.

    Raises:
        LogNormalizerUncertainError: if its standard error is above half a nat.
    """
    worst = float(standard_error.max())
    if not worst <= _MAX_ERROR:
        raise LogNormalizerUncertainError(
            f"walkers: got a log Z with a standard error of {worst:.2f} nats, expected at most {_MAX_ERROR}, to report "
            "it. Anneal anew, walkers.restart(distribution), or use more walkers; gradients are good meanwhile."
        )


def _too_far(log_weights: Tensor, log_density: Tensor, anchor: Tensor) -> str | None:
    ratio = log_weights + (log_density - anchor).detach().double()
    share = float(relative_ess(ratio).min())
    if not share >= _MIN_SHARE:
        return f"{share:.1%} of the walkers count (expected at least {_MIN_SHARE:.0%})"
    if len(ratio) < _MIN_FOR_PARETO or share >= _ENOUGH_SHARE:
        return None
    k = pareto_k(ratio.flatten(1).mT) if ratio.dim() > 1 else pareto_k(ratio.unsqueeze(0))
    if float(k.max()) <= _MAX_PARETO_K:
        return None
    return f"a Pareto k of {float(k.max()):.2f} (expected at most {_MAX_PARETO_K})"
