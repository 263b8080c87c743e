"""One run of pyro_ebm: Pyro models as they are, plain densities as energies."""

from __future__ import annotations

import argparse
from typing import Any

import measure
import pyro
import pyro_models
import targets
import torch
from measure import Measured, Seconds, now
from torch import Tensor

import pyro_ebm
import pyro_ebm.mcmc.run as run_module
from pyro_ebm.mcmc.run import Run


class Phases:
    """Tells build, warm-up and sampling apart, by a clock around every block of transitions and every build in one."""

    def __init__(self) -> None:
        self.warmup = self.sampling = self._built = Seconds()
        advance, build = Run.advance, run_module.build_program  # type: ignore[attr-defined]

        def timed_build(*args: Any, **kwargs: Any) -> Any:
            started = now()
            made = build(*args, **kwargs)
            self._built = self._built + (now() - started)
            return made

        def timed_advance(run: Run) -> None:
            warming_up, built, started = run.warming_up, self._built, now()
            advance(run)
            spent = (now() - started) - (self._built - built)
            if warming_up:
                self.warmup = self.warmup + spent
            else:
                self.sampling = self.sampling + spent

        Run.advance = timed_advance  # type: ignore[method-assign, assignment]
        run_module.build_program = timed_build  # type: ignore[attr-defined]


def model_of(target: str) -> tuple[object, tuple[Tensor, ...]]:
    """What is sampled, and its arguments."""
    model = pyro_models.model(target)
    if model is not None:
        return model
    if target == "gaussian_rotated":
        return pyro_ebm.QuadraticEnergy(torch.tensor(targets.rotated_precision())), ()
    if target == "rosenbrock":
        return pyro_ebm.Rosenbrock(targets.ROSENBROCK_A, targets.ROSENBROCK_B), ()
    return pyro_ebm.energy(pyro_models.density(target), event_shape=(targets.TARGETS[target].dim,)), ()


def gradients(mcmc: pyro_ebm.MCMC, chains: int) -> int:
    """Of the sampling phase: a tick is a gradient of every chain, whether it still needs draws or not."""
    ticks = getattr(mcmc._run, "_ticks", None)
    return int(mcmc.sample_stats()["n_steps"].sum()) if ticks is None else int(ticks) * chains


def run(options: argparse.Namespace) -> None:
    imports = measure.since_launch(options)
    started = now()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.set_rng_seed(options.seed)
    phases = Phases()
    model, arguments = model_of(options.target)
    mcmc = pyro_ebm.MCMC(
        getattr(pyro_ebm, options.sampler)(model),
        num_samples=options.draws,
        warmup_steps=options.warmup,
        num_chains=options.chains,
        disable_progbar=True,
    )
    mcmc.run(*arguments)
    sampled = now()
    draws = mcmc.get_samples(group_by_chain=True)
    total = now() - started
    sampling = phases.sampling + (now() - sampled)
    measured = Measured(
        imports=imports,
        build=total - phases.warmup - sampling,
        warmup=phases.warmup,
        sampling=sampling,
        cold=imports + total,
        cold_draws=options.draws,
        gradients=gradients(mcmc, options.chains),
        notes=str(mcmc.attrs.get("program", "")),
    )
    measure.report(options, measured, draws, ["pyro_ebm", "torch"])


if __name__ == "__main__":
    run(measure.parse_options(__doc__))
