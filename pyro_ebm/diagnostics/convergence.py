"""Convergence of draws, by ArviZ: rank-normalised split R-hat, bulk effective sample size, and a table of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_ebm.diagnostics.inference_data import to_numpy

if TYPE_CHECKING:
    from arviz import InferenceData


def convergence(draws: Mapping[str, Tensor]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """R-hat and bulk ESS of each variable.

    Args:
        draws: `(chains, draws, *shape)` by name.

    Returns:
        For each name `{"n_eff": (*shape), "r_hat": (*shape)}`; not-a-number where draws are too few.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Rank-normalization, folding, and localization.
    """
    import arviz as az

    table: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for name, value in draws.items():
        array = to_numpy(value)
        shape = array.shape[2:]
        flat = array.reshape(*array.shape[:2], -1)
        columns = [flat[..., i] for i in range(flat.shape[-1])]
        table[name] = {
            "n_eff": np.array([float(az.ess(column)) for column in columns]).reshape(shape),
            "r_hat": np.array([float(az.rhat(column)) for column in columns]).reshape(shape),
        }
    return table


def summary_table(data: InferenceData, prob: float) -> str:
    """ArviZ's summary as text, with the interval of probability `prob`."""
    import arviz as az

    frame = az.summary(data, hdi_prob=prob)
    text: str = frame.to_string()
    return text
