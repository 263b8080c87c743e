"""How heavy the tail of importance weights is."""

import torch
from torch import Tensor


def pareto_k(log_weights: Tensor) -> Tensor:
    """The shape k of a generalised Pareto distribution fitted to the largest weights.

    Below .5 their variance is finite; above .7 an estimate by them is not to be trusted.

    Args:
        log_weights: up to a constant, `(*lead, n)`.

    Returns:
        k, `(*lead,)`.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto smoothed importance sampling.

    >>> float(pareto_k(torch.zeros(100)))
    -inf
    """
    import arviz

    flat = log_weights.detach().double().reshape(-1, log_weights.shape[-1])
    level = flat - flat.amax(-1, keepdim=True)
    # Equal weights have no tail to fit.
    equal = (level == 0).all(-1)
    fitted = torch.full_like(level[:, 0], -torch.inf)
    if not bool(equal.all()):
        _, k = arviz.psislw(level[~equal].cpu().numpy())
        fitted[~equal] = torch.as_tensor(k, dtype=torch.double).to(fitted.device).reshape(-1)
    return fitted.reshape(log_weights.shape[:-1])
