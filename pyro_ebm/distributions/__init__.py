"""The seam to Pyro's distributions: energies as distributions and as factors."""

from pyro_ebm.distributions.energy_distribution import EnergyDistribution, Normalizer, Sampler
from pyro_ebm.distributions.factor import factor

__all__ = ["EnergyDistribution", "Normalizer", "Sampler", "factor"]
