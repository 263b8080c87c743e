"""Training steps of an energy with walkers, by pyro_ebm, a loop by hand, or torchebm; float32, one thread.

A network 784-256-256-1 over a standard normal base, 128 data in a step, and 1,000 walkers that Langevin dynamics move
once or more. By hand, as in pyro_ebm, these are Metropolis-adjusted, and walkers have weights: half of them drive the
gradient and half track log Z. torchebm's are neither adjusted nor weighted, and it moves 1,000 chains for 1,000 data.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import torch
from langevin_job import torchebm_model
from measure import now
from torch import Tensor, nn

DATA, WALKERS, DIM, RATE, GROUPS = 128, 1000, 784, 1e-4, 10
STEP_SIZE = 1e-3


def network() -> nn.Sequential:
    """784-256-256-1, the last layer zero, the same for all."""
    torch.manual_seed(0)
    layers = [nn.Linear(DIM, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1), nn.Flatten(0)]
    nn.init.zeros_(layers[4].weight)
    nn.init.zeros_(layers[4].bias)
    return nn.Sequential(*layers)


def by_pyro_ebm(data: Callable[[], Tensor], moves: int) -> Callable[[], None]:
    from torch.distributions import Independent, Normal

    from pyro_ebm import EnergyDistribution, NeuralEnergy, PersistentWalkers

    net = network()
    walkers = PersistentWalkers(WALKERS // 2, num_steps=moves, num_groups=GROUPS)
    base = Independent(Normal(torch.zeros(DIM), 1.0), 1)
    distribution = EnergyDistribution(NeuralEnergy(net, (DIM,)), base, log_normalizer=walkers)
    optimizer = torch.optim.Adam(net.parameters(), RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss = -distribution.log_prob(data()).mean()
        loss.backward()
        optimizer.step()

    return step


def by_hand(data: Callable[[], Tensor], moves: int) -> Callable[[], None]:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    half = WALKERS // 2
    y, log_weight = torch.randn(WALKERS, DIM), torch.zeros(WALKERS, dtype=torch.double)
    log_z = torch.zeros(GROUPS, dtype=torch.double)
    step_size = torch.tensor(0.5 * 1.65**2 * DIM ** (-1 / 3))

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(-1) - 0.5 * DIM * math.log(2 * math.pi) - net(x)

    def with_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = log_density(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    known, _ = with_gradient(y)

    def resample(part: slice) -> None:
        nonlocal y, known
        weight = log_weight[part].softmax(0)
        if 1 / weight.square().sum() < len(weight) / 2:
            points = (torch.rand(()) + torch.arange(len(weight))) / len(weight)
            index = torch.searchsorted(weight.cumsum(0), points.double()).clamp(max=len(weight) - 1)
            y, known = y.clone(), known.clone()
            y[part], known[part] = y[part][index], known[part][index]
            log_weight[part] = 0

    def step() -> None:
        nonlocal y, known, step_size
        value, gradient = with_gradient(y)
        log_weight.add_(value.double() - known.double())
        known = value
        resample(slice(0, half))
        each = half // GROUPS
        for group in range(GROUPS):
            part = slice(half + group * each, half + (group + 1) * each)
            before = torch.logsumexp(log_weight[part], 0) - math.log(each)
            resample(part)
            if log_weight[part].abs().max() == 0:
                log_z[group] += before
        for _ in range(moves):
            forward = y + step_size * gradient
            proposal = forward + (2 * step_size).sqrt() * torch.randn_like(y)
            new_value, new_gradient = with_gradient(proposal)
            back = proposal + step_size * new_gradient
            log_ratio = new_value - known
            log_ratio += ((proposal - forward).square() - (y - back).square()).sum(-1) / (4 * step_size)
            accept = torch.rand(WALKERS).log() < log_ratio
            y = torch.where(accept.unsqueeze(-1), proposal, y)
            gradient = torch.where(accept.unsqueeze(-1), new_gradient, gradient)
            known = torch.where(accept, new_value, known)
            step_size = step_size * (0.15 * (log_ratio.exp().clamp(max=1).mean() - 0.574)).exp()
        optimizer.zero_grad()
        weights = log_weight[:half].softmax(0).float()
        drivers = log_density(y[:half])
        estimate = torch.logsumexp(weights.log() + drivers - known[:half], 0)
        loss = estimate - log_density(data()).mean()
        loss.backward()
        optimizer.step()

    return step


def by_torchebm(data: Callable[[], Tensor], moves: int) -> Callable[[], None]:
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    model = torchebm_model(network())
    sampler = LangevinDynamics(model, step_size=STEP_SIZE, noise_scale=1.0)
    loss_of = ContrastiveDivergence(
        model, sampler, k_steps=moves, persistent=True, buffer_size=WALKERS, init_steps=0, new_sample_ratio=0.0
    )
    optimizer = torch.optim.Adam(model.parameters(), RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss, _ = loss_of(data())
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", choices=["pyro_ebm", "hand", "torchebm"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--moves", type=int, required=True, help="of all walkers in a step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    images = 0.5 * torch.randn(5000, DIM)
    batch = WALKERS if options.by == "torchebm" else DATA
    make = {"pyro_ebm": by_pyro_ebm, "hand": by_hand, "torchebm": by_torchebm}[options.by]
    step = make(lambda: images[torch.randint(len(images), (batch,))], options.moves)
    for _ in range(3):
        step()
    started = now()
    for _ in range(options.steps):
        step()
    seconds = now() - started
    packages = {"pyro_ebm": ["pyro_ebm", "torch"], "hand": ["torch"], "torchebm": ["torchebm", "torch"]}[options.by]
    versions = {name: version(name) for name in packages}
    print(json.dumps({"seconds": asdict(seconds), "versions": versions}))


if __name__ == "__main__":
    main()
