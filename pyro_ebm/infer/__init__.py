"""The seam to Pyro's models: batched inference for any of them, in Pyro's own words."""

from pyro_ebm.infer.anneal import Annealed, anneal
from pyro_ebm.infer.arviz import to_arviz
from pyro_ebm.infer.barker import Barker
from pyro_ebm.infer.chees import ChEES
from pyro_ebm.infer.discrete_langevin import DiscreteLangevin
from pyro_ebm.infer.elliptical_slice import EllipticalSlice
from pyro_ebm.infer.exchange import Exchange
from pyro_ebm.infer.fit import Fit, fit
from pyro_ebm.infer.fit_prior import fit_prior
from pyro_ebm.infer.gibbs import Gibbs
from pyro_ebm.infer.gibbs_with_gradients import GibbsWithGradients
from pyro_ebm.infer.hmc import HMC
from pyro_ebm.infer.langevin import MALA, Langevin
from pyro_ebm.infer.mcmc import MCMC
from pyro_ebm.infer.microcanonical import MCLMC, AdjustedMCLMC
from pyro_ebm.infer.mixed import Mixed
from pyro_ebm.infer.monte_carlo_em import MonteCarloEM
from pyro_ebm.infer.noise_to_data import sample_annealed, sample_recovery
from pyro_ebm.infer.nuts import NUTS
from pyro_ebm.infer.pathfinder import init_to_pathfinder
from pyro_ebm.infer.random_walk import RandomWalk
from pyro_ebm.infer.renewal import Renewal
from pyro_ebm.infer.sgld import SGLD
from pyro_ebm.infer.swendsen_wang import SwendsenWang
from pyro_ebm.infer.underdamped import UnderdampedLangevin

__all__ = [
    "AdjustedMCLMC",
    "Annealed",
    "Barker",
    "ChEES",
    "DiscreteLangevin",
    "EllipticalSlice",
    "Exchange",
    "Fit",
    "Gibbs",
    "GibbsWithGradients",
    "HMC",
    "Langevin",
    "MALA",
    "MCLMC",
    "MCMC",
    "Mixed",
    "MonteCarloEM",
    "NUTS",
    "RandomWalk",
    "Renewal",
    "SGLD",
    "SwendsenWang",
    "UnderdampedLangevin",
    "anneal",
    "fit",
    "fit_prior",
    "init_to_pathfinder",
    "sample_annealed",
    "sample_recovery",
    "to_arviz",
]
