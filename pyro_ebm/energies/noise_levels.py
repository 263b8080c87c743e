"""Noise levels: where a time-conditional energy is visited on the way from noise to data."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import ExpTransform, TransformedDistribution, Uniform


def noise_levels(lowest: float, highest: float, num_levels: int, *, rho: float = 7.0) -> Tensor:
    """Falling noise levels `σ_k = (h^(1/ρ) + k/(L-1) (l^(1/ρ) - h^(1/ρ)))^ρ`, from h to l.

    Args:
        lowest: l, in the data's units: what is finer is smoothed away.
        highest: h, several times as large as the data's spread: a Gaussian of that scale is where samplers start.
        num_levels: L.
        rho: ρ; the larger it is, the more of the levels are low. Infinity gives equal ratios.

    Returns:
        `(L,)`, from the highest to the lowest, in torch's default dtype.

    Raises:
        ValueError: if the levels are not positive and in order, or there are fewer than two.

    References:
        Karras, Aittala, Aila and Laine 2022, Elucidating the design space of diffusion-based generative models.

    >>> noise_levels(0.1, 10.0, 3, rho=math.inf)
    tensor([10.0000,  1.0000,  0.1000])
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"noise_levels: got lowest={lowest} and highest={highest}, expected 0 < lowest < highest.")
    if num_levels < 2 or not rho > 0:
        raise ValueError(f"noise_levels: got num_levels={num_levels} and rho={rho}, expected at least 2, and rho > 0.")
    share = torch.linspace(0, 1, num_levels, dtype=torch.float64)
    if math.isinf(rho):
        levels = highest * (lowest / highest) ** share
    else:
        ends = highest ** (1 / rho), lowest ** (1 / rho)
        levels = (ends[0] + share * (ends[1] - ends[0])) ** rho
    levels[0], levels[-1] = highest, lowest  # which powers miss by rounding
    return levels.to(torch.get_default_dtype())


def log_uniform(lowest: float, highest: float) -> TransformedDistribution:
    """The distribution of noise levels whose logarithm is uniform, between two of them.

    Raises:
        ValueError: if the levels are not positive and in order.

    >>> round(float(log_uniform(0.1, 10.0).icdf(torch.tensor(0.5))), 4)
    1.0
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"log_uniform: got lowest={lowest} and highest={highest}, expected 0 < lowest < highest.")
    return TransformedDistribution(Uniform(math.log(lowest), math.log(highest)), ExpTransform())


def checked_levels(levels: Tensor, what: str) -> Tensor:
    """The levels, if they are positive and fall.

    Raises:
        ValueError: if they do not.
    """
    falling = levels.dim() == 1 and len(levels) > 1 and bool((levels.diff() < 0).all()) and bool(levels[-1] > 0)
    if not falling or not bool(levels[0].isfinite()):
        raise ValueError(
            f"{what}: got levels of shape {tuple(levels.shape)}, expected (L,) with L > 1, positive and falling. "
            "Try noise_levels(lowest, highest, num_levels)."
        )
    return levels
