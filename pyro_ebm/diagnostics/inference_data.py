"""Dictionaries of tensors as ArviZ's `InferenceData` (a `DataTree` from ArviZ 1.0 on)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from arviz import InferenceData as InferenceData  # for the layers above

Groups = Mapping[str, Mapping[str, Tensor]]


def inference_data(
    groups: Groups,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> InferenceData:
    """Convert groups of draws to ArviZ.

    Args:
        groups: variables by group by name. Draws are `(chains, draws, *shape)`, data are `(*shape)`. Empty groups are
            left out; those that start with `warmup_` go beside their namesakes.
        dims: names of a variable's dims, after chain and draw.
        coords: labels along named dims.
        attrs: what to keep of the run.

    Returns:
        ArviZ's container, ready for `az.summary`, `az.loo`, `az.plot_trace` and kin.
    """
    import arviz as az

    from_dict: Any = az.from_dict
    arrays = {
        group: {name: to_numpy(value) for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    options: dict[str, Any] = {"dims": {k: list(v) for k, v in (dims or {}).items()}, "coords": dict(coords or {})}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains")  # than draws: as it may be where hundreds cost little
        if "posterior" in inspect.signature(from_dict).parameters:  # before ArviZ 1.0: a keyword for each group
            saves = any(group.startswith("warmup_") for group in arrays)
            data: InferenceData = from_dict(**arrays, **options, save_warmup=saves)
        else:
            data = from_dict(arrays, **options)
    posterior = getattr(data, "posterior", None)
    if posterior is not None:
        posterior.attrs.update(attrs or {})
    return data


def to_numpy(value: Tensor) -> np.ndarray[Any, Any]:
    """A tensor on any device as a NumPy array."""
    array: np.ndarray[Any, Any] = value.detach().cpu().numpy()
    return array
