"""Gaussian perturbations in opposite pairs."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.randomness import normal


def mirrored_normal(count: int, shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal draws `(count, *shape)`, the second half of which is the first with the other sign.

    What is odd in them cancels in a mean over them, and with it most of the variance that small perturbations make.
    """
    half = normal((count - count // 2, *shape), like, generator)
    return torch.cat([half, -half[: count // 2]])
