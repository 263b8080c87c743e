"""Diffusion models as energies: learned by denoising, sampled by annealed Langevin dynamics and by a flow, composed.

In the plane, two networks learn an energy at every noise level: one of eight Gaussians, one of three columns. The
flow of the first has an exact log-likelihood, next to the true one. Then the two are summed, with no more training:
the product prefers the four Gaussians that stand on a column, with masses that are known. Annealed Langevin dynamics,
with the Metropolis correction, gives each its shape, and masses near those (they are settled at the level where the
Gaussians part); the flow of the sum, a reverse diffusion, gives neither.

On scikit-learn's handwritten digits, 8 x 8, one network learns the energy of an image given its label. Chains go from
noise down to images of each label, and the flow gives unseen images a log-likelihood.

Run it with `python examples/energy_diffusion.py`.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_ebm import (
    DenoisingScoreMatching,
    NeuralTimeConditional,
    ProbabilityFlow,
    TimeConditional,
    log_uniform,
    noise_levels,
    sample_annealed,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

LOWEST, HIGHEST = 0.05, 10.0
LEVELS = noise_levels(LOWEST, HIGHEST, 20)
SPREAD = 0.2
CENTERS = 2.0 * torch.stack([(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], -1)


class Perceptron(nn.Module):
    """What a network adds to the energy, of points, features of the noise level and covariates; it starts at zero.

    In the plane it sees waves of the point too, without which such a network learns fine detail very slowly.
    """

    def __init__(self, dim: int, context: int = 0, *, width: int = 128, num_waves: int = 0) -> None:
        super().__init__()
        self.num_waves = num_waves
        inputs = dim * (1 + 2 * num_waves) + NeuralTimeConditional.num_features + context
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*hidden, last, nn.Flatten(0))

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Points `(N, dim)` and other inputs to `(N,)`."""
        waves = [wave(2**k * x) for k in range(self.num_waves) for wave in (torch.sin, torch.cos)]
        output: Tensor = self.layers(torch.cat([x, *waves, *others], -1))
        return output


def learn(net: nn.Module, batch: Callable[[], tuple[TimeConditional, Tensor]], steps: int, rate: float) -> None:
    """Denoise at a random level for each datum; the network ends as the average of its last weights."""
    objective = DenoisingScoreMatching(log_uniform(LOWEST, HIGHEST))
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = objective(*batch())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(0.995, step / (step + 10))
            for old, new in zip(average.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
    net.load_state_dict(average.state_dict())
    net.requires_grad_(False)


# In the plane


def eight_gaussians(count: int) -> Tensor:
    return CENTERS[torch.randint(8, (count,))] + SPREAD * torch.randn(count, 2)


def columns(count: int) -> Tensor:
    return torch.stack(
        [2.0 * torch.randint(-1, 2, (count,)) + SPREAD * torch.randn(count), 1.5 * torch.randn(count)], -1
    )


def log_density(x: Tensor) -> Tensor:
    """The true log density of the eight Gaussians, smoothed as the lowest level is."""
    variance = SPREAD**2 + LOWEST**2
    squares = (x.unsqueeze(-2) - CENTERS).square().sum(-1)
    return (-0.5 * squares / variance).logsumexp(-1) - math.log(8 * 2 * math.pi * variance)


def shares(x: Tensor) -> Tensor:
    """The share of draws next to each of the eight centers."""
    return torch.bincount(torch.cdist(x, CENTERS).argmin(-1), minlength=8) / len(x)


def product_masses() -> Tensor:
    """Those of the product of the two smoothed densities, at each center."""
    variance, wide = SPREAD**2 + LOWEST**2, 1.5**2 + LOWEST**2
    lines = torch.tensor([-2.0, 0.0, 2.0])
    across = (-0.25 * (CENTERS[:, :1] - lines).square() / variance).logsumexp(-1)
    along = -0.5 * CENTERS[:, 1].square() / (wide + variance)
    return (across + along).softmax(-1)


def plane(out: Path, steps: int) -> None:
    families = []
    for draw in (eight_gaussians, columns):
        start = time.process_time()
        family = NeuralTimeConditional(Perceptron(2, num_waves=3), (2,), data_scale=1.5)
        learn(family.net, lambda family=family, draw=draw: (family, draw(256)), steps, 1e-2)
        families.append(family)
        print(f"{draw.__name__}: learned in {time.process_time() - start:.0f} s")
    first, second = families
    flow = ProbabilityFlow(first, LEVELS)
    unseen = eight_gaussians(2000) + LOWEST * torch.randn(2000, 2)
    with torch.no_grad():
        learned, true = flow.log_prob(unseen).mean(), log_density(unseen).mean()
    print(f"log-likelihood by the flow: {learned:.3f} nats, of {true:.3f} for the true density")
    draws = {
        "annealed Langevin": sample_annealed(first, LEVELS, 2000),
        "probability flow": flow.sample((2000,)),
    }
    for name, x in draws.items():
        print(f"{name}: shares of the eight from {shares(x).min():.3f} to {shares(x).max():.3f}, each to be 0.125")
    both = first + second
    products = {
        "product, annealed Langevin": sample_annealed(both, LEVELS, 2000, num_steps=30),
        "product, flow (wrong)": ProbabilityFlow(both, LEVELS).sample((2000,)),
    }
    right = product_masses()
    print(f"masses of the product: {[round(float(p), 3) for p in right]}")
    for name, x in products.items():
        near = (torch.cdist(x, CENTERS).amin(-1) < 4 * SPREAD).float().mean()
        print(f"{name}: {[round(float(p), 3) for p in shares(x)]}; near a center: {near:.3f}")

    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), constrained_layout=True)
    scatters = {"eight Gaussians": eight_gaussians(2000), "columns": columns(2000), **draws, **products}
    for axis, (title, x) in zip(axes.flat, scatters.items(), strict=False):
        axis.scatter(*x.T, s=1, alpha=0.3, linewidths=0)
        axis.set_title(title, fontsize=9)
    line = torch.linspace(-4, 4, 200)
    grid = torch.cartesian_prod(line, line)
    for axis, sigma in zip(axes.flat[6:], (1.0, LOWEST), strict=True):
        surface = first.at(sigma)(grid).reshape(200, 200)
        axis.imshow((surface - surface.min()).T, origin="lower", extent=(-4, 4, -4, 4), vmax=12, cmap="viridis_r")
        axis.set_title(f"learned energy at σ = {sigma:g}", fontsize=9)
    for axis in axes.flat:
        axis.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=[], yticks=[])
    figure.savefig(out / "plane.png", dpi=110)


