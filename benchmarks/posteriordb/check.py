"""Samples posteriors of posteriordb, and compares means and standard deviations with the reference draws.

    python benchmarks/posteriordb/check.py --kernel NUTS --chains 4 sblrc-blr eight_schools-eight_schools_noncentered

Without names it runs every posterior of the data folder that has a model. A clone of posteriordb serves as the folder:

    git clone https://github.com/stan-dev/posteriordb
    python benchmarks/posteriordb/check.py --kernel NUTS --chains 4 --data posteriordb

With `--keep FILE` results are added to a file of JSON lines, of which `results.py` makes the tables of RESULTS.md. The
exit status is 1 where a mean or a standard deviation is more than four combined Monte Carlo standard errors from the
reference, or R-hat is 1.01 or more.

References:
    Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Rank-normalization, folding, and localization.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import torch
from models_of_posteriordb import POSTERIORS, Posterior
from references import Array, Reference, references

import pyro_ebm
from pyro_ebm.infer.kernel import AdaptiveKernel

MAX_Z, MAX_R_HAT = 4.0, 1.01
ROW = "{:<40}{:>9}{:>12}{:>8}{:>10}{:>10}  {:<10}{:>8}  {:<10}  {}"
HEADER = ("posterior", "seconds", "divergences", "R-hat", "bulk ESS", "|z| mean", "at", "|z| sd", "at", "verdict")


@dataclass(frozen=True)
class Result:
    """What a run says of one posterior.

    Attributes:
        seconds: of the run, warm-up included.
        divergences: number of draws of all chains whose trajectories diverged.
        r_hat: the largest rank-normalised split R-hat.
        ess: the smallest bulk effective sample size.
        z_mean: the distance of each parameter's mean from the reference's, in combined standard errors, `(P)`.
        z_sd: likewise of its standard deviation, `(P)`.
    """

    seconds: float
    divergences: int
    r_hat: float
    ess: float
    z_mean: Array
    z_sd: Array

    @property
    def passes(self) -> bool:
        """Whether all is within its limits; what is not a number is not."""
        return bool(self.r_hat < MAX_R_HAT and (self.z_mean <= MAX_Z).all() and (self.z_sd <= MAX_Z).all())


def each_column(statistic: Callable[..., Any], draws: Array, **options: Any) -> Array:
    """One of ArviZ's diagnostics for each parameter, `(chains, draws, P)` to `(P)`."""
    return np.array([float(statistic(draws[..., i], **options)) for i in range(draws.shape[-1])])


def z_scores(draws: Array, reference: Reference) -> tuple[Array, Array]:
    """How far means and standard deviations are from the reference's, in combined Monte Carlo standard errors.

    Ours are ArviZ's. Those of the reference follow from its number n of independent draws: `sd / sqrt(n)` for the mean,
    and `sd sqrt((kurtosis - 1) / (4 n))` for the standard deviation, by the delta method on the variance
    (`sd / sqrt(2 n)` for a normal).

    Args:
        draws: `(chains, draws, P)`.
        reference: what they are compared with.

    Returns:
        `(P)` for the means, `(P)` for the standard deviations, both absolute.
    """
    mean_error = reference.sd / np.sqrt(reference.size)
    sd_error = reference.sd * np.sqrt((reference.kurtosis - 1) / (4 * reference.size))
    mean_error = np.hypot(each_column(az.mcse, draws, method="mean"), mean_error)
    sd_error = np.hypot(each_column(az.mcse, draws, method="sd"), sd_error)
    pooled = draws.reshape(-1, draws.shape[-1])
    return np.abs(pooled.mean(0) - reference.mean) / mean_error, np.abs(pooled.std(0, ddof=1) - reference.sd) / sd_error


