"""Learning families of energies over noise levels: masses of far modes, log-likelihood by the flow, digits.

Two modes on a line are at ±4 with spread .4 and masses .25 and .75; eight Gaussians of spread .2 are on a circle of
radius 2; digits are scikit-learn's, 8 x 8, made continuous by noise, 1500 to learn from and 297 unseen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from learning_row import Figures, Goal, Row
from learning_toys import SPREAD, centers, draw
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from pyro_ebm import (
    DenoisingScoreMatching,
    NeuralTimeConditional,
    Objective,
    ProbabilityFlow,
    RecoveryLikelihood,
    log_uniform,
    noise_levels,
    sample_annealed,
    sample_recovery,
)

LOWEST, HIGHEST = 0.05, 10.0


class Perceptron(nn.Module):
    """Points, waves of them, and features of the level, to what a network adds to the energy; zero at first."""

    def __init__(self, dim: int, *, width: int = 128, num_waves: int = 3) -> None:
        super().__init__()
        self.num_waves = num_waves
        inputs = dim * (1 + 2 * num_waves) + NeuralTimeConditional.num_features
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last, nn.Flatten(0)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """`(N, dim)` and `(N, features)` to `(N,)`."""
        waves = [wave(2**k * x) for k in range(self.num_waves) for wave in (torch.sin, torch.cos)]
        output: Tensor = self.layers(torch.cat([x, *waves, level], -1))
        return output


def learn(
    net: nn.Module,
    data: Callable[[], Tensor],
    objective: Objective,
    *,
    data_scale: float,
    steps: int,
    rate: float = 1e-2,
) -> NeuralTimeConditional:
    """Minimise an objective by Adam, its rate falling to zero, with an average of the last weights."""
    shape = data().shape[1:]
    family = NeuralTimeConditional(net, shape, data_scale=data_scale)
    average = copy.deepcopy(family)
    optimizer = torch.optim.Adam(family.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = objective(family, data())
        loss.backward()
        nn.utils.clip_grad_norm_(family.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(0.995, step / (step + 10))
            for old, new in zip(average.parameters(), family.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
    return average.requires_grad_(False)


# Far modes


def two_modes(count: int) -> Tensor:
    """Draws `(count, 1)`."""
    right = torch.rand(count, 1) < 0.75
    return torch.where(right, 4.0, -4.0) + 0.4 * torch.randn(count, 1)


def far_modes(method: str, seed: int) -> Figures:
    torch.manual_seed(seed)
    if method == "recovery":
        objective: Objective = RecoveryLikelihood(noise_levels(LOWEST, 20.0, 12), num_steps=10)
        steps = 600
    else:
        objective, steps = DenoisingScoreMatching(log_uniform(LOWEST, 20.0)), 1500
    family = learn(Perceptron(1), lambda: two_modes(256), objective, data_scale=4.0, steps=steps)
    grid = torch.linspace(-8, 8, 1601).unsqueeze(-1)
    cell = 16 / 1600
    alone = (-family.at(LOWEST)(grid)).double().softmax(0)
    variance = 0.16 + LOWEST**2
    modes = torch.tensor([-4.0, 4.0]), torch.tensor([0.25, 0.75]).log()
    true = (modes[1] - 0.5 * (grid - modes[0]).square() / variance).logsumexp(-1).double()
    true = true - 0.5 * math.log(2 * math.pi * variance)
    levels = noise_levels(LOWEST, 20.0, 12 if method == "recovery" else 20)
    with torch.no_grad():
        learned = ProbabilityFlow(family, levels, tolerance=1e-3).log_prob(grid).double()
    sampler = sample_recovery if method == "recovery" else sample_annealed
    x = sampler(family, levels, 5000, disable_progbar=True)
    return {
        "KL of the flow": float((true.exp() * (true - learned)).sum() * cell),
        "left mass of the flow": float((learned.exp() * cell)[grid[:, 0] < 0].sum()),
        "left mass of the draws": float((x < 0).float().mean()),
        "left mass of the lowest energy alone": float(alone[grid[:, 0] < 0].sum()),
    }


# Likelihoods


def eight_gaussians(seed: int) -> Figures:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    objective = DenoisingScoreMatching(log_uniform(LOWEST, HIGHEST))
    family = learn(
        Perceptron(2), lambda: draw("eight gaussians", 256, generator), objective, data_scale=1.5, steps=3000
    )
    x = draw("eight gaussians", 4000, generator)
    x = x + LOWEST * torch.randn(x.shape, generator=generator)
    variance = SPREAD**2 + LOWEST**2
    squares = (x.unsqueeze(-2) - centers()).square().sum(-1)
    true = (-0.5 * squares / variance).logsumexp(-1) - math.log(8 * 2 * math.pi * variance)
    levels = noise_levels(LOWEST, HIGHEST, 20)
    flow = ProbabilityFlow(family, levels)
    with torch.no_grad():
        gap = (true - flow.log_prob(x)).mean()

    def worst_share(draws: Tensor) -> float:
        shares = torch.bincount(torch.cdist(draws, centers()).argmin(-1), minlength=8) / len(draws)
        return float((shares - 0.125).abs().max())

    return {
        "nats below the true log-likelihood": float(gap),
        "worst mass error, annealed": worst_share(sample_annealed(family, levels, 5000, disable_progbar=True)),
        "worst mass error, flow": worst_share(flow.sample((5000,))),
    }


def digits(seed: int) -> Figures:
    torch.manual_seed(seed)
    pixels = torch.tensor(load_digits().data).float()
    pixels = pixels[torch.randperm(len(pixels))]
    center = (pixels[:1500].mean(0) + 0.5) / 17

    def continuous(x: Tensor) -> Tensor:
        return 2 * ((x + torch.rand(x.shape)) / 17 - center)

    train, unseen = continuous(pixels[:1500].repeat(4, 1)), continuous(pixels[1500:])
    family = learn(
        Perceptron(64, width=384, num_waves=0),
        lambda: continuous(pixels[torch.randint(1500, (128,))]),
        DenoisingScoreMatching(log_uniform(LOWEST, HIGHEST)),
        data_scale=float(train.std()),
        steps=3000,
        rate=2e-3,
    )
    flow = ProbabilityFlow(family, noise_levels(LOWEST, HIGHEST, 20), num_probes=4, tolerance=0.02)
    with torch.no_grad():
        found = {"flow": float(flow.log_prob(unseen).mean())}
    for count in (1, 10):
        peer = GaussianMixture(count, reg_covar=LOWEST**2, random_state=seed).fit(train.numpy())
        found[f"mixture of {count} Gaussians"] = float(peer.score(unseen.numpy()))
    return found


ROWS: tuple[Row, ...] = (
    Row(
        "far modes by recovery likelihood",
        lambda seed: far_modes("recovery", seed),
        {"KL of the flow": Goal(high=0.01), "left mass of the draws": Goal(0.23, 0.27, worst=True)},
    ),
    Row(
        "far modes by denoising, annealed Langevin",
        lambda seed: far_modes("denoising", seed),
        {"KL of the flow": Goal(high=0.01), "left mass of the draws": Goal(0.23, 0.27, worst=True)},
    ),
    Row("eight Gaussians", eight_gaussians, {"nats below the true log-likelihood": Goal(high=0.05)}),
    Row("digits, nats an image", digits, {"flow": Goal(low=21.5)}),
)
