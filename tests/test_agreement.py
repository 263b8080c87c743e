"""Means and spreads of Pyro's own NUTS, on models with constraints of every kind."""

from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from models import MODELS, check_mixing, check_moments, default_dtype, moments

from pyro_ebm import MCMC, NUTS, ChEES
from pyro_ebm.infer.kernel import Kernel

CASES = {case.name: case for case in MODELS}
NAMES = ["LKJ and multivariate normal", "Dirichlet", "constrained"]


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, torch.Tensor]]:
    """Draws of Pyro's NUTS by model and site, `(1, draws, *shape)`, in float64."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in NAMES:
        with default_dtype(torch.float64):
            case = CASES[name]
            pyro.set_rng_seed(1)
            kernel = pyro.infer.NUTS(case.make())
            mcmc: Any = pyro.infer.MCMC(kernel, num_samples=250, warmup_steps=100, disable_progbar=True)
            mcmc.run(*case.arguments(), **case.keywords())
            found[name] = mcmc.get_samples(group_by_chain=True)
    return found


@pytest.mark.parametrize("kernel", [NUTS, ChEES])
@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_of_pyro(name: str, kernel: type[Kernel], reference: dict[str, Any]) -> None:
    with default_dtype(torch.float64):
        case = CASES[name]
        pyro.set_rng_seed(2)
        mcmc = MCMC(kernel(case.make()), 600, 150, num_chains=16, disable_progbar=True)
        mcmc.run(*case.arguments(), **case.keywords())
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws.keys() == reference[name].keys()
    for site, theirs in reference[name].items():
        ours = draws[site]
        moving = theirs.std((0, 1)) > 0  # a triangular factor has zeros
        ours, theirs = ours[..., moving], theirs[..., moving]
        # Tails may be so heavy that a run's own error of its variance means nothing.
        if site == "ordered":
            ours, theirs = (torch.cat([x[..., :1], x.diff().log()], -1) for x in (ours, theirs))
        elif bool((theirs > 0).all()):
            ours, theirs = ours.log(), theirs.log()
        values, errors = moments(theirs)
        check_moments(ours, *values, error=errors)
        check_mixing(ours)