def check(posterior: Posterior, reference: Reference, options: argparse.Namespace) -> Result:
    """Sample one posterior, and compare it with its reference."""
    pyro.set_rng_seed(options.seed)
    kernel = getattr(pyro_ebm, options.kernel)(posterior.model)
    mcmc = pyro_ebm.MCMC(
        kernel,
        num_samples=options.draws,
        warmup_steps=options.warmup,
        num_chains=options.chains,
        disable_progbar=True,
    )
    started = time.perf_counter()
    mcmc.run(*posterior.arguments(reference.data))
    seconds = time.perf_counter() - started
    draws = posterior.parameters(mcmc.get_samples(group_by_chain=True)).numpy()
    z_mean, z_sd = z_scores(draws, reference)
    return Result(
        seconds=seconds,
        divergences=int(mcmc.sample_stats()["diverging"].sum()),
        r_hat=float(each_column(az.rhat, draws).max()),
        ess=float(each_column(az.ess, draws).min()),
        z_mean=z_mean,
        z_sd=z_sd,
    )


def row(name: str, result: Result, parameters: list[str]) -> str:
    """One row of the table."""
    return ROW.format(
        name,
        f"{result.seconds:.1f}",
        result.divergences,
        f"{result.r_hat:.3f}",
        f"{result.ess:.0f}",
        f"{result.z_mean.max():.2f}",
        parameters[int(result.z_mean.argmax())],
        f"{result.z_sd.max():.2f}",
        parameters[int(result.z_sd.argmax())],
        "passes" if result.passes else "FAILS",
    )


def keep(path: Path, name: str, result: Result, options: argparse.Namespace) -> None:
    """Add a result to a file, as a line of JSON."""
    about = {"posterior": name, "kernel": options.kernel, "chains": options.chains, "passes": result.passes}
    figures = {"seconds": result.seconds, "divergences": result.divergences, "r_hat": result.r_hat, "ess": result.ess}
    largest = {"z_mean": float(result.z_mean.max()), "z_sd": float(result.z_sd.max())}
    with path.open("a") as file:
        file.write(json.dumps({**about, **figures, **largest}) + "\n")


def _is_kernel(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, AdaptiveKernel) and value is not AdaptiveKernel


def parse_options() -> argparse.Namespace:
    kernels = [name for name in pyro_ebm.__all__ if _is_kernel(getattr(pyro_ebm, name))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="posteriors to run; by default all that have data and a model")
    parser.add_argument("--kernel", choices=kernels, default="NUTS")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=1000, help="draws of each chain")
    parser.add_argument("--warmup", type=int, default=1000, help="warm-up transitions of each chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file to add the results to")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data/posteriordb"),
        help="a clone of posteriordb, or a folder of JSON files",
    )
    return parser.parse_args()


def main() -> int:
    """Run what was asked for, print the table, and say whether all passed: the exit status."""
    options = parse_options()
    if not options.data.is_dir():
        print(f"There is no folder {options.data}: nothing to check. Name the one with the references by --data.")
        return 0
    found = references(options.data)
    unknown = sorted(set(options.names) - set(found))
    if unknown:
        print(f"No data for {', '.join(unknown)} in {options.data}; there are {', '.join(found)}.", file=sys.stderr)
        return 2
    chosen = options.names or list(found)
    torch.set_default_dtype(torch.float64)  # also of the sites without a proper prior, which have no dtype of their own
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    size = f"{options.chains} chains, {options.warmup} + {options.draws} transitions"
    print(f"{options.kernel}, {size}, seed {options.seed}")
    print(ROW.format(*HEADER), flush=True)
    all_pass = True
    for name in chosen:
        if name not in POSTERIORS:
            continue
        reference = found[name]()
        result = check(POSTERIORS[name], reference, options)
        print(row(name, result, reference.parameters), flush=True)
        if options.keep is not None:
            keep(options.keep, name, result, options)
        all_pass = all_pass and result.passes
    skipped = [name for name in chosen if name not in POSTERIORS]
    if skipped:
        print(f"Skipped, for want of a model: {', '.join(skipped)}")
    return 0 if all_pass else 1


if __name__ == "__main__":
    sys.exit(main())
