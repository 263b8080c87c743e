"""Cholesky factors of many matrices at once, of which some may not be positive definite."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NanCholesky(TorchFunctionMode):
    """Makes `torch.linalg.cholesky` return NaN for the matrices that have no factor, in place of raising for them all.

    One chain at a point without a density must not end the others. Every torch call pays for a mode, so enter it where
    a factorisation has failed.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace one function, and leave the others alone."""
        if func is not torch.linalg.cholesky:
            return func(*args, **(kwargs or {}))
        factor, info = torch.linalg.cholesky_ex(*args, **(kwargs or {}))
        failed: Tensor = (info != 0)[..., None, None]
        return torch.where(failed, torch.nan, factor)
