"""The seam to Pyro's models: batched inference for any of them, in Pyro's own words."""

from pyro_ebm.infer.arviz import to_arviz
from pyro_ebm.infer.chees import ChEES
from pyro_ebm.infer.hmc import HMC
from pyro_ebm.infer.langevin import MALA, Langevin
from pyro_ebm.infer.mcmc import MCMC
from pyro_ebm.infer.nuts import NUTS

__all__ = ["ChEES", "HMC", "MALA", "MCMC", "NUTS", "Langevin", "to_arviz"]
