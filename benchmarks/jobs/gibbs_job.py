"""One run of a sampler over discrete variables: seconds for a number of steps, builds not counted."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from measure import Seconds, now

SIDE, COUPLING = 64, 0.4
VISIBLE, HIDDEN = 784, 500
KEPT = 10


def ising_by_pyro_ebm(chains: int, steps: int) -> Seconds:
    """Sweeps of the Ising model on a torus, two colours each."""
    import torch
    from pyro_ebm_job import Phases

    from pyro_ebm import MCMC, FactorGraph, Gibbs, IsingEnergy, spin

    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=(SIDE, SIDE))
    numbers = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    for dim in (0, 1):
        pairs = torch.stack([numbers.flatten(), numbers.roll(-1, dim).flatten()], -1)
        graph.factor(IsingEnergy(torch.tensor(COUPLING)), x[pairs])
    mcmc = MCMC(Gibbs(graph), KEPT, 0, num_chains=chains, thinning=steps // KEPT, compile=True, disable_progbar=True)
    phases = Phases()
    mcmc.run()
    return phases.sampling


def ising_by_thrml(chains: int, steps: int) -> Seconds:
    """The same sweeps by thrml, of which the last alone is kept."""
    import jax
    import jax.numpy as jnp
    from thrml import Block, SamplingSchedule, SpinNode, sample_states
    from thrml.models import IsingEBM, IsingSamplingProgram, hinton_init

    nodes = [[SpinNode() for _ in range(SIDE)] for _ in range(SIDE)]
    places = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    edges = [(nodes[i][j], nodes[(i + 1) % SIDE][j]) for i, j in places]
    edges += [(nodes[i][j], nodes[i][(j + 1) % SIDE]) for i, j in places]
    flat = [nodes[i][j] for i, j in places]
    model = IsingEBM(flat, edges, jnp.zeros(len(flat)), COUPLING * jnp.ones(len(edges)), jnp.array(1.0))
    blocks = [Block([nodes[i][j] for i, j in places if (i + j) % 2 == side]) for side in (0, 1)]
    program = IsingSamplingProgram(model, blocks, clamped_blocks=[])
    schedule = SamplingSchedule(n_warmup=steps, n_samples=1, steps_per_sample=1)

    def one(key: Any, start: Any) -> Any:
        return sample_states(key, program, schedule, start, [], [Block(flat)])

    run = jax.jit(jax.vmap(one))
    start = hinton_init(jax.random.key(0), model, blocks, (chains,))
    jax.block_until_ready(run(jax.random.split(jax.random.key(1), chains), start))
    keys = jax.random.split(jax.random.key(2), chains)
    started = now()
    jax.block_until_ready(run(keys, start))
    return now() - started


def _free_energy() -> Any:
    import torch

    weight = 0.05 * torch.randn(VISIBLE, HIDDEN)
    visible, hidden = 0.1 * torch.randn(VISIBLE), 0.1 * torch.randn(HIDDEN)
    return lambda v: -(v @ visible) - torch.nn.functional.softplus(v @ weight + hidden).sum(-1)


def rbm_by_pyro_ebm(chains: int, steps: int) -> Seconds:
    """Steps of Gibbs with gradients on a restricted Boltzmann machine's free energy."""
    from pyro_ebm_job import Phases
    from torch.distributions import constraints

    from pyro_ebm import MCMC, GibbsWithGradients, energy

    model = energy(_free_energy(), event_shape=(VISIBLE,), support=constraints.boolean)
    kernel = GibbsWithGradients(model)
    mcmc = MCMC(kernel, KEPT, 0, num_chains=chains, thinning=steps // KEPT, compile=True, disable_progbar=True)
    phases = Phases()
    mcmc.run()
    return phases.sampling


def rbm_as_published(chains: int, steps: int) -> Seconds:
    """The same steps as the authors' code makes them: four evaluations, two of them with a gradient."""
    import torch
    from torch.distributions import OneHotCategorical

    energy = _free_energy()

    def gains(x: Any) -> Any:
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(-energy(x).sum(), x)
        return gradient.detach() * (1 - 2 * x.detach()) / 2

    def step(x: Any) -> Any:
        forward = OneHotCategorical(logits=gains(x.detach()))
        changes = forward.sample()
        proposed = ((1 - x) * changes + x * (1 - changes)).detach()
        backward = OneHotCategorical(logits=gains(proposed.clone()))
        with torch.no_grad():
            ratio = energy(x) - energy(proposed)
            ratio = ratio + backward.log_prob(changes) - forward.log_prob(changes)
            accepted = (ratio.exp() > torch.rand_like(ratio)).to(x).unsqueeze(-1)
            return proposed * accepted + x * (1 - accepted)

    x = torch.bernoulli(torch.full((chains, VISIBLE), 0.5))
    for _ in range(5):
        x = step(x).detach()
    started = now()
    for _ in range(steps):
        x = step(x).detach()
    return now() - started


RUNS = {
    ("ising", "pyro_ebm"): ising_by_pyro_ebm,
    ("ising", "thrml"): ising_by_thrml,
    ("rbm", "pyro_ebm"): rbm_by_pyro_ebm,
    ("rbm", "published"): rbm_as_published,
}
PACKAGES = {"pyro_ebm": ["pyro_ebm", "torch"], "thrml": ["thrml", "jax"], "published": ["torch"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=["ising", "rbm"], required=True)
    parser.add_argument("--by", choices=list(PACKAGES), required=True)
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    if options.by != "thrml":
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(1)
    seconds = RUNS[options.target, options.by](options.chains, options.steps)
    versions = {name: version(name) for name in PACKAGES[options.by]}
    print(json.dumps({"seconds": asdict(seconds), "versions": versions}))


if __name__ == "__main__":
    main()