# Digits


def digits(out: Path, steps: int) -> None:
    given = load_digits()
    order = torch.randperm(len(given.data))
    pixels, labels = torch.tensor(given.data).float()[order], torch.tensor(given.target)[order]
    train, unseen = slice(0, 1500), slice(1500, None)
    center = (pixels[train].mean(0) + 0.5) / 17

    def continuous(x: Tensor) -> Tensor:
        """Whole numbers up to 16 as real ones, by noise below one of them, around zero."""
        return 2 * ((x + torch.rand(x.shape)) / 17 - center)

    scale = float(continuous(pixels[train]).std())
    net = Perceptron(64, 10, width=384)
    one_hot = torch.eye(10)

    def of_labels(given: Tensor) -> NeuralTimeConditional:
        return NeuralTimeConditional(net, (64,), data_scale=scale, context=one_hot[given])

    def batch() -> tuple[TimeConditional, Tensor]:
        chosen = torch.randint(1500, (128,))
        return of_labels(labels[chosen]), continuous(pixels[chosen])

    start = time.process_time()
    learn(net, batch, steps, 2e-3)
    print(f"digits: learned in {time.process_time() - start:.0f} s")
    ten = of_labels(torch.arange(10))  # a batch of ten energies
    images = sample_annealed(ten, LEVELS, 10, num_steps=30)
    flow = ProbabilityFlow(of_labels(labels[unseen]), LEVELS, num_probes=4, tolerance=0.02)
    with torch.no_grad():
        found = flow.log_prob(continuous(pixels[unseen])).mean()
    print(f"unseen digits: {found:.1f} nats an image, given its label")

    figure, axes = plt.subplots(10, 16, figsize=(8, 5.2))
    for number, row in enumerate(axes):
        data = pixels[train][labels[train] == number][:5] / 16
        drawn = (images[:, number] / 2 + center) * 17 / 16 - 0.5 / 16
        for axis, image in zip(row, [*data, None, *drawn], strict=True):
            axis.axis("off")
            if image is not None:
                axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    axes[0, 2].set_title("data", fontsize=9)
    axes[0, 10].set_title("drawn, given the label", fontsize=9)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94)
    figure.savefig(out / "digits.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/energy_diffusion"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=2000, help="of training each network")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plane(options.output, options.steps)
    digits(options.output, options.steps)
    print(f"wrote {options.output}/plane.png and digits.png")


if __name__ == "__main__":
    main()
