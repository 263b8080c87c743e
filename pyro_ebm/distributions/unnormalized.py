"""The density of a site up to its constant: what is asked for where log Z is known to be one, or to cancel."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm.distributions.energy_distribution import energy_distribution_of


def unnormalized_log_prob(fn: Any, value: Tensor) -> Tensor:
    """The log density without the log Z of an energy distribution; that of any other distribution as it is.

    Args:
        fn: a Pyro distribution.
        value: `(*sample, *batch, *event)`.

    Returns:
        `(*sample, *batch)`. No legality is checked: it is for the caller to know that log Z is a constant, or cancels.
    """
    if energy_distribution_of(fn) is None:
        log_prob: Tensor = fn.log_prob(value)
        return log_prob
    if isinstance(fn, Independent):
        return sum_rightmost(unnormalized_log_prob(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        masked: Tensor = scale_and_mask(unnormalized_log_prob(fn.base_dist, value), mask=fn._mask)
        return masked
    inner: Tensor = fn.unnormalized_log_prob(value)
    return inner
