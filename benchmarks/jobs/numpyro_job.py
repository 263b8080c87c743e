"""One run of NumPyro's vectorised NUTS: models as models, plain densities by `potential_fn`.

The cold run is `MCMC.run`, as a user calls it. NumPyro compiles anew in every `run`, so the sampling phase is measured
apart: the same kernel goes on from where that run ended, as one scan that is compiled ahead of its execution.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax_densities
import measure
import numpy as np
import numpyro
import numpyro.distributions as dist
import targets
from measure import Measured, Seconds, now
from numpyro.infer import MCMC, NUTS

# The measured scan takes about as long as this at the most, where the sampling of the cold run took longer.
MOST_SECONDS = 60.0


def eight_schools() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(targets.SCHOOLS_Y)):
        theta_base = numpyro.sample("theta_base", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * theta_base, targets.SCHOOLS_SIGMA), obs=targets.SCHOOLS_Y)


def logistic() -> None:
    x, y = targets.logistic_data()
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=jnp.array(x) @ beta), obs=y)


def funnel() -> None:
    numpyro.sample("v", dist.Normal(0.0, targets.FUNNEL_SCALE))
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([targets.FUNNEL_DIM - 1]).to_event(1))


MODELS: dict[str, Callable[[], None]] = {"eight_schools": eight_schools, "logistic": logistic, "funnel": funnel}


class Compilation:
    """Adds up what JAX says that it spends on tracing, lowering and compiling."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, name: str, seconds: float, **_: Any) -> None:
        if name.startswith("/jax/core/compile/"):
            self.seconds += seconds


def run(options: argparse.Namespace) -> None:
    imports = measure.since_launch(options)
    started, compilation = now(), Compilation()
    first_key, start_key = jax.random.split(jax.random.PRNGKey(options.seed))
    initial: Any = None
    if options.target in MODELS:
        kernel = NUTS(MODELS[options.target])
    else:
        log_density = jax_densities.log_density(options.target)
        kernel = NUTS(potential_fn=lambda x: -log_density(x))
        shape = (options.chains, targets.TARGETS[options.target].dim)
        initial = jax.random.uniform(start_key, shape if options.chains > 1 else shape[1:], minval=-2.0, maxval=2.0)
    mcmc = MCMC(
        kernel,
        num_warmup=options.warmup,
        num_samples=options.draws,
        num_chains=options.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(first_key, init_params=initial)
    jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    total, compiled = now() - started, compilation.seconds

    running = total.wall - compiled
    share = options.draws / (options.warmup + options.draws)
    draws = max(20, math.ceil(options.draws * min(1.0, MOST_SECONDS / (running * share))))

    def transition(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.num_steps)

    scan = jax.jit(lambda state: jax.lax.scan(transition, state, None, length=draws)[1])
    program = scan.lower(mcmc.last_state).compile()
    scan_started = now()
    z, num_steps = jax.block_until_ready(program(mcmc.last_state))
    sampling = now() - scan_started

    constrained = jax.vmap(jax.vmap(kernel.postprocess_fn((), {})))(z) if options.chains > 1 else None
    if constrained is None:
        constrained = jax.vmap(kernel.postprocess_fn((), {}))(z)
    sites = constrained if isinstance(constrained, dict) else {"x": constrained}
    by_chain = {
        name: np.swapaxes(value, 0, 1) if options.chains > 1 else np.asarray(value)[None]
        for name, value in sites.items()
    }
    steps = np.asarray(num_steps).reshape(draws, options.chains)
    whole = sampling.wall * options.draws / draws
    busy = total.cpu / total.wall
    measured = Measured(
        imports=imports,
        build=Seconds(compiled, compiled * busy),
        warmup=Seconds(max(running - whole, 0.0), max(running - whole, 0.0) * busy),
        sampling=sampling,
        cold=imports + total,
        cold_draws=options.draws,
        gradients=int(steps.max(1).sum()) * options.chains,
        notes="" if draws == options.draws else f"sampling measured on {draws} draws",
    )
    measure.report(options, measured, by_chain, ["numpyro", "jax"])


if __name__ == "__main__":
    run(measure.parse_options(__doc__))
