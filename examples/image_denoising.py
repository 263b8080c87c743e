"""Denoising with a grid CRF: couplings learned by exact likelihood, then marginals and the mode of noisy images.

The images are scikit-learn's handwritten digits, 8 x 8, with pixels that are on or off. A CRF over a pixel and its
neighbours, `p(z | y) = exp(Σ_p u_p(z_p, y_p) + Σ_pq w(z_p, z_q)) / Z`, learns its unary scores, an average image and
two tables of couplings, from clean digits and noisy ones. log Z is exact, so this is maximum likelihood, not a pseudo-
likelihood. On unseen digits it is compared with what each pixel says by itself: the same CRF without couplings. Gibbs
draws of one image go to ArviZ, and are held against the exact marginals.

Run it with `python examples/image_denoising.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import arviz as az
import matplotlib as mpl
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_ebm import MCMC, Gibbs, GridCRF

mpl.use("Agg")
import matplotlib.pyplot as plt

FLIPPED = 0.15  # share of the pixels that noise flips
SIDE = 8


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Clean and noisy images, `(count, 8, 8)`, of zeros and ones."""
    images = torch.tensor(load_digits().images)
    clean = (images[torch.randperm(len(images))[:count]] > 7).long()
    flip = torch.rand(clean.shape) < FLIPPED
    return clean, torch.where(flip, 1 - clean, clean)


def crf(noisy: Tensor, name: str, *, coupled: bool) -> GridCRF:
    """The CRF of the clean images given noisy ones, with parameters that Pyro learns."""
    seen = pyro.param(f"{name}.seen", torch.zeros(2, 2))  # the score of a label, by the noisy pixel
    average = pyro.param(f"{name}.average", torch.zeros(SIDE, SIDE, 2))
    couplings = pyro.param(f"{name}.couplings", torch.zeros(2, 2, 2))
    horizontal, vertical = couplings if coupled else torch.zeros(2, 2, 2)
    return GridCRF(seen[noisy] + average, horizontal, vertical)


def learn(clean: Tensor, noisy: Tensor, name: str, *, coupled: bool, steps: int) -> None:
    def model(batch: Tensor) -> None:
        with pyro.plate("images", len(clean), subsample=batch):
            pyro.sample("clean", crf(noisy[batch], name, coupled=coupled), obs=clean[batch])

    svi = SVI(model, lambda batch: None, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(steps):
        svi.step(torch.randperm(len(clean))[:50])


def draw(path: Path, rows: dict[str, Tensor]) -> None:
    figure, axes = plt.subplots(len(rows), 8, figsize=(8, 1.1 * len(rows)), constrained_layout=True)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("image_denoising.png"))
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    clean, noisy = digits(1200)
    train, unseen = slice(0, 1000), slice(1000, 1200)

    results = {}
    with torch.no_grad():
        print(f"{FLIPPED:.0%} of the pixels flipped: error {(noisy != clean)[unseen].float().mean():.3f}")
    for name, coupled in (("pixels alone", False), ("grid CRF", True)):
        start = time.perf_counter()
        learn(clean[train], noisy[train], name, coupled=coupled, steps=options.steps)
        with torch.no_grad():
            d = crf(noisy[unseen], name, coupled=coupled)
            on = d.marginals[..., 1]
            results[name] = (on > 0.5).long(), d.mode, on
            log_prob = d.log_prob(clean[unseen]).mean() / SIDE**2
            errors = [float((each != clean[unseen]).float().mean()) for each in results[name][:2]]
        print(
            f"{name}: error {errors[0]:.3f} by the marginals, {errors[1]:.3f} by the mode; log likelihood "
            f"{log_prob:.4f} nats a pixel; {time.perf_counter() - start:.0f} s"
        )
    one = crf(noisy[unseen][:1], "grid CRF", coupled=True)
    mcmc = MCMC(Gibbs(one.graph), num_samples=1000, warmup_steps=100, num_chains=8, disable_progbar=True)
    mcmc.run()
    table = az.summary(mcmc.to_arviz())
    away = (mcmc.get_samples()["z"].float().mean(0) - one.marginals[..., 1]).detach().abs()
    print(f"Gibbs draws of the first image: at most {away.max():.3f} away from the exact marginals;", end=" ")
    print(f"R-hat at most {table.r_hat.max():.3f}, ESS at least {table.ess_bulk.min():.0f}")
    print(f"couplings, side by side and one above the other:\n{pyro.param('grid CRF.couplings').detach()}")
    draw(
        options.out,
        {
            "clean": clean[unseen],
            "noisy": noisy[unseen],
            "pixels alone": results["pixels alone"][2],
            "marginals": results["grid CRF"][2],
            "mode": results["grid CRF"][1],
        },
    )
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
