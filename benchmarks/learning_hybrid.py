"""Learned energies inside Pyro programs: a prior of latent values that are only seen through a likelihood.

Deconvolution: latent values on a ring, of radius 2 and width 0.15, are seen as `x = A z + 0.5 ε` in four dims. A
network tilts a Gaussian of scale 2; the exact test log likelihood, by quadrature, lies between those of the best
Gaussian prior and of the ring. What counts is the share of this gap that is closed.

Digits: scikit-learn's, binarised, by a decoder 2-64-64-64: the exact test log likelihood in nats, by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from learning_row import Figures, Goal, Row
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import CosineAnnealingLR
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_ebm import EnergyDistribution, MonteCarloEM, NeuralEnergy, PersistentWalkers
from pyro_ebm.infer.coordinates import CholeskyAffineTransform

RADIUS, WIDTH, NOISE = 2.0, 0.15, 0.5
COUNT, BATCH = 2000, 200
MIXING = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def tilted_gaussian(scale: float, units: int = 32) -> tuple[nn.Module, EnergyDistribution, PersistentWalkers]:
    """A network that tilts a Gaussian in two dims, and starts flat."""
    last = nn.Linear(units, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    net = nn.Sequential(nn.Linear(2, units), nn.SiLU(), nn.Linear(units, units), nn.SiLU(), last, nn.Flatten(0))
    walkers = PersistentWalkers()
    base = dist.Normal(torch.zeros(2), scale).to_event(1)
    return net, EnergyDistribution(NeuralEnergy(net, (2,)), base, log_normalizer=walkers), walkers


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Latent values, `(count, 2)`."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = RADIUS + WIDTH * torch.randn(count, generator=generator)
    return radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def observed(z: Tensor, generator: torch.Generator) -> Tensor:
    """What is seen of latent values, `(count, 4)`."""
    return z @ MIXING.mT + NOISE * torch.randn(len(z), 4, generator=generator)


def grid(reach: float, cells: int) -> tuple[Tensor, float]:
    """Midpoints in two dims `(cells², 2)`, and the log of a cell's area."""
    width = 2 * reach / cells
    axis = -reach + width * (torch.arange(cells, dtype=torch.double) + 0.5)
    return torch.cartesian_prod(axis, axis), 2 * math.log(width)


