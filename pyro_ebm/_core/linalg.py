"""Cholesky factors of many matrices at once, of which some may not be positive definite."""

from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.replacing import Replacing


def nan_cholesky() -> Replacing:
    """Makes `torch.linalg.cholesky` return NaN for the matrices that have no factor, in place of raising for them all.

    One chain at a point without a density must not end the others. Enter it where a factorisation has failed.
    """
    return Replacing({torch.linalg.cholesky: _cholesky_or_nan})


def _cholesky_or_nan(*args: Any, **kwargs: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(*args, **kwargs)
    failed: Tensor = (info != 0)[..., None, None]
    return torch.where(failed, torch.nan, factor)
