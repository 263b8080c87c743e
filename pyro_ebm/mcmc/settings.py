"""The settings of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyro_ebm.mcmc.covariance import MetricEstimator
from pyro_ebm.mcmc.metric import Metric
from pyro_ebm.mcmc.minibatch import Subsample

Compile = Literal["no", "fast", "yes"]


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and what adapts.

    Attributes:
        num_samples: draws of each chain.
        warmup_steps: transitions of each chain before them, at the least.
        step_size: the first leapfrog step size, in units of the metric.
        adapt_step_size: whether it adapts.
        adapt_metric: whether the metric adapts.
        metric: the first metric; by default the identity.
        estimator: what the metric is learned by, without draws; by default the variance of each dim.
        save_warmup: whether to keep the draws of the warm-up.
        thinning: of so many transitions after the warm-up, one is kept.
        compile: whether ticks are compiled: `"no"`; `"fast"`, if a fast compiler can; `"yes"`, however long it takes.
        subsamples: what the log density takes minibatches of, anew in every tick.
        folder: where draws are kept on disk; by default they are kept in memory.
    """

    num_samples: int
    warmup_steps: int
    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_metric: bool = True
    metric: Metric | None = None
    estimator: MetricEstimator | None = None
    save_warmup: bool = False
    thinning: int = 1
    compile: Compile = "no"
    subsamples: tuple[Subsample, ...] = ()
    folder: Path | None = None