def ring_log_likelihood(log_prior: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The mean log likelihood of data, exact by quadrature, for a prior that need not be normalised."""
    z, _ = grid(6.0, 150)
    with torch.no_grad():
        log_weight = log_prior(z.float()).double().log_softmax(0)
        kept = log_weight > log_weight.max() - 30
        place, log_weight = z[kept].float() @ MIXING.mT, log_weight[kept].float()
        total = 0.0
        for part in x.split(200):
            distance = torch.cdist(part, place).square()
            total += float((log_weight - distance / (2 * NOISE**2)).logsumexp(-1).double().sum())
    return total / len(x) - 2 * math.log(2 * math.pi * NOISE**2)


def ring_log_prior(z: Tensor) -> Tensor:
    """The true one."""
    radius = z.norm(dim=-1)
    return dist.Normal(RADIUS, WIDTH).log_prob(radius) - radius.log()


def share_of_gap(log_prior: Callable[[Tensor], Tensor]) -> Figures:
    """Of the gap between the best Gaussian prior, which has the moments of the ring, and the ring."""
    generator = torch.Generator().manual_seed(1)
    test = observed(ring(4000, generator), generator)
    variance = (RADIUS**2 + WIDTH**2) / 2
    least = ring_log_likelihood(lambda z: -z.square().sum(-1) / (2 * variance), test)
    most = ring_log_likelihood(ring_log_prior, test)
    found = ring_log_likelihood(log_prior, test)
    return {"share of the gap": (found - least) / (most - least), "nats": found}


def ring_model(prior: EnergyDistribution, net: nn.Module) -> Callable[[Tensor], None]:
    """The program."""

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ MIXING.mT, NOISE).to_event(1), obs=x[idx])

    return model


def adam(rate: float, steps: int) -> CosineAnnealingLR:
    """Adam whose rate falls to zero."""
    return CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}, "T_max": steps})


def ring_by_em(seed: int, *, steps: int = 1000, rate: float = 1e-2, num_steps: int = 5, num_chains: int = 1) -> Figures:
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    x = observed(ring(COUNT, torch.Generator().manual_seed(100 + seed)), torch.Generator().manual_seed(200 + seed))
    net, prior, _ = tilted_gaussian(2.0)
    optim = adam(rate, steps)
    em = MonteCarloEM(ring_model(prior, net), optim, num_steps=num_steps, num_chains=num_chains)
    for _ in range(steps):
        em.step(x)
        optim.step()
    return {**share_of_gap(prior.unnormalized_log_prob), "acceptance": em.acceptance_rate}


class Encoder(nn.Module):
    """`q(z | x)`: a Gaussian of full covariance in two dims, bent by an affine coupling that knows x."""

    def __init__(self, data: int, units: int = 64) -> None:
        super().__init__()
        self.net = _perceptron(data, 5, units)
        self.bend = _perceptron(data + 1, 2, units)
        nn.init.zeros_(self.bend[-1].weight)
        nn.init.zeros_(self.bend[-1].bias)

    def forward(self, x: Tensor) -> dist.TransformedDistribution:
        """Over `(*lead, 2)`, at `(*lead, data)`."""
        found = self.net(x)
        base = dist.Normal(torch.zeros_like(found[..., :2]), 1.0).to_event(1)
        factor = torch.diag_embed(found[..., 2:4].clamp(-5, 3).exp())
        factor = factor + torch.nn.functional.pad(found[..., 4:].unsqueeze(-1), (0, 1, 1, 0))

        def bend(z: Tensor) -> tuple[Tensor, Tensor]:
            context = x.expand(*z.shape[:-1], x.shape[-1])
            shift, log_scale = self.bend(torch.cat([context, z], -1)).split(1, -1)
            return shift, 2 * torch.tanh(log_scale / 2)

        place = CholeskyAffineTransform(found[..., :2], factor)
        return dist.TransformedDistribution(base, [dist.transforms.AffineCoupling(1, bend), place])


def _perceptron(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, units), nn.SiLU(), nn.Linear(units, units), nn.SiLU(), nn.Linear(units, outputs)
    )


def ring_by_svi(seed: int, *, steps: int = 2000, rate: float = 5e-3) -> Figures:
    """The guide is a Gaussian bent to the ring's arc."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    x = observed(ring(COUNT, torch.Generator().manual_seed(100 + seed)), torch.Generator().manual_seed(200 + seed))
    net, prior, _ = tilted_gaussian(2.0)
    encoder = Encoder(4)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            pyro.sample("z", encoder(x[idx]))

    optim = adam(rate, steps)
    svi = SVI(ring_model(prior, net), guide, optim, Trace_ELBO())
    for _ in range(steps):
        svi.step(x)
        optim.step()
    return share_of_gap(prior.unnormalized_log_prob)


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's, binarised: 1500 to learn from and 297 to test, each `(n, 64)`."""
    pixels = torch.as_tensor(load_digits().data >= 8, dtype=torch.float32)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return pixels[order[:1500]], pixels[order[1500:]]


def digits_log_likelihood(decoder: nn.Module, log_prior: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The mean log likelihood of data, exact by quadrature, for a prior that need not be normalised."""
    z, _ = grid(6.0, 200)
    with torch.no_grad():
        log_weight = log_prior(z.float()).log_softmax(0)
        logits = decoder(z.float())
        log_joint = x @ logits.mT - torch.nn.functional.softplus(logits).sum(-1) + log_weight
        return float(log_joint.logsumexp(-1).mean())


def digits_run(seed: int, *, learned: bool, by_em: bool, steps: int = 2000, rate: float = 3e-3) -> float:
    """The exact test log likelihood of a decoder, with a normal prior or a learned energy."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    train, test = digits()
    decoder, encoder = _perceptron(2, 64, 64), Encoder(64)
    net, tilted, _ = tilted_gaussian(1.0)
    prior = tilted if learned else tilted.base

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        if learned:
            pyro.module("net", net)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x[idx])

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=BATCH) as idx:
            pyro.sample("z", encoder(x[idx]))

    optim = adam(rate, steps)
    inference = MonteCarloEM(model, optim) if by_em else SVI(model, guide, optim, Trace_ELBO())
    for _ in range(steps):
        inference.step(train)
        optim.step()
    log_prior = tilted.unnormalized_log_prob if learned else tilted.base.log_prob
    return digits_log_likelihood(decoder, log_prior, test)


def digits_figures(seed: int) -> Figures:
    """Both priors by both procedures."""
    found = {
        (learned, by_em): digits_run(seed, learned=learned, by_em=by_em)
        for learned in (False, True)
        for by_em in (False, True)
    }
    return {
        "normal, SVI": found[False, False],
        "normal, EM": found[False, True],
        "energy, SVI": found[True, False],
        "energy, EM": found[True, True],
        "gain by SVI": found[True, False] - found[False, False],
        "gain by EM": found[True, True] - found[False, True],
        "energy by EM over normal by SVI": found[True, True] - found[False, False],
    }


ROWS: tuple[Row, ...] = (
    Row("ring, MonteCarloEM", ring_by_em, {"share of the gap": Goal(0.99, 1.05)}),
    Row("ring, SVI", ring_by_svi, {"share of the gap": Goal(0.95, 1.05)}),
    Row("digits, latent energy", digits_figures, {"energy by EM over normal by SVI": Goal(0.8)}),
)
