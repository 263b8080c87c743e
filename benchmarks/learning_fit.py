"""What `fit` reaches by maximum likelihood with nothing set: densities in two dims.

A network of 2-128-128-1 units, 100,000 draws of the target. What counts is `KL(target | learned)` in nats, on a grid,
and how far the log Z that walkers tell is from the true one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from learning_row import Figures, Goal, Row
from learning_toys import CELLS, REACH, divergence, draw
from torch import nn

from pyro_ebm import EnergyDistribution, fit


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))


@torch.no_grad()
def grid_log_partition(learned: EnergyDistribution) -> float:
    """Log Z by a grid's midpoints."""
    width = 2 * REACH / CELLS
    axis = -REACH + width * (torch.arange(CELLS) + 0.5)
    cells = learned.unnormalized_log_prob(torch.cartesian_prod(axis, axis)).double()
    return float(cells.logsumexp(0) + 2 * torch.tensor(width).log())


def likelihood(target: str) -> Callable[[int], Figures]:
    """`fit` of a seed."""

    def run(seed: int) -> Figures:
        torch.manual_seed(seed)
        data = draw(target, 100_000, torch.Generator().manual_seed(seed))
        learned = fit(perceptron(), data, progress_bar=False)
        found = learned.log_partition
        if found is None:
            raise RuntimeError("fit of a network: expected walkers")
        return {
            "KL": divergence(learned.distribution, target),
            "error of log Z": abs(float(found.value) - grid_log_partition(learned.distribution)),
            "s.e. of log Z": float(found.standard_error),
        }

    return run


ROWS = (
    Row("8 Gaussians by likelihood", likelihood("eight gaussians"), {"KL": Goal(high=0.01), "s": Goal(high=60)}),
    Row("checkerboard by likelihood", likelihood("checkerboard"), {}),
)
