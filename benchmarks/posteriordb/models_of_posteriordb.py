"""Posteriors of posteriordb as Pyro models: ordinary ones, written for one chain, and batched by `pyro_ebm.MCMC`.

Each model has the density of the Stan program of the same name, up to a constant: the same priors, flat ones where the
program declares none, and the same constraints, declared as supports. What a program transforms of its data is made in
`Posterior.arguments`. Sites with a flat prior take torch's default dtype: set it to `torch.float64` before a run.

All posteriors that have reference draws are here, but for `mcycle_gp-accel_gp`.

References:
    Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari 2025, posteriordb: testing, benchmarking and developing
    Bayesian inference algorithms.
"""

from __future__ import annotations

from dynamics import DYNAMICS
from gaussian_processes import GAUSSIAN_PROCESSES
from hidden_states import HIDDEN_STATES
from hierarchies import HIERARCHIES
from posterior import Posterior
from regressions import REGRESSIONS
from time_series import TIME_SERIES

POSTERIORS: dict[str, Posterior] = {
    **REGRESSIONS,
    **TIME_SERIES,
    **HIERARCHIES,
    **GAUSSIAN_PROCESSES,
    **HIDDEN_STATES,
    **DYNAMICS,
}
