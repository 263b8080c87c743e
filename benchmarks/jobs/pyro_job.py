"""One run of Pyro's own NUTS, one chain: models as they are, plain densities by `potential_fn`."""

from __future__ import annotations

import argparse
from typing import Any

import measure
import pyro
import pyro.infer.mcmc.nuts as nuts_module
import pyro_models
import targets
import torch
from measure import Measured, Seconds, now
from pyro.infer.mcmc import MCMC, NUTS


class Watch:
    """Notes when the sampling phase begins, and counts its gradients."""

    def __init__(self) -> None:
        self.gradients = 0
        self.sampling_since: Seconds | None = None
        verlet = nuts_module.velocity_verlet

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.sampling_since is not None:
                self.gradients += 1
            return verlet(*args, **kwargs)

        nuts_module.velocity_verlet = counted

    def hook(self, warmup: int, kernel: Any, samples: Any, stage: str, i: int) -> None:
        """For Pyro's MCMC, which calls it after every transition."""
        if stage.startswith("Warmup") and i + 1 == warmup:
            self.sampling_since = now()


def run(options: argparse.Namespace) -> None:
    imports = measure.since_launch(options)
    started = now()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.set_rng_seed(options.seed)
    watch = Watch()
    model = pyro_models.model(options.target)
    initial: dict[str, Any] | None = None
    if model is not None:
        kernel, arguments = NUTS(model[0]), model[1]
    else:
        energy = pyro_models.density(options.target)
        kernel, arguments = NUTS(potential_fn=lambda values: energy(values["x"])), ()
        initial = {"x": 4 * torch.rand(targets.TARGETS[options.target].dim) - 2}
    mcmc = MCMC(
        kernel,
        num_samples=options.draws,
        warmup_steps=options.warmup,
        initial_params=initial,
        disable_progbar=True,
        hook_fn=lambda *event: watch.hook(options.warmup, *event),
    )
    mcmc.run(*arguments)
    draws = mcmc.get_samples(group_by_chain=True)
    ended = now()
    assert watch.sampling_since is not None
    measured = Measured(
        imports=imports,
        build=Seconds(),
        warmup=watch.sampling_since - started,
        sampling=ended - watch.sampling_since,
        cold=imports + (ended - started),
        cold_draws=options.draws,
        gradients=watch.gradients,
    )
    measure.report(options, measured, draws, ["pyro-ppl", "torch"])


if __name__ == "__main__":
    run(measure.parse_options(__doc__))
