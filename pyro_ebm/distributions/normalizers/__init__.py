"""Normalisers: what supplies log Z, with the right gradient."""

from pyro_ebm.distributions.normalizers.exact import Exact
from pyro_ebm.distributions.normalizers.normalizer import Normalizer
from pyro_ebm.distributions.normalizers.persistent_walkers import PersistentWalkers

__all__ = ["Exact", "Normalizer", "PersistentWalkers"]
