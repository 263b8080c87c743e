"""The main job, on real data: learn an energy prior inside a Pyro program, then infer with it.

1. Train a small decoder of handwritten digits together with an energy prior over its latents, by maximum likelihood:
   `MonteCarloEM` keeps chains of the posterior of every training digit, `PersistentWalkers` give the energy its log Z
   (Pang et al. 2020, Learning latent space energy-based prior model). Likewise a decoder with a standard normal prior.
2. Put decoder and prior in one Pyro model, observe the upper half of unseen digits through noise, and sample the
   posterior of the latents with batched NUTS.
3. Report R-hat, ESS and divergences by ArviZ, and how well the lower halves, which no model saw, are predicted: by the
   energy prior, by the same program under a standard normal prior, and by the decoder that was trained with one.
4. Generate digits from the energy prior by Langevin dynamics.

Run it with `make quickstart`, or `python examples/quickstart.py --help`.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import arviz as az
import matplotlib as mpl
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from pyro_ebm import MCMC, NUTS, EnergyDistribution, Langevin, MonteCarloEM, NeuralEnergy, PersistentWalkers

mpl.use("Agg")
import matplotlib.pyplot as plt

SIDE, PIXELS = 8, 64
SEEN = PIXELS // 2  # the upper half
LATENT_DIM = 4
PIXEL_SD = 0.2  # of the decoder's likelihood; pixels are in [0, 1]
NOISE_SD = 0.5  # of the noise through which unseen digits are observed
NUM_TRAIN, NUM_UNSEEN, NUM_SHOWN = 1500, 192, 8
NUM_WALKERS = 1000
NUM_CHAINS, WARMUP_STEPS, NUM_SAMPLES = 12, 150, 200


@dataclass
class Program:
    """What training makes: the decoder, and the prior over its latents."""

    name: str
    decoder: nn.Module
    prior: dist.TorchDistribution

    def model(self, seen: Tensor) -> None:
        """The Pyro model of the upper halves of digits `(digits, SEEN)`, observed through noise."""
        sd = math.hypot(PIXEL_SD, NOISE_SD)
        with pyro.plate("digit", len(seen)):
            latent = pyro.sample("latent", self.prior)
            pixels = self.decoder(latent)[..., :SEEN]
            pyro.sample("seen", dist.Normal(pixels, sd).to_event(1), obs=seen)


def digits() -> tuple[Tensor, Tensor]:
    """Training and unseen images `(N, 64)`, in [0, 1]."""
    images = torch.tensor(load_digits().images / 16.0, dtype=torch.get_default_dtype()).reshape(-1, PIXELS)
    images = images[torch.randperm(len(images))]
    return images[:NUM_TRAIN], images[NUM_TRAIN:]


def standard_normal() -> dist.TorchDistribution:
    """The base of the energy prior, and the prior to compare it with."""
    return dist.Normal(torch.zeros(LATENT_DIM), 1.0).to_event(1)


def learning_rate(parameter: str) -> dict[str, float]:
    """The energy learns more slowly than the decoder, and stays smoother."""
    is_energy = parameter.startswith("energy")
    return {"lr": 1e-3, "weight_decay": 1e-3} if is_energy else {"lr": 2e-3, "weight_decay": 1e-4}


def train(images: Tensor, name: str, *, learn_energy: bool, num_iterations: int) -> Program:
    """Maximum likelihood of decoder and prior: chains of each digit's posterior, and walkers for the energy's log Z."""
    decoder = nn.Sequential(
        nn.Linear(LATENT_DIM, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, PIXELS), nn.Sigmoid()
    )
    network = nn.Sequential(
        nn.Linear(LATENT_DIM, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    nn.init.zeros_(network[4].weight)  # the energy starts at zero: the prior at its base, with a log Z of zero
    nn.init.zeros_(network[4].bias)
    energy = NeuralEnergy(network, event_shape=(LATENT_DIM,))
    walkers = PersistentWalkers(NUM_WALKERS)
    prior = EnergyDistribution(energy, standard_normal(), log_normalizer=walkers) if learn_energy else standard_normal()

    def model() -> None:
        pyro.module("decoder", decoder)
        if learn_energy:
            pyro.module("energy", energy)
        with pyro.plate("digit", len(images)):
            latent = pyro.sample("latent", prior)
            pyro.sample("pixels", dist.Normal(decoder(latent), PIXEL_SD).to_event(1), obs=images)

    pyro.clear_param_store()
    settings = {"optimizer": torch.optim.Adam, "optim_args": learning_rate, "T_max": num_iterations}
    optimizer = pyro.optim.CosineAnnealingLR(settings)
    learning = MonteCarloEM(model, optimizer, num_steps=4)
    bar = tqdm(range(num_iterations), desc=f"Training, {name}", mininterval=0.5)
    for iteration in bar:
        loss = learning.step()
        optimizer.step()
        if iteration % 20 == 0:
            bar.set_postfix(loss=f"{loss / len(images):.1f}", acceptance=f"{learning.acceptance_rate:.2f}")
    if learn_energy:
        print(f"Log Z of the energy prior: {walkers.value:.3f} +- {walkers.standard_error:.3f} nats")
    nn.ModuleList([decoder, network]).requires_grad_(False)  # from here on log Z is a constant
    return Program(name, decoder, EnergyDistribution(energy, standard_normal()) if learn_energy else prior)


@dataclass
class Completion:
    """The posterior of unseen digits under one program, and how well it predicts what was held out.

    Attributes:
        mcmc: the run.
        mean: posterior mean of the pixels, `(digits, 64)`.
        sd: posterior predictive standard deviation of the pixels, `(digits, 64)`.
        log_predictive: log density of each held-out half given the seen half, in nats, `(digits,)`.
        rmse: root mean squared error of the posterior mean on each held-out half, `(digits,)`.
    """

    mcmc: MCMC
    mean: Tensor
    sd: Tensor
    log_predictive: Tensor
    rmse: Tensor


def complete(program: Program, seen: Tensor, truth: Tensor) -> Completion:
    """Sample the posterior of the latents given the seen halves, and score the held-out halves."""
    print(f"\nPosterior of {len(seen)} half-seen digits, {program.name}: {NUM_CHAINS} chains of NUTS")
    mcmc = MCMC(NUTS(program.model), num_samples=NUM_SAMPLES, warmup_steps=WARMUP_STEPS, num_chains=NUM_CHAINS)
    mcmc.run(seen)
    latent = mcmc.get_samples()["latent"]
    pixels = program.decoder(latent)
    held_out = dist.Normal(pixels[..., SEEN:], PIXEL_SD).to_event(1).log_prob(truth[:, SEEN:])
    return Completion(
        mcmc=mcmc,
        mean=pixels.mean(0),
        sd=(pixels.var(0) + PIXEL_SD**2).sqrt(),
        log_predictive=held_out.logsumexp(0) - math.log(len(latent)),
        rmse=(pixels.mean(0) - truth)[:, SEEN:].square().mean(-1).sqrt(),
    )


def report(completion: Completion, seconds: float) -> None:
    """Print what ArviZ says of a run."""
    data = completion.mcmc.to_arviz(log_likelihood=False)
    table = az.summary(data, kind="diagnostics")
    print(
        f"  R-hat: largest {table.r_hat.max():.3f}, median {table.r_hat.median():.3f}; bulk ESS: smallest "
        f"{table.ess_bulk.min():.0f}, median {table.ess_bulk.median():.0f} of {NUM_CHAINS * NUM_SAMPLES} draws; "
        f"divergences: {int(data.sample_stats.diverging.sum())}; {seconds:.0f} s"
    )
    unsure = (table.r_hat > 1.05).to_numpy().reshape(-1, LATENT_DIM).any(-1)
    if unsure.any():
        which = unsure.nonzero()[0].tolist()
        print(f"  Chains disagree (R-hat above 1.05) on {len(which)} of {len(unsure)} digits: {which}")


def compare(first: Completion, second: Completion, names: tuple[str, str]) -> None:
    """Say which program predicts the held-out halves better, by how much, with paired standard errors over digits."""
    for what, unit, one, two in (
        ("log predictive density", "nats a digit (higher is better)", first.log_predictive, second.log_predictive),
        ("reconstruction error", "RMSE a pixel (lower is better)", first.rmse, second.rmse),
    ):
        difference = one - two
        error = difference.std() / math.sqrt(len(difference))
        print(f"Held-out halves, {what}, {unit}:")
        print(f"  {names[0]}: {one.mean():.3f}; {names[1]}: {two.mean():.3f}")
        sign = 1 if "higher" in unit else -1
        verdict = "no difference beyond two standard errors"
        if abs(difference.mean()) > 2 * error:
            verdict = f"the {names[0] if sign * difference.mean() > 0 else names[1]} is better"
        print(f"  difference {difference.mean():+.3f} +- {error:.3f}: {verdict}")


def generate(program: Program) -> Tensor:
    """Draw latents from the prior by Langevin dynamics, and decode them: images `(64, 64)`."""
    print("\nGenerating 64 digits from the energy prior by Langevin dynamics")
    mcmc = MCMC(Langevin(program.prior), num_samples=200, warmup_steps=200, num_chains=64)
    mcmc.run()
    return program.decoder(mcmc.get_samples(group_by_chain=True)["x"][:, -1])


def show(images: Tensor, axis: plt.Axes, title: str = "", limits: tuple[float, float] = (0.0, 1.0)) -> None:
    """Draw one image `(64,)`."""
    axis.imshow(images.reshape(SIDE, SIDE), cmap="gray_r", vmin=limits[0], vmax=limits[1])
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=8)


def draw_generated(images: Tensor, path: Path) -> None:
    """Draw a grid of generated digits."""
    figure, axes = plt.subplots(8, 8, figsize=(5, 5))
    for image, axis in zip(images, axes.flat, strict=True):
        show(image, axis)
    figure.suptitle("Digits from the energy prior")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_completions(truth: Tensor, seen: Tensor, energy: Completion, normal: Completion, path: Path) -> None:
    """Draw what was seen, the completions by both programs with their uncertainty, and the truth."""
    rows = ["seen", "energy prior: mean", "sd", "normal prior: mean", "sd", "truth"]
    figure, axes = plt.subplots(len(rows), len(truth), figsize=(1.1 * len(truth), 1.2 * len(rows)))
    blank = torch.full((PIXELS - SEEN,), 0.5)
    for i in range(len(truth)):
        columns = [torch.cat([seen[i], blank]), energy.mean[i], energy.sd[i], normal.mean[i], normal.sd[i], truth[i]]
        for axis, image, row in zip(axes[:, i], columns, rows, strict=True):
            show(image, axis, row if i == 0 else "", limits=(0.0, 0.5) if row == "sd" else (0.0, 1.0))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Run the main job, and say where its results are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=800, help="training iterations of each program")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    begin = time.perf_counter()
    pyro.set_rng_seed(options.seed)

    train_images, unseen = digits()
    learned = train(train_images, "energy prior", learn_energy=True, num_iterations=options.iterations)
    programs = [
        learned,
        Program("the same decoder under a normal prior", learned.decoder, standard_normal()),
        train(train_images, "normal prior", learn_energy=False, num_iterations=options.iterations),
    ]
    truth = unseen[:NUM_UNSEEN]
    seen = truth[:, :SEEN] + NOISE_SD * torch.randn(NUM_UNSEEN, SEEN)
    completions = []
    for program in programs:
        started = time.perf_counter()
        completions.append(complete(program, seen, truth))
        report(completions[-1], time.perf_counter() - started)
    print()
    energy, swapped, normal = completions
    compare(energy, swapped, ("energy prior", "the same decoder under a normal prior"))
    compare(energy, normal, ("energy prior", "decoder trained with a normal prior"))

    generated = generate(learned)
    draw_generated(generated, options.output / "generated.png")
    draw_completions(truth[:NUM_SHOWN], seen, energy, normal, options.output / "completions.png")
    data = energy.mcmc.to_arviz()
    axes = az.plot_trace(data, coords={"digit": [0]}, compact=False)
    axes.ravel()[0].figure.savefig(options.output / "trace.png", dpi=80, bbox_inches="tight")
    az.plot_energy(data).figure.savefig(options.output / "energy.png", dpi=120, bbox_inches="tight")
    data.to_netcdf(str(options.output / "posterior.nc"))
    torch.save(
        {"decoder": learned.decoder.state_dict(), "energy": learned.prior.energy.state_dict()},
        options.output / "program.pt",
    )
    print(f"\nAll in {time.perf_counter() - begin:.0f} s. Results:")
    for path in sorted(options.output.iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
