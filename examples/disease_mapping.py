"""Disease mapping: a spatial prior over areas, counts of cases, and NUTS.

Counts `y_i ~ Poisson(e_i exp(alpha + sigma φ_i))` in the areas of a made-up map (a triangular lattice), with expected
counts e, and a spatial effect φ under an intrinsic conditional autoregression (Besag, York and Mollié 1991): its
energy is `½ Σ_ij (φ_i - φ_j)²` over neighbours, with a sum of zero. Its log Z depends on nothing, so that the scale
sigma is learned beside it. The answer is compared with the true risks, which are known here, and with the raw ratios
y / e.

Run it with `python examples/disease_mapping.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import arviz as az
import matplotlib as mpl
import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ebm import ICAR, MCMC, NUTS, sample_graph

mpl.use("Agg")
import matplotlib.pyplot as plt


def synthetic_map(rows: int, columns: int) -> tuple[nx.Graph, Tensor]:
    """A graph of neighbouring areas, and where they are, `(areas, 2)`."""
    lattice = nx.triangular_lattice_graph(rows, columns)
    places = torch.tensor([lattice.nodes[node]["pos"] for node in lattice])
    return nx.convert_node_labels_to_integers(lattice), places.float()


def synthetic_counts(places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected counts, observed ones and the true log risks, each `(areas,)`: two bumps on a gradient."""
    x, y = (places / places.amax(0)).unbind(-1)
    bump = torch.exp(-12 * ((x - 0.3) ** 2 + (y - 0.7) ** 2)) - torch.exp(-12 * ((x - 0.75) ** 2 + (y - 0.3) ** 2))
    log_risk = 0.9 * bump + 0.2 * (x - 0.5)
    expected = torch.distributions.LogNormal(1.0, 0.5).sample(x.shape)
    return expected, torch.poisson(expected * log_risk.exp()), log_risk


def model(prior: ICAR, scale: Tensor, expected: Tensor, cases: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    phi = sample_graph("phi", prior)["x"]
    log_risk = alpha + sigma * phi / scale.sqrt()
    with pyro.plate("area", len(cases)):
        pyro.deterministic("log_risk", log_risk)
        pyro.sample("cases", dist.Poisson(expected * log_risk.exp()), obs=cases)


def draw(path: Path, places: Tensor, maps: dict[str, Tensor]) -> None:
    figure, axes = plt.subplots(1, len(maps), figsize=(4 * len(maps), 3.4), constrained_layout=True)
    low, high = -1.0, 1.0
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        shown = axis.scatter(*places.T, c=values, s=160, marker="h", vmin=low, vmax=high, cmap="RdBu_r")
        axis.set_title(title)
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="log risk")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=9)
    parser.add_argument("--columns", type=int, default=18)
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("disease_mapping.png"))
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    areas, places = synthetic_map(options.rows, options.columns)
    expected, cases, log_risk = synthetic_counts(places)
    prior = ICAR(areas)
    print(f"{len(places)} areas, {areas.number_of_edges()} borders, {int(cases.sum())} cases")

    start = time.perf_counter()
    mcmc = MCMC(NUTS(model), options.samples, 250, num_chains=4, disable_progbar=True)
    mcmc.run(prior, prior.scaling_factor.detach(), expected, cases)
    data = mcmc.to_arviz(log_likelihood=False)
    print(f"NUTS: {time.perf_counter() - start:.0f} s, run as {mcmc.attrs['program']}")
    print(az.summary(data, var_names=["alpha", "sigma"], round_to=3))
    table = az.summary(data, var_names=["log_risk"])
    print(f"of {len(table)} log risks: R-hat at most {table.r_hat.max():.3f}, ESS at least {table.ess_bulk.min():.0f}")

    posterior = torch.tensor(data.posterior["log_risk"].values).flatten(0, 1)
    mean = posterior.mean(0)
    raw = ((cases + 0.5) / (expected + 0.5)).log()
    low, high = posterior.quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((low <= log_risk) & (log_risk <= high)).float().mean()
    print(f"error of the log risk (RMS): {(mean - log_risk).square().mean().sqrt():.3f} by the model,", end=" ")
    print(f"{(raw - log_risk).square().mean().sqrt():.3f} by the raw ratios; 90% intervals hold {inside:.0%} of them")
    draw(options.out, places, {"true": log_risk, "cases / expected": raw, "posterior mean": mean})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
