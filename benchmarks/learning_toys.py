"""Learning densities in two dims without a sampler: the divergence of what is learned from what is true.

A network of 2-128-128-1 units tilts a Gaussian of scale 2. Targets are eight Gaussians on a ring, whose masses are to
be found, and a checkerboard, whose edges are to be. What counts is `KL(target | learned)` in nats, normalised on a
grid.

    python benchmarks/learning_toys.py --seeds 3
    python benchmarks/learning_toys.py --targets checkerboard --objectives cnce --steps 10000
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import machine, table, write_section
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal

from pyro_ebm import (
    ConditionalNoiseContrastive,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EnergyDistribution,
    NeuralEnergy,
    NoiseContrastive,
    Objective,
    SlicedScoreMatching,
)

RADIUS, SPREAD = 2.0, 0.2
REACH, CELLS = 8.0, 400

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "energy discrepancy": EnergyDiscrepancy,
    "cnce": ConditionalNoiseContrastive,
    "nce": NoiseContrastive,
    "sliced score matching": SlicedScoreMatching,
    "denoising score matching": DenoisingScoreMatching,
}


def centers() -> Tensor:
    """Those of the eight Gaussians, `(8, 2)`."""
    angle = torch.arange(8) * math.pi / 4
    return RADIUS * torch.stack([angle.cos(), angle.sin()], -1)


def draw(target: str, count: int, generator: Generator) -> Tensor:
    """Draws of a target, `(count, 2)`."""
    if target == "eight gaussians":
        chosen = torch.randint(8, (count,), generator=generator)
        return centers()[chosen] + SPREAD * torch.randn(count, 2, generator=generator)
    square = torch.randint(8, (count,), generator=generator)  # squares of side 2, in rows of two of four
    row, column = square // 2, 2 * (square % 2) + (square // 2) % 2
    corner = 2.0 * torch.stack([column, row], -1) - 4
    return corner + 2 * torch.rand(count, 2, generator=generator)


def log_density(target: str, x: Tensor) -> Tensor:
    """The log density of a target at `(*lead, 2)`, `(*lead,)`."""
    if target == "eight gaussians":
        parts = Independent(Normal(centers(), SPREAD), 1).log_prob(x.unsqueeze(-2))
        return parts.logsumexp(-1) - math.log(8)
    square = torch.floor(x / 2)
    inside = (x.abs() < 4).all(-1) & ((square.sum(-1) % 2) == 0)
    return torch.where(inside, -math.log(32), -math.inf)


def divergence(learned: EnergyDistribution, target: str) -> float:
    """`KL(target | learned)` in nats, by a grid's midpoints."""
    width = 2 * REACH / CELLS
    axis = -REACH + width * (torch.arange(CELLS) + 0.5)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_q = learned.unnormalized_log_prob(x).double().log_softmax(0) - 2 * math.log(width)
    log_p = log_density(target, x).double()
    p = log_p.exp() * width**2
    return float((p * (log_p - log_q)).nansum())  # zero times minus infinity, where the target is not


def tilted_gaussian() -> EnergyDistribution:
    """A network that tilts a Gaussian of scale 2, and starts flat."""
    last = nn.Linear(128, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), last, nn.Flatten(0))
    return EnergyDistribution(NeuralEnergy(net, (2,)), Independent(Normal(torch.zeros(2), 2.0), 1))


def train(objective: Objective, target: str, seed: int, *, steps: int = 3000, batch: int = 256) -> EnergyDistribution:
    """Minimise an objective by Adam, its rate falling from 2e-3 to zero, with an average of the last weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learned = tilted_gaussian()
    average = copy.deepcopy(learned.energy)
    objective(learned, draw(target, 10_000, generator))  # what is fitted to the first data
    parameters = [*learned.energy.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = objective(learned, draw(target, batch, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(0.995, step / (step + 10))
            for old, new in zip(average.parameters(), learned.energy.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
    return EnergyDistribution(average, learned.base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--targets", nargs="+", default=["eight gaussians", "checkerboard"])
    parser.add_argument("--objectives", nargs="+", default=["energy discrepancy", "cnce"], choices=list(OBJECTIVES))
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for target in given.targets:
        for name in given.objectives:
            started = time.process_time()
            found = [
                divergence(train(OBJECTIVES[name](), target, seed, steps=given.steps), target)
                for seed in range(given.seeds)
            ]
            each = (time.process_time() - started) / given.seeds
            listed = ", ".join(f"{value:.4f}" for value in found)
            rows.append([target, name, listed, f"{statistics.median(found):.4f}", f"{each:.0f}"])
            print(" ".join(rows[-1]), flush=True)
    text = f"""\
{machine()}.

    python benchmarks/learning_toys.py --seeds {given.seeds} --steps {given.steps}

`KL(target | learned)` in nats, on a fine grid, by seed; seconds of the processor for each.

{table(["target", "objective", "KL", "median", "s"], rows)}
"""
    if given.write is not None:
        write_section(given.write, "Densities in two dims", text)


if __name__ == "__main__":
    main()
