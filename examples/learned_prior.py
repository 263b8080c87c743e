"""A learned energy as the prior of latent values that are never seen: in an ordinary Pyro program, two ways.

Two-dimensional values lie on a ring; four noisy measurements are made of each, `x = A z + 0.5 ε`. What the values look
like is to be learned from the measurements alone. The prior is a network that tilts a Gaussian, and starts flat; its
log Z is followed by persistent walkers.

1. `SVI` with a Gaussian guide, an encoder: what the guide cannot say of a posterior, the prior learns wrongly.
2. `MonteCarloEM`, with Markov chains of each datum's posterior in the place of the guide.

Pictures of the densities, and of how the chains see a datum, go to `outputs/learned_prior`.

Run it with `python examples/learned_prior.py`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import CosineAnnealingLR
from torch import Tensor, nn

from pyro_ebm import EnergyDistribution, MonteCarloEM, NeuralEnergy, PersistentWalkers

mpl.use("Agg")
import matplotlib.pyplot as plt

RADIUS, WIDTH, NOISE, BATCH = 2.0, 0.15, 0.5, 200
MIXING = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
REACH, CELLS = 3.5, 140


def ring(count: int) -> Tensor:
    """The values that are never seen, `(count, 2)`."""
    angle = 2 * math.pi * torch.rand(count)
    radius = RADIUS + WIDTH * torch.randn(count)
    return radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def measured(z: Tensor) -> Tensor:
    """What is seen of them, `(count, 4)`."""
    return z @ MIXING.mT + NOISE * torch.randn(len(z), 4)


class Program:
    """The model: a learned prior, and a likelihood that is known."""

    def __init__(self) -> None:
        last = nn.Linear(32, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), last, nn.Flatten(0))
        self.walkers = PersistentWalkers()
        base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        self.prior = EnergyDistribution(NeuralEnergy(self.net, (2,)), base, log_normalizer=self.walkers)

    def __call__(self, x: Tensor) -> None:
        """The program."""
        pyro.module("net", self.net)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z @ MIXING.mT, NOISE).to_event(1), obs=x[idx])


class Guide:
    """A Gaussian for each datum, by a network."""

    def __init__(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 4))

    def __call__(self, x: Tensor) -> None:
        """The guide."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            loc, log_scale = self.encoder(x[idx]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(max=3).exp()).to_event(1))


def train(step: Callable[[Tensor], float], optim: CosineAnnealingLR, x: Tensor, steps: int) -> None:
    """Steps of an inference, whose rate falls to zero."""
    for _ in range(steps):
        step(x)
        optim.step()


def adam(rate: float, steps: int) -> CosineAnnealingLR:
    """Adam whose rate falls to zero."""
    return CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}, "T_max": steps})


def grid() -> Tensor:
    """Midpoints of the cells of a picture, `(cells², 2)`."""
    axis = REACH * (2 * (torch.arange(CELLS) + 0.5) / CELLS - 1)
    return torch.cartesian_prod(axis, axis)


def log_mass(log_density: Tensor) -> Tensor:
    """Of each cell of the picture, normalised."""
    return log_density.log_softmax(0)


def log_likelihood(mass: Tensor, x: Tensor) -> float:
    """The mean log likelihood of measurements, exact by quadrature."""
    place = grid() @ MIXING.mT
    square = torch.cdist(x, place).square() / (2 * NOISE**2)
    return float((mass - square).logsumexp(-1).mean()) - 2 * math.log(2 * math.pi * NOISE**2)


def draw(panels: dict[str, Tensor], x: Tensor, path: Path) -> None:
    """The densities side by side."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), constrained_layout=True)
    for ax, (name, mass) in zip(axes, panels.items(), strict=True):
        image = mass.exp().reshape(CELLS, CELLS).mT
        ax.imshow(image, origin="lower", extent=(-REACH, REACH, -REACH, REACH), cmap="magma")
        ax.set_title(f"{name}\n{log_likelihood(mass, x):.3f} nats", fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_chain(em: MonteCarloEM, mass: Tensor, path: Path) -> None:
    """Where the chains of the last minibatch are, over the learned prior."""
    figure, ax = plt.subplots(figsize=(4, 4), constrained_layout=True)
    image = mass.exp().reshape(CELLS, CELLS).mT
    ax.imshow(image, origin="lower", extent=(-REACH, REACH, -REACH, REACH), cmap="magma")
    z = em.values["z"]
    ax.scatter(z[:, 0], z[:, 1], s=6, color="cyan")
    ax.set_title("Chains of a minibatch, and the learned prior", fontsize=10)
    ax.set_xlim(-REACH, REACH)
    ax.set_ylim(-REACH, REACH)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/learned_prior"), help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=1000, help="of each of the two inferences")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    x, test = measured(ring(2000)), measured(ring(4000))
    cells = grid()
    variance = (RADIUS**2 + WIDTH**2) / 2
    radius = cells.norm(dim=-1)
    panels = {"best Gaussian prior": log_mass(-cells.square().sum(-1) / (2 * variance))}

    started = time.process_time()
    program, optim = Program(), adam(1e-2, options.steps)
    train(SVI(program, Guide(), optim, Trace_ELBO()).step, optim, x, options.steps)
    panels["SVI"] = log_mass(program.prior.unnormalized_log_prob(cells).detach())
    print(f"SVI: {time.process_time() - started:.0f} s of the processor")

    pyro.clear_param_store()
    started = time.process_time()
    program, optim = Program(), adam(1e-2, options.steps)
    em = MonteCarloEM(program, optim)
    train(em.step, optim, x, options.steps)
    panels["MonteCarloEM"] = log_mass(program.prior.unnormalized_log_prob(cells).detach())
    print(f"MonteCarloEM: {time.process_time() - started:.0f} s; acceptance {em.acceptance_rate:.2f}")
    print(f"log Z: {program.walkers.value.item():.3f} ± {program.walkers.standard_error.item():.3f} nats")

    panels["the ring"] = log_mass(dist.Normal(RADIUS, WIDTH).log_prob(radius) - radius.log())
    least, most = (log_likelihood(panels[name], test) for name in ("best Gaussian prior", "the ring"))
    for name, mass in panels.items():
        found = log_likelihood(mass, test)
        print(f"{name:20s} test log likelihood {found:.4f} nats, {(found - least) / (most - least):7.1%} of the gap")
    draw(panels, test, options.output / "priors.png")
    draw_chain(em, panels["MonteCarloEM"], options.output / "chains.png")
    print(f"Pictures: {options.output / 'priors.png'}, {options.output / 'chains.png'}")


if __name__ == "__main__":
    main()
