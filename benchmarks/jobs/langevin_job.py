"""One run of unadjusted Langevin dynamics, of 1,000 chains in float32, by pyro_ebm, a loop by hand, or torchebm."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from measure import Seconds, now
from torch import Tensor, nn

CHAINS, BARRIER = 1000, 2.0
STEP_SIZE = 1e-3  # ε of `x ← x - ε∇E(x) + √(2ε) ξ`
SHAPES = {"neural": (784,), "double_well": (2,)}


def network() -> nn.Sequential:
    """784-256-256-1, the same for all."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1), nn.Flatten(0)]
    return nn.Sequential(*layers).requires_grad_(False)


def double_well(x: Tensor) -> Tensor:
    return BARRIER * (x.square() - 1).square().sum(-1)


def by_hand(target: str, steps: int) -> Seconds:
    """What people write: autograd in a loop."""
    energy: Callable[[Tensor], Tensor] = network() if target == "neural" else double_well
    x = torch.randn(CHAINS, *SHAPES[target])

    def loop(x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
            x = x.detach() - STEP_SIZE * gradient + (2 * STEP_SIZE) ** 0.5 * torch.randn_like(gradient)
        return x

    x = loop(x, 10)
    started = now()
    loop(x, steps)
    return now() - started


def by_pyro_ebm(target: str, steps: int) -> Seconds:
    from pyro_ebm_job import Phases

    from pyro_ebm import MCMC, DoubleWell, Langevin, NeuralEnergy

    energy = NeuralEnergy(network(), (784,)) if target == "neural" else DoubleWell(2, BARRIER)
    kernel = Langevin(energy, step_size=(2 * STEP_SIZE) ** 0.5, adapt_step_size=False, adapt_mass_matrix=False)
    kept = 5
    mcmc = MCMC(kernel, kept, warmup_steps=0, num_chains=CHAINS, thinning=steps // kept, disable_progbar=True)
    phases = Phases()
    mcmc.run()
    print(mcmc.attrs["program"])
    return phases.sampling


def torchebm_model(net: nn.Module) -> Any:
    """A network as torchebm takes it."""
    from torchebm.core import BaseModel

    class Network(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            energy: Tensor = self.net(x)
            return energy

    return Network()


def by_torchebm(target: str, steps: int) -> Seconds:
    from torchebm.core import DoubleWellModel
    from torchebm.samplers import LangevinDynamics

    model = torchebm_model(network()) if target == "neural" else DoubleWellModel(barrier_height=BARRIER)
    sampler = LangevinDynamics(model, step_size=STEP_SIZE, noise_scale=1.0)
    x = sampler.sample(x=torch.randn(CHAINS, *SHAPES[target]), n_steps=10)
    started = now()
    sampler.sample(x=x, n_steps=steps)
    return now() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=list(SHAPES), required=True)
    parser.add_argument("--by", choices=["pyro_ebm", "hand", "torchebm"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    run = {"pyro_ebm": by_pyro_ebm, "hand": by_hand, "torchebm": by_torchebm}[options.by]
    seconds = run(options.target, options.steps)
    packages = {"pyro_ebm": ["pyro_ebm", "torch"], "hand": ["torch"], "torchebm": ["torchebm", "torch"]}[options.by]
    versions = {name: version(name) for name in packages}
    print(json.dumps({"seconds": asdict(seconds), "versions": versions}))


if __name__ == "__main__":
    main()
