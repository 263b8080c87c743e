"""One run of BlackJAX, its programs compiled ahead of their execution.

* `NUTS`: window adaptation of every chain with a diagonal mass matrix, then vectorised NUTS.
* `ChEES`: first a window adaptation of NUTS in a few chains, whose diagonal mass matrix, averaged, becomes the units of
  the coordinates; then ChEES adaptation of step size and trajectory length, and jittered HMC with what it found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import jax_densities
import measure
import numpy as np
import optax
import targets
from blackjax.adaptation.base import get_filter_adapt_info_fn
from measure import Measured, Seconds, now

METRIC_CHAINS, METRIC_SHARE = 4, 0.5  # of ChEES: chains that find the metric, and their share of the warm-up
FIRST_STEP_SIZE, LEARNING_RATE = 0.5, 0.1  # the best of those tried, over these targets
JaxArray = Any


class Programs:
    """Compiles functions, and adds up how long that takes, and how long they run."""

    def __init__(self) -> None:
        self.built = self.ran = Seconds()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result."""
        started = now()
        program = jax.jit(function).lower(*args).compile()
        self.built = self.built + (now() - started)
        started = now()
        result = jax.block_until_ready(program(*args))
        self.ran = self.ran + (now() - started)
        return result


def sample(step: Callable[..., Any], state: Any, keys: JaxArray) -> tuple[Any, JaxArray, JaxArray]:
    """A scan of transitions of all chains: the last state, positions `(draws, chains, dim)`, and numbers of steps."""

    def transition(state: Any, key: JaxArray) -> tuple[Any, Any]:
        state, info = step(key, state)
        return state, (state.position, info.num_integration_steps)

    last, (positions, steps) = jax.lax.scan(transition, state, keys)
    return last, positions, steps


def window_adaptation(log_density: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """Of NUTS in every chain: from keys and positions to states, step sizes and inverse mass matrices."""
    adaptation = blackjax.window_adaptation(blackjax.nuts, log_density, adaptation_info_fn=get_filter_adapt_info_fn())

    def adapt(key: JaxArray, position: JaxArray) -> Any:
        (state, parameters), _ = adaptation.run(key, position, num_steps=steps)
        return state, parameters["step_size"], parameters["inverse_mass_matrix"]

    batched: Callable[..., Any] = jax.vmap(adapt)
    return batched


def nuts(options: argparse.Namespace, positions: JaxArray, key: JaxArray) -> tuple[Any, ...]:
    log_density, programs = jax_densities.log_density(options.target), Programs()
    adapt_key, sample_key = jax.random.split(key)
    adapt = window_adaptation(log_density, options.warmup)
    state, step_sizes, metrics = programs(adapt, jax.random.split(adapt_key, options.chains), positions)
    warmup = programs.ran
    kernel = blackjax.nuts.build_kernel()

    def step(key: JaxArray, state: Any, step_sizes: JaxArray, metrics: JaxArray) -> Any:
        keys = jax.random.split(key, options.chains)
        return jax.vmap(lambda k, s, e, m: kernel(k, s, log_density, e, m))(keys, state, step_sizes, metrics)

    def draw(state: Any, step_sizes: JaxArray, metrics: JaxArray, keys: JaxArray) -> Any:
        return sample(lambda key, state: step(key, state, step_sizes, metrics), state, keys)[1:]

    keys = jax.random.split(sample_key, options.draws)
    draws, steps = programs(draw, state, step_sizes, metrics, keys)
    return draws, steps, programs.built, warmup, programs.ran - warmup


def chees(options: argparse.Namespace, positions: JaxArray, key: JaxArray) -> tuple[Any, ...]:
    log_density, programs = jax_densities.log_density(options.target), Programs()
    metric_key, adapt_key, sample_key = jax.random.split(key, 3)
    metric_steps = int(METRIC_SHARE * options.warmup)
    adapt_metric = window_adaptation(log_density, metric_steps)
    metric_keys = jax.random.split(metric_key, METRIC_CHAINS)
    _, _, metrics = programs(adapt_metric, metric_keys, positions[:METRIC_CHAINS])
    scale = jnp.sqrt(metrics.mean(0))

    def whitened(q: JaxArray) -> JaxArray:
        return log_density(scale * q)

    adaptation = blackjax.chees_adaptation(whitened, options.chains, adaptation_info_fn=get_filter_adapt_info_fn())

    numbers: dict[str, Any] = {}  # what of the parameters is no array

    def adapt(key: JaxArray, positions: JaxArray) -> Any:
        (state, parameters), _ = adaptation.run(
            key, positions, FIRST_STEP_SIZE, optax.adam(LEARNING_RATE), options.warmup - metric_steps,
            max_sampling_steps=options.draws,
        )  # fmt: skip
        numbers.update({name: parameters.pop(name) for name in ("next_random_arg_fn", "integration_steps_fn")})
        return state, parameters

    state, parameters = programs(adapt, adapt_key, positions / scale)
    warmup = programs.ran
    kernel = blackjax.dynamic_hmc.build_kernel(**numbers)

    def draw(state: Any, parameters: Any, keys: JaxArray) -> Any:
        def step(key: JaxArray, state: Any) -> Any:
            split = jax.random.split(key, options.chains)
            return jax.vmap(lambda k, s: kernel(k, s, whitened, **parameters))(split, state)

        _, positions, steps = sample(step, state, keys)
        return positions * scale, steps

    draws, steps = programs(draw, state, parameters, jax.random.split(sample_key, options.draws))
    return draws, steps, programs.built, warmup, programs.ran - warmup


def run(options: argparse.Namespace) -> None:
    imports = measure.since_launch(options)
    started = now()
    start_key, key = jax.random.split(jax.random.PRNGKey(options.seed))
    shape = (options.chains, targets.TARGETS[options.target].dim)
    positions = jax.random.uniform(start_key, shape, minval=-2.0, maxval=2.0)
    sampler = {"NUTS": nuts, "ChEES": chees}[options.sampler]
    draws, steps, _, warmup, sampling = sampler(options, positions, key)
    total = now() - started
    measured = Measured(
        imports=imports,
        build=total - warmup - sampling,
        warmup=warmup,
        sampling=sampling,
        cold=imports + total,
        cold_draws=options.draws,
        gradients=int(np.asarray(steps).max(1).sum()) * options.chains,
    )
    sites = jax_densities.sites(options.target, jnp.swapaxes(draws, 0, 1))
    measure.report(options, measured, sites, ["blackjax", "jax"])


if __name__ == "__main__":
    run(measure.parse_options(__doc__))
