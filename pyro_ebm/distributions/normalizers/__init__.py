"""Normalisers: what supplies log Z, with the right gradient."""

from pyro_ebm.distributions.normalizers.conditional_walkers import ConditionalWalkers
from pyro_ebm.distributions.normalizers.exact import Exact
from pyro_ebm.distributions.normalizers.normalizer import Normalizer
from pyro_ebm.distributions.normalizers.persistent_chains import PersistentChains
from pyro_ebm.distributions.normalizers.persistent_walkers import PersistentWalkers
from pyro_ebm.distributions.normalizers.short_run import ShortRun

__all__ = ["ConditionalWalkers", "Exact", "Normalizer", "PersistentChains", "PersistentWalkers", "ShortRun"]
